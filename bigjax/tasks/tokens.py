"""What tasks share that score tokens one by one: which tokens count, and their sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, masked_sum, softmax_cross_entropy
from bigjax.tasks import scores

IGNORED = -100  # the label of a token that is not scored, as in PyTorch's cross-entropy


def scored(
    outputs_BTV: jax.Array, labels_BT: jax.Array, mask_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The labels, and float32 (B, T) with 1 for each token of a real row that has one."""
    if outputs_BTV.shape[:-1] != labels_BT.shape:
        raise UserError(
            f"the task needs logits (B, T, V) for labels {labels_BT.shape}; "
            f"the model gives {outputs_BTV.shape}"
        )
    return labels_BT, (labels_BT != IGNORED) * mask_B[:, None].astype(jnp.float32)


def sums(outputs_BTV: jax.Array, labels_BT: jax.Array, mask_BT: jax.Array) -> dict[str, Pair]:
    """Cross-entropy in nats and hits over the tokens of the mask; every token weighs the same."""
    correct_BT = jnp.argmax(outputs_BTV, axis=-1) == labels_BT
    return {
        "loss": softmax_cross_entropy(outputs_BTV, labels_BT, mask_BT),
        "accuracy": masked_sum(correct_BT, mask_BT),
    }


def summary(statistics: Mapping[str, Any]) -> dict[str, float]:
    """Of `sums` over a split: loss in nats a token, its perplexity exp(loss), bits a token, accuracy."""
    loss = scores.mean(statistics["loss"])
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_token": loss / math.log(2),
        "accuracy": scores.mean(statistics["accuracy"]),
    }


def perplexity(loss: float) -> float:
    """exp(loss), the loss in nats a token."""
    return math.exp(loss) if loss < 700 else math.inf
