"""Where texts come from: .txt, .jsonl and .csv files, sets that scripts/fetch_data brought, TFDS sets.

A `Corpus` yields rows, dicts of what a file holds, each with the place it came from; every complaint
names file and line. Nothing here knows of tokens.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.sources import TFDS, default_data_dir

SUFFIXES = (".jsonl", ".csv", ".txt")
UNITS = ("file", "paragraph", "line")

Row = tuple[str, dict[str, Any]]  # (where it stands, its fields)


@dataclasses.dataclass(frozen=True)
class Corpus:
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

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of a split in the order of the files; raises UserError at the first bad one."""
        for path in self._files(split):
            if path.suffix == ".txt":
                yield from _txt(path, self.unit)
            else:
                yield from (_jsonl if path.suffix == ".jsonl" else _csv)(path)

    def fingerprint(self, split: str) -> str:
        """sha256 (hex) of the content of its files."""
        digest = hashlib.sha256(self.unit.encode())
        for path in self._files(split):
            with open(path, "rb") as file:
                digest.update(path.suffix.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def class_names(self, field: str) -> tuple[str, ...] | None:
        """Names that go with integers of a field: files give none."""
        return None

    def _files(self, split: str) -> tuple[Path, ...]:
        if split not in self.files:
            raise UserError(
                f"{self.name} has no split {split!r}{did_you_mean(split, self.files)}; "
                f"it has {', '.join(self.splits) or 'none'}"
            )
        return self.files[split]


class TFDSCorpus:
    """The splits of a prepared TFDS set; its strings are decoded."""

    def __init__(self, name: str, data_dir: str | None):
        self.name = f"TFDS {name!r}"
        self._builder = TFDS(name, data_dir=data_dir).builder()
        self.splits = sorted(self._builder.info.splits)

    def rows(self, split: str) -> Iterator[Row]:
        self._check(split)
        for number, example in enumerate(self._builder.as_data_source(split)):
            where = f"{self.name}, {split}, example {number}"
            yield where, {key: _decoded(value, where, key) for key, value in example.items()}

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
      path: one of
        - a file with {split} in its name, e.g. "data/{split}.jsonl", or without: the split "train";
        - a folder that holds SPLIT.jsonl, SPLIT.csv, SPLIT.txt, or folders SPLIT/ of .txt files;
        - the name of a set that scripts/fetch_data brought, e.g. "brown";
        - "tfds:NAME", a prepared TFDS set.
      unit: what one row of a .txt is: "file", "paragraph" or "line".
      data_dir: default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: there is no such thing.
    """
    if unit not in UNITS:
        raise UserError(f"unit: {unit!r} is none of {', '.join(UNITS)}{did_you_mean(unit, UNITS)}")
    if path.startswith("tfds:"):
        return TFDSCorpus(path.removeprefix("tfds:"), data_dir)
    given = Path(path).expanduser()
    if "{split}" in given.name:
        before, after = given.name.split("{split}", 1)
        found = {
            file.name[len(before) : len(file.name) - len(after)]: (file,)
            for file in sorted(given.parent.glob(f"{before}*{after}"))
        }
    elif given.is_file():
        found = {"train": (given,)}
    else:
        fetched = Path(default_data_dir(data_dir)) / "text" / path
        folder = given if given.is_dir() else fetched
        if not folder.is_dir():
            raise UserError(_missing(path, fetched))
        found = {file.stem: (file,) for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES}
        for inner in (inner for inner in sorted(folder.iterdir()) if inner.is_dir()):
            if files := tuple(sorted(inner.glob("*.txt"))):
                found[inner.name] = files
    bad = [file for files in found.values() for file in files if file.suffix not in SUFFIXES]
    if bad or not found:
        raise UserError(
            f"{bad[0] if bad else path}: text is read from {', '.join(SUFFIXES)}"
            + ("" if bad else ", and none is there")
        )
    return Corpus(path, found, unit)


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


def _missing(path: str, fetched: Path) -> str:
    from scripts.fetch import FETCHED, PACKAGED

    here = sorted(folder.name for folder in fetched.parent.glob("*") if folder.is_dir())
    if path in FETCHED:
        return f"{path} is not under {fetched.parent} yet: get it with `scripts/fetch_data {path}`"
    known = sorted({*here, *(name for name, (kind, *_) in PACKAGED.items() if kind == "text")})
    return (
        f"there is no file or folder {path}, nor a text set of that name"
        f"{did_you_mean(path, known)}; sets: {', '.join(known)}"
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; a byte order mark at the beginning is dropped."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}, byte {error.start + 1}: "
                        f"0x{line[error.start]:02x} is not UTF-8"
                    ) from None
                yield number, text.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _txt(path: Path, unit: str) -> Iterator[Row]:
    """Blank lines are no row of their own; a file of unit "file" without text is an error later."""
    if unit == "file":
        yield str(path), {"text": "\n".join(line for _, line in _lines(path))}
        return
    start, lines = 1, []
    for number, line in _lines(path):
        if line.strip() and not lines:
            start = number
        lines += [line] if line.strip() else []
        if lines and (unit == "line" or not line.strip()):
            yield f"{path}, line {start}", {"text": "\n".join(lines)}
            lines = []
    if lines:
        yield f"{path}, line {start}", {"text": "\n".join(lines)}


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: no JSON object ({error}); is the line cut off?") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: JSON, but no object with named fields")
        yield where, row


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader((f"{line}\n" for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise UserError(f"{path} is empty; its first line should name the columns")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells under {len(header)} columns")
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None


def _decoded(value: Any, where: str, key: str) -> Any:
    if not isinstance(value, bytes):
        return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}, {key!r}, byte {error.start + 1}: not UTF-8") from None
