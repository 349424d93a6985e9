"""Linear maps and norms: their values and gradients against float64 and XLA's own, and what they are compiled to."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.models import rows as by_rows
from bigjax.models.blocks import dense, join_heads, layer_norm, product, split_heads

RNG = np.random.default_rng(0)
B, T, D, N, H = 2, 16, 24, 3, 8
MAPS = {  # shapes of rows and kernel, how many axes meet
    "dense": ((B, T, D), (D, 40), 1),
    "split_heads": ((B, T, D), (D, N, H), 1),
    "join_heads": ((B, T, N, H), (N, H, D), 2),
    "one row": ((D,), (D, 40), 1),
}


def axes_of(rows, count):
    return (tuple(range(len(rows) - count, len(rows))), tuple(range(count))), ((), ())


def pulled_back(function, rows, count):
    """jitted (x, kernel, d_out) -> out, and the gradients of x and the kernel."""

    def run(x, kernel, d_out):
        out, back = jax.vjp(lambda x, w: function(x, w, axes_of(rows, count)), x, kernel)
        return out, *back(d_out)

    return jax.jit(run)


@pytest.mark.parametrize("name", MAPS)
def test_a_product_has_the_values_and_gradients_of_float64_and_of_xla(name):
    rows, kernel, count = MAPS[name]
    out = rows[:-count] + kernel[count:]
    numbers = [RNG.standard_normal(shape).astype(np.float32) for shape in (rows, kernel, out)]
    ours = pulled_back(product, rows, count)(*numbers)
    xla = pulled_back(jax.lax.dot_general, rows, count)(*numbers)
    x, w, d_out = (each.astype(np.float64) for each in numbers)
    lead = tuple(range(len(rows) - count))
    exact = (
        np.tensordot(x, w, count),
        np.tensordot(d_out, w, (range(len(lead), d_out.ndim), range(count, w.ndim))),
        np.tensordot(x, d_out, (lead, lead)),
    )
    for got, theirs, want in zip(ours, xla, exact, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_kernel_transposes_neither_rows_nor_their_gradient():
    rows, kernel = (8, 32, 64), (64, 96)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (rows, kernel, (8, 32, 96))]

    def transposed(function):
        text = pulled_back(function, rows, 1).lower(*shapes).compile().as_text()
        return re.findall(r"f32\[(?:64|96),256\]\S* (?:fusion|copy|transpose)\(", text)

    assert not transposed(product)
    if jax.default_backend() == "cpu" and not transposed(jax.lax.dot_general):
        pytest.fail("XLA no longer transposes: `product` can go")


def float64_norm(x, scale, bias, dy, epsilon):
    """LayerNorm and its gradients, in NumPy."""
    mean = x.mean(-1, keepdims=True)
    deviation = np.sqrt(np.square(x - mean).mean(-1, keepdims=True) + epsilon)
    normed, g = (x - mean) / deviation, dy * scale
    inner = g.mean(-1, keepdims=True) + normed * (g * normed).mean(-1, keepdims=True)
    rows = tuple(range(x.ndim - 1))
    return normed * scale + bias, (g - inner) / deviation, (dy * normed).sum(rows), dy.sum(rows)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_on_one_cpu_has_the_values_and_gradients_of_float64_and_of_xla(
    bias, monkeypatch
):
    x, dy = (RNG.standard_normal((B, T, D)).astype(np.float32) for _ in range(2))
    x, (scale, shift) = 3 * x + 7, RNG.standard_normal((2, D)).astype(np.float32)
    params = {"scale": scale, "bias": shift} if bias else {"scale": scale}

    def run(x, params, dy):
        norm = layer_norm("norm", 1e-3, bias=bias)
        y, back = jax.vjp(lambda x, params: norm.apply({"params": params}, x), x, params)
        return y, *back(dy)

    theirs = jax.jit(run)(x, params, dy)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "custom_vjp" in str(
        jax.make_jaxpr(lambda x, p: layer_norm("n", bias=bias).apply({"params": p}, x))(x, params)
    )
    ours = jax.jit(lambda *given: run(*given))(x, params, dy)
    wide = (each.astype(np.float64) for each in (x, scale, shift if bias else 0 * shift, dy))
    y, dx, dscale, dbias = float64_norm(*wide, 1e-3)
    want = (y, dx, {"bias": dbias, "scale": dscale} if bias else {"scale": dscale})
    for got, other, exact in zip(*map(jax.tree.leaves, (ours, theirs, want)), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_bias_on_one_cpu_is_the_sum_over_rows(dtype, monkeypatch):
    y, bias = jnp.zeros((B, T, N, H), dtype), jnp.arange(N * H, dtype=dtype).reshape(N, H)
    dy = jnp.asarray(RNG.standard_normal(y.shape), dtype)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    out, back = jax.vjp(jax.jit(lambda *given: by_rows.with_bias(*given)), y, bias)
    np.testing.assert_array_equal(out, y + bias)
    unchanged, total = back(dy)
    np.testing.assert_array_equal(unchanged, dy)
    assert total.dtype == dtype
    want = np.asarray(dy, np.float64).sum((0, 1))
    np.testing.assert_allclose(
        total.astype(jnp.float32), want, rtol=1e-5 if dtype == "float32" else 4e-3
    )


@pytest.mark.parametrize(
    ("ours", "flax"),
    [
        (dense("map", 40, "embed", "mlp"), nn.Dense(40, name="map")),
        (split_heads("map", N, H), nn.DenseGeneral((N, H), name="map")),
        (join_heads("map", D), nn.DenseGeneral(D, axis=(-2, -1), name="map")),
    ],
)
def test_linear_maps_draw_and_compute_what_flaxs_do(ours, flax):
    x = RNG.standard_normal((B, T, N, H) if ours.inputs == 2 else (B, T, D)).astype(np.float32)
    theirs = flax.clone(kernel_init=nn.initializers.normal(0.02))
    params = [nn.unbox(each.init(jax.random.key(3), x))["params"] for each in (ours, theirs)]
    assert jax.tree.structure(params[0]) == jax.tree.structure(params[1])
    jax.tree.map(np.testing.assert_array_equal, *params)
    bias = jnp.asarray(RNG.standard_normal(params[0]["bias"].shape), jnp.float32)
    given = {"params": {**params[0], "bias": bias}}
    np.testing.assert_allclose(ours.apply(given, x), theirs.apply(given, x), rtol=1e-5, atol=1e-6)
