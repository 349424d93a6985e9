"""Convolutions and pools in the forms that XLA compiles well for a CPU.

XLA's own kernels are the fastest on GPU and TPU. On a CPU (jaxlib 0.10.2, 2 cores with AVX-512) they take
many times longer for a depthwise convolution than the sum of shifted products that it stands for, and
longer than the forms below for the gradients of a large dense kernel and of a pool.

Images are (B, H, W, C), kernels (K, L, C, D). Strides and pads, ((before, after), (before, after)), are
those of the two sides of the image. A test holds every function against XLA's own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
CACHED = 2**20  # numbers that lie in a processor's cache while a matrix product reads them


def pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> jax.Array:
    """A 1x1 convolution: the matrix product that it is."""
    x = _padded(x, pads)
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> jax.Array:
    """A convolution by XLA, but for the gradient of its kernel."""
    return _by_xla(x, kernel, strides, pads)


def _by_xla(x, kernel, strides, pads):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=layout)


def _dense_forward(x, kernel, strides, pads):
    return _by_xla(x, kernel, strides, pads), (x, kernel)


def _dense_backward(strides, pads, saved, dy):
    """Of the kernel: what each weight meets, times dy, some rows of the images at a time."""
    x, kernel = saved
    pulled_back = jax.linear_transpose(lambda x: _by_xla(x, kernel, strides, pads), x)
    (B, rows, columns, D), (K, L, C, _) = dy.shape, kernel.shape
    height = fitting_part(rows, CACHED // (B * columns * K * L * C))
    needed = (height - 1) * strides[0] + K
    x = _padded(x, pads)

    def some_rows(total, start):
        part = lax.dynamic_slice_in_dim(x, start * strides[0], needed, axis=1)
        met = jnp.concatenate(_shifts(part, (K, L), strides, (height, columns)), axis=-1)
        met, dy_part = (
            each.reshape(B * height * columns, -1)
            for each in (met, lax.dynamic_slice_in_dim(dy, start, height, axis=1))
        )
        return total + jnp.matmul(met.T, dy_part, preferred_element_type=total.dtype), None

    zeros = jnp.zeros((K * L * C, D), jnp.promote_types(kernel.dtype, jnp.float32))
    dkernel, _ = lax.scan(some_rows, zeros, jnp.arange(0, rows, height))
    return *pulled_back(dy), dkernel.reshape(kernel.shape).astype(kernel.dtype)


dense.defvjp(_dense_forward, _dense_backward)


def fitting_part(whole: int, most: int) -> int:
    """The largest divisor of `whole` up to `most`; at least 1."""
    return max(n for n in range(1, whole + 1) if whole % n == 0 and n <= max(1, most))


def depthwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> jax.Array:
    """A depthwise convolution with a kernel (K, L, 1, C), one shift at a time."""
    return _shifted_products(_padded(x, pads), kernel, strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_products(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
    size = tuple(
        (side - k) // stride + 1
        for side, k, stride in zip(x.shape[1:3], kernel.shape[:2], strides, strict=True)
    )
    shifts = _shifts(x, kernel.shape[:2], strides, size)
    weights = kernel.reshape(-1, x.shape[-1])
    return sum(shifted * weight for shifted, weight in zip(shifts, weights, strict=True))


def _depthwise_forward(x, kernel, strides):
    return _shifted_products(x, kernel, strides), (x, kernel)


def _depthwise_backward(strides, saved, dy):
    """The gradients as shifted products too: JAX's own are as many pads and take twice the time."""
    x, kernel = saved
    shifts = _shifts(x, kernel.shape[:2], strides, dy.shape[1:3])
    dkernel = jnp.stack([jnp.sum(shifted * dy, axis=(0, 1, 2)) for shifted in shifts])
    spread = [(0, 0, 0)]
    for axis, (side, stride) in enumerate(zip(kernel.shape[:2], strides, strict=True), start=1):
        rest = x.shape[axis] - (dy.shape[axis] - 1) * stride - side
        spread.append((side - 1, side - 1 + rest, stride - 1))
    spread_dy = lax.pad(dy, jnp.zeros((), dy.dtype), [*spread, (0, 0, 0)])
    dx = _shifted_products(spread_dy, kernel[::-1, ::-1], (1, 1))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


_shifted_products.defvjp(_depthwise_forward, _depthwise_backward)


def pool_by_xla(x: jax.Array, window: int, stride: int, pad: int) -> jax.Array:
    """The largest number of each window (window x window), for every channel."""
    return nn.max_pool(x, (window, window), (stride, stride), ((pad, pad), (pad, pad)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, window: int, stride: int, pad: int) -> jax.Array:
    """`pool_by_xla`, but for its gradient."""
    return pool_by_xla(x, window, stride, pad)


def _pool_forward(x, window, stride, pad):
    y = pool_by_xla(x, window, stride, pad)
    return y, (x, y)


def _pool_backward(window, stride, pad, saved, dy):
    """dy goes to where each window's largest number lies; of several, to the first, as XLA has it."""
    x, y = saved

    def met(x, beyond):
        padded = _padded(x, ((pad, pad), (pad, pad)), beyond)
        return _shifts(padded, (window, window), (stride, stride), y.shape[1:3])

    taken, parts = jnp.zeros(y.shape, bool), []
    for shifted in met(x, -jnp.inf):
        hit = (shifted == y) & ~taken
        taken |= hit
        parts.append(jnp.where(hit, dy, 0))
    return jax.linear_transpose(lambda x: met(x, 0.0), x)(parts)


max_pool.defvjp(_pool_forward, _pool_backward)


def _padded(x: jax.Array, pads: Pads, value: float = 0.0) -> jax.Array:
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _shifts(
    x: jax.Array, window: Sequence[int], strides: Sequence[int], size: Sequence[int]
) -> list[jax.Array]:
    """What each place of a window meets, row by row: arrays (B, *size, C)."""
    ends = [(n - 1) * stride + 1 for n, stride in zip(size, strides, strict=True)]
    return [
        x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]
