"""Multi-class classification: one of K classes per example. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, hide_masked, masked_sum, softmax_cross_entropy
from bigjax.tasks import scores
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """Softmax over logits (B, K), against labels (B,) of integers or (B, K) of probabilities.

    input: key of the batch, or keys in the order in which the model takes them.
    label: key of the batch.
    label_smoothing: mass spread evenly over the classes in the training loss; evaluation reports
        the plain cross-entropy.
    top_k: "top_k" counts a hit among the k largest logits; reported only where K > k.
    """

    input: str | Sequence[str] = "image"
    label: str = "label"
    label_smoothing: float = 0.0
    top_k: int = 5

    def __post_init__(self):
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"task.label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if self.top_k < 1:
            raise UserError(f"task.top_k must be at least 1, not {self.top_k}")

    def classes(self, outputs: int) -> tuple[str, int, int | None]:
        return self.label, outputs, None

    def outputs(self, source: Any) -> int | None:
        if source.num_classes is None and source.features.get(self.label, ((0,),))[0] == ():
            raise UserError(
                f"config.task.label: {self.label!r} holds numbers that are no classes (words, or whole "
                f"numbers from 0); of a table, columns={{{self.label!r}: 'category'}} makes them classes"
            )
        return source.num_classes

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair, and the accuracy on this batch."""
        labels, mask = self._labels(outputs, batch), batch["mask"]
        correct = jnp.argmax(outputs, axis=-1) == _hard(labels)
        pair = softmax_cross_entropy(outputs, labels, mask, self.label_smoothing)
        return pair, {"accuracy": masked_sum(correct, mask)}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the examples: loss, top-k hits, confusion matrix (K + 1, K), calibration bins."""
        labels, mask = self._labels(outputs, batch), batch["mask"]
        logits, true, classes = hide_masked(outputs, mask), _hard(labels), outputs.shape[1]
        predicted = jnp.argmax(logits, axis=-1)
        confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
        sums = {
            "loss": softmax_cross_entropy(logits, labels, mask),
            "confusion": scores.confusion_matrix(true, predicted, mask, classes),
            "calibration": scores.calibration(confidence, predicted == true, mask),
        }
        if classes > self.top_k:
            best = jax.lax.top_k(logits, self.top_k)[1]
            sums["top_k"] = masked_sum(jnp.any(best == true[:, None], axis=-1), mask)
        return sums

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Mean loss, accuracy, errors, top-k, macro and per-class scores, confusion matrix, ECE."""
        top = (
            {f"top_{self.top_k}": scores.mean(statistics["top_k"])} if "top_k" in statistics else {}
        )
        return {
            "loss": scores.mean(statistics["loss"]),
            **scores.confusion_scores(statistics["confusion"]),
            **top,
            "ece": scores.calibration_error(statistics["calibration"]),
        }

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        return outputs, batch["mask"]

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return _hard(self._labels(outputs, batch))

    def predict(self, outputs: jax.Array) -> dict:
        """The most likely class (B,) and its probability (B,)."""
        probabilities = jax.nn.softmax(outputs.astype(jnp.float32))
        return {
            "class": jnp.argmax(probabilities, axis=-1).astype(jnp.int32),
            "probability": jnp.max(probabilities, axis=-1),
        }

    def _labels(self, outputs: jax.Array, batch: dict) -> jax.Array:
        labels = scores.field(batch, self.label, "task.label")
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            raise UserError(
                f"classification needs logits (B, K) with K >= 2; the model gives {outputs.shape}"
                " (one output: use the task 'binary' or 'regression')"
            )
        hard = labels.shape == outputs.shape[:1] and jnp.issubdtype(labels.dtype, jnp.integer)
        if not hard and labels.shape != outputs.shape:
            raise UserError(
                f"labels '{self.label}' are {labels.dtype} {labels.shape}; logits {outputs.shape} "
                f"need integers {outputs.shape[:1]} or probabilities {outputs.shape}"
            )
        return labels


def _hard(labels: jax.Array) -> jax.Array:
    """Class ids (B,); of soft labels (B, K), such as mixup's, the largest."""
    return labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
