"""3x3 convolutions by Winograd's algorithm F(2x2, 3x3) (Lavin & Gray 2016, section 4.1), for a CPU.

The four outputs of a 2x2 tile take 36 products a channel as they are written, 16 here: y = A' [(G g G') * (B' d B)] A,
d the 4x4 inputs that the tile meets and g the kernel. Summed over channels these are 16 matrix products over all tiles,
and the gradient of the kernel is as many: G' [(B' d B) * (A dy A')] G. The image's is again such a convolution, of dy
with the kernel turned about. A, B and G only add, subtract and halve, so that rounding stays near that of
the plain sum: a test holds all three against float64.

Images are (B, H, W, C), kernels (3, 3, C, D), stride 1; pads as in `on_cpu`. Transformed, all are (16, rows, columns).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bigjax.models.on_cpu import Pads, fitting_part

CACHED = 2**17  # numbers of one of the 16 inputs of products that lie in a processor's cache
NARROWEST = 64  # channels in or out below which the transforms take longer than they save
FEWEST = 128  # tiles of all images


def serves(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> bool:
    """Whether this is a convolution that is faster so; bfloat16 would lose digits in the transforms.

    Not where images are so small that their odd row makes up for the rest, and not where tiles are so few that
    transforming the kernel does (or where their number is left open, in an export).
    """
    if kernel.shape[:2] != (3, 3) or set(strides) != {1} or min(kernel.shape[2:]) < NARROWEST:
        return False
    if x.dtype != jnp.float32 or not all(isinstance(n, int) for n in x.shape):
        return False
    H, W = _sides(x, pads)
    tiles = -(-H // 2) * -(-W // 2)
    return 16 * tiles <= 2 / 3 * 9 * H * W and x.shape[0] * tiles >= FEWEST


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> jax.Array:
    """`lax.conv_general_dilated` where this module `serves`."""
    matrices = _of_kernel(kernel)
    y = lax.map(lambda x: _some_images(x, matrices, pads), _in_parts(x, _together(x)))
    return y.reshape(-1, *y.shape[2:])


def _forward(x, kernel, strides, pads):
    return convolution(x, kernel, strides, pads), (x, kernel)


def _backward(strides, pads, saved, dy):
    x, kernel = saved
    turned = _of_kernel(kernel[::-1, ::-1]).swapaxes(1, 2)
    (above, below), (left, right) = pads
    around = ((2 - above, 2 - below), (2 - left, 2 - right))

    def some_images(total, part):
        x, dy = part
        met, changes = _of_inputs(x, pads), _of_changes(dy)
        total += lax.dot_general(met, changes, (((1,), (1,)), ((0,), (0,))))
        return total, _some_images(dy, turned, around)

    total = jnp.zeros((16, *kernel.shape[2:]), kernel.dtype)
    parts = (_in_parts(each, _together(x)) for each in (x, dy))
    total, dx = lax.scan(some_images, total, tuple(parts))
    return dx.reshape(x.shape), _to_kernel(total)


convolution.defvjp(_forward, _backward)


def _together(x: jax.Array) -> int:
    """How many images are taken at a time: a divisor of the batch."""
    B, H, W, C = x.shape
    return fitting_part(B, CACHED // (-(-H // 2) * -(-W // 2) * C))


def _in_parts(x: jax.Array, together: int) -> jax.Array:
    return x.reshape(-1, together, *x.shape[1:])


def _some_images(x: jax.Array, matrices: jax.Array, pads: Pads) -> jax.Array:
    """The convolution of a few images with a kernel (3, 3, C, D) that was made into matrices (16, C, D)."""
    B, (H, W) = len(x), _sides(x, pads)
    m = (_of_inputs(x, pads) @ matrices).reshape(4, 4, B, -(-H // 2), -(-W // 2), -1)

    def transform(m):  # A'
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    rows = jnp.stack(transform(m))
    y = jnp.stack(transform(rows.swapaxes(0, 1)), axis=4)  # (2, B, tiles, tiles, 2, D)
    y = jnp.moveaxis(y, 0, 2)
    return y.reshape(B, H + H % 2, W + W % 2, -1)[:, :H, :W]


def _sides(x: jax.Array, pads: Pads) -> tuple[int, int]:
    """Height and width of the convolution of x."""
    H, W = (side + sum(pad) - 2 for side, pad in zip(x.shape[1:3], pads, strict=True))
    return H, W


def _of_inputs(x: jax.Array, pads: Pads) -> jax.Array:
    """B' d B of every tile: (16, tiles of all images, C)."""
    H, W = (side + side % 2 for side in _sides(x, pads))
    widths = [(pad[0], n + 2 - side - pad[0], 0) for n, side, pad in zip((H, W), x.shape[1:3], pads, strict=True)]  # fmt: skip
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *widths, (0, 0, 0)])

    def transform(d):  # B'
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    rows = jnp.stack(transform([x[:, i : i + H : 2] for i in range(4)]))
    both = jnp.stack(transform([rows[:, :, :, j : j + W : 2] for j in range(4)]), axis=1)
    return both.reshape(16, -1, x.shape[-1])


def _of_changes(dy: jax.Array) -> jax.Array:
    """A dy A' of every tile: (16, tiles of all images, D)."""
    dy = jnp.pad(dy, ((0, 0), (0, dy.shape[1] % 2), (0, dy.shape[2] % 2), (0, 0)))

    def transform(dy):  # A
        return [dy[0], dy[0] + dy[1], dy[0] - dy[1], -dy[1]]

    rows = jnp.stack(transform([dy[:, i::2] for i in range(2)]))
    both = jnp.stack(transform([rows[:, :, :, j::2] for j in range(2)]), axis=1)
    return both.reshape(16, -1, dy.shape[-1])


def _of_kernel(kernel: jax.Array) -> jax.Array:
    """G g G': (16, C, D)."""

    def transform(g):  # G
        even, odd = (g[0] + g[2]) / 2, g[1] / 2
        return [g[0], even + odd, even - odd, g[2]]

    rows = jnp.stack(transform(kernel))
    both = jnp.stack(transform(rows.swapaxes(0, 1)), axis=1)
    return both.reshape(16, *kernel.shape[2:])


def _to_kernel(total: jax.Array) -> jax.Array:
    """G' u G: (3, 3, C, D), of u (16, C, D)."""

    def transform(u):  # G'
        even, odd = (u[1] + u[2]) / 2, (u[1] - u[2]) / 2
        return [u[0] + even, odd, even + u[3]]

    rows = jnp.stack(transform(total.reshape(4, 4, *total.shape[1:])))
    return jnp.stack(transform(rows.swapaxes(0, 1)), axis=1)
