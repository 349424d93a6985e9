"""The train step and the evaluation step: pure functions, built once for every kind of objective.

`train_step(state, batch, frozen) -> (state, metrics)`. Nothing here knows a device, a file or a
config: `train.py` jits what these builders return and says where the arrays lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bigjax.core.guard import guarded, non_finite
from bigjax.core.losses import Loss
from bigjax.core.optimizers import global_norm
from bigjax.core.precision import loss_factor, without_overflow
from bigjax.core.settings import Check
from bigjax.core.state import TrainState
from bigjax.core.transforms import apply_transforms

Batch = dict[str, jax.Array]


class Objective(Protocol):
    """What a method is: a pure function from parameters and a batch to a loss to descend."""

    def __call__(
        self,
        params: Any,
        batch: Batch,
        *,
        rng: jax.Array,
        state: Any,
        frozen: Any,
        hyper: dict[str, jax.Array],
        train: bool,
    ) -> Loss: ...


def supervised(model: Any, task: Any) -> Objective:
    """The objective of plain training: the task's loss of the model's output."""

    def objective(params, batch, *, rng, state, frozen, hyper, train):
        del frozen, hyper
        outputs, new_state = apply_model(
            model, task, params, batch, rng=rng, state=state, train=train
        )
        (loss_sum, weight), metrics = task.loss(outputs, batch)
        return Loss(loss_sum, weight, metrics, new_state)

    return objective


def apply_model(model, task, params, batch, *, rng, state, train) -> tuple[Any, Any]:
    """The model's outputs on a batch, and its mutable collections after it."""
    variables = {"params": params, **state}
    inputs = task.inputs(batch)
    if not train:
        return model.apply(variables, *inputs, train=False), state
    return model.apply(variables, *inputs, train=True, rngs={"dropout": rng}, mutable=list(state))


def build_gradients(
    objective: Objective,
    optimizer: Any,
    *,
    transforms: Sequence[Any] = (),
    accumulate: int = 1,
    distribute: Callable[..., Any] = lambda sums: sums,
) -> Callable[[TrainState, Batch, Any], tuple[Any, dict[str, Any], Any]]:
    """`step_gradients(state, batch, frozen) -> (gradients, metrics, mutable collections)`.

    Arguments as in `build_train_step`. The gradients are of the summed loss, for trained leaves only;
    `of_the_mean` makes them those of the mean.
    """

    def gradients(state: TrainState, batch: Batch, frozen: Any, rng: jax.Array, collections: Any):
        trained, fixed = optimizer.split(state.params)

        def loss_sum(trained):
            params = optimizer.merge(trained, fixed)
            loss = objective(
                params,
                batch,
                rng=rng,
                state=collections,
                frozen=frozen,
                hyper=state.hyper,
                train=True,
            )
            return loss.sum * loss_factor(state.loss_scale, loss.weight), loss

        grads, loss = jax.grad(loss_sum, has_aux=True)(trained)
        grads = jax.tree.map(lambda g: g / loss_factor(state.loss_scale, loss.weight), grads)
        pairs = {"loss": (loss.sum, loss.weight), **loss.metrics}
        return grads, pairs, loss.state

    def accumulated(state: TrainState, batch: Batch, frozen: Any, rng: jax.Array):
        if accumulate == 1:
            return gradients(state, batch, frozen, rng, state.collections)

        def body(carry, xs):
            index, microbatch = xs
            sums, collections = carry
            grads, pairs, collections = gradients(
                state, microbatch, frozen, jax.random.fold_in(rng, index), collections
            )
            return (jax.tree.map(jnp.add, sums, (grads, pairs)), collections), None

        microbatches = jax.tree.map(lambda x: split_microbatches(x, accumulate), batch)
        first = jax.tree.map(lambda x: x[0], microbatches)
        shapes = jax.eval_shape(gradients, state, first, frozen, rng, state.collections)
        # float32 sums, also of narrower gradients
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes[:2]
        )
        (sums, collections), _ = jax.lax.scan(
            body, (zeros, state.collections), (jnp.arange(accumulate), microbatches)
        )
        return *sums, collections

    def step_gradients(state: TrainState, batch: Batch, frozen: Any):
        augment_key, dropout_key = jax.random.split(state.key)
        batch = apply_transforms(transforms, batch, augment_key)
        rng = jax.random.fold_in(dropout_key, state.step)
        return distribute(accumulated)(state, batch, frozen, rng)

    return step_gradients


def of_the_mean(grad_sums: Any, metrics: dict[str, Any]) -> Any:
    """Gradients (or their norm) of the mean loss, from the summed one's and the metrics beside them."""
    weight = jnp.maximum(metrics["loss"][1], 1e-8)
    return jax.tree.map(lambda g: g / weight, grad_sums)


