"""What the layers of a model are given on calibration data: batches of the train split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.core.rules import map_with_path
from bigjax.core.transforms import apply_transforms
from bigjax.loop.evaluate import eval_batches
from bigjax.loop.open import Opened
from bigjax.methods.quantized import is_matrix_layer

Measure = Callable[[nn.Module, jax.Array], jax.Array]


def magnitudes(run: Opened, batches: int) -> dict[str, float]:
    """Layer's path -> the largest magnitude among its inputs."""
    of_batches = _measured(run, batches, lambda layer, x: jnp.max(jnp.abs(x)))
    return {path: float(max(values)) for path, values in of_batches.items()}


def second_moments(run: Opened, batches: int) -> dict[str, np.ndarray]:
    """Layer's path -> float64 (m, m), the sum of x' x over its inputs x; of dense layers."""

    def of(layer: nn.Module, x: jax.Array) -> jax.Array | None:
        if hasattr(layer, "kernel_size"):
            return None
        axis = getattr(layer, "axis", -1)
        summed = len(axis) if isinstance(axis, tuple) else 1
        rows = x.astype(jnp.float32).reshape(-1, math.prod(x.shape[-summed:]))
        return jnp.matmul(rows.T, rows, precision="highest")

    of_batches = _measured(run, batches, of)
    return {path: np.sum(np.asarray(v, np.float64), axis=0) for path, v in of_batches.items()}


def corrected(run: Opened, model: Any, params: Any, batches: int) -> Any:
    """The variables of a run with the running means of its BatchNorms moved by as much as `params` and `model` move
    the mean of what they are given, on calibration data.

    Rounding a kernel whose numbers nearly add up to zero moves its outputs by a constant, as its inputs, behind
    a ReLU, do not; a norm with small variance makes much of it (Nagel et al. 2019, section 3.2 and appendix D.2).
    Norms are corrected in their order, each on what those before it give once corrected.

    Args:
      model: what is called with `params` in place of the run's.
    """
    program, task = run.setup.program, run.setup.program.task
    full = run.variables
    plain = run.config.make("model")

    @jax.jit
    def of_batch(full: Any, params: Any, batch: Any) -> dict[str, jax.Array]:
        batch = apply_transforms(program.preprocess, batch, jax.random.key(0))
        inputs = task.inputs(program.method.view(batch, jax.random.key(0)))
        means: dict[str, jax.Array] = {}
        moved: dict[str, jax.Array] = {}

        def look(layer_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                path, x = "/".join(context.module.path), args[0]
                mean = jnp.mean(x.astype(jnp.float32), axis=tuple(range(x.ndim - 1)))
                if path in means:  # the second time, with the numbers that are rounded
                    moved[path] = mean - means[path]
                    args = (x - moved[path].astype(x.dtype), *args[1:])
                means[path] = mean
            return layer_call(*args, **kwargs)

        with nn.intercept_methods(look):
            plain.apply(full, *inputs, train=False)
            model.apply({**full, "params": params}, *inputs, train=False)
        return moved

    found = [jax.device_get(of_batch(full, params, batch)) for batch in _batches(run, batches)]
    moved = {f"{path}/mean": np.mean([one[path] for one in found], axis=0) for path in found[0]}
    statistics = map_with_path(lambda p, x: x + moved.get(p, 0), full["batch_stats"])
    return {**full, "batch_stats": statistics}


def _measured(run: Opened, batches: int, measure: Measure) -> dict[str, list[np.ndarray]]:
    """Layer's path -> what each batch measures of its inputs.

    Raises:
      UserError: there is no calibration data, or the layers are a loop that cannot be looked into.
    """
    if batches < 1:
        raise UserError(
            "--calibration: this step needs 1 batch or more of the train split to look at"
        )
    if run.setup.values["model"].get("scan_layers"):
        raise UserError(
            "config.model.scan_layers: the inputs of layers in one loop cannot be looked at; export "
            "the run, and open it with scan_layers=False"
        )
    program, task = run.setup.program, run.setup.program.task

    @jax.jit
    def of_batch(variables: Any, batch: Any) -> dict[str, jax.Array]:
        batch = apply_transforms(program.preprocess, batch, jax.random.key(0))
        found: dict[str, jax.Array] = {}

        def look(layer_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if is_matrix_layer(context):
                value = measure(context.module, args[0])
                if value is not None:
                    found["/".join(context.module.path)] = value
            return layer_call(*args, **kwargs)

        with nn.intercept_methods(look):
            inputs = task.inputs(program.method.view(batch, jax.random.key(0)))
            program.model.apply(variables, *inputs, train=False)
        return found

    variables, totals = run.variables, {}
    for batch in _batches(run, batches):
        for path, value in jax.device_get(of_batch(variables, batch)).items():
            totals.setdefault(path, []).append(value)
    return totals


def _batches(run: Opened, count: int) -> Iterator[Any]:
    source = run.setup.sources["train"]
    size = min(run.setup.eval_batch_size, len(source))
    return itertools.islice(eval_batches(run.setup.program, source, size), count)
