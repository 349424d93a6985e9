"""A policy and a value of vectors: two multi-layer perceptrons side by side.

Parameters: policy and value, each with dense_0, dense_1, ..., head.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from bigjax.models.mlp import MLP


class ActorCritic(nn.Module):
    """widths: size of each hidden layer of both. actions: how many there are to choose from."""

    widths: Sequence[int]
    actions: int
    activation: str = "tanh"

    # As in an MLP, for each of the two.
    TENSOR_RULES = tuple((f".*/({pattern})", spec) for pattern, spec in MLP.TENSOR_RULES)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """x (B, F); returns logits (B, actions) and values (B,)."""
        fields = dict(widths=self.widths, activation=self.activation)
        logits = MLP(**fields, outputs=self.actions, name="policy")(x, train=train)
        value = MLP(**fields, outputs=1, name="value")(x, train=train)
        return logits, value[:, 0]
