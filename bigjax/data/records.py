"""Records in shards, as bytes: WebDataset's tars and ArrayRecord. Any record is read where it lies.

A tar has no table of contents. Its headers are gone through once, and where its files lie is kept under
DATA_DIR/cache/shards, in a folder a shard: a shard that is added or changed costs only itself, and an
interrupted start goes on. A record is then one read of each of its files that is asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigjax.core.errors import UserError, first_line, needed
from bigjax.data.sources import default_data_dir
from bigjax.run.files import publish
from bigjax.run.screen import progress

FORMAT = 1  # a change of what is kept is a new number
OPENING = 16  # shards looked into at a time
TAIL = 2**16  # bytes of an ArrayRecord shard that stand for its content: its index lies there

Record = dict[str, bytes]


class Records(Protocol):
    """Records 0..len-1 of shards, whose files have the same names in all; "" where a record is one file."""

    names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, ids: np.ndarray, names: Sequence[str]) -> list[Record]:
        """The files of these names of these records."""

    def where(self, number: int) -> str:
        """Which record it is, for people."""

    def fingerprint(self) -> str:
        """Changes when the shards do."""


class Index(NamedTuple):
    """Where the files of a tar's records lie: int64 (records, names, 2), from which byte on and how many."""

    names: tuple[str, ...]
    places: np.ndarray


class TarRecords:
    """`Records` of tars in WebDataset's convention: files that follow one another and share their name up
    to its first dot are a record; what comes after that dot names the file in it.

    Raises:
      UserError: a shard is no plain tar, or its records have other files than those of the first.
    """

    def __init__(self, files: Any, paths: Sequence[str], data_dir: str | None = None) -> None:
        self._files, self._paths = files, list(paths)
        caches = Path(default_data_dir(data_dir)) / "cache" / "shards"
        with (
            ThreadPoolExecutor(OPENING) as pool,
            progress("indexing", len(paths), unit="shards") as bar,
        ):
            indices = []
            for index in pool.map(functools.partial(_index, files, caches), paths):
                indices.append(index)
                bar.advance(1)
        self.names = indices[0].names
        for path, index in zip(paths, indices, strict=True):
            if index.names != self.names:
                raise UserError(
                    f"{path}: its records have the files {', '.join(index.names)}, those of {paths[0]} "
                    f"{', '.join(self.names)}"
                )
        self._ends = np.cumsum([len(index.places) for index in indices])
        self._places = np.concatenate([index.places for index in indices])

    def __len__(self) -> int:
        return len(self._places)

    def read(self, ids: np.ndarray, names: Sequence[str]) -> list[Record]:
        of = np.searchsorted(self._ends, ids, side="right")
        columns = [self.names.index(name) for name in names]
        places = self._places[ids][:, columns].reshape(-1, 2)
        paths = [self._paths[shard] for shard in of for _ in columns]
        starts, sizes = places[:, 0].tolist(), places[:, 1].tolist()
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        try:
            found = _ranges(self._files, paths, starts, ends)
        except OSError as error:
            raise UserError(f"cannot read {paths[0]}: {first_line(error)}") from None
        for path, content, size in zip(paths, found, sizes, strict=True):
            if len(content) != size:
                raise UserError(f"{path} is shorter than it was when it was indexed")
        width = len(columns)
        return [
            dict(zip(names, found[i * width : i * width + width], strict=True))
            for i in range(len(of))
        ]

    def where(self, number: int) -> str:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        first = self._ends[shard - 1] if shard else 0
        return f"{self._paths[shard]}, record {number - first}"

    def fingerprint(self) -> str:
        """Of names and of the places and sizes of all files: reading every byte would take hours."""
        shards = [path.rpartition("/")[2] for path in self._paths]
        digest = hashlib.sha256(f"{shards} {self.names} {self._ends.tolist()}".encode())
        digest.update(self._places.tobytes())
        return digest.hexdigest()


