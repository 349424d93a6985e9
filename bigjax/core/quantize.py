"""Numbers in eight or four bits: codes and scales, and back. Pure.

A matrix (m, n) reads m inputs and gives n channels. Each channel has a scale of its own, or one for
every `group` inputs: W[i, j] is about level(code[i, j]) * scale[i // group, j].

Why not qwix, which has the same arithmetic for arrays (a test holds this against it): its groups must
divide the inputs, and its int4 is a byte a number wherever a host sees it (`nbytes`, files, hashes).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.matrices import as_matrix

# The largest magnitude that a format's codes stand for: a scale is the largest magnitude of its
# numbers divided by it, so that none is clipped and zero stays zero.
LARGEST = {"int8": 127.0, "int4": 7.0, "nf4": 1.0, "fp8": 448.0}
FORMATS = tuple(LARGEST)
BITS = {"int8": 8, "int4": 4, "nf4": 4, "fp8": 8}
FLOAT8 = jnp.float8_e4m3fn


@flax.struct.dataclass
class Quantized:
    """An array in few bits.

    Attributes:
      codes: (*layers, groups, rows, n): int8, float8_e4m3fn, or uint8 of two 4-bit codes, the first
        row of a pair in the lower bits. The last group of a channel is filled up with zeros.
      scales: float32 (*layers, groups, 1, n).
      format: one of `FORMATS`.
      rows: inputs that share a scale.
      matrix: (m, n) of each layer. turned: whether the matrix is the leaf's transpose.
      shape, dtype: of the array itself.
    """

    codes: jax.Array
    scales: jax.Array
    format: str = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)
    matrix: tuple[int, int] = flax.struct.field(pytree_node=False)
    turned: bool = flax.struct.field(pytree_node=False)
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    dtype: Any = flax.struct.field(pytree_node=False)


def parse_format(text: Any, group: int | None, where: str) -> tuple[str, int | None]:
    """(format, inputs that share a scale) of "int8", or of "int4:32", which has a group of its own.

    Raises:
      UserError: there is no such format (the nearest is named), or the group is no number above 0.
    """
    name, colon, own = str(text).partition(":")
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UserError(f"{where}: '{name}' is no format{hint}; formats: {', '.join(FORMATS)}")
    if colon and not (own.isdecimal() and int(own) > 0):
        raise UserError(f"{where}: '{text}': a group is a whole number above 0, as in {name}:64")
    return name, int(own) if colon else group


def is_table(path: str) -> bool:
    """Whether a leaf is a table of rows that are looked up: its inputs are then its last axis."""
    return path.rpartition("/")[2] == "embedding"


def quantize(path: str, leaf: jax.Array, format: str, group: int | None = None) -> Quantized:
    """A leaf in few bits, each number at the level nearest to it (of two, the even code).

    Args:
      path: the leaf's, which says what its matrix is (`bigjax.core.matrices`).
      group: inputs that share a scale; None: all of a channel.

    Raises:
      UserError: the leaf is no matrix.
    """
    blocks = in_groups(path, leaf, group)
    scales = scales_of(blocks, format)
    return packed(path, leaf, to_codes(blocks / scales, format), scales, format)


def in_groups(path: str, leaf: jax.Array, group: int | None) -> jax.Array:
    """float32 (*layers, groups, rows, n) of a leaf's matrix, the last group filled up with zeros."""
    layers, m, n = as_matrix(path, leaf.shape)
    matrix = leaf.astype(jnp.float32).reshape(*layers, m, n)
    if is_table(path):
        matrix, m, n = jnp.swapaxes(matrix, -1, -2), n, m
    rows = min(group or m, m)
    groups = math.ceil(m / rows)
    widths = [(0, 0)] * len(layers) + [(0, groups * rows - m), (0, 0)]
    return jnp.pad(matrix, widths).reshape(*layers, groups, rows, n)


def scales_of(blocks: jax.Array, format: str) -> jax.Array:
    """float32 (*layers, groups, 1, n): the largest magnitude over the format's; 1 of zeros alone."""
    largest = jnp.max(jnp.abs(blocks), axis=-2, keepdims=True)
    return jnp.where(largest > 0, largest / LARGEST[format], 1.0)


