"""Multi-label classification: any number of K labels per example. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.losses import (
    Pair,
    hide_masked,
    is_probability,
    masked_sum,
    sigmoid_cross_entropy,
)
from bigjax.tasks import scores
from bigjax.tasks.binary import Sigmoids


@dataclasses.dataclass(frozen=True)
class MultiLabel(Sigmoids):
    """One sigmoid per label: logits (B, K), labels (B, K) in [0, 1]."""

    def outputs(self, source: Any) -> int | None:
        return scores.width(source, self.label)

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The cross-entropy pair (mean over labels), and the share of examples wholly right."""
        logits, labels, mask = self.read(outputs, batch)
        right = jnp.all(((logits > 0) == (labels > 0.5)) & is_probability(labels), axis=-1)
        return sigmoid_cross_entropy(logits, labels, mask), {"accuracy": masked_sum(right, mask)}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        """Sums over the examples: loss, examples wholly right, and counts per label (K,)."""
        logits, labels, mask = self.read(outputs, batch)
        real = (mask > 0)[:, None]
        true, predicted = (labels > 0.5) & real, (logits > 0) & real
        right = jnp.all((true == predicted) & is_probability(labels), axis=-1)

        def count(which):
            return jnp.sum(which, axis=0, dtype=jnp.int32)

        return {
            "loss": sigmoid_cross_entropy(logits, labels, mask),
            "right": masked_sum(right, mask),
            "hits": count(true & predicted),
            "predicted": count(predicted),
            "actual": count(true),
        }

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Mean loss, accuracy (all labels of an example right), per-label and macro scores, ROC AUC.

        roc_auc is the mean over the labels for which it is defined (both values occur).
        """
        counts = (np.asarray(statistics[name]) for name in ("hits", "predicted", "actual"))
        hits, predicted, actual = counts
        right, examples = (float(part) for part in statistics["right"])
        label_errors = np.sum(predicted + actual - 2 * hits)
        columns = zip(collected["label"].T, collected["score"].T, strict=True)
        areas = [scores.roc_auc(label, score) for label, score in columns]
        defined = [area for area in areas if not np.isnan(area)]
        return {
            "loss": scores.mean(statistics["loss"]),
            "accuracy": right / examples,
            "errors": examples - right,
            "label_accuracy": float(1.0 - label_errors / (examples * len(hits))),
            **scores.precision_recall_f1(hits, predicted, actual),
            "roc_auc": float(np.mean(defined)) if defined else float("nan"),
            "roc_auc_per_class": areas,
        }

    def distributions(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
        """The sigmoid of each logit as the softmax of (0, logit): (B, K, 2)."""
        return scores.two_classes(outputs), batch["mask"]

    def predict(self, outputs: jax.Array) -> dict:
        """Each label, 0 or 1, and the probability that it holds; both (B, K)."""
        logits = outputs.astype(jnp.float32)
        return {"labels": (logits > 0).astype(jnp.int32), "probability": jax.nn.sigmoid(logits)}

    def read(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits and labels, float32 (B, K), the masked rows 0; and the mask (B,)."""
        labels, mask = scores.field(batch, self.label, "task.label"), batch["mask"]
        if outputs.ndim != 2 or labels.shape != outputs.shape:
            raise UserError(
                f"labels '{self.label}' have shape {labels.shape}, the model's outputs "
                f"{outputs.shape}; multi-label classification needs both (B, K)"
            )
        return hide_masked(outputs, mask), hide_masked(labels, mask), mask
