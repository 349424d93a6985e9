"""Emoji from npm's package, or from a folder that holds its .tgz."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from bigjax.core.errors import UserError
from bigjax.data.builders import ArraysBuilder, every_fifth, prepare
from bigjax.data.sources import TFDS, default_data_dir
from scripts.fetch.packages import Package, member, members, obtain, workspace

SIDE = 64  # pixels
CATEGORIES = (
    "Smileys & Emotion",
    "People & Body",
    "Component",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
PACKAGE = Package(
    registry="npm",
    name="emoji-datasource-google",
    version="16.0.0",
    file="emoji-datasource-google-16.0.0.tgz",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
PICTURES = f"package/img/google/{SIDE}/"


class Emoji(ArraysBuilder, skip_registration=True):
    """Google's emoji, 64x64 RGB on white, with their Unicode category; every fifth is test.

    The fifths are counted in Unicode's order within each category. It lists what looks alike side by
    side (a man, a woman, a person running), so that most test pictures have a relative in training.

    columns: image uint8 (N, 64, 64, 3) and label int64 (N,), a place in `CATEGORIES`.
    order: int (N,), the rows in Unicode's order.
    """

    name = "bigjax_emoji"
    about = "Noto emoji by Google, as npm's emoji-datasource-google 16.0.0 carries them."

    def __init__(
        self,
        *,
        columns: dict[str, np.ndarray] | None = None,
        order: np.ndarray | None = None,
        **kwargs,
    ):
        self._columns, self._order = columns, order
        super().__init__(**kwargs)

    def feature_dict(self) -> dict:
        return {
            "image": tfds.features.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=list(CATEGORIES)),
        }

    def splits(self) -> dict[str, dict[str, np.ndarray]]:
        if self._columns is None:
            raise UserError("emoji is not here yet: run scripts/fetch_data emoji")
        by_category = np.argsort(self._columns["label"][self._order], kind="stable")
        return every_fifth(self._columns, self._order[by_category])


def fetch(folder: str | None, data_dir: str | None) -> str:
    """Prepares it unless it is there, and says what is."""
    root = Path(default_data_dir(data_dir))
    if not (root / Emoji.name / str(Emoji.VERSION)).exists():
        with workspace(root) as private:
            columns, order = read_package(obtain(PACKAGE, private, folder))
        prepare(Emoji, root, columns=columns, order=order)
    return f"{len(TFDS('emoji', data_dir=data_dir).open('train'))} to train"


def read_package(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns and the order that `Emoji` takes; UserError if the package lacks a picture."""
    entries = json.loads(member(path, "package/emoji.json"))
    pictures = {name.removeprefix(PICTURES): png for name, png in members(path, f"{PICTURES}*.png")}
    missing = [entry["image"] for entry in entries if entry["image"] not in pictures]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} pictures, such as {missing[0]}")
    columns = {
        "image": np.stack([on_white(pictures[entry["image"]]) for entry in entries]),
        "label": np.array([CATEGORIES.index(entry["category"]) for entry in entries]),
    }
    return columns, np.argsort([entry["sort_order"] for entry in entries], kind="stable")


def on_white(png: bytes) -> np.ndarray:
    """A picture with transparency, pasted on white: uint8 (64, 64, 3)."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if picture.size != (SIDE, SIDE):
        width, height = picture.size
        raise UserError(f"an emoji of {width}x{height} pixels, not {SIDE}x{SIDE}")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
