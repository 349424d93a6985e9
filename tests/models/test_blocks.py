"""Linear maps: their values and gradients against float64 and XLA's own, and what they are compiled to."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.models.blocks import product

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
