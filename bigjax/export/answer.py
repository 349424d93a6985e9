"""What a model that leaves the house computes: raw inputs in, outputs and predictions out. Pure.

The preprocessing of every batch is inside. One function serves all: it is what an export is compared
with, what is exported as a program, and what reads an exported folder of weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bigjax.core.method import Method
from bigjax.core.rules import paths
from bigjax.core.transforms import apply_transforms

OUTPUTS = "outputs"  # the name of what the model gives; a tree of arrays is "outputs/0", ...
Spec = tuple[tuple[int, ...], np.dtype]
"""(shape of one example, dtype)"""


@dataclasses.dataclass(frozen=True, eq=False)  # hashed as itself: jitted
class Answer:
    """`answer(variables, inputs)`: what a model says of a batch.

    model: with `apply(variables, *inputs, train=False)`. task: what its inputs and predictions are.
    preprocess: transforms of every batch, fitted.
    features: name -> `Spec`, all that the data source gives.
    writes: whether text is written token by token, where the task does that; else its forward pass
        alone.
    """

    model: Any
    task: Any
    preprocess: tuple[Any, ...]
    features: Mapping[str, Spec]
    writes: bool = True

    def __call__(self, variables: Any, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """inputs: features (B, ...); those that are not given are zeros."""
        rows = next(iter(inputs.values())).shape[0]
        batch = {name: jnp.zeros((rows, *s), t) for name, (s, t) in self.features.items()}
        batch |= dict(mask=jnp.ones(rows), sample=jnp.arange(rows), epoch=jnp.zeros(rows, int))
        batch = apply_transforms(self.preprocess, {**batch, **inputs}, jax.random.key(0))
        outputs = self.model.apply(variables, *self.task.inputs(batch), train=False)
        predicted = self.task.predict(outputs) if self.task.PREDICTS else {}
        if not self.task.writes:  # one more look at the same pass
            predicted |= self.task.decode(lambda *_, **__: outputs, variables, batch)
        elif self.writes:
            predicted |= self.task.decode(self.model.apply, variables, batch)
        return {**named_outputs(outputs), **predicted}

    def needed(self, variables: Any) -> dict[str, Spec]:
        """The features that the answer depends on; variables may be abstract."""
        rows = {
            name: jax.ShapeDtypeStruct((2, *shape), dtype)
            for name, (shape, dtype) in self.features.items()
        }
        _, used = live(jax.make_jaxpr(self)(variables, rows))
        names = [None] * len(jax.tree.leaves(variables)) + sorted(rows)
        return {
            n: self.features[n] for n, is_used in zip(names, used, strict=True) if n and is_used
        }


def answer_of(program: Any, features: Mapping[str, Spec]) -> Answer:
    """The answer of a run's program. Where its method makes the model's inputs itself (noise and time,
    an observation), these are the inputs, and nothing is done to them before.

    features: of the train split.
    """
    method, preprocess = program.method, program.preprocess
    if type(method).view is not Method.view:

        def seen(batch: Any) -> Any:
            key = jax.random.key(0)
            return method.view(apply_transforms(preprocess, batch, key), key)

        full = {**features, "mask": ((), np.dtype("float32"))}
        full |= {name: ((), np.dtype("int32")) for name in ("sample", "epoch")}
        rows = {name: jax.ShapeDtypeStruct((2, *s), t) for name, (s, t) in full.items()}
        shown = jax.eval_shape(seen, rows)
        features = {
            n: (x.shape[1:], x.dtype) for n, x in shown.items() if n not in full or n in features
        }
        preprocess = ()
    return Answer(program.model, program.task, preprocess, dict(features))


def named_outputs(outputs: Any) -> dict[str, jax.Array]:
    """What a model gives, by name: "outputs", or "outputs/PATH" of a tree."""
    return {f"{OUTPUTS}/{path}".rstrip("/"): leaf for path, leaf in paths(outputs).items()}


def live(closed: Any) -> tuple[Any, list[bool]]:
    """(a closed jaxpr without the equations whose results nobody reads, which inputs are read)."""
    jaxpr, kept = closed.jaxpr, []
    wanted = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or wanted & set(eqn.outvars):
            kept.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1])), [v in wanted for v in jaxpr.invars]


def program_of(
    answer: Answer, names: Mapping[str, Spec], weights: Any, weights_inside: bool
) -> tuple[Callable[..., dict[str, jax.Array]], tuple[Any, ...]]:
    """(a function, its abstract arguments) of an answer: with nothing in it that nobody reads.

    names: the inputs. The batch is of any size, the symbol "batch".

    Returns:
      `f(inputs)` with the weights inside, else `f(weights, inputs)`.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    rows = {n: jax.ShapeDtypeStruct((batch, *shape), dtype) for n, (shape, dtype) in names.items()}
    if weights_inside:
        weights = jax.tree.map(jnp.asarray, weights)  # a traced index needs an array of JAX
        function, arguments = lambda inputs: answer(weights, inputs), (rows,)
    else:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
        function, arguments = answer, (abstract, rows)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    lean, tree = core.jaxpr_as_fun(live(closed)[0]), jax.tree.structure(shapes)
    return lambda *given: jax.tree.unflatten(tree, lean(*jax.tree.leaves(given))), arguments
