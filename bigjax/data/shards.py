"""Shards read where they lie, local or remote: only the rows that a batch asks for, never all.

Of Parquet each shard's footer is read at the start, and nothing else; then any row of any shard is one read
of the row group that holds it. Rows of a random order are in as many groups: write shards for training in
small ones (`row_group_size`, a few rows), say `interleave`, which reads each group once an epoch, or let a
`table` encode once what fits on the disk. Tars and ArrayRecord: `records.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from bigjax.core.errors import UserError, did_you_mean, first_line
from bigjax.core.order import Interleaved
from bigjax.data.narrow import Features, narrow, zeros
from bigjax.data.pictures import check_size
from bigjax.data.record_rows import RecordRows
from bigjax.data.records import ArrayRecords, TarRecords, is_local
from bigjax.data.splits import subsplit

ARRAY_RECORD = (".array_record", ".arrayrecord")
TAIL = 2**16  # bytes; the footer of most shards is within
OPENING = 16  # footers read at a time
KEPT = 8  # row groups that stay decoded: rows in order come from few
OPEN = 128  # shards that a thread keeps open


@dataclasses.dataclass(frozen=True)
class Shards:
    """Columns of numbers in Parquet, WebDataset's tars or ArrayRecord.

    Attributes:
      path: of the shards, with {split} in it and * where they differ: "data/{split}-*.parquet", or a URL
        that fsspec opens: "gs://BUCKET/{split}/*.tar". What they are, their ending says: .tar,
        .array_record; all else is Parquet.
      columns: which are read; default: all that are numbers, classes or pictures. In a tar, a file
        KEY.cls is the column "label", KEY.png and the like "image", KEY.NAME.npy NAME.
      num_classes: of the column "label", should there be one.
      size: (height, width) that pictures are resized to; needed unless they are of one size.
      interleave: of Parquet, from how many row groups at a time the rows of training come (see
        `core.order.Interleaved`): twice as many are in memory. Default: all rows shuffled.
      data_dir: where the places in tars are kept; default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """

    path: str
    columns: Sequence[str] | None = None
    num_classes: int | None = None
    size: tuple[int, int] | None = None
    data_dir: str | None = None
    interleave: int | None = None

    def __post_init__(self) -> None:
        if self.interleave is not None and self.interleave < 1:
            raise UserError(f"interleave: {self.interleave} must be 1 or more")
        if "{split}" not in self.path:
            raise UserError(
                f"path: {self.path!r} should hold {{split}}, as data/{{split}}-*.parquet"
            )
        check_size(self.size)

    def open(self, split: str) -> ShardRows | RecordRows:
        """Opens a split or a part of one, such as train[:90%]; the shards are in the order of their names.

        Raises:
          UserError: there are no shards, one is unreadable or unlike the first, or a column is not there.
        """
        held: list[Any] = []

        def length(name: str) -> int:
            files, paths = self._find(name)
            if paths[0].endswith(ARRAY_RECORD):
                held.append(ArrayRecords(files, paths))
            elif ".tar" in paths[0].rpartition("/")[2]:
                held.append(TarRecords(files, paths, self.data_dir))
            else:
                held.append(_parquet(files, paths))
                return sum(shard.metadata.num_rows for shard in held[0])
            return len(held[0])

        _, which = subsplit(split, length)
        if isinstance(held[0], list):
            return ShardRows(held[0], which, self.columns, self.num_classes, self.interleave)
        if self.interleave:
            raise UserError(
                "interleave: is of Parquet; of tars and ArrayRecord any row is one read"
            )
        return RecordRows(held[0], which, self.columns, self.num_classes, self.size)

    def _find(self, name: str) -> tuple[Any, list[str]]:
        """(fsspec's file system, the paths in it of a split's shards)."""
        files, paths = _glob(self.path.replace("{split}", name))
        if not paths:
            _, every = _glob(self.path.replace("{split}", "*"))
            known = sorted({found for path in every if (found := self._split_of(path))})
            raise UserError(
                f"{self.path}: there are no shards of the split {name!r}{did_you_mean(name, known)}; "
                f"there are some of {', '.join(known) or 'none'}"
            )
        return files, paths

    def _split_of(self, path: str) -> str | None:
        """Whose shard it is: what stands where {split} does."""
        last = re.escape(self.path.partition("://")[2] or self.path)
        pattern = last.replace(r"\{split\}", "([^/]+?)", 1).replace(r"\{split\}", "[^/]+?")
        found = re.search(pattern.replace(r"\*", "[^/]*") + "$", path)
        return found and found[1]


def _parquet(files: Any, paths: Sequence[str]) -> list[Shard]:
    with ThreadPoolExecutor(OPENING) as pool:
        shards = list(pool.map(functools.partial(_open, files), paths))
    for shard in shards:
        if not shard.schema.equals(shards[0].schema):
            raise UserError(f"{shard.path}: its columns are not those of {shards[0].path}")
    return shards


class Shard(NamedTuple):
    """A file: its fsspec file system, path and description; footer: a hash of its last bytes."""

    files: Any
    path: str
    metadata: Any
    footer: str

    @property
    def schema(self) -> Any:
        return self.metadata.schema.to_arrow_schema()


class ShardRows:
    """A Source of the rows `which` of Parquet shards: one number an example, or lists of one length.

    Attributes:
      stream: the order of training, None where it is all rows shuffled.
    """

    class_names = None

    def __init__(
        self,
        shards: Sequence[Shard],
        which: slice,
        columns: Sequence[str] | None,
        num_classes: int | None,
        interleave: int | None,
    ) -> None:
        self._shards, self._which, self.num_classes = shards, which, num_classes
        self._groups = [
            (number, group)
            for number, shard in enumerate(shards)
            for group in range(shard.metadata.num_row_groups)
        ]
        sizes = [shards[n].metadata.row_group(group).num_rows for n, group in self._groups]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._names = _columns(shards[0], columns)
        own = np.minimum(self._ends, which.stop) - np.maximum(self._starts, which.start)
        self.stream = Interleaved(own[own > 0], interleave) if interleave else None
        self._group = functools.lru_cache(2 * interleave if interleave else KEPT)(
            lambda group: _Once(functools.partial(self._decode, group))
        )
        self._of_thread = threading.local()
        first = self._decode(int(np.searchsorted(self._ends, which.start, side="right")))
        self.features: Features = {
            name: (values.shape[1:], values.dtype) for name, values in first.items()
        }

    def __len__(self) -> int:
        return self._which.stop - self._which.start

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.asarray(ids) + self._which.start
        of = np.searchsorted(self._ends, rows, side="right")
        columns = zeros(self.features, len(rows))
        by_group = np.argsort(of, kind="stable")
        groups, firsts = np.unique(of[by_group], return_index=True)
        for group, own in zip(groups.tolist(), np.split(by_group, firsts[1:]), strict=True):
            for name, values in self._group(group)().items():
                if values.shape[1:] != columns[name].shape[1:]:
                    shard = self._shards[self._groups[group][0]]
                    raise UserError(
                        f"{shard.path}: {name!r} has rows of {values.shape[1:]}, not "
                        f"{columns[name].shape[1:]} as the first ones"
                    )
                columns[name][own] = values[rows[own] - self._starts[group]]
        return columns

    def fingerprint(self) -> str:
        """Of the names, sizes and footers: reading everything would take hours."""
        digest = hashlib.sha256(f"{self._which} {self._names}".encode())
        for shard in self._shards:
            digest.update(f"{shard.path.rpartition('/')[2]} {shard.footer}".encode())
        return digest.hexdigest()

    def _decode(self, group: int) -> dict[str, np.ndarray]:
        number, place = self._groups[group]
        path = self._shards[number].path
        try:
            reader = self._reader(number)
            table = reader.read_row_group(place, columns=list(self._names), use_threads=False)
        except (OSError, ValueError) as error:  # all that pyarrow and fsspec raise
            raise UserError(f"cannot read {path}: {first_line(error)}") from None
        where = f"{path}, row group {place}"
        return {name: _numbers(table[name], name, where) for name in self._names}

    def _reader(self, number: int) -> Any:
        """This thread's open reader of a shard; one opened for each group would cost as much again."""
        if not hasattr(self._of_thread, "reader"):
            self._of_thread.reader = functools.lru_cache(OPEN)(self._open)
        return self._of_thread.reader(number)

    def _open(self, number: int) -> Any:
        import pyarrow.parquet

        shard = self._shards[number]
        if is_local(shard.files):
            file = pyarrow.OSFile(shard.path)
        else:
            file = shard.files.open(shard.path, cache_type="none")
        return pyarrow.parquet.ParquetFile(file, metadata=shard.metadata)


