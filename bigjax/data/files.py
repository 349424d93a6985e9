"""Data sets that are files in a folder: `train.npz` or `train.csv` is the split "train".

Both are read whole into memory. Sub-splits follow TFDS: `train[:90%]`, `train[100:200]`,
`train[-50:]`. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.sources import Arrays

_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclasses.dataclass(frozen=True)
class NPZ:
    """`DIRECTORY/SPLIT.npz`, arrays of equal length; `class_names` names the classes of "label"."""

    directory: str
    class_names: Sequence[str] = ()

    def open(self, split: str) -> Arrays:
        """Opens a split or sub-split; raises UserError for a bad file, array or split."""
        return _open(self.directory, ".npz", split, read_npz, self.class_names)


@dataclasses.dataclass(frozen=True)
class CSV:
    """`DIRECTORY/SPLIT.csv`: a header row, then numbers.

    The column `label` becomes "label", int32 if every cell is written as an integer, else float32;
    the others, in order, become "features" float32 (F,).
    """

    directory: str
    label: str = "label"
    class_names: Sequence[str] = ()

    def open(self, split: str) -> Arrays:
        """Opens a split or sub-split; raises UserError naming file, row and column of a bad cell."""

        def read(path: Path) -> dict[str, np.ndarray]:
            return read_csv(path, self.label)

        return _open(self.directory, ".csv", split, read, self.class_names)


def subsplit(split: str, length: Callable[[str], int]) -> tuple[str, slice]:
    """Parses "train", "train[:90%]" or "train[100:200]".

    Percentages round to the nearest row (halves to the even one), as in TFDS, so that `[:90%]` and
    `[90%:]` share no row and miss none.

    Args:
      split: what to parse.
      length: split name -> number of its examples.

    Returns:
      (name, slice of its rows).

    Raises:
      UserError: it cannot be parsed, reaches beyond the split, or holds no row.
    """
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise UserError(f"split {split!r} should read like train, train[:90%] or train[100:200]")
    total = length(match["name"])

    def row(bound: str | None, default: int) -> int:
        if bound is None:
            return default
        limit = 100 if bound.endswith("%") else total
        number = int(bound.rstrip("%"))
        if abs(number) > limit:
            raise UserError(f"split {split!r}: {bound} is beyond its {total} examples")
        if bound.endswith("%"):
            number = round(number * total / 100)
        return number + total if bound.startswith("-") else number

    start, stop = row(match["start"], 0), row(match["stop"], total)
    if start >= stop:
        raise UserError(f"split {split!r} has no examples (of {total})")
    return match["name"], slice(start, stop)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Reads every array of an .npz file; raises UserError if it is none or holds objects."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_csv(path: Path, label: str) -> dict[str, np.ndarray]:
    """Reads a table of numbers: {"features": float32 (N, F), "label": int32 or float32 (N,)}."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if label not in header:
        raise UserError(
            f"{path} has no column {label!r}{did_you_mean(label, header)}; "
            f"it has {', '.join(header) or 'none'}"
        )
    table = np.empty((len(rows), len(header)))
    for number, row in enumerate(rows, start=2):  # the header is row 1
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: {len(row)} cells under {len(header)} columns")
        for column, cell in enumerate(row):
            try:
                table[number - 2, column] = float(cell)
            except ValueError:
                table[number - 2, column] = math.nan
            if not math.isfinite(table[number - 2, column]):
                raise UserError(
                    f"{path}, row {number}, column {header[column]!r}: {cell!r} is not a number"
                )
    at = header.index(label)
    integers = all(re.fullmatch(r"\s*[+-]?\d+\s*", row[at]) for row in rows)
    return {
        "features": np.delete(table, at, axis=1).astype(np.float32),
        "label": table[:, at].astype(np.int32 if integers else np.float32),
    }


def _open(
    directory: str,
    suffix: str,
    split: str,
    read: Callable[[Path], dict[str, np.ndarray]],
    class_names: Sequence[str],
) -> Arrays:
    folder = Path(directory).expanduser()
    columns: dict[str, np.ndarray] = {}

    def length(name: str) -> int:
        path = folder / f"{name}{suffix}"
        if not path.exists():
            here = sorted(p.stem for p in folder.glob(f"*{suffix}"))
            raise UserError(
                f"{path} does not exist{did_you_mean(name, here)}; "
                f"splits there: {', '.join(here) or 'none'}"
            )
        columns.update(read(path))
        try:
            return len(Arrays(columns))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    _, rows = subsplit(split, length)
    return Arrays({key: column[rows] for key, column in columns.items()}, class_names)
