"""Recurrent network: stacked LSTM or GRU layers over a sequence, then a linear head.

Parameters: lstm_0 (or gru_0), lstm_1, ..., head; the gates keep Flax's names.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.common import choose

CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


class RNN(nn.Module):
    """widths: hidden size of each stacked layer.

    cell: "lstm" (Hochreiter & Schmidhuber 1997, with forget gate) or "gru" (Cho et al. 2014).
    pooling: "last" hidden state of the top layer, or their "mean" over time.
    dropout: between layers and before the head, never on the recurrence (Zaremba et al. 2014).
    """

    widths: Sequence[int]
    outputs: int
    cell: str = "lstm"
    pooling: str = "last"
    dropout: float = 0.0

    # Every gate's hidden units are split; the state is gathered once a time step.
    LOGICAL_RULES = (("units", "tensor"),)
    TENSOR_RULES = (
        (r"(lstm|gru)_\d+/.*/kernel", (None, "tensor")),
        (r"(lstm|gru)_\d+/.*/bias", ("tensor",)),
        (r"head/kernel", ("tensor",)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, T, F), or an image (B, H, W, C) read row by row; returns logits (B, outputs)."""
        choose("model.cell", self.cell, tuple(CELLS))
        choose("model.pooling", self.pooling, ("last", "mean"))
        if x.ndim not in (3, 4):
            raise UserError(
                f"an RNN reads sequences (B, T, F) or images (B, H, W, C), not an input of shape {x.shape}"
            )
        x = x.reshape(*x.shape[:2], -1).astype(jnp.float32)
        for i, width in enumerate(self.widths):
            gathered = nn.map_variables(
                CELLS[self.cell], "params", _gather, init=self.is_initializing()
            )
            cell = gathered(width, name=f"{self.cell}_{i}")
            x = nn.RNN(cell)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x[:, -1] if self.pooling == "last" else jnp.mean(x, axis=1, dtype=jnp.float32)
        return nn.Dense(self.outputs, name="head")(x)


def _gather(variables: dict) -> dict:
    """A cell's parameters, whole but for the split of its units, before the loop over time.

    Else every time step would gather them; and XLA (jaxlib 0.10.2) gives wrong gradients of a kernel
    split both ways and used in a loop (`test_sharding_matrix.py` has the case).
    """
    return jax.tree.map(lambda w: constrain(w, *(None,) * (w.ndim - 1), "units"), variables)
