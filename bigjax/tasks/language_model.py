"""Causal language modelling: at every position, the next token. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.losses import Pair, masked_sum, softmax_cross_entropy
from bigjax.tasks import scores


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of logits (B, T, V) at position t against token t + 1; every token weighs the same.

    input: key of the batch that holds the tokens, int (B, T).
    token_mask: key that holds, (B, T), 1 for a token to be predicted and 0 for one that is only read
        (padding, a prompt); None: all are predicted but the first.
    """

    input: str = "tokens"
    token_mask: str | None = None

    def inputs(self, batch: dict) -> tuple:
        return (scores.field(batch, self.input, "task.input"),)

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (nats, tokens), and the accuracy on this batch."""
        statistics = self.statistics(outputs, batch)
        return statistics.pop("loss"), statistics

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the predicted tokens: loss and hits."""
        labels_BT, mask_BT = self._labels(outputs, batch)
        correct_BT = jnp.argmax(outputs, axis=-1) == labels_BT
        return {
            "loss": softmax_cross_entropy(outputs, labels_BT, mask_BT),
            "accuracy": masked_sum(correct_BT, mask_BT),
        }

    def collect(self, outputs: jax.Array, batch: dict) -> dict:
        return {}

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Loss in nats per token, its perplexity exp(loss), bits per token, accuracy."""
        loss = scores.mean(statistics["loss"])
        return {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_token": loss / math.log(2),
            "accuracy": scores.mean(statistics["accuracy"]),
        }

    def predict(self, outputs: jax.Array) -> dict:
        """The most likely token (B,) after the whole sequence, and its probability (B,)."""
        probabilities_BV = jax.nn.softmax(outputs[:, -1].astype(jnp.float32))
        return {
            "token": jnp.argmax(probabilities_BV, axis=-1).astype(jnp.int32),
            "probability": jnp.max(probabilities_BV, axis=-1),
        }

    def _labels(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The token that follows each position, (B, T), and which of them count, float32 (B, T)."""
        (tokens_BT,) = self.inputs(batch)
        if outputs.shape[:-1] != tokens_BT.shape:
            raise UserError(
                f"language modelling needs logits (B, T, V) for tokens {tokens_BT.shape}; "
                f"the model gives {outputs.shape}"
            )
        mask_BT = jnp.ones(tokens_BT.shape, jnp.float32)
        if self.token_mask is not None:
            given_BT = scores.field(batch, self.token_mask, "task.token_mask")
            mask_BT = jnp.roll(given_BT.astype(jnp.float32), -1, axis=1)
        mask_BT = mask_BT.at[:, -1].set(0.0) * batch["mask"][:, None]
        # Rolled, not cut: T keeps its length, which a mesh axis may have to divide.
        return jnp.roll(tokens_BT, -1, axis=1), mask_BT
