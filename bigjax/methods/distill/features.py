"""What modules inside a model give, and losses that compare it. Pure.

A feature is the output of a Linen module, named by its path: "dense_0", "conv_1", "block_3/attention". The
paths are those of the parameters, so that every family has names for its features and no method makes its
own. Losses are (teacher's, student's, mask, ...) -> (sum over units, weight), in float32; see `losses`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.losses import (
    Pair,
    hide_masked,
    masked_sum,
    scaled_similarity,
    softmax_cross_entropy,
)
from bigjax.core.method import Call

LOOP = "blocks"  # the layers of a model with `scan_layers`, as one module with a leading axis
IN_LOOP = re.compile(r"^block_\d+")  # what these layers are called, each by itself
SMALLEST = 1e-12  # of a squared length, under a root or in a quotient


@dataclasses.dataclass(frozen=True)
class WithFeatures:
    """A model whose outputs are (outputs, {path: what the module of that path gave})."""

    model: Any
    paths: tuple[str, ...]

    def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
        """As `nn.Module.apply`."""
        asked = options.get("mutable")
        wanted = {*self.paths, *(IN_LOOP.sub(LOOP, path) for path in self.paths)}
        if self.paths:
            options["mutable"] = [*(asked or ()), "intermediates"]
            options["capture_intermediates"] = lambda module, _: _path(module) in wanted
        outputs = self.model.apply(variables, *inputs, **options)
        outputs, collections = (outputs, {}) if "mutable" not in options else outputs
        collections = dict(collections)
        found = _by_path(collections.pop("intermediates", {}))
        outputs = (outputs, {path: found[path] for path in self.paths})
        return outputs if asked is None else (outputs, collections)


@functools.lru_cache(maxsize=16)  # asked by every objective, and a trace of a whole model
def shapes(call: Call) -> dict[str, tuple[int, ...]]:
    """path -> shape of every feature of a model that is one array; "" is its outputs. Nothing is computed."""

    def run(variables: Any, inputs: Any) -> Any:
        options = dict(train=False, mutable=["intermediates"], capture_intermediates=True)
        outputs, collections = call.model.apply(variables, *inputs, **options)
        return {**_by_path(collections["intermediates"]), "": outputs}

    found = jax.eval_shape(run, call.variables, call.inputs)
    return {path: x.shape for path, x in found.items() if isinstance(x, jax.ShapeDtypeStruct)}


def find(known: Mapping[str, tuple[int, ...]], path: str, key: str) -> tuple[int, ...]:
    """The shape of a feature.

    Raises:
      UserError: there is none of that path; the nearest is named.
    """
    if path not in known:
        names = [name for name in known if name and name.count("/") <= path.count("/")]
        raise UserError(
            f"{key}: no module '{path}'{did_you_mean(path, known)}; known: {', '.join(names)}"
        )
    return known[path]


def _path(module: Any) -> str:
    return "/".join(module.path)


def _by_path(intermediates: Mapping[str, Any], at: str = "") -> dict[str, jax.Array]:
    """path -> output, of the modules that give one array; a loop's layers as block_0, block_1, ..."""
    found = {}
    for name, value in intermediates.items():
        if isinstance(value, Mapping):
            found |= _by_path(value, f"{at}/{name}" if at else name)
        elif name == "__call__" and at.partition("/")[0] == LOOP and _is_array(value[0]):
            inside = at.removeprefix(LOOP)
            found |= {f"block_{i}{inside}": value[0][i] for i in range(len(value[0]))}
        elif name == "__call__" and _is_array(value[0]):
            found[at] = value[0]
    return found


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def of_units(feature: jax.Array, mask: jax.Array, path: str) -> jax.Array:
    """A feature (*U, ...) of the units of a mask (*U,), float32 and 0 where masked.

    Several rows of the model may be one unit: the two texts of a pair.
    """
    rows = mask.shape[0]
    if feature.shape[: mask.ndim] != mask.shape and mask.ndim == 1 and not len(feature) % rows:
        feature = feature.reshape(rows, -1, *feature.shape[1:])
    if feature.shape[: mask.ndim] != mask.shape:
        raise UserError(
            f"config.method: the feature '{path}' has shape {feature.shape}; the task's loss counts "
            f"units {mask.shape}"
        )
    # Fused with what makes the feature, its sums would round otherwise in one of many runs at once than alone.
    return hide_masked(jax.lax.optimization_barrier(feature), mask)


def squared(teacher: jax.Array, student: jax.Array, mask: jax.Array, real: jax.Array) -> Pair:
    """|t - s|^2 / 2 (Romero et al. 2015, "FitNets", eq. 3), the mean over the numbers of a feature in
    place of the sum, so that a weight means the same at any width.

    teacher, student (*U, ..., C); real (*U, ...), or of fewer axes: which positions count.
    """
    return masked_sum(
        _mean_of_real(jnp.mean((teacher - student) ** 2, axis=-1) / 2, mask, real), mask
    )


