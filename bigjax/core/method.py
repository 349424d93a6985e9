"""The door for methods: what is learned from a batch, and how its gradients are taken. Pure.

A method is a frozen dataclass that answers some of these questions; `Method` answers them all as plain
supervised training does. The step (`bigjax.core.steps`) asks them in the order in which they stand
here, and gives every method accumulation, the guard, EMA, precision and any mesh for nothing.
Nothing here knows a device, a file or a config.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.losses import AUXILIARY, Loss, Pair, with_auxiliary
from bigjax.core.precision import LossScale, loss_factor

Batch = dict[str, jax.Array]


class Sums(NamedTuple):
    """What a batch adds up to, before anything is divided.

    gradients: of the summed loss, for the trained leaves.
    pairs: name -> (sum, weight); "loss" is among them.
    collections: the model's mutable collections after the batch.
    memory: the method's memory after the batch.
    """

    gradients: Any
    pairs: dict[str, Pair]
    collections: Any
    memory: Any = None


class Updates(NamedTuple):
    """Optimizer updates that one prepared batch serves: `passes` over it, in `minibatches` each."""

    passes: int = 1
    minibatches: int = 1


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model that is read but never trained, such as a teacher; its variables are `frozen[name]`.

    model: has `apply` (see `bigjax.core.precision.ModelInPrecision`).
    task: gives the model its inputs.
    preprocess: its own transforms, of the same augmented examples.
    """

    model: Any
    task: Any
    preprocess: tuple[Any, ...]


class Cached(NamedTuple):
    """Where the outputs of references are kept, and how many of each distribution (None: all).

    views: whether on each example as every epoch of the run augments it, in place of once.
    """

    folder: str
    top: int | None = None
    views: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A model with abstract variables and inputs, as shapes are found by `jax.eval_shape`."""

    model: Any
    variables: Any
    inputs: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Scope:
    """All that a method may read beside the parameters and the batch.

    model, task: the run's.
    rng: a key of this step (and microbatch).
    step: int32, updates already done.
    collections: the model's mutable collections.
    ema: the model's parameters by the moving average of the trained leaves, or None.
    memory: what the method keeps between steps.
    frozen: name -> variables that are read but never trained (teacher, base, ...).
    hyper: the method's traced scalars, by field.
    references: name -> `Reference` whose variables are `frozen[name]`.
    views: name -> the batch as that reference's own preprocessing gives it.
    loss_scale: dynamic loss scaling's state, or None.
    total_steps: of the whole run.
    own: the method's own trained leaves (`Method.parameters`).
    parts: names of the parts of a mixture (`data.mixture`), whose numbers are in batch["part"]; or ().
    """

    model: Any
    task: Any
    rng: jax.Array
    step: jax.Array
    collections: Any
    ema: Any
    memory: Any
    frozen: Mapping[str, Any]
    hyper: Mapping[str, jax.Array]
    references: Mapping[str, Reference] = dataclasses.field(default_factory=dict)
    views: Mapping[str, Batch] = dataclasses.field(default_factory=dict)
    loss_scale: LossScale | None = None
    total_steps: int = 1
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: tuple[str, ...] = ()

    def replace(self, **changes: Any) -> Scope:
        return dataclasses.replace(self, **changes)

    def apply(self, params: Any, batch: Batch, *, train: bool = True) -> tuple[Any, Any]:
        """The model's outputs on a batch, and its mutable collections after it.

        In training these hold what layers sow as losses of their own, which `summed_gradients` adds.
        """
        variables, inputs = {"params": params, **self.collections}, self.task.inputs(batch)
        if not train:
            return self.model.apply(variables, *inputs, train=False), self.collections
        mutable = [*self.collections, AUXILIARY]
        rngs = {"dropout": self.rng}
        return self.model.apply(variables, *inputs, train=True, rngs=rngs, mutable=mutable)

    def loss(self, outputs: Any, batch: Batch) -> tuple[Pair, dict[str, Pair]]:
        """The task's loss of a batch, and pairs to show: of a mixture also the loss of each part."""
        pair, metrics = self.task.loss(outputs, batch)
        if "part" not in batch or self.task.COMPARES_EXAMPLES:
            return pair, metrics

        def of_one(outputs: Any, example: Batch) -> Pair:
            alone = jax.tree.map(lambda x: x[None], (outputs, example))
            return self.task.loss(*alone)[0]

        totals, weights = jax.vmap(of_one)(jax.lax.stop_gradient(outputs), batch)
        for number, name in enumerate(self.parts):
            own = batch["part"] == number
            shown = (jnp.sum(jnp.where(own, x, 0.0)) for x in (totals, weights))
            metrics = {**metrics, f"loss/{name}": tuple(shown)}
        return pair, metrics

    def read(self, name: str, batch: Batch) -> Any:
        """Outputs of a reference on the examples of a batch; no gradient reaches it."""
        reference = self.references[name]
        inputs = reference.task.inputs(self.views.get(name, batch))
        frozen = jax.lax.stop_gradient(self.frozen[name])
        return reference.model.apply(frozen, *inputs, train=False)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a method may refuse, known before a device is touched (see `Method.check`).

    task: the run's task. source: the train split.
    model: has `apply`; variables: its abstract ones, collection -> tree.
    transforms: of training batches, `data.augment` and then `data.preprocess`.
    train, sharding, precision: the settings of these sections.
    total_steps: of the whole run.
    mesh: axis -> size.
    calls: "model", and every reference by its name -> how it is called on a batch.
    """

    task: Any
    source: Any
    model: Any
    variables: Mapping[str, Any]
    transforms: tuple[Any, ...]
    train: Any
    sharding: Any
    precision: Any
    total_steps: int
    mesh: Mapping[str, int]
    calls: Mapping[str, Call]


@dataclasses.dataclass(frozen=True)
class Method:
    """Supervised training, and what every method starts from. Override what is different."""

    def check(self, facts: Facts) -> None:
        """Refuses, by name, what this method cannot keep.

        Raises:
          UserError: says what does not go together, and what would.
        """

    @property
    def cached(self) -> Cached | None:
        """Where the outputs of the runs that it reads are written once, in place of reading the runs."""
        return None

    @property
    def renamed(self) -> Mapping[str, str]:
        """This run's name of a class -> that of the runs which the method reads, where they differ."""
        return {}

    @property
    def vocabulary(self) -> str | None:
        """A file that says which token of the models which it reads is which of this run's, if they differ."""
        return None

    def order(
        self, source: Any, seed: int, batch_size: int, total_steps: int
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]] | None:
        """Which examples a step reads, where it is not the shuffled stream (None): on the host.

        Returns:
          `rows_of(steps)`: int64 (S,) -> ids, epochs, int64 (S, B), and mask, float32 (S, B). A pure
          function of the seed and the step, so that any host can name the rows of any step.

        Raises:
          UserError: a step of the run would read what does not fit into its batch.
        """
        return None

    @property
    def unit(self) -> int:
        """Rows in a row that belong together, such as a client's: no microbatch parts them."""
        return 1

    def measure(self, step: int, source: Any) -> dict[str, float]:
        """Metric -> number, of what is known of the run after `step` updates without its data."""
        return {}

    def init(self, rng: jax.Array, variables: Any, rows: int) -> Any:
        """The memory before the first step, a tree of arrays: saved, restored and sharded as the rest.

        rows: of a batch. What `memory["rows"]` holds has a leading axis of them, and lies over the
        mesh as a batch does; all else is on every device.
        """
        return None

    def parameters(self, rng: jax.Array, facts: Facts) -> Any:
        """Trained leaves of the method's own, a nested dict; none by default.

        They are in `Scope.own`, in the optimizer and in checkpoints as the model's are, and never in what
        is evaluated, exported or read by other runs.
        """
        return {}

    def view(self, batch: Batch, rng: jax.Array) -> Batch:
        """What the model is shown of a batch outside training: at initialisation, in evaluation."""
        return batch

    def prepare(self, params: Any, batch: Batch, scope: Scope) -> tuple[Batch, Any]:
        """What is learned from (noise, views, rollouts, sampled text), and the memory after it.

        Called once a step with the whole batch; the rows may become more or fewer.
        """
        return batch, scope.memory

    @property
    def updates(self) -> Updates:
        return Updates()

    def loss(self, params: Any, batch: Batch, scope: Scope) -> Loss:
        """The loss of a batch, as a sum and the weight to divide it by."""
        outputs, collections = scope.apply(params, batch)
        (loss_sum, weight), metrics = scope.loss(outputs, batch)
        return Loss(loss_sum, weight, metrics, collections)

    def gradients(
        self, loss: Callable[[Any, Batch, Scope], Loss], trained: Any, batch: Batch, scope: Scope
    ) -> Sums:
        """Sums over a (micro)batch; they are added over microbatches, devices and hosts.

        Args:
          loss: `loss(trained, batch, scope)`: this method's own, of the trained leaves.
          trained: the trained leaves.
        """
        return summed_gradients(loss, trained, batch, scope)

    def finish(self, sums: Sums, scope: Scope) -> Any:
        """The gradients to apply, from the sums over the whole batch: those of the mean loss."""
        return of_the_mean(sums.gradients, sums.pairs)


