"""Rows of one length from documents of any, with segment ids. Pure NumPy; the order is not its own.

A corpus is one flat array of token ids in which every document begins with a start token. Rows
overlap by one token: the last of a row is read again as the first of the next, so that each token
but the first of a document is predicted exactly once, from the tokens of its document in its row.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where rows lie in the flat array: row i is flat[starts[i] : stops[i]], the rest is padding."""

    starts: np.ndarray  # int64 (R,)
    stops: np.ndarray  # int64 (R,)

    def __len__(self) -> int:
        return len(self.starts)


def packed_rows(first: int, last: int, length: int) -> Rows:
    """Rows that cut flat[first:last] every length - 1 tokens, wherever documents begin and end."""
    starts = np.arange(first, max(last - 1, first + 1), length - 1, dtype=np.int64)
    return Rows(starts, np.minimum(starts + length, last))


def document_rows(offsets: np.ndarray, length: int) -> Rows:
    """Rows that hold one document each, or one piece of a document longer than `length`.

    Args:
      offsets: int64 (D + 1,), document d is flat[offsets[d] : offsets[d + 1]].
      length: T >= 2.
    """
    sizes = np.diff(offsets)
    pieces = np.maximum(1, -(-(sizes - 1) // (length - 1)))
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.repeat(offsets[:-1], pieces) + number * (length - 1)
    return Rows(starts, np.minimum(starts + length, np.repeat(offsets[1:], pieces)))


def read_rows(
    flat: np.ndarray, offsets: np.ndarray, rows: Rows, ids: np.ndarray, length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and segments of some rows.

    Args:
      flat: token ids of all documents, one after the other.
      offsets: int64 (D + 1,), where documents begin, and the end of the last.
      rows: where rows lie.
      ids: (N,) which rows.
      length: T.
      pad: what follows the last token of a short row.

    Returns:
      tokens int32 (N, T), and segments int32 (N, T): 0 for padding, else 1, 2, ... in the order of
      the documents in the row.
    """
    starts, stops = rows.starts[ids], rows.stops[ids]
    flat = np.asarray(flat)  # a slice of a memmap is a memmap, and slow to make
    tokens_NT = np.full((len(starts), length), pad, np.int32)
    for tokens, start, stop in zip(tokens_NT, starts.tolist(), stops.tolist(), strict=True):
        tokens[: stop - start] = flat[start:stop]
    # A segment begins where a document does: the beginnings of all rows one after the other, then sums.
    first = np.searchsorted(offsets, starts, side="right")
    counts = np.maximum(0, np.searchsorted(offsets, stops - 1, side="right") - first)
    row = np.repeat(np.arange(len(starts)), counts)
    document = np.arange(len(row)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    segments_NT = np.zeros((len(starts), length), np.int32)
    segments_NT[:, 0] = 1
    np.add.at(segments_NT, (row, offsets[document] - starts[row]), 1)
    np.cumsum(segments_NT, axis=1, out=segments_NT)
    if np.any(short := stops - starts < length):
        segments_NT[short] *= np.arange(length) < (stops - starts)[short, None]
    return tokens_NT, segments_NT


def totals(sizes: np.ndarray) -> np.ndarray:
    """Bytes of all documents before each, and of all: int64 (D + 1,)."""
    return np.concatenate([[0], np.cumsum(sizes)])


def row_bytes(offsets: np.ndarray, total: np.ndarray, rows: Rows, ids: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that the predicted tokens of rows stand for, int32 (N,).

    The bytes of a document are shared out evenly over its tokens after the first, in whole numbers:
    the rows that hold a document add up to its size exactly.

    Args:
      offsets: int64 (D + 1,), where documents begin, and the end of the last.
      total: int64 (D + 1,), `totals` of the bytes of each document.
      rows, ids: as in `read_rows`.
    """

    def bytes_before(last: np.ndarray) -> np.ndarray:
        """Of all the tokens up to and including the one at place `last`."""
        document = np.searchsorted(offsets, last, side="right") - 1
        done = last - offsets[document]
        predicted = np.maximum(1, offsets[document + 1] - offsets[document] - 1)
        return total[document] + (total[document + 1] - total[document]) * done // predicted

    return (bytes_before(rows.stops[ids] - 1) - bytes_before(rows.starts[ids])).astype(np.int32)