class _Once:
    """What `make` gives, made once, whichever threads ask."""

    def __init__(self, make: Callable[[], dict[str, np.ndarray]]) -> None:
        self._make, self._made, self._lock = make, None, threading.Lock()

    def __call__(self) -> dict[str, np.ndarray]:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _glob(pattern: str) -> tuple[Any, list[str]]:
    """(fsspec's file system, the paths in it that match)."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(pattern)
        return files, sorted(files.glob(path))
    except ImportError as error:  # the library of that kind of URL
        raise UserError(f"path: {pattern}: {first_line(error)}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"path: {pattern}: cannot be opened ({first_line(error)})") from None


def _open(files: Any, path: str) -> Shard:
    """A shard by its last bytes: a Parquet file ends in its footer, whose length comes before the end."""
    import pyarrow.parquet

    try:
        size = files.size(path)
        tail = files.cat_file(path, start=max(0, size - TAIL), end=size)
        needed = int.from_bytes(tail[-8:-4], "little") + 8
        if needed > len(tail):
            tail = files.cat_file(path, start=max(0, size - needed), end=size)
        metadata = pyarrow.parquet.read_metadata(io.BytesIO(tail))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None
    footer = hashlib.sha256(f"{size}".encode() + tail[-needed:]).hexdigest()
    return Shard(files, path, metadata, footer)


def _columns(shard: Shard, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that are read: those asked for, or all that are numbers or lists of them."""
    import pyarrow.types as types

    def of_numbers(kind: Any) -> bool:
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)

    numbers = [field.name for field in shard.schema if of_numbers(field.type)]
    for name in asked or ():
        if name not in numbers:
            raise UserError(
                f"{shard.path}: there is no column {name!r} of numbers{did_you_mean(name, numbers)}; "
                f"there are {', '.join(numbers) or 'none'}"
            )
    if not numbers:
        raise UserError(f"{shard.path}: no column is numbers; text is read by `documents`")
    return tuple(asked or numbers)


def _numbers(column: Any, name: str, where: str) -> np.ndarray:
    """An Arrow column as (rows,) or (rows, length); UserError for nulls and lists of several lengths."""
    import pyarrow
    import pyarrow.compute

    array = column.combine_chunks()
    if isinstance(array, pyarrow.ChunkedArray):  # of no chunk at all, or of several
        array = pyarrow.concat_arrays(array.chunks)
    rows, nulls, nested = len(array), array.null_count, pyarrow.types.is_nested(array.type)
    if nested:
        lengths = pyarrow.compute.list_value_length(array).unique().to_pylist()
        array = array.flatten()
        nulls += array.null_count
        if not nulls and len(lengths) != 1:
            raise UserError(
                f"{where}: {name!r} has lists of {min(lengths)} to {max(lengths)} numbers"
            )
    if nulls:
        raise UserError(f"{where}: {name!r} has {nulls} empty cells")
    values = array.to_numpy(zero_copy_only=False)
    return narrow(name, values.reshape(rows, -1) if nested else values)
