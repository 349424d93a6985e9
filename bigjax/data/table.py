"""Tables with named columns: csv, tsv, jsonl, Parquet, Arrow, Hugging Face `datasets` folders.

Kinds, vocabularies, fills and labels are fitted to the train split and then hold for every other split
and for predict, which reads by the same reader.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.data import files, picture_cells, pictures
from bigjax.data.columns import KINDS, Column, Seen
from bigjax.data.handed import Inputs, good_rows
from bigjax.data.labels import Labels, is_number
from bigjax.data.mapped import mapped
from bigjax.data.sources import Arrays, default_data_dir
from bigjax.data.splits import files_of, find_splits, subsplit

Encoded = dict[str, np.ndarray]
ROW_NUMBERS = ("", "Unnamed: 0", "__index_level_0__")  # as pandas calls the index that it writes
FORMAT = 1  # of the cache: a change of what is written is a new number


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows with named columns: "features" float32 (F,), "label", and "image" uint8 (H, W, C), if any.

    What a column becomes is said in columns.py. Of a csv the kind of a column is found from its cells
    in train, else from the file's own types. The label is a class, int32 (text is numbered in sorted
    order, integers stay as they are), or float32 if a cell of train has a fraction.

    Attributes:
      path: where the splits are: see `splits.find_splits`.
      label: the column of the label; None if there is none.
      columns: the features, a list; or column -> kind ("number", "boolean", "date", "category",
        "image", "skip") where the found one is not meant. Of the label: "number" or "category".
      class_names: of the labels 0, 1, ..., or, where labels are text, their order.
      size: (height, width) that pictures are resized to; needed unless they are of one size.
      cache_mb: MiB to hold in memory; a larger Parquet or Arrow split is encoded once into files that
        are mapped into memory.
      data_dir: of those files; default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """

    path: str
    label: str | None = "label"
    columns: Mapping[str, str] | Sequence[str] | None = None
    class_names: Sequence[str] = ()
    size: tuple[int, int] | None = None
    cache_mb: int = 1024
    data_dir: str | None = None

    def __post_init__(self):
        pictures.check_size(self.size)
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                raise UserError(
                    f"columns.{name}: {kind!r} is none of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
                )

    @property
    def kinds(self) -> dict[str, str]:
        """Columns whose kind the config says."""
        return dict(self.columns) if isinstance(self.columns, Mapping) else {}

    def open(self, split: str) -> TableRows:
        """Opens a split; everything is fitted to the split "train"."""
        return self.fit("train").open(split)

    def fit(self, split: str) -> FittedTable:
        """Reads a split once and fits columns and label to it.

        Raises:
          UserError: naming file and row of what cannot be read, or the column that is not there.
        """
        part = self.rows(split)
        used = self._features(part)
        seen: dict[str, Seen] = {}
        images: dict[str, list[tuple[str, pictures.Shape]]] = {}
        labels: list[Any] = []
        names = self.class_names or files.class_names(part.files[0], self.label) or ()
        for chunk in part.chunks:
            _refuse(chunk.where, chunk.problems)
            if self.label is not None:
                labels += _cells(chunk, self.label).to_pylist()
            for name in used:
                cells, kind = _cells(chunk, name), self.kinds.get(name)
                if kind == "image" or (kind is None and picture_cells.holds_pictures(cells.type)):
                    images.setdefault(name, []).extend(picture_cells.headers(cells, chunk))
                else:
                    seen.setdefault(name, Seen(name, kind, name in chunk.typed)).add(
                        cells, chunk.where
                    )
        if len(images) > 1:
            raise UserError(f"{self.path}: {' and '.join(images)} are pictures: a model takes one")
        headers = next(iter(images.values()), None)
        return FittedTable(
            self,
            columns=tuple(column.column() for column in seen.values()),
            label=self.label and Labels.fit(labels, names, self.kinds.get(self.label)),
            image=next(iter(images), None),
            shape=headers and pictures.common_shape(headers, self.size),
            unused=tuple(name for name in part.names if name not in (*used, self.label)),
        )

    def rows(self, split: str) -> Rows:
        """Finds a split or a part of one; a csv or jsonl is read, of others only the description."""
        found = find_splits(self.path, files.TABLES)
        held: list[files.Chunk] = []
        its: list[Path] = []
        names: dict[str, None] = {}

        def length(name: str) -> int:
            its.extend(files_of(found, name, self.path))
            total = 0
            for path in its:
                if path.suffix in files.COLUMNAR:
                    rows, columns = files.describe(path)
                else:
                    chunks = list(files.read_chunks(path))
                    held.extend(chunks)
                    rows = sum(map(len, chunks))
                    columns = [name for chunk in chunks for name in chunk.columns]
                total += rows
                names.update(dict.fromkeys(columns))
            if not total:
                raise UserError(f"{its[0]}: there are no examples")
            if not names:
                _refuse(held[0].where, held[0].problems)
            return total

        _, rows = subsplit(split, length)
        chunks = held or (chunk for path in its for chunk in files.read_chunks(path))
        return Rows(_between(chunks, rows), rows, tuple(its), tuple(names))

    def _features(self, part: Rows) -> list[str]:
        """The columns that become features; UserError for one that is named and not there."""
        asked = [*(self.columns or ()), *([] if self.label is None else [self.label])]
        for name in asked:
            if name not in part.names:
                raise UserError(
                    f"{part.files[0]}: there is no column {name!r}{did_you_mean(name, part.names)}; "
                    f"it has {', '.join(part.names) or 'none'}"
                )
        only = None if self.kinds or self.columns is None else self.columns
        used = [
            name
            for name in part.names
            if name != self.label
            and self.kinds.get(name) != "skip"
            and (only is None or name in only)
        ]
        if not used:
            raise UserError(f"{part.files[0]}: there is no column beside the label")
        if unsaid := [name for name in used if name in ROW_NUMBERS and name not in asked]:
            raise UserError(
                f"{part.files[0]}: column {unsaid[0]!r} reads like pandas' row numbers (index=False "
                f"writes none): leave it out with columns={{{unsaid[0]!r}: 'skip'}}"
            )
        return used


