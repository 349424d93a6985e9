"""Biases, LayerNorm and BatchNorm of rows (..., D), with the gradients that XLA compiles well for a CPU.

XLA's sum over rows, which the gradient of every bias and scale is, reads memory column by column there; the product with
ones that it equals does not. Over several devices, and on GPU and TPU, the gradients are XLA's own. A test holds both to float64.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from bigjax.core import layout


def on_one_cpu() -> bool:
    """Whether what is traced now will run on one CPU, for which these forms are."""
    return layout.platform() == "cpu" and jax.device_count() == 1


def with_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y (..., *D) + bias (*D), of one dtype."""
    return _with_bias(y, bias) if on_one_cpu() and y.ndim > bias.ndim else y + bias


@jax.custom_vjp
def _with_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias


def _with_bias_forward(y, bias):
    return y + bias, bias


def _with_bias_backward(bias, dy):
    total = sum_of_rows(dy.reshape(-1, math.prod(bias.shape)))
    return dy, total.reshape(bias.shape).astype(bias.dtype)


_with_bias.defvjp(_with_bias_forward, _with_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, statistics in float32
    or wider (Ba et al. 2016): what flax's does without `use_fast_variance`, but for its gradient."""
    return _norm_forward(x, scale, bias, epsilon)[0]


def _norm_forward(x, scale, bias, epsilon):
    wide = x.astype(_wide(x))
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale)
    given = (scale,) if bias is None else (scale, bias)
    y = y if bias is None else y + bias
    return y.astype(jnp.result_type(x, *given)), (x, mean, inverse, *given)


def _norm_backward(epsilon, saved, dy):
    """dx = (g - mean(g) - n mean(g n)) / deviation, where g = dy scale and n is x normalised."""
    x, mean, inverse, scale, *bias = saved
    D, wide = x.shape[-1], mean.dtype
    normed, dy = (x.astype(wide) - mean) * inverse, dy.astype(wide)
    turned = dy * normed
    shares = scale.astype(wide)[:, None] / D  # a product with them: scaled, and the mean taken
    of_dy, of_turned = (
        jnp.dot(each.reshape(-1, D), shares).reshape(mean.shape) for each in (dy, turned)
    )
    dx = inverse * (dy * scale - of_dy - normed * of_turned)
    dscale, *dbias = (
        sum_of_rows(each.reshape(-1, D)).astype(scale.dtype)
        for each in (turned, dy)[: 1 + len(bias)]
    )
    return dx.astype(x.dtype), dscale, dbias[0] if bias else None


layer_norm.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, and mean and variance (D,) themselves, which
    are those of all rows, E[x^2] - E[x]^2 (Ioffe and Szegedy 2015). No gradient flows through the last two."""
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _batch_norm_forward(x, scale, bias, epsilon):
    wide, D = x.astype(_wide(x)), x.shape[-1]
    mean, square = (sum_of_rows(each.reshape(-1, D)) * D / x.size for each in (wide, wide * wide))
    variance = jnp.maximum(0.0, square - mean * mean)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    y = y.astype(jnp.result_type(x, scale, bias))
    return (y, mean, variance), (x, mean, inverse, scale)


def _batch_norm_backward(epsilon, saved, changes):
    x, mean, inverse, scale = saved
    D, dy = x.shape[-1], changes[0].astype(mean.dtype)
    normed = (x.astype(mean.dtype) - mean) * inverse
    dscale, dbias = (sum_of_rows(each.reshape(-1, D)) for each in (dy * normed, dy))
    dx = inverse * scale * (dy - (dbias + normed * dscale) * D / x.size)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def sum_of_rows(x: jax.Array) -> jax.Array:
    """(R, D) -> (D,), in float32 or wider, as a product; many rows in parts side by side, which rounds less."""
    # 2048 x 1536 numbers: 0.25 ms for 7.7 (jaxlib 0.10.2, one core).
    (R, D), wide = x.shape, _wide(x)
    parts = 1 if R < 8192 or R % 16 else 16
    ones = jnp.ones((1, R // parts), x.dtype)
    sums = jnp.dot(ones, x.reshape(-1, parts * D), preferred_element_type=wide)
    return jnp.sum(sums.reshape(parts, D), axis=0)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
