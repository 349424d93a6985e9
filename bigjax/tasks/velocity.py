"""A velocity field: from a position, a time and a class to the velocity there. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax

from bigjax.core.errors import UserError
from bigjax.core.losses import Pair, squared_error
from bigjax.tasks import scores
from bigjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class VelocityField(Task):
    """Squared error of the velocity, averaged over the numbers of an example.

    A field has no prediction for an example: samples come of following it, as the evaluator "samples"
    does.

    input: the keys of position, time and class in the batch. target: of the velocity, float (B, ...).
    """

    MAIN_METRIC: ClassVar[tuple[str, str]] = ("loss", "min")
    PREDICTS: ClassVar[bool] = False

    input: Sequence[str | None] = ("position", "time", "condition")
    target: str = "velocity"

    def loss(self, outputs: jax.Array, batch: dict) -> tuple[Pair, dict[str, Pair]]:
        return self._error(outputs, batch), {}

    def statistics(self, outputs: jax.Array, batch: dict) -> dict[str, Pair]:
        return {"loss": self._error(outputs, batch)}

    def summarize(self, statistics: Any, collected: dict[str, Any]) -> dict[str, Any]:
        return {"loss": scores.mean(statistics["loss"])}

    def predict(self, outputs: jax.Array) -> dict[str, jax.Array]:
        raise UserError(
            "config.task.type: a velocity field predicts nothing of an example; the evaluator "
            "'samples' draws new ones, and writes them to the run's folder samples/"
        )

    def _error(self, outputs: jax.Array, batch: dict) -> Pair:
        rows = len(batch["mask"])
        target = scores.field(batch, self.target, "task.target")
        return squared_error(outputs.reshape(rows, -1), target.reshape(rows, -1), batch["mask"])