@dataclasses.dataclass(frozen=True)
class Rows:
    """A split or a part of one: its rows, which of the split they are, its files and columns."""

    chunks: Iterator[files.Chunk]
    which: slice
    files: tuple[Path, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return self.which.stop - self.which.start


@dataclasses.dataclass(frozen=True)
class FittedTable:
    """A Table with what its train split says.

    columns: become "features", in their order; label: how labels are numbered, or None.
    image, shape: the column of pictures and what they become, or None.
    unused: columns of train that are no feature.
    """

    table: Table
    columns: tuple[Column, ...]
    label: Labels | None
    image: str | None
    shape: pictures.Shape | None
    unused: tuple[str, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One for each number of "features"."""
        return tuple(name for column in self.columns for name in column.names)

    def open(self, split: str) -> TableRows:
        """Opens a split; raises UserError naming file, row and column of a cell that does not fit."""
        part = self.table.rows(split)
        self._check_names(part.names, str(part.files[0]))
        if self.label and self.table.label not in part.names:
            raise UserError(f"{part.files[0]}: there is no column {self.table.label!r}, the label")
        encoded = (self._all_good(chunk) for chunk in part.chunks)
        if part.files[0].suffix not in files.COLUMNAR or self._fits(len(part)):
            pieces = list(encoded)
            columns = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
            return TableRows(columns, self)
        identity = self._identity(part)
        folder = Path(default_data_dir(self.table.data_dir)) / "cache" / "tables" / identity[:32]
        return TableRows(mapped(folder, encoded, len(part)), self, identity)

    def read_inputs(self, path: Path) -> Inputs:
        """A user's file, or a folder of one split, columns by name; a row that does not fit is told and left
        out.

        Raises:
          UserError: a column is missing, or is one that train has not.
        """
        inside = [*path.glob("*"), *path.glob("*/*")] if path.is_dir() else []
        tables = path.suffix in files.TABLES or any(f.suffix in files.COLUMNAR for f in inside)
        if self.shape and not self.columns and not tables:
            return pictures.read_pictures(path, self.shape)
        its: Sequence[Path] = [path]
        if path.is_dir():
            found = find_splits(str(path), files.TABLES)
            if len(found) > 1:
                raise UserError(
                    f"--input={path}: has the splits {', '.join(found)}; name one's file"
                )
            (its,) = found.values()
        elif path.suffix not in files.TABLES:
            raise UserError(f"--input={path}: this model reads a table: {', '.join(files.TABLES)}")
        chunks = [chunk for file in its for chunk in files.read_chunks(file)]
        names = dict.fromkeys(name for chunk in chunks for name in chunk.columns)
        self._check_names(names, f"--input={path}")
        pieces, problems, done = [], {}, 0
        for chunk in chunks:
            encoded, bad = self._encode(chunk, labelled=False)
            good = [i for i in range(len(chunk)) if i not in bad]
            pieces.append({key: column[good] for key, column in encoded.items()})
            problems |= {done + i: problem for i, problem in bad.items()}
            done += len(chunk)
        numbers, told = good_rows(path, done, problems)
        columns = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
        return Inputs(TableRows(columns, self), numbers, told)

    def read_rows(self, rows: Any) -> TableRows:
        """Rows that a user holds: a pandas table, a list of dicts, or columns by name.

        Raises:
          UserError: as for `read_inputs`, and for the first row that does not fit.
        """
        chunk = files.held(rows)
        self._check_names(chunk.columns, "predict")
        encoded, problems = self._encode(chunk, labelled=False)
        _refuse(chunk.where, problems)
        return TableRows(encoded, self)

    def _check_names(self, names: Iterable[str], where: str) -> None:
        """Every column of train must be there, but the label's; none that train has not."""
        needed = [column.name for column in self.columns] + [self.image] * bool(self.image)
        known, names = {*needed, *self.unused, self.table.label}, list(names)
        missing = [name for name in needed if name not in names]
        extra = [name for name in names if name not in known]
        if missing or extra:
            lacks = f"lacks {', '.join(missing)}" if missing else ""
            its = ", ".join(name or "a column without a name" for name in extra)
            has = f"has {its}, which train has not" if extra else ""
            near = did_you_mean(missing[0], extra) if missing else did_you_mean(extra[0], known)
            if extra and all(map(is_number, extra)):
                near = ": its first line should name the columns"
            both = " and ".join(filter(None, (lacks, has)))
            raise UserError(f"{where}: {both}{near}; the model reads {', '.join(needed)}")

    def _encode(self, chunk: files.Chunk, labelled: bool) -> tuple[Encoded, dict[int, str]]:
        """The features of a chunk, and what is wrong with some rows, by their place."""
        problems, encoded = dict(chunk.problems), {}
        found: list[dict[int, str]] = []
        if self.columns:
            parts, its = zip(*(c.encode(_cells(chunk, c.name)) for c in self.columns), strict=True)
            encoded["features"] = np.concatenate(parts, axis=1)
            found += its
        if self.image:
            encoded["image"], its = picture_cells.decoded(_cells(chunk, self.image), self.shape)
            found.append(its)
        if self.label:
            encoded["label"] = np.zeros(len(chunk), self.label.dtype)
        if self.label and labelled:
            cells = _cells(chunk, self.table.label).to_pylist()
            encoded["label"], its = self.label.encode(cells)
            found.append({i: f"column {self.table.label!r} {said}" for i, said in its.items()})
        for its in found:
            for i, said in its.items():
                problems.setdefault(i, said)
        return encoded, problems

    def _all_good(self, chunk: files.Chunk) -> Encoded:
        encoded, problems = self._encode(chunk, labelled=True)
        _refuse(chunk.where, problems)
        return encoded

    def _fits(self, rows: int) -> bool:
        picture = self.shape.height * self.shape.width * self.shape.channels if self.shape else 0
        return rows * (4 * len(self.feature_names) + 4 + picture) <= self.table.cache_mb * 2**20

    def _identity(self, part: Rows) -> str:
        """sha256 of what is fitted, of the rows, and of each file's name, size and last bytes.

        A Parquet or Arrow file ends with what says where its parts are; reading all would take hours.
        """
        digest = hashlib.sha256(f"{FORMAT} {self.fitted} {part.which}".encode())
        for path in part.files:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - 2**16))
                digest.update(f"{path.name}:{size}:".encode() + file.read())
        return digest.hexdigest()

    @staticmethod
    def restored(label_column: str | None, fitted: Mapping[str, Any]) -> FittedTable:
        """A table that reads users' files, from the `fitted` of another; its own rows are not here."""
        label, shape = fitted["label"], fitted["shape"]
        return FittedTable(
            Table(path="", label=label_column),
            columns=tuple(Column(**column) for column in fitted["columns"]),
            label=label and Labels(**label),
            image=fitted["image"],
            shape=shape and pictures.Shape(**shape),
            unused=tuple(fitted["unused"]),
        )

    @property
    def fitted(self) -> dict[str, Any]:
        """Plain values: all that train decided."""
        values = dataclasses.asdict(dataclasses.replace(self, table=None))
        return {key: value for key, value in values.items() if key != "table"}


