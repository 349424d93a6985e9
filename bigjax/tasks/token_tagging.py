"""Token tagging: one of K tags for each word of a text. Knows nothing of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.losses import Pair, hide_masked
from bigjax.tasks import scores, tokens
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class TokenTagging(Task):
    """Softmax over logits (B, T, K) at the tokens that carry a tag; every tag weighs the same.

    input: keys of the batch that the model reads.
    labels: key of int (B, T): a tag at the first token of each word, -100 at all others.
    """

    input: Sequence[str] = ("tokens", "segments")
    labels: str = "labels"

    def classes(self, outputs: int) -> tuple[str, int, int | None]:
        return self.labels, outputs, tokens.IGNORED

    def outputs(self, source: Any) -> int | None:
        return source.num_classes

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (nats, tags), and the accuracy on this batch."""
        sums = tokens.sums(outputs, *self._labels(outputs, batch))
        return sums.pop("loss"), sums

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the tags: loss and confusion matrix (K + 1, K)."""
        labels_BT, mask_BT = self._labels(outputs, batch)
        predicted_BT = jnp.argmax(hide_masked(outputs, mask_BT), axis=-1)
        rows = (labels_BT.reshape(-1), predicted_BT.reshape(-1), mask_BT.reshape(-1))
        return {
            "loss": tokens.sums(outputs, labels_BT, mask_BT)["loss"],
            "confusion": scores.confusion_matrix(*rows, outputs.shape[-1]),
        }

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Mean loss, accuracy, errors, macro and per-tag precision, recall, F1, confusion matrix."""
        return {
            "loss": scores.mean(statistics["loss"]),
            **scores.confusion_scores(statistics["confusion"]),
        }

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        return outputs, self._labels(outputs, batch)[1]

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return self._labels(outputs, batch)[0]

    def predict(self, outputs: jax.Array) -> dict:
        """The most likely tag at every token, (B, T)."""
        return {"tags": jnp.argmax(outputs, axis=-1).astype(jnp.int32)}

    def present(self, predicted, batch, source, corpus=None) -> dict[str, list]:
        """The tag of each word, by name where the source knows names."""
        names = source.class_names
        words_BT = batch[self.labels] != tokens.IGNORED
        rows = [tags[words] for tags, words in zip(predicted["tags"], words_BT, strict=True)]
        known = dict(enumerate(names or ()))  # a model may have more outputs than there are names
        return {"tags": [[known.get(int(i), int(i)) for i in row] for row in rows]}

    def _labels(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        labels_BT = scores.field(batch, self.labels, "task.labels")
        return tokens.scored(outputs, labels_BT, batch["mask"])
