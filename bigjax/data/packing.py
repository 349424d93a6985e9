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
    places_NT = starts[:, None] + np.arange(length)
    real_NT = places_NT < stops[:, None]
    places_NT = np.where(real_NT, places_NT, starts[:, None])
    tokens_NT = np.where(real_NT, flat[places_NT], pad).astype(np.int32)
    document_NT = np.searchsorted(offsets, places_NT, side="right")  # counts from 1
    segments_NT = np.where(real_NT, document_NT - document_NT[:, :1] + 1, 0).astype(np.int32)
    return tokens_NT, segments_NT


def row_bytes(offsets: np.ndarray, sizes: np.ndarray, rows: Rows, ids: np.ndarray) -> np.ndarray:
    """UTF-8 bytes that the predicted tokens of rows stand for, int32 (N,).

    The bytes of a document are shared out evenly over its tokens after the first, in whole numbers:
    the rows that hold a document add up to its size exactly.

    Args:
      offsets: int64 (D + 1,), where documents begin, and the end of the last.
      sizes: int64 (D,), bytes of each document.
      rows, ids: as in `read_rows`.
    """
    total = np.concatenate([[0], np.cumsum(sizes)])

    def bytes_before(last: np.ndarray) -> np.ndarray:
        """Of all the tokens up to and including the one at place `last`."""
        document = np.searchsorted(offsets, last, side="right") - 1
        done = last - offsets[document]
        predicted = np.maximum(1, offsets[document + 1] - offsets[document] - 1)
        return total[document] + sizes[document] * done // predicted

    return (bytes_before(rows.stops[ids] - 1) - bytes_before(rows.starts[ids])).astype(np.int32)
