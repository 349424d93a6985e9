"""The order in which examples are seen: a pure function of (seed, position), nothing else.

Position p of the endless training stream is example `permutation(p % size)` of epoch `p // size`.
The permutation is computed, never stored, so any host can name any row of any step at once, and
seeking to step 1,000,000 costs what seeking to step 10 costs. The golden ids in the tests hold it
still: a change here would silently change every published run.
"""

from __future__ import annotations

import math

import numpy as np

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