def cosine(teacher: jax.Array, student: jax.Array, mask: jax.Array, real: jax.Array) -> Pair:
    """1 - cos(t, s) over the channels, the mean over positions (Sanh et al. 2019, DistilBERT, section 2)."""
    return masked_sum(_mean_of_real(1 - similarity(teacher, student), mask, real), mask)


DISTANCES = {"l2": squared, "cosine": cosine}


def similarity(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """cos(t, s) over the last axis."""
    return jnp.sum(_unit(teacher) * _unit(student), axis=-1)


def attention_map(teacher: jax.Array, student: jax.Array, mask: jax.Array) -> Pair:
    """|Q_t / |Q_t| - Q_s / |Q_s||^2, with Q the sum over channels of the squares, at all positions.

    Zagoruyko & Komodakis 2017, "Paying more attention to attention", eq. 2; squared, as the length has no
    gradient where both are equal. teacher, student (*U, ..., C), of as many positions.
    """
    t, s = (_unit(jnp.sum(x**2, axis=-1).reshape(*mask.shape, -1)) for x in (teacher, student))
    return masked_sum(jnp.sum((t - s) ** 2, axis=-1), mask)


def relations(
    teacher: jax.Array, student: jax.Array, mask: jax.Array, distance: Any, angle: Any
) -> jax.Array:
    """distance L_D + angle L_A (Park et al. 2019, "Relational knowledge distillation", eqs. 5 to 8).

    L_D: Huber's loss between |x_i - x_j| of both, each over its mean; L_A: between the cosines of the
    angles at x_j of x_i, x_j, x_k. Means over all pairs, and all triples, of different real rows.

    teacher, student (B, D), (B, D'); mask (B,). Returns a scalar.
    """
    real = (mask > 0).astype(jnp.float32)
    pairs = real[:, None] * real[None, :] * (1 - jnp.eye(len(mask)))
    triples = pairs[:, :, None] * pairs[None, :, :] * pairs[:, None, :]
    pair_values, triple_values = [], []
    for x in (teacher, student):
        away = x[:, None, :] - x[None, :, :]
        length = _length(away) * pairs
        pair_values.append(length / jnp.maximum(_mean(length, pairs), SMALLEST))
        direction = away / jnp.maximum(_length(away), SMALLEST)[..., None]
        # [i, j, k]: of x_i and x_k as seen from x_j.
        triple_values.append(jnp.einsum("ijd,kjd->ijk", direction, direction, precision="highest"))
    of_pairs = _mean(_huber(pair_values[0] - pair_values[1]), pairs)
    return distance * of_pairs + angle * _mean(_huber(triple_values[0] - triple_values[1]), triples)


def similarities(teacher: jax.Array, student: jax.Array, mask: jax.Array) -> jax.Array:
    """|G_t - G_s|_F^2 / b^2, with G the rows of x x' at length 1 (Tung & Mori 2019, eqs. 2 to 4).

    teacher, student (B, D), (B, D'), masked rows 0; mask (B,), b the real rows. Returns a scalar.
    """
    g_t, g_s = (
        _unit(jnp.einsum("id,jd->ij", x, x, precision="highest")) for x in (teacher, student)
    )
    return jnp.sum((g_t - g_s) ** 2) / jnp.maximum(jnp.sum(mask > 0), 1) ** 2


def contrast(
    teacher: jax.Array, student: jax.Array, mask: jax.Array, temperature: Any
) -> jax.Array:
    """InfoNCE: each student's vector must find its own teacher's among those of the batch.

    Tian et al. 2020, "Contrastive representation distillation", with the other examples of the batch as
    negatives in place of their memory (van den Oord et al. 2018, eq. 4). teacher, student (B, D). Returns
    a scalar.
    """
    logits = scaled_similarity(student, teacher, mask, temperature)
    total, weight = softmax_cross_entropy(logits, jnp.arange(len(mask)), mask)
    return total / jnp.maximum(weight, 1.0)


def _mean_of_real(values: jax.Array, mask: jax.Array, real: jax.Array) -> jax.Array:
    """(*U, ...) -> (*U,): the mean over the positions of a unit that count."""
    real = (real > 0).reshape(real.shape + (1,) * (values.ndim - real.ndim))
    real = jnp.broadcast_to(real, values.shape).reshape(*mask.shape, -1)
    values = jnp.where(real, values.reshape(*mask.shape, -1), 0.0)
    return jnp.sum(values, axis=-1) / jnp.maximum(jnp.sum(real, axis=-1), 1)


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), SMALLEST))


def _unit(x: jax.Array) -> jax.Array:
    return x / _length(x)[..., None]


def _huber(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) <= 1, x * x / 2, jnp.abs(x) - 0.5)
