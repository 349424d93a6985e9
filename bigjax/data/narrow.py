"""64-bit numbers in 32 bits, as JAX would have them, where they fit."""

from __future__ import annotations

import numpy as np

from bigjax.core.errors import UserError

Features = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Name of a column -> (shape of one example, dtype)."""


def zeros(features: Features, rows: int) -> dict[str, np.ndarray]:
    """Columns of so many examples, to be written into."""
    return {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in features.items()}


def narrow_dtype(dtype: np.dtype) -> np.dtype:
    """What numbers of this dtype become."""
    if dtype.kind in "iu" and dtype.itemsize == 8:
        return np.dtype(np.int32)
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize == 8 else dtype


def narrow(key: str, column: np.ndarray) -> np.ndarray:
    """A feature of examples; UserError where it is no numbers, or integers that do not fit."""
    if column.ndim == 0 or column.dtype.kind not in "biuf":
        raise UserError(f"array {key!r} must be numbers with one row per example")
    dtype = narrow_dtype(column.dtype)
    if dtype != column.dtype and dtype.kind == "i" and column.size:
        limits = np.iinfo(np.int32)
        if column.min() < limits.min or column.max() > limits.max:
            raise UserError(f"array {key!r} holds integers that do not fit 32 bits")
    return column.astype(dtype, copy=False)
