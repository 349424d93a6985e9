"""The order in which examples are seen: a pure function of (seed, position), nothing else.

Position p of the endless training stream is example `permutation(p % size)` of epoch `p // size`.
The permutation is computed, never stored, so any host can name any row of any step at once, and
seeking to step 1,000,000 costs what seeking to step 10 costs. The golden ids in the tests hold it
still: a change here would silently change every published run.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Stream = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(seed, positions) -> ids and epochs, as `sample_ids` of one size."""

ROUNDS = 12  # four suffice for large halves (Luby & Rackoff); the halves of small sets are tiny


def sample_ids(seed: int, positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Names the examples at some positions of the shuffled, endless stream.

    Each epoch has its own permutation of range(size), given by a Feistel network (Luby & Rackoff
    1988, "How to construct pseudorandom permutations from pseudorandom functions") over
    Z_a x Z_b with a * b just above size; values outside range(size) walk on along their cycle until
    they fall inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
      seed: any integer; taken modulo 2**64.
      positions: integers >= 0 of any shape, e.g. step * batch_size + row.
      size: number of examples, 1 <= size < 2**62.

    Returns:
      (ids in range(size), epochs), int64 arrays of the shape of `positions`.
    """
    if not 1 <= size < 2**62:
        raise ValueError(f"size must be in [1, 2**62), got {size}")
    epochs, within = np.divmod(np.asarray(positions, np.int64), size)
    shape = epochs.shape
    values, epochs_flat = within.astype(np.uint64).ravel(), epochs.ravel()
    distinct, which = np.unique(epochs_flat, return_inverse=True)
    keys = _round_keys(seed, distinct)[:, which]
    ids = _feistel(values, keys, size)
    outside = np.flatnonzero(ids >= size)
    while outside.size:
        ids[outside] = _feistel(ids[outside], keys[:, outside], size)
        outside = outside[ids[outside] >= size]
    return ids.astype(np.int64).reshape(shape), epochs


def stream_of(source: Any) -> Stream:
    """The order of a source's examples: its own `stream`, or else all of them shuffled."""
    return getattr(source, "stream", None) or functools.partial(sample_ids, size=len(source))


class Interleaved:
    """An order for examples that lie in groups of which only some can be open at a time.

    Each epoch all groups stand one after the other in a shuffled order, each one's examples shuffled. That row
    is cut into `lanes` parts of one length, and these are gone through side by side: every `lanes` positions
    in turn take one example of each part, in a shuffled order, and each part begins at another place of its
    own, so that groups are opened evenly over time. A group is open once an epoch, but for those that a
    part's beginning or end falls into (two groups a part at most), as long as `lanes` times its size.

    Args:
      sizes: int64 (groups,), examples of each group, all above 0; ids count them in order.
      lanes: groups that are open at a time.
    """

    def __init__(self, sizes: np.ndarray, lanes: int) -> None:
        self._sizes, self._ends = sizes, np.cumsum(sizes)
        self._total = int(self._ends[-1])
        self._lanes = min(lanes, self._total)
        self._shuffled = functools.lru_cache(2)(self._shuffle)  # a block may lie in two epochs

    def __call__(self, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `sample_ids`: (ids, epochs), int64 arrays of the shape of `positions`."""
        epochs, within = np.divmod(np.asarray(positions, np.int64), self._total)
        ids = np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            own = epochs == epoch
            ids[own] = self._of_epoch(seed, epoch, within[own])
        return ids, epochs

    def _of_epoch(self, seed: int, epoch: int, within: np.ndarray) -> np.ndarray:
        length, more = divmod(self._total, self._lanes)  # the first `more` lanes are longer by one
        turn, place = np.divmod(within, self._lanes)
        lane, last = np.empty_like(place), turn == length
        for own, width in ((~last, self._lanes), (last, more)):
            if own.any():
                number = epoch * (length + 1) + turn[own]
                lane[own], _ = sample_ids(_apart(seed, "turns"), number * width + place[own], width)
        begins, _ = sample_ids(_apart(seed, "lanes"), epoch * self._lanes + lane, self._lanes)
        own_length = length + (lane < more)
        begin = begins * own_length // self._lanes
        at = lane * length + np.minimum(lane, more) + (turn + begin) % own_length
        groups, ends = self._shuffled(seed, epoch)
        rank = np.searchsorted(ends, at, side="right")
        group = groups[rank]
        size = self._sizes[group]
        number = at - (ends[rank] - size)
        for one in np.unique(size).tolist():
            same = size == one
            key = epoch * len(self._sizes) + group[same]
            number[same], _ = sample_ids(_apart(seed, "groups"), key * one + number[same], one)
        return self._ends[group] - size + number

    def _shuffle(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(the groups in the order of an epoch, where they end in it)"""
        count = len(self._sizes)
        groups, _ = sample_ids(_apart(seed, "order"), epoch * count + np.arange(count), count)
        return groups, np.cumsum(self._sizes[groups])


def _apart(seed: int, what: str) -> int:
    """A seed of its own for each thing that is drawn."""
    return seed + (zlib.crc32(what.encode()) << 32)


def _round_keys(seed: int, epochs: np.ndarray) -> np.ndarray:
    """One uint64 key for each (round, epoch): shape (ROUNDS, E)."""
    seed_key = _mix(np.array([seed % 2**64], np.uint64))
    epoch_keys = _mix(seed_key + epochs.astype(np.uint64))
    rounds = np.arange(ROUNDS, dtype=np.uint64)[:, None]
    return _mix(epoch_keys + _mix(rounds))


def _feistel(values: np.ndarray, keys: np.ndarray, size: int) -> np.ndarray:
    """A keyed permutation of range(a * b), size <= a * b < size + a: values (N,), keys (ROUNDS, N)."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    a, b, half = np.uint64(a), np.uint64(b), np.uint64(1)
    left, right = np.divmod(values, b)
    for number, key in enumerate(keys):  # the shift leaves room for the sum in 64 bits
        if number % 2:
            right = (right + (_mix(key ^ left) >> half)) % b
        else:
            left = (left + (_mix(key ^ right) >> half)) % a
    return left * b + right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014, fig. 16): scrambles uint64 values."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, numbers: np.ndarray) -> np.ndarray:
    """One float64 in (0, 1) for each of some whole numbers, apart from all that `sample_ids` uses."""
    keys = _mix(_mix(np.array([seed % 2**64], np.uint64)) ^ np.uint64(0x5851F42D4C957F2D))
    bits = _mix(_mix(keys + np.asarray(numbers).astype(np.uint64)))
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
