"""Classification by sigmoids, and with one of them an example. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.losses import (
    Pair,
    hide_masked,
    is_probability,
    masked_sum,
    sigmoid_cross_entropy,
)
from bigjax.tasks import scores
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Sigmoids(Task):
    """What the tasks share whose labels are 0, 1 or a probability; above a logit of 0 it is 1.

    input, label: keys of the batch.
    """

    input: str | Sequence[str] = "features"
    label: str = "label"

    def classes(self, outputs: int) -> tuple[str, int, int | None]:
        return self.label, 2, None

    def collect(self, outputs: jax.Array, batch: dict) -> dict:
        """Scores and labels: ROC AUC needs their order over the whole split."""
        logits, labels, _ = self.read(outputs, batch)
        return {"score": logits, "label": (labels > 0.5).astype(jnp.int32)}

    def targets(self, outputs: jax.Array, batch: dict) -> jax.Array:
        return (self.read(outputs, batch)[1] > 0.5).astype(jnp.int32)

    def read(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits and labels, float32 and of one shape, the masked rows 0; and the mask (B,)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Binary(Sigmoids):
    """Logits (B, 1) or (B,), labels (B, 1) or (B,): 0 or 1, or a probability of class 1."""

    def outputs(self, source: Any) -> int:
        return 1

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair, and the accuracy on this batch."""
        logits, labels, mask = self.read(outputs, batch)
        correct = ((logits > 0) == (labels > 0.5)) & is_probability(labels)
        pair = sigmoid_cross_entropy(logits, labels, mask)
        return pair, {"accuracy": masked_sum(correct, mask)}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the examples: loss, confusion matrix (3, 2), calibration bins."""
        logits, labels, mask = self.read(outputs, batch)
        true, predicted = (labels > 0.5).astype(jnp.int32), (logits > 0).astype(jnp.int32)
        true = jnp.where(is_probability(labels), true, 2)  # no class: never right
        confidence = jax.nn.sigmoid(jnp.abs(logits))
        return {
            "loss": sigmoid_cross_entropy(logits, labels, mask),
            "confusion": scores.confusion_matrix(true, predicted, mask, 2),
            "calibration": scores.calibration(confidence, predicted == true, mask),
        }

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Mean loss, accuracy, errors, scores of class 1, macro and per-class, ROC AUC, ECE."""
        result = {
            "loss": scores.mean(statistics["loss"]),
            **scores.confusion_scores(statistics["confusion"]),
        }
        for name in ("precision", "recall", "f1"):
            result[name] = result[f"{name}_per_class"][1]
        result["roc_auc"] = scores.roc_auc(collected["label"], collected["score"])
        result["ece"] = scores.calibration_error(statistics["calibration"])
        return result

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The sigmoid of a logit as the softmax of (0, logit)."""
        return scores.two_classes(outputs.reshape(batch["mask"].shape)), batch["mask"]

    def predict(self, outputs: jax.Array) -> dict:
        """The predicted class, 0 or 1, and the probability of that class; both (B,)."""
        logits = outputs.astype(jnp.float32).reshape(outputs.shape[0])
        return {
            "class": (logits > 0).astype(jnp.int32),
            "probability": jax.nn.sigmoid(jnp.abs(logits)),
        }

    def read(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits, labels and mask, each float32 (B,), the masked rows 0."""
        labels, mask = scores.field(batch, self.label, "task.label"), batch["mask"]
        one = (mask.shape, (*mask.shape, 1))
        if outputs.shape not in one:
            raise UserError(
                f"binary classification needs one logit per example, {one[1]}; the model gives "
                f"{outputs.shape} (several: use the task 'classification' or 'multilabel')"
            )
        if labels.shape not in one:
            raise UserError(f"labels '{self.label}' have shape {labels.shape}, not {one[0]}")
        return (
            hide_masked(outputs.reshape(mask.shape), mask),
            hide_masked(labels.reshape(mask.shape), mask),
            mask,
        )