class TableRows(Arrays):
    """Rows of a table, in memory or mapped into it.

    Attributes:
      feature_names: one for each number of "features".
      fitted: plain values: all that the train split decided.
      read_inputs, read_rows: read a user's file, or rows, as this one was read.
    """

    def __init__(self, columns: Encoded, fitted: FittedTable, identity: str | None = None):
        super().__init__(columns, fitted.label.names if fitted.label else None)
        self.feature_names, self.fitted = fitted.feature_names, fitted.fitted
        self.read_inputs, self.read_rows = fitted.read_inputs, fitted.read_rows
        self._identity = identity

    def fingerprint(self) -> str:
        return self._identity or super().fingerprint()


def csv(directory: str, label: str = "label", class_names: Sequence[str] = ()) -> Table:
    """`DIRECTORY/SPLIT.csv`: a `Table` under its short name."""
    return Table(directory, label, class_names=class_names)


def _between(chunks: Iterable[files.Chunk], rows: slice) -> Iterator[files.Chunk]:
    """The part of the chunks that lies in `rows`."""
    at = 0
    for chunk in chunks:
        start, stop = max(rows.start - at, 0), min(rows.stop - at, len(chunk))
        if start < stop:
            yield chunk.part(slice(start, stop))
        at += len(chunk)
        if at >= rows.stop:
            return


def _refuse(where: Any, problems: Mapping[int, str]) -> None:
    if problems:
        first = min(problems)
        raise UserError(f"{where(first)}: {problems[first]}")


def _cells(chunk: files.Chunk, name: str) -> Any:
    """A column of a chunk; nulls where its rows have no such field."""
    import pyarrow

    return chunk.columns[name] if name in chunk.columns else pyarrow.nulls(len(chunk))
