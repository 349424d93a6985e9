"""Emoji from npm's package, or from a folder that holds its .tgz."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data import builders
from bigjax.data.emoji import CATEGORIES, SIDE, Emoji
from bigjax.data.sources import TFDS, default_data_dir
from scripts.fetch.packages import Package, member, members, obtain, workspace

PACKAGE = Package(
    registry="npm",
    name="emoji-datasource-google",
    version="16.0.0",
    file="emoji-datasource-google-16.0.0.tgz",
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)
PICTURES = f"package/img/google/{SIDE}/"


def fetch(folder: str | None, data_dir: str | None) -> str:
    """Prepares it unless it is there, and says what is."""
    root = Path(default_data_dir(data_dir))
    if not (root / Emoji.name / str(Emoji.VERSION)).exists():
        with workspace(root) as private:
            columns, order = read_package(obtain(PACKAGE, private, folder))
        builders.prepare(Emoji, root, columns=columns, order=order)
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
