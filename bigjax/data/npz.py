"""Arrays in .npz files: the one reader of them, for training and predict, and the source.

Nothing is ever unpickled, and no header is believed that promises more than its file can hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bigjax.core.errors import UserError, first_line
from bigjax.data.sources import Arrays
from bigjax.data.splits import files_of, find_splits, subsplit

MOST_INFLATION = 1032  # of deflate: 258 bytes from 2 bits
HEADERS = 256  # of .npy files, that are kept parsed
# NumPy parses a header as Python, and Python 3.11's parser fails when two threads are in it.
_PARSER = threading.Lock()


@dataclasses.dataclass(frozen=True)
class NPZ:
    """`DIRECTORY/SPLIT.npz`, arrays of equal length; `class_names` names the classes of "label"."""

    directory: str
    class_names: Sequence[str] = ()

    def open(self, split: str) -> Arrays:
        """Opens a split or sub-split; raises UserError for a bad file, array or split."""
        found = find_splits(self.directory, (".npz",))
        columns: dict[str, np.ndarray] = {}

        def length(name: str) -> int:
            (path,) = files_of(found, name, self.directory)
            columns.update(read_npz(path))
            try:
                return len(Arrays(columns))
            except UserError as error:
                raise UserError(f"{path}: {error}") from None

        _, rows = subsplit(split, length)
        return Arrays({key: column[rows] for key, column in columns.items()}, self.class_names)


def read_npz(path: Path, choose: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file.

    choose: read only these, or, where the file holds but one array, that one.

    Raises:
      UserError: it is no npz, holds objects, or lacks an array.
    """
    with _reading(path), open(path, "rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise UserError(
                f"{path} is a .npy file, one array without a name; np.savez writes .npz"
            )
    with _reading(path), np.load(path, allow_pickle=False) as archive:
        for member in archive.zip.infolist():
            _check_header(archive.zip, member)
        there = archive.files
        missing = [name for name in choose if name not in there]
        if missing and len(there) != 1:
            raise UserError(
                f"{path}: holds {', '.join(there)}; needs an array named {missing[0]!r}"
            )
        return {name: archive[name] for name in (there if missing else choose or there)}


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuses an array whose header promises more bytes than the file can hold."""
    with archive.open(member) as file:
        shape, dtype, _ = _header(file, member.filename)
    needed = math.prod(shape) * dtype.itemsize
    if needed > min(member.file_size, member.compress_size * MOST_INFLATION):
        raise ValueError(f"{member.filename} says it is {shape} of {dtype}; the file is smaller")


def array_in(content: bytes, name: str) -> np.ndarray:
    """The array of a whole .npy file, read-only; ValueError for Python objects and what is none.

    Any thread may call it. Many small files share a header, which is parsed once: parsing takes longer than
    the rest.
    """
    width = 2 if content[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    with _PARSER:
        shape, dtype, fortran = _parsed(content[:start], name)
    count = math.prod(shape)
    if count * dtype.itemsize > len(content) - start:
        raise ValueError(f"{name} says it is {shape} of {dtype}; it is smaller")
    flat = np.frombuffer(content, dtype, count, start)
    return flat.reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(HEADERS)
def _parsed(header: bytes, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    return _header(io.BytesIO(header), name)


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], np.dtype, bool]:
    """(shape, dtype, whether in Fortran's order) of the .npy file that is open here; ValueError as above."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is of version {version}")
    read = np.lib.format.read_array_header_1_0
    shape, fortran, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
        file
    )
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are never unpickled")
    return shape, dtype, fortran


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what NumPy raises at an unreadable file into one line that names the file."""
    try:
        yield
    except (
        ValueError, OSError, EOFError, AttributeError, NotImplementedError, RuntimeError,
        struct.error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = first_line(error)
        raise UserError(f"cannot read {path}: {reason}") from None
