"""Regression: real values per example. Pure; knows nothing of devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.losses import Pair, absolute_error, hide_masked, squared_error
from bigjax.tasks import scores
from bigjax.tasks.base import Task

LOSSES = {"mse": squared_error, "mae": absolute_error}


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Outputs (B,) or (B, K) against labels of as many values, (B,) and (B, 1) being the same.

    input, label: keys of the batch. criterion: "mse" (squared error) or "mae" (absolute error).
    """

    MAIN_METRIC: ClassVar[tuple[str, str]] = ("r2", "max")

    input: str | Sequence[str] = "features"
    label: str = "label"
    criterion: str = "mse"

    def __post_init__(self):
        if self.criterion not in LOSSES:
            hint = did_you_mean(self.criterion, LOSSES)
            raise UserError(f"task.criterion: unknown '{self.criterion}'{hint}; known: mse, mae")

    def outputs(self, source: Any) -> int | None:
        return scores.width(source, self.label)

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        """The pair of the chosen error, and the mean absolute error on this batch."""
        values, labels, mask = self._read(outputs, batch)
        pair = LOSSES[self.criterion](values, labels, mask)
        return pair, {"mae": absolute_error(values, labels, mask)}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict:
        values, labels, mask = self._read(outputs, batch)
        return {"loss": LOSSES[self.criterion](values, labels, mask)}

    def collect(self, outputs: jax.Array, batch: dict) -> dict:
        """Values and labels (B, K): R2 from float32 sums would lose its digits to cancellation."""
        values, labels, _ = self._read(outputs, batch)
        return {"value": values, "label": labels}

    def summarize(self, statistics: dict, collected: dict) -> dict:
        """Mean loss, MSE, RMSE, MAE and R2 in float64; with several outputs, R2 is their mean.

        R2 = 1 - sum (y - f)^2 / sum (y - mean y)^2; for a constant y, 1 if f = y and 0 if not.
        """
        label = collected["label"].astype(np.float64)
        error = collected["value"].astype(np.float64) - label
        residual = np.sum(error**2, axis=0)
        total = np.sum((label - label.mean(axis=0)) ** 2, axis=0)
        constant = np.where(residual > 0, 0.0, 1.0)
        r2 = np.where(total > 0, 1.0 - residual / np.where(total > 0, total, 1.0), constant)
        mse = float(np.mean(error**2))
        return {
            "loss": scores.mean(statistics["loss"]),
            "mse": mse,
            "rmse": float(np.sqrt(mse)),
            "mae": float(np.mean(np.abs(error))),
            "r2": float(np.mean(r2)),
        }

    def divergence(self, teacher, student, batch: dict, temperature) -> Pair:
        """((t - s) / T)^2: up to a factor, the KL of two normal distributions of deviation T."""
        teacher, student = (x.reshape(len(batch["mask"]), -1) for x in (teacher, student))
        return squared_error(student / temperature, teacher / temperature, batch["mask"])

    def predict(self, outputs: jax.Array) -> dict:
        """The value: (B,) for a single output, else (B, K)."""
        single = outputs.ndim == 2 and outputs.shape[1] == 1
        return {"value": outputs[:, 0] if single else outputs}

    def _read(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Outputs and labels, float32 (B, K), the masked rows 0; and the mask (B,)."""
        labels, mask = scores.field(batch, self.label, "task.label"), batch["mask"]
        values = outputs[:, None] if outputs.ndim == 1 else outputs
        targets = labels[:, None] if labels.ndim == 1 else labels
        if values.ndim != 2 or values.shape != targets.shape:
            raise UserError(
                f"labels '{self.label}' have shape {labels.shape}, the model's outputs "
                f"{outputs.shape}; regression needs as many values in both"
            )
        return hide_masked(values, mask), hide_masked(targets, mask), mask
