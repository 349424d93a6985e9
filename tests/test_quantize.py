"""Formats of few bits against scales, rounding and levels computed by hand in float64, and against qwix."""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.core.quantize import (
    dequantize,
    nf4_levels,
    pack,
    parse_format,
    quantize,
    rounded,
    unpack,
)
from bigjax.methods.quantized import Quantize

# Appendix E of Dettmers et al. 2023.
PUBLISHED_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_hand(matrix, format, group):
    """float64, one group and channel at a time."""
    matrix, found = matrix.astype(np.float64), np.zeros(matrix.shape)
    m, n = matrix.shape
    group = group or m
    for start in range(0, m, group):
        for channel in range(n):
            block = matrix[start : start + group, channel]
            largest = np.abs(block).max()
            bound = {"int8": 127, "int4": 7, "nf4": 1, "fp8": 448}[format]
            scale = np.float64(np.float32(largest / bound)) if largest else 1.0
            if format == "nf4":
                levels = np.array(PUBLISHED_NF4)
                nearest = np.abs(block[:, None] / scale - levels).argmin(1)
                seen = levels[nearest]
            elif format == "fp8":
                seen = (block / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
            else:
                seen = np.rint(block / scale)
            found[start : start + group, channel] = seen * scale
    return found


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def both_ways(path, leaf, format, group):
    """(quantized and back, seen in training, scales): one program a case."""
    array = quantize(path, leaf, format, group)
    return dequantize(array), rounded(path, leaf, format, group), array.scales


@pytest.mark.parametrize(("format", "group"), [("int8", None), ("int4", 5), ("nf4", 5), ("fp8", 4)])
def test_scales_and_rounding_are_those_of_float64(format, group):
    matrix = numbers(12, 7)
    matrix[:, 3] = 0.0
    matrix[2, 5] = 40.0  # an outlier: its channel's others are coarse
    found, seen, _ = both_ways("head/kernel", matrix, format, group)
    expected = by_hand(matrix, format, group)
    # A number half way between two levels may go to either in float32.
    differ = ~np.isclose(found, expected, rtol=2e-6, atol=1e-6)
    assert differ.mean() < 0.02
    np.testing.assert_array_equal(found, seen)
    assert not np.any(found[:, 3])


def test_nf4_has_the_published_levels():
    np.testing.assert_allclose(nf4_levels(), PUBLISHED_NF4, atol=1e-6)  # theirs in float32


def test_a_tie_goes_to_the_even_code():
    matrix = np.array([[127.0], [0.5], [1.5], [-2.5]], np.float32)
    found, _, _ = both_ways("a/kernel", matrix, "int8", None)
    np.testing.assert_array_equal(found[:, 0], [127.0, 0.0, 2.0, -2.0])


@pytest.mark.parametrize("signed", [True, False])
def test_two_codes_share_a_byte(signed):
    codes = np.arange(-7, 8) if signed else np.arange(15)
    codes = jnp.asarray(codes.reshape(5, 3), jnp.int8 if signed else jnp.uint8)
    both = pack(codes)
    assert both.shape == (3, 3) and both.dtype == jnp.uint8
    np.testing.assert_array_equal(unpack(both, signed=signed)[:5], codes)


def test_bytes_are_really_fewer():
    matrix = jax.ShapeDtypeStruct((256, 64), jnp.float32)

    def size(format, group=None):
        array = jax.eval_shape(lambda x: quantize("a/kernel", x, format, group), matrix)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(array))

    assert size("int8") == 256 * 64 + 4 * 64
    assert size("nf4", 64) == 256 * 64 // 2 + 4 * 4 * 64


@pytest.mark.parametrize(
    ("path", "shape", "scales"),
    [
        ("block_0/attention/query/kernel", (8, 2, 4), (1, 1, 8)),
        ("block_0/attention/out/kernel", (2, 4, 8), (1, 1, 8)),
        ("blocks/attention/key/kernel", (3, 8, 2, 4), (3, 1, 1, 8)),
        ("conv_0/kernel", (3, 3, 8, 16), (1, 1, 16)),
        ("token/embedding", (40, 8), (1, 1, 40)),
    ],
)
def test_a_channel_is_an_output_and_of_a_table_a_row(path, shape, scales):
    leaf = numbers(*shape)
    found, _, own = both_ways(path, leaf, "int4", None)
    assert found.shape == shape and own.shape == scales
    assert np.abs(found - leaf).max() <= np.max(own) / 2 * (1 + 1e-6)


@pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="qwix is not installed")
@pytest.mark.parametrize("format", ["nf4", "fp8"])
def test_qwix_has_the_same_codes(format):
    import qwix

    matrix = jnp.asarray(numbers(128, 16, seed=3))
    theirs = qwix.quantize(
        matrix, {"fp8": "float8_e4m3fn"}.get(format, format), channelwise_axes=(1,),
        tiled_axes={0: 32},
    )  # fmt: skip
    ours = dequantize(quantize("a/kernel", matrix, format, 32))
    np.testing.assert_allclose(ours, qwix.dequantize(theirs), rtol=1e-5, atol=1e-6)


def test_each_leaf_has_the_format_and_the_group_of_its_rule():
    rules = (("embedding", "int4:4"), (".*kernel", "int8"), (".*", None))
    quantized = Quantize(rules=rules, group=16)
    leaves = {"embedding": numbers(6, 8), "a/kernel": numbers(32, 2), "a/bias": numbers(2)}
    held = quantized.hold(dict(leaves), leaves)
    assert held["a/bias"] is leaves["a/bias"]
    table = by_hand(leaves["embedding"].T, "int4", 4).T  # a word's scales are those of its row
    np.testing.assert_allclose(dequantize(held["embedding"]), table, rtol=2e-7)
    kernel = by_hand(leaves["a/kernel"], "int8", 16)
    np.testing.assert_allclose(dequantize(held["a/kernel"]), kernel, rtol=2e-7)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"'nf5' is no format .did you mean 'nf4'"):
        parse_format("nf5", None, "here")
    with pytest.raises(UserError, match="here: 'int4:0': a group is a whole number above 0"):
        parse_format("int4:0", None, "here")
    with pytest.raises(UserError, match="is no matrix"):
        quantize("a/bias", jnp.zeros(4), "int8")
    assert math.isclose(nf4_levels()[0], -1.0)
