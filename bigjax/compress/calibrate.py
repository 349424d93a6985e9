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
