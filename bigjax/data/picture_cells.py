"""Pictures in the cells of a table: the bytes of a file, or Hugging Face's {"bytes": ..., "path": ...}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data import files, pictures


def holds_pictures(kind: Any) -> bool:
    """Hugging Face's pictures: {"bytes": ..., "path": ...}."""
    import pyarrow

    return pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def _bytes_of(cell: Any) -> bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise pictures.BadPicture("holds no bytes of a picture")
    return content


def headers(cells: Any, chunk: files.Chunk) -> Iterator[tuple[str, pictures.Shape]]:
    """Where each picture of a column is, and its own shape."""
    for i, cell in enumerate(cells.to_pylist()):
        try:
            yield chunk.where(i), pictures.header(_bytes_of(cell))
        except pictures.BadPicture as error:
            raise UserError(f"{chunk.where(i)}: {error}") from None


def decoded(cells: Any, shape: pictures.Shape) -> tuple[np.ndarray, dict[int, str]]:
    """The pictures of a column, uint8 (N, H, W, C), and what is wrong with some, by row."""
    images = np.zeros((len(cells), shape.height, shape.width, shape.channels), np.uint8)
    problems = {}
    for i, cell in enumerate(cells.to_pylist()):
        try:
            images[i] = pictures.decode(_bytes_of(cell), shape)
        except pictures.BadPicture as error:
            problems[i] = str(error)
    return images, problems
