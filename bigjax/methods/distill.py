"""Knowledge distillation from another run's model (Hinton, Vinyals & Dean 2015).

The teacher is `frozen["teacher"]`: read by the step, never in the optimizer state, never in a
checkpoint. It sees the very examples that the student sees, after augmentation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from bigjax.core.errors import UserError
from bigjax.core.losses import Loss
from bigjax.core.marks import RunReference, Traced
from bigjax.core.method import Batch, Facts, Method, Scope


@dataclasses.dataclass(frozen=True)
class Distill(Method):
    """(1 - alpha) loss(labels, student) + alpha T^2 D(teacher, student; T).

    D is the task's own divergence: for classes KL(softmax(t / T) || softmax(s / T)); see
    `Task.divergence`. T^2 keeps the two gradients of one size when T changes (section 2). Both terms
    are sums over examples with weights of their own.

    teacher: the teacher's run folder; "../NAME" names an earlier stage of a pipeline.
    temperature: T.
    alpha: weight of the teacher's term; the labels' term has 1 - alpha.
    """

    teacher: RunReference
    temperature: Traced = 2.0
    alpha: Traced = 0.5

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"temperature: {self.temperature!r} must be more than 0")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha: {self.alpha} must lie between 0 and 1")

    def check(self, facts: Facts) -> None:
        facts.task.check_divergence()

    def loss(self, params: Any, batch: Batch, scope: Scope) -> Loss:
        temperature, alpha = scope.hyper["temperature"], scope.hyper["alpha"]
        outputs, collections = scope.apply(params, batch)
        (hard, weight), metrics = scope.task.loss(outputs, batch)
        taught = scope.read("teacher", batch)
        soft, soft_weight = scope.task.divergence(taught, outputs, batch, temperature)
        metrics = {**metrics, "label_loss": (hard, weight), "teacher_kl": (soft, soft_weight)}
        total = (1 - alpha) * hard + alpha * temperature**2 * soft
        return Loss(total, weight, metrics, collections)
