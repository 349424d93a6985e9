"""What records hold, as columns of numbers; shards of records as a source. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from bigjax.core.errors import UserError, did_you_mean, first_line
from bigjax.data import pictures
from bigjax.data.narrow import Features, narrow, zeros
from bigjax.data.npz import array_in
from bigjax.data.records import Record, Records

CLASSES = ("cls", "index")  # kinds of files that hold one integer as text
PICTURES = tuple(kind.removeprefix(".") for kind in pictures.PICTURES)
COLUMNS = {"cls": "label", **dict.fromkeys(PICTURES, "image")}  # other columns: as the kind
# Of pictures.
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


class RecordRows:
    """A Source of the records `which` of some shards.

    Args:
      columns: which of a record's; default: all that can be read.
      size: (height, width) of pictures; default: all are of the first one's. They are grey if the
        first is.
    """

    class_names = None

    def __init__(
        self,
        records: Records,
        which: slice,
        columns: Sequence[str] | None,
        num_classes: int | None,
        size: tuple[int, int] | None,
    ) -> None:
        self._records, self._which, self.num_classes = records, which, num_classes
        self._files = _files(records.names, columns)
        self._size, self._shape = size, None
        found = self._values(records.read(np.array([which.start]), self._files)[0], which.start)
        where = records.where(which.start)
        for name in columns or ():
            if name not in found:
                raise UserError(
                    f"{where}: there is no column {name!r} of numbers{did_you_mean(name, found)}; there "
                    f"are {', '.join(found) or 'none'}"
                )
        if not found:
            raise UserError(f"{where}: nothing in it is numbers, a class or a picture")
        self.features: Features = {
            name: (found[name].shape, found[name].dtype) for name in columns or found
        }

    def __len__(self) -> int:
        return self._which.stop - self._which.start

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.asarray(ids) + self._which.start
        columns = zeros(self.features, len(rows))
        for i, record in enumerate(self._records.read(rows, self._files)):
            found = self._values(record, rows[i])
            for name, (shape, dtype) in self.features.items():
                value = found.get(name)
                if value is None or (value.shape, value.dtype) != (shape, dtype):
                    told = "not there" if value is None else f"{value.dtype} {value.shape}"
                    raise UserError(
                        f"{self._records.where(rows[i])}: {name!r} is {told}; it is {dtype} {shape} in the first record"
                    )
                columns[name][i] = value
        return columns

    def fingerprint(self) -> str:
        own = f"{self._records.fingerprint()} {self._which} {self.features}"
        return hashlib.sha256(own.encode()).hexdigest()

    def _values(self, record: Record, number: int) -> dict[str, np.ndarray]:
        """The columns of the record of this number, each value in 32 bits."""
        try:
            return {
                name: self._picture(value)
                if isinstance(value, bytes)
                else narrow(name, value[None])[0]
                for name, value in unpacked(record).items()
            }
        except (ValueError, UserError, pictures.BadPicture) as error:
            raise UserError(f"{self._records.where(number)}: {first_line(error)}") from None

    def _picture(self, content: bytes) -> np.ndarray:
        own = pictures.header(content)
        if self._shape is None:
            height, width = self._size or (own.height, own.width)
            self._shape = dataclasses.replace(own, height=height, width=width)
        shape = self._shape
        if own.channels > shape.channels:
            raise ValueError("the picture is in colour, and the first one is grey")
        if self._size is None and own != dataclasses.replace(shape, channels=own.channels):
            raise ValueError(
                f"the picture is {own.height}x{own.width} (height x width), the first one {shape.height}x"
                f"{shape.width}: give a size=(height, width) to resize all to"
            )
        return pictures.decode(content, shape)


def unpacked(record: Record) -> dict[str, np.ndarray | bytes]:
    """The arrays and encoded pictures of a record, by column; ValueError for what cannot be read.

    A file is named as in a tar, by its kind ("jpg") or a name and its kind ("tokens.npy"); or "", and
    then known by its first bytes: .npy, a picture, or else a `tf.train.Example`.
    """
    found: dict[str, np.ndarray | bytes] = {}
    for name, content in record.items():
        own, _, kind = name.rpartition(".")
        column = own or COLUMNS.get(kind, kind)
        if kind in CLASSES:
            found[column] = np.int32(content.decode())
        elif kind in PICTURES:
            found[column] = content
        elif kind == "npy":
            found[column] = array_in(content, name)
        elif content.startswith(np.lib.format.MAGIC_PREFIX):
            found["array"] = array_in(content, "the record")
        elif content.startswith(BEGINNINGS):
            found["image"] = content
        else:
            found |= _example(content)
    return found


def _files(names: Sequence[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    """Which of a record's files are read: those of known kinds, for these columns."""
    chosen = []
    for name in names:
        own, _, kind = name.rpartition(".")
        known = not name or kind in (*CLASSES, *PICTURES, "npy")
        if known and (columns is None or not name or (own or COLUMNS.get(kind, kind)) in columns):
            chosen.append(name)
    return tuple(chosen)


def _example(content: bytes) -> dict[str, np.ndarray | bytes]:
    """The lists of numbers and the pictures of a `tf.train.Example`; a list of one number is a number."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # without TensorFlow

    try:
        features = tf_example_pb2.Example.FromString(content).features.feature
    except DecodeError:
        features = {}
    if not features:
        raise ValueError("the record is neither .npy nor a picture nor a tf.train.Example")
    found: dict[str, np.ndarray | bytes] = {}
    for name in sorted(features):
        kind = features[name].WhichOneof("kind")
        values = getattr(features[name], kind).value if kind else ()
        if kind == "bytes_list":
            if len(values) == 1 and values[0].startswith(BEGINNINGS):
                found[name] = values[0]
        else:
            dtype = np.int64 if kind == "int64_list" else np.float32
            numbers = np.array(values, dtype)
            found[name] = numbers[0] if len(numbers) == 1 else numbers
    return found
