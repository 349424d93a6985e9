"""Examples that a user hands to `predict`: npz, csv, or a folder of pictures.

Rows that cannot be read are told by number, and the rest goes on. Touches no device.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.sources import Arrays

PICTURES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Rows:
    """What was read: a source of good rows, their numbers (or file names), and the problems."""

    source: Arrays
    numbers: list[int | str]
    problems: list[str]


def read(path: Path, train_source: Any, key: str | Sequence[str]) -> Rows:
    """Reads `path` as examples of the feature that the model takes.

    Args:
      path: an .npz with an array named `key` (or only one array), a .csv with one number a column
        (a header line is allowed), a folder of png/jpg files; for a model of text, a .txt with one
        text a line.
      train_source: the train split; its features say the shape, and its `encode` tokenizes text.
      key: the model's input, e.g. "image".

    Raises:
      UserError: nothing there can be read.
    """
    features = train_source.features
    if path.exists() and hasattr(train_source, "encode"):
        return _text(path, train_source)
    if not isinstance(key, str):
        raise UserError(f"config.task.input: predict needs one input, not {', '.join(key)}")
    if key not in features:
        raise UserError(
            f"config.task.input: the data has no feature '{key}'{did_you_mean(key, features)}"
        )
    shape, dtype = features[key]
    if not path.exists():
        raise UserError(f"--input={path}: no such file or folder")
    if path.is_dir():
        found = _pictures(path, shape)
    elif path.suffix == ".npz":
        found = _npz(path, key)
    elif path.suffix == ".csv":
        found = _csv(path)
    else:
        raise UserError(f"--input={path}: give .npz, .csv, or a folder of png/jpg files")
    good, numbers, problems = [], [], []
    for number, value in found:
        problem = value if isinstance(value, str) else _misfit(value, shape)
        if problem:
            problems.append(f"row {number}: {problem}; left out")
        else:
            good.append(value.reshape(shape).astype(dtype))
            numbers.append(number)
    others = {
        name: np.zeros((len(good), *s), d) for name, (s, d) in features.items() if name != key
    }
    rows = np.stack(good) if good else np.zeros((0, *shape), dtype)
    return Rows(Arrays({key: rows, **others}), numbers, problems)


def _text(path: Path, train_source: Any) -> Rows:
    """The lines of a text file that are not empty, as the source tokenizes its own."""
    lines = read_lines(path, f"--input={path}")
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    if not numbers:
        raise UserError(f"--input={path}: holds no text")
    problems = [f"row {n}: empty; left out" for n in range(len(lines)) if not lines[n].strip()]
    columns = train_source.encode([lines[number] for number in numbers])
    others = {
        name: np.zeros((len(numbers), *shape), dtype)
        for name, (shape, dtype) in train_source.features.items()
    }
    return Rows(Arrays({**others, **columns}), numbers, problems)


def read_lines(path: Path, where: str) -> list[str]:
    """The lines of a .txt file; raises UserError, naming `where`, for any other or unreadable file."""
    if path.suffix != ".txt":
        raise UserError(f"{where}: this model reads text: give a .txt, one text a line")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not readable UTF-8 text ({error})") from None


def json_rows(
    predicted: dict[str, Any], class_names: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    """One JSON-able dict for every row of a batch of predictions."""
    for row in range(len(next(iter(predicted.values())))):
        line = {name: _plain(values[row]) for name, values in predicted.items()}
        if class_names and isinstance(line.get("class"), int):
            line["name"] = class_names[line["class"]]
        yield line


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist() if hasattr(value, "dtype") else value


def _misfit(value: np.ndarray, shape: tuple[int, ...]) -> str:
    if value.size != int(np.prod(shape)):
        return f"has shape {value.shape}, the model takes {shape}"
    if not np.isfinite(value).all():
        return "holds a value that is not finite"
    return ""


def _npz(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            if key not in names and len(names) != 1:
                raise UserError(f"{path}: holds {', '.join(names)}; needs an array named '{key}'")
            values = arrays[key if key in names else names[0]]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable npz ({error})") from None
    if values.ndim < 1 or not np.issubdtype(values.dtype, np.number):
        raise UserError(f"{path}: needs an array of numbers with a leading axis of rows")
    yield from enumerate(values)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with open(path, newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable csv ({error})") from None
    first = 1 if lines and not any(_is_number(cell) for cell in lines[0]) else 0
    for number, line in enumerate(lines[first:]):
        bad = [column for column, cell in enumerate(line) if not _is_number(cell)]
        if bad:
            yield number, f"column {bad[0] + 1}: '{line[bad[0]]}' is not a number"
        else:
            yield number, np.array([float(cell) for cell in line])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _pictures(path: Path, shape: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    from PIL import Image

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise UserError(f"--input={path}: holds no png or jpg file")
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise UserError(f"--input={path}: the model takes {shape}, not pictures")
    height, width, channels = shape
    for file in files:
        try:
            with Image.open(file) as picture:
                mode = "L" if channels == 1 else "RGB"
                fitted = picture.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
                yield file.name, np.asarray(fitted)
        except (OSError, ValueError) as error:
            yield file.name, f"not a readable picture ({error})"
