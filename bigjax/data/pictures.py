"""Pictures: any file that Pillow reads becomes uint8 (H, W, C); folders of classes as a source.

Training and predict decode by the same function: turned as its EXIF says, the first frame of an
animation, transparency on white, 16 bits to 8 by dividing, then to grey or colour, then resized.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError, did_you_mean, first_line
from bigjax.data.handed import Inputs, good_files
from bigjax.data.sources import Arrays, Features, Source
from bigjax.data.splits import subsplit

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# As a rule not read by Pillow: told, not passed over.
NOT_PICTURES = (".avif", ".heic", ".heif", ".jp2", ".psd", ".svg")
SPLITS = re.compile("train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval", re.IGNORECASE)
GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ORIENTATION, _ON_THE_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF


class BadPicture(Exception):
    """What is wrong with a picture; not where it is."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What pictures become: uint8 (height, width, channels)."""

    height: int
    width: int
    channels: int


def decode(file: Path | bytes, shape: Shape) -> np.ndarray:
    """A picture as uint8 (H, W, C); raises BadPicture."""
    from PIL import Image, ImageOps

    with _opened(file) as picture:
        picture = _eight_bits(ImageOps.exif_transpose(picture))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
        picture = picture.convert("L" if shape.channels == 1 else "RGB")
        if picture.size != (shape.width, shape.height):
            picture = picture.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
        return np.asarray(picture).reshape(shape.height, shape.width, shape.channels)


def header(file: Path | bytes) -> Shape:
    """The size of a picture and 1 or 3 channels, from its first bytes; raises BadPicture."""
    with _opened(file) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION) in _ON_THE_SIDE:
            width, height = height, width
        return Shape(height, width, 1 if picture.mode in GREY else 3)


def common_shape(headers: Iterator[tuple[str, Shape]], size: Sequence[int] | None) -> Shape:
    """The shape that pictures (where they are, their header) share, or that `size` gives them.

    Three channels if any is in colour. Raises UserError naming two that differ, where no size is given.
    """
    first, channels = None, 1
    for where, shape in headers:
        channels = max(channels, shape.channels)
        first = first or (where, shape)
        if size is None and (shape.height, shape.width) != (first[1].height, first[1].width):
            raise UserError(
                f"{where} is {shape.height}x{shape.width} (height x width), {first[0]} "
                f"{first[1].height}x{first[1].width}: give a size=(height, width) to resize all to"
            )
    if size is None:
        return Shape(first[1].height, first[1].width, channels)
    return Shape(*size, channels)