class ArrayRecords:
    """`Records` of ArrayRecord shards, which have an index of their own; on a disk of this machine.

    Raises:
      UserError: a shard is remote or unreadable.
    """

    names = ("",)

    def __init__(self, files: Any, paths: Sequence[str]) -> None:
        if not is_local(files):
            raise UserError(
                f"{paths[0]}: ArrayRecord shards are read from a disk; copy them, or take Parquet or tar"
            )
        name = "array_record.python.array_record_data_source"
        library = needed(name, f"{paths[0]}: reading ArrayRecord needs", "array_record")
        self._files, self._paths = files, list(paths)
        try:
            self._source = library.ArrayRecordDataSource(self._paths)
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(
                f"cannot read {paths[0]} or its neighbours: {first_line(error)}"
            ) from None

    def __len__(self) -> int:
        return len(self._source)

    def read(self, ids: np.ndarray, names: Sequence[str]) -> list[Record]:
        try:
            return [{"": content} for content in self._source.__getitems__(ids.tolist())]
        except (OSError, ValueError, RuntimeError, IndexError) as error:
            raise UserError(f"cannot read {self.where(int(ids[0]))}: {first_line(error)}") from None

    def where(self, number: int) -> str:
        return f"{self._paths[0]} and its neighbours, record {number}"

    def fingerprint(self) -> str:
        """Of names, sizes and last bytes."""
        digest = hashlib.sha256()
        for path in self._paths:
            size = self._files.size(path)
            tail = self._files.cat_file(path, start=max(0, size - TAIL), end=size)
            digest.update(f"{path.rpartition('/')[2]} {size}".encode() + tail)
        return digest.hexdigest()


def _ranges(
    files: Any, paths: Sequence[str], starts: Sequence[int], ends: Sequence[int]
) -> list[bytes]:
    """Parts of files, as fsspec's `cat_ranges`, which on this machine's disks opens a file for each part."""
    if not is_local(files):
        return files.cat_ranges(paths, starts, ends, on_error="raise")
    found: list[bytes] = [b""] * len(paths)
    for path, own in groupby(sorted(range(len(paths)), key=paths.__getitem__), paths.__getitem__):
        with open(path, "rb", buffering=0) as file:
            for i in own:
                found[i] = os.pread(file.fileno(), ends[i] - starts[i], starts[i])
    return found


def is_local(files: Any) -> bool:
    """Whether fsspec's file system is this machine's disks."""
    return "file" in files.protocol


def _index(files: Any, caches: Path, path: str) -> Index:
    """A tar's index, from the cache if it is there; a damaged one is left and not believed."""
    identity = f"{FORMAT} {path} {files.ukey(path)}"
    folder = caches / hashlib.sha256(identity.encode()).hexdigest()[:32]
    made: list[Index] = []

    def write(private: Path) -> None:
        made.append(_scanned(files, path))
        np.save(private / "places.npy", made[0].places)
        digest = hashlib.sha256((private / "places.npy").read_bytes()).hexdigest()
        said = {"shard": path, "names": made[0].names, "sha256": digest}
        (private / "index.json").write_text(json.dumps(said) + "\n")

    publish(folder, write)
    if made:
        return made[0]
    try:
        said = json.loads((folder / "index.json").read_text())
        if hashlib.sha256((folder / "places.npy").read_bytes()).hexdigest() == said["sha256"]:
            return Index(tuple(said["names"]), np.load(folder / "places.npy", allow_pickle=False))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return _scanned(files, path)


def _scanned(files: Any, path: str) -> Index:
    """A tar's index from its headers."""
    records: list[dict[str, tuple[int, int]]] = []
    last, end = None, 0
    try:
        size = files.size(path)
        with files.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # or it would keep them all
                folder, _, base = member.name.rpartition("/")
                stem, _, name = base.partition(".")
                if not member.isreg() or member.issparse() or not stem or not name:
                    continue  # folders, links, hidden files, files of no kind
                if (folder, stem) != last:
                    records.append({})
                    last = (folder, stem)
                records[-1][name.lower()] = (member.offset_data, member.size)
                end = member.offset_data + member.size
    except (OSError, tarfile.TarError, EOFError) as error:
        why = "is compressed: unpack it, " if path.endswith(("gz", "bz2", "xz", "zst")) else ""
        raise UserError(f"cannot read {path}: {why}{first_line(error)}") from None
    if end > size:
        raise UserError(f"{path} is cut off: a file in it ends at byte {end}, and it at {size}")
    if not records:
        raise UserError(f"{path}: holds no files named KEY.KIND, as 000123.jpg and 000123.cls")
    names = tuple(sorted(records[0]))
    for number, record in enumerate(records):
        if tuple(sorted(record)) != names:
            raise UserError(
                f"{path}: record {number} has the files {', '.join(sorted(record))}, the first one "
                f"{', '.join(names)}"
            )
    return Index(
        names, np.array([[record[name] for name in names] for record in records], np.int64)
    )
