"""Masked language modelling: the tokens that were hidden. Knows nothing of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.losses import Pair
from bigjax.tasks import scores, tokens
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class MaskedLM(Task):
    """Cross-entropy of logits (B, T, V) against the tokens before masking (Devlin et al. 2019, 3.1).

    input: keys of the tokens, their segments, and what else the model reads; with "places" among them
        T is P, the number of places a row that the model gives logits at.
    labels: key of int (B, T), the token at each hidden place and -100 elsewhere; the transform
        "mask_tokens" makes it.
    """

    MAIN_METRIC: ClassVar[tuple[str, str]] = ("loss", "min")
    TOKENS: ClassVar[tuple[int, ...]] = (0,)

    input: Sequence[str | None] = ("tokens", "segments")
    labels: str = "labels"

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (nats, hidden tokens), and the accuracy on this batch."""
        statistics = self.statistics(outputs, batch)
        return statistics.pop("loss"), statistics

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the hidden tokens: loss and hits."""
        labels_BT = scores.field(batch, self.labels, "task.labels")
        return tokens.sums(outputs, *tokens.scored(outputs, labels_BT, batch["mask"]))

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Loss in nats per hidden token, its perplexity exp(loss), bits, accuracy."""
        return tokens.summary(statistics)

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        labels_BT = scores.field(batch, self.labels, "task.labels")
        return outputs, tokens.scored(outputs, labels_BT, batch["mask"])[1]

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return scores.field(batch, self.labels, "task.labels")

    def predict(self, outputs: jax.Array) -> dict:
        """The most likely token at every place, (B, T)."""
        return {"likely": jnp.argmax(outputs, axis=-1).astype(jnp.int32)}

    def present(self, predicted, batch, source, corpus=None) -> dict[str, list]:
        """Each text with its mask tokens filled in, and what they were filled with; where the source has no tokenizer,
        the likeliest token at every place."""
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is None:
            return {"likely": list(predicted["likely"])}
        tokens_BT, segments_BT = (batch[key] for key in self.input[:2])
        filled = {"text": [], "filled": []}
        for read, likely, real in zip(tokens_BT, predicted["likely"], segments_BT > 0, strict=True):
            masked = np.flatnonzero((read == tokenizer.mask) & real)[: len(likely)]
            # The model has looked at the mask tokens alone, or at every place.
            likely = likely[: len(masked)] if "places" in self.input else likely[masked]
            full = read.copy()
            full[masked] = likely
            filled["text"].append(tokenizer.decode(full[real]))
            filled["filled"].append([tokenizer.token(i) for i in likely])
        return filled
