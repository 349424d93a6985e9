"""What a GGUF file says of itself: its fields, and where each tensor lies. Untrusted input.

Read here and not by the package `gguf`, whose reader believes every count: 45 bytes that announce an
array of 2**60 items keep it busy for ever. Every count is held against the bytes that are left. The
format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
KEPT = 4096  # items; longer arrays, which are vocabularies, are skipped
MOST_AXES = 8


class Malformed(ValueError):
    """The bytes are no GGUF file; says which part."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: shape (slowest axis first), type number, first byte, number of bytes."""

    shape: tuple[int, ...]
    type: int
    start: int
    size: int


def read_header(
    data: Any, blocks: Mapping[int, tuple[int, int]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(field -> value, name -> tensor) of the bytes of a whole file.

    Args:
      data: the file, e.g. as an `mmap`.
      blocks: type number -> (numbers in a block, bytes of a block).

    Raises:
      Malformed: see there.
    """
    at = _Cursor(data)
    if at.take(4, "the first bytes") != b"GGUF":
        raise Malformed("it does not start with GGUF")
    version = at.number("I", "the version")
    if version not in (2, 3):
        raise Malformed(f"version {version}, not 2 or 3 in little-endian order")
    tensors, fields = at.count(24, "tensors"), at.count(13, "fields")
    found: dict[str, Any] = {}
    for _ in range(fields):
        name = at.text("a field's name")
        found[name] = _value(at, at.number("I", name), name)
    infos = {}
    for _ in range(tensors):
        name = at.text("a tensor's name")
        axes = at.number("I", name)
        if axes > MOST_AXES or name in infos:
            raise Malformed(f"tensor '{name}': {axes} axes, or named twice")
        shape = tuple(at.number("Q", name) for _ in range(axes))[::-1]  # the fastest axis is first
        infos[name] = shape, at.number("I", name), at.number("Q", name)
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise Malformed(f"general.alignment: {alignment!r} is no power of two")
    begin = at.at + -at.at % alignment
    return found, {
        name: _tensor(name, *info, begin, len(data), blocks) for name, info in infos.items()
    }


def _tensor(
    name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int, end: int,
    blocks: Mapping[int, tuple[int, int]],
) -> Tensor:  # fmt: skip
    if kind not in blocks:
        raise Malformed(f"tensor '{name}': no such type ({kind})")
    numbers, size = blocks[kind]
    total = math.prod(shape)
    if not shape or shape[-1] % numbers:
        raise Malformed(f"tensor '{name}': shape {shape} is not of whole blocks of {numbers}")
    length = total // numbers * size
    if begin + offset + length > end:
        raise Malformed(f"cut short: it ends before tensor '{name}' does")
    return Tensor(shape, kind, begin + offset, length)


def _value(at: _Cursor, kind: int, name: str) -> Any:
    if kind in SCALARS:
        return at.number(SCALARS[kind], name)
    if kind == STRING:
        return at.text(name)
    if kind != ARRAY:
        raise Malformed(f"field '{name}': no such type ({kind})")
    item = at.number("I", name)
    if item in SCALARS:
        size = struct.calcsize("<" + SCALARS[item])
        count = at.count(size, f"items of '{name}'")
        values = at.take(count * size, name)
        return list(struct.unpack(f"<{count}{SCALARS[item]}", values)) if count <= KEPT else None
    if item != STRING:
        raise Malformed(f"field '{name}': an array of type {item}")
    count = at.count(8, f"items of '{name}'")
    if count <= KEPT:
        return [at.text(name) for _ in range(count)]
    for _ in range(count):
        at.skip(at.number("Q", name), name)
    return None


class _Cursor:
    """A place in the bytes that never moves beyond their end."""

    def __init__(self, data: Any) -> None:
        self.data, self.at = data, 0

    def skip(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise Malformed(f"cut short within {what}, or a count that is larger than the file")
        self.at += size

    def take(self, size: int, what: str) -> bytes:
        start = self.at
        self.skip(size, what)
        return self.data[start : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """How many `what` follow, each of at least `smallest` bytes."""
        found = self.number("Q", f"the number of {what}")
        if found * smallest > len(self.data) - self.at:
            raise Malformed(f"{found} {what}: more than the file has bytes for")
        return found

    def text(self, what: str) -> str:
        try:
            return self.take(self.number("Q", what), what).decode()
        except UnicodeDecodeError:
            raise Malformed(f"{what} is no UTF-8") from None