def to_codes(scaled: jax.Array, format: str) -> jax.Array:
    """One code a number, not yet packed: int8, uint8 (of nf4), or float8."""
    if format == "nf4":
        levels = nf4_levels()
        between = jnp.asarray((levels[1:] + levels[:-1]) / 2, jnp.float32)
        return jnp.searchsorted(between, scaled).astype(jnp.uint8)
    if format == "fp8":
        return jnp.clip(scaled, -LARGEST["fp8"], LARGEST["fp8"]).astype(FLOAT8)
    bound = LARGEST[format]
    return jnp.clip(jnp.round(scaled), -bound, bound).astype(jnp.int8)


def from_codes(codes: jax.Array, format: str) -> jax.Array:
    """float32 levels of unpacked codes."""
    if format == "nf4":
        return jnp.asarray(nf4_levels(), jnp.float32)[codes.astype(jnp.int32)]
    return codes.astype(jnp.float32)


def rounded(path: str, leaf: jax.Array, format: str, group: int | None = None) -> jax.Array:
    """The leaf as it is after `quantize` and `dequantize`; nothing is packed."""
    blocks = in_groups(path, leaf, group)
    scales = scales_of(blocks, format)
    seen = from_codes(to_codes(blocks / scales, format), format) * scales
    _, m, n = as_matrix(path, leaf.shape)
    matrix = (n, m) if is_table(path) else (m, n)
    return _as_leaf(seen, matrix, is_table(path), leaf.shape).astype(leaf.dtype)


def packed(path: str, leaf: Any, codes: jax.Array, scales: jax.Array, format: str) -> Quantized:
    """`Quantized` of unpacked codes (*layers, groups, rows, n) and their scales.

    leaf: what has the array's shape and dtype.
    """
    _, m, n = as_matrix(path, leaf.shape)
    turned, rows = is_table(path), codes.shape[-2]
    if BITS[format] == 4:
        codes = pack(codes)
    matrix = (n, m) if turned else (m, n)
    return Quantized(codes, scales, format, rows, matrix, turned, tuple(leaf.shape), leaf.dtype)


def dequantize(array: Quantized) -> jax.Array:
    """The array, in its own shape and dtype."""
    codes = array.codes
    if BITS[array.format] == 4:
        codes = unpack(codes, signed=array.format == "int4")
    blocks = from_codes(codes[..., : array.rows, :], array.format) * array.scales
    return _as_leaf(blocks, array.matrix, array.turned, array.shape).astype(array.dtype)


def _as_leaf(
    blocks: jax.Array, matrix: tuple[int, int], turned: bool, shape: tuple[int, ...]
) -> jax.Array:
    m, n = matrix
    whole = blocks.reshape(*blocks.shape[:-3], -1, n)[..., :m, :]
    return (jnp.swapaxes(whole, -1, -2) if turned else whole).reshape(shape)


def pack(codes: jax.Array) -> jax.Array:
    """(..., rows, n) codes of four bits -> uint8 (..., ceil(rows / 2), n)."""
    if codes.shape[-2] % 2:
        codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 2) + [(0, 1), (0, 0)])
    low, high = codes[..., ::2, :].astype(jnp.uint8) & 15, codes[..., 1::2, :].astype(jnp.uint8)
    return low | (high << 4)


def unpack(pairs: jax.Array, *, signed: bool) -> jax.Array:
    """The inverse of `pack`: uint8, or int8 where the highest of the four bits is a sign."""
    both = jnp.stack([pairs & 15, pairs >> 4], axis=-2)
    codes = both.reshape(*pairs.shape[:-2], 2 * pairs.shape[-2], pairs.shape[-1])
    return (codes.astype(jnp.int8) ^ 8) - 8 if signed else codes


@functools.cache
def nf4_levels() -> np.ndarray:
    """float64 (16,): NormalFloat's levels, quantiles of the normal distribution scaled to [-1, 1].

    Dettmers et al. 2023, section 3: eight of the positive half and seven of the negative one, evenly
    apart in probability from 1/2 to `last`, and zero. They take the last quantile's probability half
    way between the ends of the 15 and 16 steps, (1 - 1/30 + 1 - 1/32) / 2.
    """
    from scipy.special import ndtri

    last = 1 - (1 / 32 + 1 / 30) / 2
    above = ndtri(np.linspace(last, 0.5, 9)[:-1])
    below = -ndtri(np.linspace(last, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above]))
    return levels / levels.max()