def summed_gradients(
    loss: Callable[[Any, Batch, Scope], Loss], trained: Any, batch: Batch, scope: Scope
) -> Sums:
    """Gradients of the summed loss, for the trained leaves."""

    def total(trained: Any) -> tuple[jax.Array, Loss]:
        found = with_auxiliary(loss(trained, batch, scope), batch["mask"])
        return found.sum * loss_factor(scope.loss_scale, found.weight), found

    gradients, found = jax.grad(total, has_aux=True)(trained)
    factor = loss_factor(scope.loss_scale, found.weight)
    gradients = jax.tree.map(lambda g: g / factor, gradients)
    pairs = {"loss": (found.sum, found.weight), **found.metrics}
    memory = scope.memory if found.memory is None else found.memory
    return Sums(gradients, pairs, found.collections, memory)


def of_the_mean(sums: Any, pairs: Mapping[str, Pair]) -> Any:
    """Gradients (or their norm) of the mean loss, from the summed one's and the pairs beside them."""
    weight = jnp.maximum(pairs["loss"][1], 1e-8)
    return jax.tree.map(lambda g: g / weight, sums)


def check_own_rows(facts: Facts, method: str) -> None:
    """Refuses axes that need the whole batch's layout, for a method that runs the model by parts."""
    for axis in ("sequence", "pipeline"):
        if facts.mesh[axis] > 1:
            raise UserError(
                f"config.mesh.{axis}: {method} runs the model for each example or client by itself, "
                f"which is not split over '{axis}'; use mesh.data or mesh.fsdp"
            )


def split_rows(x: jax.Array, count: int, unit: int = 1) -> jax.Array:
    """(B, ...) -> (count, B / count, ...), rows dealt out in turn, `unit` at a time.

    Dealt, not cut in blocks: a row then stays on the device that holds it when B is sharded.
    """
    turns = x.shape[0] // (count * unit)
    dealt = jnp.moveaxis(x.reshape(turns, count, unit, *x.shape[1:]), 1, 0)
    return dealt.reshape(count, turns * unit, *x.shape[1:])