def build_train_step(
    objective: Objective,
    optimizer: Any,
    *,
    transforms: Sequence[Any] = (),
    accumulate: int = 1,
    distribute: Callable[..., Any] = lambda sums: sums,
    ema_decay: float | None = None,
    check: Check | None = None,
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Any]]]:
    """The one train step.

    Args:
      objective: see `Objective`.
      optimizer: a `bigjax.core.optimizers.Optimizer`.
      transforms: augmentation and preprocessing, applied to the whole batch first.
      accumulate: microbatches; sums and weights are added over them and divided once.
      distribute: how the sums over a batch are taken: as they stand, or by `sharding.per_device`.
      ema_decay: decay of the moving average of the parameters.
      check: which numbers are bad, and then not applied (`bigjax.core.guard`); None applies all.

    Returns:
      `train_step(state, batch, frozen) -> (state, metrics)`; metrics are (sum, weight) pairs.
    """
    step_gradients = build_gradients(
        objective,
        optimizer,
        transforms=transforms,
        accumulate=accumulate,
        distribute=distribute,
    )

    def train_step(state: TrainState, batch: Batch, frozen: Any):
        grad_sums, metrics, collections = step_gradients(state, batch, frozen)

        def update(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
            # In here, where it is one pass with the update itself.
            grads = of_the_mean(grad_sums, metrics)
            params, opt_state, info = optimizer.update(
                grads, state.opt_state, state.params, hyper=state.hyper, step=state.step
            )
            ema = state.ema
            if ema_decay is not None:
                precise = optimizer.precise_params(params, opt_state)
                ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, precise)
            new = state.replace(
                step=state.step + 1,
                params=params,
                opt_state=opt_state,
                collections=collections,
                ema=ema,
            )
            if state.loss_scale is not None:
                new, overflow = without_overflow(state, new, metrics["loss"], grads)
                info = {**info, "loss_scale": state.loss_scale.value, "overflow": overflow}
            return new, info

        if check is None:
            new, info = update(state)
        else:
            grad_norm = judged = of_the_mean(global_norm(grad_sums), metrics)
            if state.loss_scale is not None:  # an overflow is dealt with: not bad
                _, overflow = without_overflow(state, state, metrics["loss"], grad_sums)
                judged = jnp.where(overflow, 0.0, grad_norm)
            new, info = guarded(state, update, metrics["loss"], judged, check)
            info = {**info, "grad_norm": grad_norm}
        one = jnp.ones((), jnp.float32)
        return new, {**metrics, **{name: (value, one) for name, value in info.items()}}

    return train_step


def build_diagnosis(
    step_gradients: Callable[..., Any],
) -> Callable[[TrainState, Batch, Any], dict[str, Any]]:
    """`diagnose(state, batch, frozen) -> counts`: where a step's numbers stop being finite.

    Counts are path -> how many, for the batch as read, the params, the loss (and the other metrics'
    sums) and the gradients, in the order in which a step meets them; "rows" (B,) says which
    examples bring such numbers with them.
    """

    def diagnose(state: TrainState, batch: Batch, frozen: Any):
        grad_sums, metrics, _ = step_gradients(state, batch, frozen)
        grads = of_the_mean(grad_sums, metrics)
        rows = jnp.zeros(batch["mask"].shape, bool)
        for column in batch.values():
            if jnp.issubdtype(column.dtype, jnp.inexact):
                rows |= jnp.any(~jnp.isfinite(column.reshape(len(column), -1)), axis=1)
        return {
            "batch": non_finite(batch),
            "params": non_finite(state.params),
            "loss": non_finite({name: total for name, (total, _) in metrics.items()}),
            "gradients": non_finite(grads),
            "rows": rows,
        }

    return diagnose


def build_eval_step(
    model: Any, task: Any, optimizer: Any, *, transforms: Sequence[Any] = ()
) -> Callable[[TrainState, Batch], tuple[Any, Any]]:
    """`eval_step(state, batch) -> (statistics, collected)`: see the task's methods of these names."""
    prepared = _evaluated(optimizer, transforms)

    def eval_step(state: TrainState, batch: Batch):
        variables, batch = prepared(state, batch)
        outputs = model.apply(variables, *task.inputs(batch), train=False)
        collected = dict(task.collect(outputs, batch))
        if getattr(task, "decodes", False):
            collected |= task.decode(model.apply, variables, batch)
        if collected:
            collected = {**collected, "mask": batch["mask"]}
        return task.statistics(outputs, batch), collected

    return eval_step


def build_predict_step(
    model: Any, task: Any, optimizer: Any, *, transforms: Sequence[Any] = ()
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """`predict_step(state, batch) -> predictions`, one row an example."""
    prepared = _evaluated(optimizer, transforms)

    def predict_step(state: TrainState, batch: Batch):
        variables, batch = prepared(state, batch)
        outputs = model.apply(variables, *task.inputs(batch), train=False)
        predicted = dict(task.predict(outputs))
        if hasattr(task, "decode"):  # what takes more than one forward pass, such as writing text
            predicted |= task.decode(model.apply, variables, batch)
        return predicted

    return predict_step


def _evaluated(optimizer: Any, transforms: Sequence[Any]) -> Callable:
    """(state, batch) -> (variables meant for evaluation, transformed batch)."""
    evaluation_variables = build_evaluation_variables(optimizer)

    def prepared(state: TrainState, batch: Batch):
        return evaluation_variables(state), apply_transforms(transforms, batch, state.key)

    return prepared


def build_evaluation_variables(optimizer: Any) -> Callable[[TrainState], Any]:
    """`evaluation_variables(state)`: the Linen variables that a run is judged by."""

    def evaluation_variables(state: TrainState):
        params = state.ema
        if params is None:
            params = optimizer.evaluation_params(state.params, state.opt_state)
        return {"params": params, **state.collections}

    return evaluation_variables


def split_microbatches(x: jax.Array, count: int) -> jax.Array:
    """(B, ...) -> (count, B / count, ...), rows dealt out in turn.

    Dealt, not cut in blocks: a row then stays on the device that holds it when B is sharded.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)
