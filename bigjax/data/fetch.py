"""`scripts/fetch_data NAME`: brings a data set under the data dir, the only code here that downloads.

On Debian and Ubuntu the files come by the package manager; elsewhere `--from` names a folder that
holds them. Nothing of a package is executed, and every file is checked before it is used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bigjax.data import builders
from bigjax.data.sources import TFDS, default_data_dir
from bigjax.errors import UserError

FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def main(arguments: list[str]) -> int:
    """Fetches and prepares one data set; returns the exit code: 0 done, 2 the input is wrong."""
    parser = _Parser(prog="scripts/fetch_data", description="Downloads and prepares a data set.")
    parser.add_argument("name", choices=list(builders.FETCHED))
    parser.add_argument("--from", dest="folder", help="folder with the four IDX .gz files")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    try:
        options = parser.parse_args(arguments)
        fetch_fashion_mnist(options.folder, options.data_dir)
        source = TFDS(options.name, data_dir=options.data_dir).open("train")
    except UserError as error:
        print(f"fetch_data: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.name}: ready under {default_data_dir(options.data_dir)}, {len(source)} to train"
    )
    return 0


def fetch_fashion_mnist(folder: str | None, data_dir: str | None) -> None:
    """Prepares bigjax_fashion_mnist from `folder`, or from Debian's package; once is enough."""
    root = Path(default_data_dir(data_dir))
    builder = builders.FashionMnist
    if (root / builder.name / str(builder.VERSION)).exists():
        return
    idx_dir = Path(folder).expanduser() if folder else _from_debian(root / "downloads")
    missing = [name for name in builders.FASHION_MNIST_FILES if not (idx_dir / name).exists()]
    if missing:
        raise UserError(f"{idx_dir} lacks {', '.join(missing)}")
    builders.prepare(builder, root, idx_dir=idx_dir)


def _from_debian(downloads: Path) -> Path:
    """Returns the folder of the IDX files, downloaded into `downloads` unless they are there."""
    final = downloads / FASHION_MNIST_PACKAGE
    if final.exists():
        return final
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise UserError("this is no Debian or Ubuntu: name the folder of the IDX files with --from")
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=".fetch.", dir=downloads))
    except OSError as error:
        raise UserError(f"cannot write {downloads}: {error.strerror}") from None
    try:
        _run(["apt-get", "download", FASHION_MNIST_PACKAGE], private)
        package = next(private.glob("*.deb"))
        _run(["dpkg", "-x", str(package), "unpacked"], private)
        found = next(private.glob("unpacked/**/train-images-idx3-ubyte.gz"), None)
        if found is None:
            raise UserError(f"{package.name} holds no IDX files")
        try:
            os.rename(found.parent, final)
        except OSError:
            if not final.exists():  # unless another process was first
                raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return final


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(
            f"`{' '.join(command)}` failed: {reason} (is `apt-get update` due? or use --from)"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
