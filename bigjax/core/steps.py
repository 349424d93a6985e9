"""The train step and the evaluation step: pure functions, built once for every method.

`train_step(state, batch, frozen) -> (state, metrics)`. Nothing here knows a device, a file or a
config: `bigjax.build` jits what these builders return and says where the arrays lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.adapt import Adaptation
from bigjax.core.guard import guarded, in_place, non_finite
from bigjax.core.method import Batch, Method, Reference, Scope, Sums, of_the_mean, split_rows
from bigjax.core.optimizers import global_norm
from bigjax.core.precision import without_overflow
from bigjax.core.settings import Check
from bigjax.core.state import TrainState
from bigjax.core.transforms import apply_transforms

Frozen = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides what a step computes.

    method: see `bigjax.core.method`.
    model, task: the model (`apply` under the run's precision), and what its batches mean.
    optimizer: a `bigjax.core.optimizers.Optimizer`.
    adaptation: how the trained leaves become the model's parameters.
    references: name -> model that is read but not trained; its variables are `frozen[name]`.
    hyper: field of the method -> the name of its traced scalar in the state.
    augment: transforms of the raw batch, in training only; all references see what they give.
    preprocess: transforms of every batch, after them.
    accumulate: microbatches; sums and weights are added over them and divided once.
    gathered: parameters -> the same, as they lie when they are used (`mesh.sharding.gathering`).
    distribute: how the sums over a batch are taken: as they stand, or by `mesh.sharding.per_device`.
    ema_decay: decay of the moving average of the trained leaves.
    check: which numbers are bad, and then not applied (`bigjax.core.guard`); None applies all.
    total_steps: of the whole run, for schedules.
    parts: names of the parts of a mixture, or ().
    """

    method: Method
    model: Any
    task: Any
    optimizer: Any
    adaptation: Adaptation = dataclasses.field(default_factory=Adaptation)
    references: Mapping[str, Reference] = dataclasses.field(default_factory=dict)
    hyper: Mapping[str, str] = dataclasses.field(default_factory=dict)
    augment: Sequence[Any] = ()
    preprocess: Sequence[Any] = ()
    accumulate: int = 1
    gathered: Callable[[Any], Any] = lambda params: params
    distribute: Callable[..., Any] = lambda sums: sums
    ema_decay: float | None = None
    check: Check | None = None
    total_steps: int = 1
    parts: tuple[str, ...] = ()

    def params(
        self, trained: Any, frozen: Frozen, step: jax.Array, *, by_layer: bool = False
    ) -> Any:
        """The parameters that the model sees; by_layer: see `Adaptation.params`."""
        return self.gathered(self.adaptation.params(trained, frozen, step, by_layer=by_layer))