def check_size(size: Sequence[int] | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UserError(f"size: give (height, width) in pixels, not {tuple(size)}")


class Pictures:
    """A Source of picture files: "image" uint8 (H, W, C), "label" int32 () if there are classes.

    Each read decodes its files, in the thread that reads.
    """

    def __init__(
        self, files: Sequence[Path], shape: Shape, labels: np.ndarray | None, names: Sequence[str]
    ):
        self.files, self.shape, self._labels = files, shape, labels
        self.class_names = tuple(names) or None
        self.num_classes = len(names) or None
        size = (shape.height, shape.width, shape.channels)
        self.fitted = {"shape": list(size)}
        self.features: Features = {"image": (size, np.dtype(np.uint8))}
        if labels is not None:
            self.features["label"] = ((), np.dtype(np.int32))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        columns = {"image": np.stack([self._decode(self.files[i]) for i in ids])}
        return columns if self._labels is None else {**columns, "label": self._labels[ids]}

    def column(self, key: str) -> np.ndarray:
        """The labels: all that is known without decoding."""
        return self._labels

    def fingerprint(self) -> str:
        """Of names and sizes, as reading every byte of a large set would take hours."""
        digest = hashlib.sha256(f"{self.features} {self.class_names}".encode())
        for i, file in enumerate(self.files):
            label = None if self._labels is None else self._labels[i]
            digest.update(f"{file.name}:{file.stat().st_size}:{label};".encode())
        return digest.hexdigest()

    def read_inputs(self, path: Path) -> Inputs:
        """The pictures of a folder and its folders, or one picture."""
        return read_pictures(path, self.shape)

    def _decode(self, file: Path) -> np.ndarray:
        try:
            return decode(file, self.shape)
        except BadPicture as error:
            raise UserError(f"{file}: {error}") from None


def read_pictures(path: Path, shape: Shape) -> Inputs:
    """Every picture of a folder and its folders, or one file; those that cannot be decoded are told.

    Each is decoded once to know that it can be, and again when it is read, so that a folder larger
    than memory is read too.
    """
    files = list(_pictures_below(path)) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--input={path}: holds no picture ({', '.join(PICTURES)})")
    good, problems = good_files(path, files, lambda file: _reason(file, shape))
    return Inputs(Pictures(list(good.values()), shape, None, ()), list(good), problems)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures by class: DIRECTORY/SPLIT/CLASS/*.png, or DIRECTORY/CLASS/*.png, which is "train".

    Classes are the folders of the train split, sorted. Pictures stand in an order that only their
    names decide and that mixes the classes, so that train[:90%] has them all. Given are "image" uint8
    (H, W, C), grey if all of train is, and "label" int32.

    Attributes:
      directory: where the pictures are; a folder "train" in it means that its folders are splits.
      size: (height, width) that all are resized to; needed unless they are of one size.
      cache_mb: MiB of decoded pictures to hold in memory; what is larger is decoded at each read.
    """

    directory: str
    size: tuple[int, int] | None = None
    cache_mb: int = 1024

    def __post_init__(self):
        check_size(self.size)

    def open(self, split: str) -> Source:
        """Opens a split; classes and size are those of the split "train"."""
        return self.fit("train").open(split)

    def fit(self, split: str) -> FittedFolder:
        """Takes the classes, size and channels from a split.

        Raises:
          UserError: a class without a picture, a folder that reads like a split's among the classes.
        """
        files, classes = self.select(split)
        _check_classes(Path(os.path.expanduser(self.directory)))
        headers = zip(map(str, files), _each(_header, files), strict=True)
        return FittedFolder(self, tuple(sorted(set(classes))), common_shape(headers, self.size))

    def select(self, split: str) -> tuple[list[Path], list[str]]:
        """The files of a split in their order, and the class of each."""
        top = Path(os.path.expanduser(self.directory))
        if not top.is_dir():
            raise UserError(f"config.data.source.directory: there is no folder {top}")
        found: list[Path] = []
        roots: list[Path] = []

        def length(name: str) -> int:
            roots.append(self._root(top, name))
            below = [f for f in _pictures_below(roots[0]) if f.parent != roots[0]]
            found.extend(sorted(below, key=lambda file: _place(file, roots[0])))
            if not found:
                raise UserError(f"{roots[0]} holds no folder of pictures: one for each class")
            return len(found)

        _, rows = subsplit(split, length)
        files = found[rows]
        return files, [file.relative_to(roots[0]).parts[0] for file in files]

    def _root(self, top: Path, name: str) -> Path:
        splits = ["train"]
        if (top / "train").is_dir():
            splits = sorted(folder.name for folder in top.iterdir() if folder.is_dir())
        if name not in splits:
            raise UserError(
                f"{top} has no split {name!r}{did_you_mean(name, splits)}; it has {', '.join(splits)}"
            )
        return top / name if (top / "train").is_dir() else top


@dataclasses.dataclass(frozen=True)
class FittedFolder:
    """A Folder with the classes and the shape of its train split."""

    folder: Folder
    classes: tuple[str, ...]
    shape: Shape

    def open(self, split: str) -> Source:
        """Opens a split.

        Raises:
          UserError: a class that train has not; a file that is no picture.
        """
        files, classes = self.folder.select(split)
        number = {name: i for i, name in enumerate(self.classes)}
        for file, name in zip(files, classes, strict=True):
            if name not in number:
                raise UserError(
                    f"{file}: class {name!r} is not in train{did_you_mean(name, number)}; "
                    f"it has {', '.join(self.classes[:10])}"
                )
        labels = np.array([number[name] for name in classes], np.int32)
        source = Pictures(files, self.shape, labels, self.classes)
        size = self.shape.height * self.shape.width * self.shape.channels
        if len(files) * size > self.folder.cache_mb * 2**20:
            _each(_header, files)  # what is no picture at all is told now
            return source
        return CachedPictures(source)


def _check_classes(top: Path) -> None:
    """Every folder of train is meant as a class: none is empty, nor a split whose train is missing."""
    train = top / "train"
    for folder in filter(Path.is_dir, sorted((train if train.is_dir() else top).iterdir())):
        if folder.parent == top and SPLITS.fullmatch(folder.name):
            raise UserError(
                f"{folder} would be a class; if it is a split, call the one to be trained on {train}"
            )
        if not _is_hidden(folder.name) and next(_pictures_below(folder), None) is None:
            raise UserError(f"{folder} holds no picture ({', '.join(PICTURES)})")


class CachedPictures(Arrays):
    """Pictures decoded once, held in memory."""

    def __init__(self, source: Pictures):
        images = np.stack(_each(source._decode, source.files))
        labels = {} if source._labels is None else {"label": source._labels}
        super().__init__({"image": images, **labels}, source.class_names)
        self.read_inputs, self.fitted = source.read_inputs, source.fitted


def _pictures_below(folder: Path) -> Iterator[Path]:
    """Picture files in a folder and its folders, sorted, none that is hidden; a folder may be a link."""
    inside = (inner.rglob("*") if inner.is_dir() else [inner] for inner in folder.iterdir())
    for file in sorted(itertools.chain.from_iterable(inside)):
        hidden = any(map(_is_hidden, file.relative_to(folder).parts))
        if file.suffix.lower() in (*PICTURES, *NOT_PICTURES) and not hidden and file.is_file():
            yield file


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _place(file: Path, root: Path) -> bytes:
    return hashlib.sha256(str(file.relative_to(root).as_posix()).encode()).digest()


def _header(file: Path) -> Shape:
    try:
        return header(file)
    except BadPicture as error:
        raise UserError(f"{file}: {error}") from None


def _reason(file: Path, shape: Shape) -> str:
    try:
        decode(file, shape)
    except BadPicture as error:
        return str(error)
    return ""


def _each(function: Callable, files: Sequence[Path]) -> list:
    """function(file) of all, in threads: Pillow decodes outside Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, files))


def _eight_bits(picture):
    """Pillow clips deeper pictures when it converts them: here 16 bits are divided by 257."""
    from PIL import Image

    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    if picture.mode == "F":
        raise BadPicture(
            "its pixels are floating-point numbers; what is black and white is not said"
        )
    deep = np.asarray(picture, np.int64)
    if deep.min() < 0 or deep.max() > 65535:
        raise BadPicture("its pixels have more than 16 bits")
    return Image.fromarray(np.round(deep / 257).astype(np.uint8))


@contextlib.contextmanager
def _opened(file: Path | bytes) -> Iterator[Any]:
    """An open picture; what Pillow raises at a bad one, of many kinds, becomes a BadPicture."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            yield picture
    except BadPicture:
        raise
    except Exception as error:
        reason = first_line(error)
        reason = "of no known format" if "cannot identify" in reason else reason
        raise BadPicture(f"not a readable picture ({reason})") from None
