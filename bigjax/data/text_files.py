"""Where texts come from: files of rows, sets that scripts/fetch_data brought, TFDS sets.

A `Corpus` yields rows, dicts of what a file holds, each with the place it came from; every complaint
names file and line. Nothing here knows of tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.files import TEXTS, UNITS, Row, class_names, read_rows
from bigjax.data.sources import TFDS, default_data_dir
from bigjax.data.splits import files_of, find_splits

TOGETHER = 8192  # examples of a TFDS set that are read together


class _Splits:
    """What both kinds of corpus have."""

    def shards(self, split: str) -> list[Callable[[], Iterator[Row]]]:
        """Functions that read a split, a part each; UserError at the first bad row."""
        raise NotImplementedError

    def rows(self, split: str) -> Iterator[Row]:
        """All of a split, in order."""
        for shard in self.shards(split):
            yield from shard()


@dataclasses.dataclass(frozen=True)
class Corpus(_Splits):
    """Splits that are files.

    Attributes:
      name: how messages call it.
      files: split -> its files, all of one suffix.
      unit: what one row of a .txt is: "file", "paragraph" (between blank lines) or "line".
    """

    name: str
    files: Mapping[str, tuple[Path, ...]]
    unit: str = "file"

    @property
    def splits(self) -> list[str]:
        return sorted(self.files)

    def shards(self, split: str) -> list[Callable[[], Iterator[Row]]]:
        """A file each."""
        paths = files_of(self.files, split, self.name)
        return [functools.partial(read_rows, path, self.unit) for path in paths]

    def fingerprint(self, split: str) -> str:
        """sha256 (hex) of the content of its files."""
        digest = hashlib.sha256(self.unit.encode())
        for path in files_of(self.files, split, self.name):
            with open(path, "rb") as file:
                digest.update(path.suffix.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def class_names(self, field: str) -> tuple[str, ...] | None:
        """Names that go with integers of a field, where a file says them."""
        return class_names(next(iter(self.files.values()))[0], field)


class TFDSCorpus(_Splits):
    """The splits of a prepared TFDS set; its strings are decoded."""

    def __init__(self, name: str, data_dir: str | None):
        self.name = f"TFDS {name!r}"
        self._builder = TFDS(name, data_dir=data_dir).builder()
        self.splits = sorted(self._builder.info.splits)

    def shards(self, split: str) -> list[Callable[[], Iterator[Row]]]:
        """`TOGETHER` examples each."""
        self._check(split)
        source = self._builder.as_data_source(split)

        def rows(first: int) -> Iterator[Row]:
            for number in range(first, min(first + TOGETHER, len(source))):
                where = f"{self.name}, {split}, example {number}"
                yield (
                    where,
                    {key: _decoded(value, where, key) for key, value in source[number].items()},
                )

        return [functools.partial(rows, first) for first in range(0, len(source), TOGETHER)]

    def fingerprint(self, split: str) -> str:
        self._check(split)
        folder = Path(self._builder.data_path)
        names = sorted(f"{path.name}:{path.stat().st_size}" for path in folder.iterdir())
        return hashlib.sha256(f"{split} {names}".encode()).hexdigest()

    def class_names(self, field: str) -> tuple[str, ...] | None:
        names = getattr(self._builder.info.features[field], "names", None)
        return tuple(names) if names else None

    def _check(self, split: str) -> None:
        if split not in self.splits:
            raise UserError(
                f"{self.name} has no split {split!r}{did_you_mean(split, self.splits)}; "
                f"it has {', '.join(self.splits)}"
            )


def open_corpus(path: str, unit: str = "file", data_dir: str | None = None) -> Corpus | TFDSCorpus:
    """Finds the splits of a corpus; reads none of it.

    Args:
      path: what `splits.find_splits` takes; the name of a set that scripts/fetch_data brought, e.g.
        "brown"; or "tfds:NAME", a prepared TFDS set.
      unit: what one row of a .txt is: "file", "paragraph" or "line".
      data_dir: default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: there is no such thing.
    """
    if unit not in UNITS:
        raise UserError(f"unit: {unit!r} is none of {', '.join(UNITS)}{did_you_mean(unit, UNITS)}")
    if path.startswith("tfds:"):
        return TFDSCorpus(path.removeprefix("tfds:"), data_dir)
    sets = Path(default_data_dir(data_dir)) / "text"
    return Corpus(path, find_splits(path, TEXTS, sets), unit)


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """The text in a field of a row; UserError if it is missing, no string, or empty."""
    value = value_of(row, field, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {type(value).__name__}, not text")
    if not value.strip():
        raise UserError(f"{where}: {field!r} is empty")
    return value


def value_of(row: dict[str, Any], field: str, where: str) -> Any:
    """What a row holds in a field; UserError naming the nearest if it has no such field."""
    if field not in row:
        raise UserError(
            f"{where}: there is no field {field!r}{did_you_mean(field, row)}; "
            f"it has {', '.join(row) or 'none'}"
        )
    return row[field]


def _decoded(value: Any, where: str, key: str) -> Any:
    if not isinstance(value, bytes):
        return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}, {key!r}, byte {error.start + 1}: not UTF-8") from None