def build_train_step(
    recipe: Recipe,
) -> Callable[[TrainState, Batch, Frozen], tuple[TrainState, dict[str, Any]]]:
    """The one train step: `train_step(state, batch, frozen) -> (state, metrics)`.

    Metrics are (sum, weight) pairs. A method that asks for several updates of one batch gets them in
    a scan inside the step, each guarded by itself.
    """
    prepared, summed = build_prepare(recipe), build_sums(recipe)
    passes, minibatches = recipe.method.updates

    def one_update(state: TrainState, data: Any, frozen: Frozen, rng: jax.Array):
        sums = summed(state, data, frozen, rng)
        return apply_sums(recipe, state, sums, scope_of(recipe, state, frozen, rng))

    def train_step(state: TrainState, batch: Batch, frozen: Frozen):
        start = state.step
        state, data, rng = prepared(state, batch, frozen)
        if passes * minibatches == 1:
            new, metrics, halted = one_update(state, data, frozen, rng)
            return new.replace(step=start + ~halted), metrics

        def body(state: TrainState, number: jax.Array):
            key = jax.random.fold_in(rng, number)
            # All minibatches of a pass see one order of the rows, another pass another one.
            order_key = jax.random.fold_in(rng, -1 - number // minibatches)
            rows = jax.random.permutation(order_key, len(data[0]["mask"]))
            turn = number % minibatches
            part = jax.tree.map(lambda x: split_rows(x[rows], minibatches)[turn], data)
            new, metrics, halted = one_update(state, part, frozen, key)
            return new, (metrics, halted)

        new, (metrics, halted) = jax.lax.scan(body, state, jnp.arange(passes * minibatches))
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        return new.replace(step=start + ~jnp.any(halted)), metrics

    return train_step


def build_prepare(recipe: Recipe) -> Callable[..., tuple[TrainState, Any, jax.Array]]:
    """`prepared(state, batch, frozen) -> (state with the method's new memory, data, rng)`.

    Data is (batch, views): what the method learns from, and the same examples as each reference's
    own preprocessing gives them.
    """

    def prepared(state: TrainState, batch: Batch, frozen: Frozen):
        augment_key, step_key = jax.random.split(state.key)
        batch = apply_transforms(recipe.augment, batch, augment_key)
        first = len(recipe.augment)
        views = {
            name: apply_transforms(reference.preprocess, batch, augment_key, first)
            for name, reference in recipe.references.items()
            if reference.preprocess != recipe.preprocess
        }
        batch = apply_transforms(recipe.preprocess, batch, augment_key, first)
        rng = jax.random.fold_in(step_key, state.step)
        params = recipe.params(state.params, frozen, state.step)
        scope = scope_of(recipe, state, frozen, rng, views)
        batch, memory = recipe.method.prepare(params, batch, scope)
        return state.replace(memory=memory), (batch, views), rng

    return prepared


def build_sums(recipe: Recipe) -> Callable[..., Sums]:
    """`summed(state, data, frozen, rng) -> Sums` over the microbatches and devices."""
    method, optimizer = recipe.method, recipe.optimizer

    def gradients(state: TrainState, data: Any, frozen: Frozen, rng: jax.Array, carried: Any):
        batch, views = data
        collections, memory = carried
        trained, fixed = optimizer.split(state.params)
        scope = scope_of(recipe, state, frozen, rng, views)
        scope = scope.replace(collections=collections, memory=memory)

        def loss(trained: Any, batch: Batch, scope: Scope):
            def of(trained: Any):
                leaves = optimizer.merge(trained, fixed)
                params = recipe.params(leaves, frozen, state.step, by_layer=True)
                return method.loss(params, batch, scope.replace(own=recipe.adaptation.own(leaves)))

            again = jax.checkpoint(of, policy=activations_alone)
            return (again if recipe.adaptation.recomputed else of)(trained)

        return method.gradients(loss, trained, batch, scope)

    def accumulated(state: TrainState, data: Any, frozen: Frozen, rng: jax.Array) -> Sums:
        carried = (state.collections, state.memory)
        if recipe.accumulate == 1:
            return gradients(state, data, frozen, rng, carried)

        def body(carry, xs):
            index, microbatch = xs
            sums, carried = carry
            key = jax.random.fold_in(rng, index)
            new = gradients(state, microbatch, frozen, key, carried)
            sums = jax.tree.map(jnp.add, sums, (new.gradients, new.pairs))
            return (sums, (new.collections, new.memory)), None

        microbatches = jax.tree.map(lambda x: split_rows(x, recipe.accumulate, method.unit), data)
        first = jax.tree.map(lambda x: x[0], microbatches)
        shapes = jax.eval_shape(gradients, state, first, frozen, rng, carried)
        # float32 sums, also of narrower gradients
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes[:2]
        )
        (sums, carried), _ = jax.lax.scan(
            body, (zeros, carried), (jnp.arange(recipe.accumulate), microbatches)
        )
        return Sums(*sums, *carried)

    return recipe.distribute(accumulated)


