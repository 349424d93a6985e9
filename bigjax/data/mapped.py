"""Arrays written once, piece by piece, and mapped into memory: any row is one read, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bigjax.run.files import publish


def mapped(
    folder: Path, pieces: Iterator[dict[str, np.ndarray]], rows: int
) -> dict[str, np.ndarray]:
    """The arrays, (rows, ...) by name; `pieces` are gone through if `folder` is not there yet.

    pieces: parts of all arrays, in order; only one is in memory.
    """
    publish(folder, lambda private: _write(private, pieces, rows))
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}


def _write(folder: Path, pieces: Iterator[dict[str, np.ndarray]], rows: int) -> None:
    columns: dict[str, np.ndarray] = {}
    at = 0
    for piece in pieces:
        for key, values in piece.items():
            if key not in columns:
                columns[key] = np.lib.format.open_memmap(
                    folder / f"{key}.npy",
                    mode="w+",
                    dtype=values.dtype,
                    shape=(rows, *values.shape[1:]),
                )
            columns[key][at : at + len(values)] = values
        at += len(values)
    for column in columns.values():
        column.flush()
