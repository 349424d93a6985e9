"""Knowledge distillation: a pure step of the same shape as `train_step`, from the same builder.

The teacher is `frozen`: read by the step, never in the optimizer state, never in a checkpoint. It
sees the very batch that the student sees, after augmentation.
"""

from __future__ import annotations

from typing import Any

import jax

from bigjax.core import losses
from bigjax.core.steps import Objective, apply_model, build_train_step


def distillation(student: Any, task: Any, teacher: Any) -> Objective:
    """The objective of Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network".

        (1 - alpha) H(labels, student) + alpha T^2 KL(softmax(teacher / T) || softmax(student / T))

    T^2 keeps the two gradients of one size when T changes (their section 2). T and alpha are the
    traced scalars `hyper["distill.temperature"]` and `hyper["distill.alpha"]`. Both terms are
    sums over examples with the same weight. `frozen` is the teacher's variables dict.
    """

    def objective(params, batch, *, rng, state, frozen, hyper, train):
        temperature, alpha = hyper["distill.temperature"], hyper["distill.alpha"]
        outputs, new_state = apply_model(
            student, task, params, batch, rng=rng, state=state, train=train
        )
        teacher_outputs = teacher.apply(
            jax.lax.stop_gradient(frozen), *task.inputs(batch), train=False
        )
        (hard, weight), metrics = task.loss(outputs, batch)
        soft, _ = losses.kl_divergence(teacher_outputs, outputs, batch["mask"], temperature)
        loss = (1 - alpha) * hard + alpha * temperature**2 * soft
        metrics = {**metrics, "label_loss": (hard, weight), "teacher_kl": (soft, weight)}
        return losses.Loss(loss, weight, metrics, new_state)

    return objective


def build_distill_step(student: Any, task: Any, teacher: Any, optimizer: Any, **options: Any):
    """`distill_step(state, batch, teacher_variables) -> (state, metrics)`, pure.

    Args:
      student: Linen module that is trained.
      task: gives the inputs and the loss on labels.
      teacher: Linen module whose outputs have the student's shape.
      optimizer: a `bigjax.core.optimizers.Optimizer`.
      **options: as `bigjax.core.steps.build_train_step`.
    """
    return build_train_step(distillation(student, task, teacher), optimizer, **options)
