"""Which matrix a parameter is: for adapters, scales of channels, ranks. Pure."""

from __future__ import annotations

import math

from bigjax.core.errors import UserError

# Leaves below it have a leading axis of layers (see `bigjax.models.blocks.stack`).
STACKED = "blocks"


def stacked_axes(path: str) -> int:
    """How many leading axes of layers a leaf has."""
    return 1 if STACKED in path.split("/") else 0


def as_matrix(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """(leading axes of stacked layers, m, n) of a leaf: m inputs, n outputs.

    A leaf of more than two dimensions, such as a query's (D, heads, H), is the matrix that comes of
    cutting its dimensions in two where m + n is least.

    Raises:
      UserError: it is none: a bias or a scale.
    """
    count = stacked_axes(path)
    layers, own = shape[:count], shape[count:]
    if len(own) < 2:
        raise UserError(
            f"config.adapt: {path} {shape} is no matrix; give it another value in the rules"
        )
    cuts = [(math.prod(own[:i]), math.prod(own[i:])) for i in range(1, len(own))]
    return layers, *min(cuts, key=sum)
