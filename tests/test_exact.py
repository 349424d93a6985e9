"""Initial values that no sharding changes, against SciPy in float64 and JAX's own draws."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import special, stats

from bigjax.core import exact

SHAPES = [(16, 4), (8, 16), (32, 3)]
DRAWS = {
    "normal": lambda key, shape: 0.02 * jax.random.normal(key, shape),
    "truncated normal": lambda key, shape: jax.random.truncated_normal(key, -2, 2, shape) / 3,
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-0.3, maxval=0.7),
    "shifted normal": lambda key, shape: 1 + 0.1 * jax.random.normal(key, shape),
    "in a loop": lambda key, shape: jax.lax.scan(
        lambda key, _: (jax.random.split(key)[0], jax.random.normal(key, shape[1:])),
        key,
        length=shape[0],
    )[1],
    "in a branch": lambda key, shape: jax.lax.cond(
        jax.random.bernoulli(key), lambda: jax.random.normal(key, shape), lambda: jnp.ones(shape)
    ),
}


def on(devices, spec, draw, shape):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("x",))
    where = NamedSharding(mesh, PartitionSpec(*spec))
    function = exact.exactly(lambda key: draw(key, shape))
    return np.asarray(jax.jit(function, out_shardings=where)(jax.random.key(3)))


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_bitwise_equal_however_they_are_sharded(name):
    for shape in SHAPES[:1] if name.startswith("in a") else SHAPES:
        whole = on(1, (), DRAWS[name], shape)
        plain = np.asarray(DRAWS[name](jax.random.key(3), shape))
        np.testing.assert_allclose(whole, plain, rtol=5e-6, atol=5e-7)
        for spec in (("x",), (None, "x")):
            for devices in (4, 8):
                if len(spec) <= len(shape) and shape[len(spec) - 1] % devices == 0:
                    parts = on(devices, spec, DRAWS[name], shape)
                    np.testing.assert_array_equal(parts, whole, err_msg=f"{shape} {spec} {devices}")


@pytest.mark.parametrize("shape", [(), (7,), (16, 3), (4, 2, 5)])
def test_bits_written_out_are_jaxs_own(shape):
    key = jax.random.key(5)
    np.testing.assert_array_equal(exact.random_bits(key, shape), jax.random.bits(key, shape))
    keys = jax.random.split(key, (2, 3))
    one_by_one = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, shape)))(keys)
    np.testing.assert_array_equal(exact.random_bits(keys, shape), one_by_one)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_bits_of_other_widths_stay_jaxs(dtype):
    draw = lambda key: jax.random.bits(key, (8, 4), dtype)  # noqa: E731
    drawn = jax.jit(exact.exactly(draw))(jax.random.key(5))
    np.testing.assert_array_equal(drawn, draw(jax.random.key(5)))


def test_bits_of_other_generators_stay_jaxs():
    key = jax.random.key(5, impl="rbg")
    draw = lambda key: jax.random.bits(key, (8, 4))  # noqa: E731
    np.testing.assert_array_equal(jax.jit(exact.exactly(draw))(key), draw(key))


@pytest.mark.parametrize("name", ["normal", "truncated normal", "uniform"])
def test_a_draw_needs_no_memory_beside_what_is_drawn(name):
    draw = exact.exactly(lambda key: DRAWS[name](key, (256, 1024)))
    needed = jax.jit(draw).lower(jax.random.key(0)).compile().memory_analysis()
    assert needed.temp_size_in_bytes < 0.01 * needed.output_size_in_bytes


def test_the_inverse_error_function_equals_scipys():
    x = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    x = np.concatenate([x, np.float32([1 - 2**-24, 2**-24 - 1, 1e-8, 0.9999])])
    ours = np.float64(exact.erf_inv(x))
    np.testing.assert_allclose(ours, special.erfinv(np.float64(x)), rtol=4e-7)
    np.testing.assert_array_equal(exact.erf_inv(np.float32([-1, 0, 1])), [-np.inf, 0, np.inf])


def test_no_product_that_reaches_a_sum_is_inexact():
    """Each product inside, done in float64 from the float32 factors, is a float32 number."""
    x = jnp.float32(np.random.default_rng(1).uniform(-1, 1, 1000))
    closed = jax.make_jaxpr(exact.erf_inv)(x)
    (inner,) = [e for e in closed.jaxpr.eqns if e.primitive.name in ("jit", "pjit")]
    body = inner.params["jaxpr"]
    values = dict(zip(body.jaxpr.invars, [x], strict=True))
    summed = {v for e in body.jaxpr.eqns if e.primitive.name in ("add", "sub") for v in e.invars
              if not hasattr(v, "val")}  # fmt: skip
    products = 0
    for equation in body.jaxpr.eqns:
        inputs = [v.val if hasattr(v, "val") else values[v] for v in equation.invars]
        results = equation.primitive.bind(*inputs, **equation.params)
        results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
        if equation.primitive.name == "mul" and equation.outvars[0] in summed:
            products += 1
            a, b = (np.float64(v) for v in inputs)
            np.testing.assert_array_equal(a * b, np.float64(results[0]))
    assert products > 50


def test_the_normal_is_normal():
    draw = jax.jit(exact.exactly(lambda key: jax.random.normal(key, (200_000,))))
    assert stats.kstest(np.asarray(draw(jax.random.key(0))), "norm").pvalue > 0.01


class Stock(nn.Module):
    """A user's model of Flax's own layers and their default initialisers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        x = nn.remat(nn.Dense)(16)(nn.LayerNorm()(x))
        x = nn.MultiHeadDotProductAttention(num_heads=2)(x[:, None], x[:, None])[:, 0]
        x = nn.RNN(nn.OptimizedLSTMCell(16))(x[:, None])[:, 0]
        return nn.Dense(4)(x)


def test_a_model_of_stock_layers_is_initialised_as_flax_does():
    x, key = jnp.ones((2, 12)), jax.random.key(0)
    plain, ours = (jax.jit(init)(key, x) for init in (Stock().init, exact.exactly(Stock().init)))
    assert jax.tree.structure(plain) == jax.tree.structure(ours)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-6, atol=2e-6), plain, ours)