def activations_alone(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """What the backward pass keeps of the forward one where parameters are made again: the model's
    own products. Those of adapters, whose results are parameters, are computed at highest precision.
    """
    highest = (jax.lax.Precision.HIGHEST,) * 2
    is_product = primitive.name in ("dot_general", "conv_general_dilated")
    return is_product and parameters.get("precision") != highest


def apply_sums(
    recipe: Recipe, state: TrainState, sums: Sums, scope: Scope
) -> tuple[TrainState, dict[str, Any], jax.Array]:
    """One guarded update: (new state, metrics, whether the run is halted). The step is not counted."""
    optimizer, check = recipe.optimizer, recipe.check
    loss = sums.pairs["loss"]

    def update(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        # In here, where it is one pass with the update itself.
        grads = recipe.method.finish(sums, scope)
        params, opt_state, info = optimizer.update(
            grads, state.opt_state, state.params, hyper=state.hyper, step=state.step
        )
        params = recipe.adaptation.project(params, state.params, state.step + 1)
        ema, decay = state.ema, recipe.ema_decay
        if decay is not None:
            precise = optimizer.precise_params(params, opt_state)
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, precise)
            ema = recipe.adaptation.project(ema, params, state.step + 1)
        new = state.replace(
            params=params,
            opt_state=opt_state,
            collections=sums.collections,
            memory=sums.memory,
            ema=ema,
        )
        if state.loss_scale is not None:
            new, overflow = without_overflow(state, new, loss, grads)
            info = {**info, "loss_scale": state.loss_scale.value, "overflow": overflow}
        return new, info

    # Of the sums: asked of the divided gradients, XLA would write these down, as large as the parameters.
    grad_norm = judged = of_the_mean(global_norm(sums.gradients), sums.pairs)
    if check is None:
        new, info = in_place(state, update, loss)
        halted = jnp.zeros((), bool)
    else:
        if state.loss_scale is not None:  # an overflow is dealt with: not bad
            _, overflow = without_overflow(state, state, loss, sums.gradients)
            judged = jnp.where(overflow, 0.0, grad_norm)
        new, info = guarded(state, update, loss, judged, check)
        halted = info["halted"]
    one = jnp.ones((), jnp.float32)
    shown = {name: (value, one) for name, value in {**info, "grad_norm": grad_norm}.items()}
    return new, {**sums.pairs, **shown}, halted


def scope_of(
    recipe: Recipe, state: TrainState, frozen: Frozen, rng: jax.Array, views: Any = None
) -> Scope:
    """What the method may read in this step."""
    return Scope(
        model=recipe.model,
        task=recipe.task,
        rng=rng,
        step=state.step,
        total_steps=recipe.total_steps,
        collections=state.collections,
        ema=None if state.ema is None else recipe.params(state.ema, frozen, state.step),
        memory=state.memory,
        frozen=frozen,
        hyper={field: state.hyper[name] for field, name in recipe.hyper.items()},
        references=recipe.references,
        views=views or {},
        loss_scale=state.loss_scale,
        parts=recipe.parts,
    )


def build_diagnosis(recipe: Recipe) -> Callable[[TrainState, Batch, Frozen], dict[str, Any]]:
    """`diagnose(state, batch, frozen) -> counts`: where a step's numbers stop being finite.

    Counts are path -> how many, for the batch as read, the params, the loss (and the other metrics'
    sums) and the gradients, in the order in which a step meets them; "rows" (B,) says which
    examples bring such numbers with them.
    """
    prepared, summed = build_prepare(recipe), build_sums(recipe)

    def diagnose(state: TrainState, batch: Batch, frozen: Frozen):
        state, data, rng = prepared(state, batch, frozen)
        sums = summed(state, data, frozen, rng)
        rows = jnp.zeros(batch["mask"].shape, bool)
        for column in batch.values():
            if jnp.issubdtype(column.dtype, jnp.inexact):
                rows |= jnp.any(~jnp.isfinite(column.reshape(len(column), -1)), axis=1)
        return {
            "batch": non_finite(batch),
            "params": non_finite(state.params),
            "loss": non_finite({name: total for name, (total, _) in sums.pairs.items()}),
            "gradients": non_finite(of_the_mean(sums.gradients, sums.pairs)),
            "rows": rows,
        }

    return diagnose


def build_eval_step(recipe: Recipe) -> Callable[[TrainState, Batch, Frozen], tuple[Any, Any]]:
    """`eval_step(state, batch, frozen) -> (statistics, collected)`: see the task's methods so named."""
    shown, task = build_shown(recipe), recipe.task

    def eval_step(state: TrainState, batch: Batch, frozen: Frozen):
        variables, batch = shown(state, batch, frozen)
        outputs = recipe.model.apply(variables, *task.inputs(batch), train=False)
        collected = dict(task.collect(outputs, batch))
        if task.decodes:
            collected |= task.decode(recipe.model.apply, variables, batch)
        if collected:
            collected = {**collected, "mask": batch["mask"]}
        return task.statistics(outputs, batch), collected

    return eval_step


def build_predict_step(recipe: Recipe) -> Callable[[TrainState, Batch, Frozen], dict]:
    """`predict_step(state, batch, frozen) -> predictions`, one row an example."""
    shown, task = build_shown(recipe), recipe.task

    def predict_step(state: TrainState, batch: Batch, frozen: Frozen):
        variables, batch = shown(state, batch, frozen)
        outputs = recipe.model.apply(variables, *task.inputs(batch), train=False)
        # What takes more than one forward pass, such as writing text, the task decodes.
        return {**task.predict(outputs), **task.decode(recipe.model.apply, variables, batch)}

    return predict_step


def build_shown(recipe: Recipe) -> Callable[..., tuple[Any, Batch]]:
    """`shown(state, batch, frozen)`: the variables that the run is judged by, and the batch they see."""
    evaluation_variables = build_evaluation_variables(recipe)

    def shown(state: TrainState, batch: Batch, frozen: Frozen):
        batch = apply_transforms(recipe.preprocess, batch, state.key)
        return evaluation_variables(state, frozen), recipe.method.view(batch, state.key)

    return shown


def build_evaluation_variables(recipe: Recipe) -> Callable[[TrainState, Frozen], Any]:
    """`evaluation_variables(state, frozen)`: the Linen variables that a run is judged by."""

    def evaluation_variables(state: TrainState, frozen: Frozen):
        trained = state.ema
        if trained is None:
            trained = recipe.optimizer.evaluation_params(state.params, state.opt_state)
        params = recipe.params(trained, frozen, state.step)
        return {"params": params, **state.collections}

    return evaluation_variables
