"""Masked language modelling: the tokens that were hidden. Knows nothing of devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.losses import Pair
from bigjax.tasks import scores, tokens


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy of logits (B, T, V) against the tokens before masking (Devlin et al. 2019, 3.1).

    input: keys of the tokens, their segments, and what else the model reads; with "places" among them
        T is P, the number of places a row that the model gives logits at.
    labels: key of int (B, T), the token at each hidden place and -100 elsewhere; the transform
        "mask_tokens" makes it.
    """

    main_metric: ClassVar[str] = "loss"  # what a sweep chooses by unless told

    input: Sequence[str | None] = ("tokens", "segments")
    labels: str = "labels"

    def inputs(self, batch: dict) -> tuple:
        return scores.inputs(batch, self.input)

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (nats, hidden tokens), and the accuracy on this batch."""
        statistics = self.statistics(outputs, batch)
        return statistics.pop("loss"), statistics

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the hidden tokens: loss and hits."""
        labels_BT = scores.field(batch, self.labels, "task.labels")
        return tokens.sums(outputs, *tokens.scored(outputs, labels_BT, batch["mask"]))

    def collect(self, outputs: jax.Array, batch: dict) -> dict:
        return {}

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Loss in nats per hidden token, its perplexity exp(loss), bits, accuracy."""
        loss = scores.mean(statistics["loss"])
        return {
            "loss": loss,
            "perplexity": tokens.perplexity(loss),
            "bits_per_token": loss / math.log(2),
            "accuracy": scores.mean(statistics["accuracy"]),
        }

    def predict(self, outputs: jax.Array) -> dict:
        """The most likely token at every place, (B, T)."""
        return {"likely": jnp.argmax(outputs, axis=-1).astype(jnp.int32)}

    def present(self, columns: Mapping[str, np.ndarray], source: Any) -> dict[str, list]:
        """Each text with its mask tokens filled in, and what they were filled with."""
        tokens_BT, segments_BT = (columns[key] for key in self.input[:2])
        filled = {"text": [], "filled": []}
        for read, likely, real in zip(tokens_BT, columns["likely"], segments_BT > 0, strict=True):
            masked = np.flatnonzero((read == source.tokenizer.mask) & real)[: len(likely)]
            # The model has looked at the mask tokens alone, or at every place.
            likely = likely[: len(masked)] if "places" in self.input else likely[masked]
            full = read.copy()
            full[masked] = likely
            filled["text"].append(source.tokenizer.decode(full[real]))
            filled["filled"].append([source.tokenizer.token(i) for i in likely])
        return filled
