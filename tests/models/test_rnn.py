"""The RNN against the LSTM and GRU equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.core.settings import Precision
from bigjax.models.rnn import RNN

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 6, 4)).astype(np.float32)


def lstm(x, p, width):
    """i, f, o = s(W x + U h + b), g = tanh(...), c = f c + i g, h = o tanh(c)."""
    h = c = np.zeros((len(x), width))
    states = []
    for x_t in np.moveaxis(x, 1, 0):
        gate = {
            k: x_t @ p[f"i{k}"]["kernel"] + h @ p[f"h{k}"]["kernel"] + p[f"h{k}"]["bias"]
            for k in "ifgo"
        }
        c = expit(gate["f"]) * c + expit(gate["i"]) * np.tanh(gate["g"])
        h = expit(gate["o"]) * np.tanh(c)
        states.append(h)
    return np.stack(states, axis=1)


def gru(x, p, width):
    """r, z = s(W x + U h + b), n = tanh(W x + b + r (U h + b)), h = (1 - z) n + z h."""
    h = np.zeros((len(x), width))
    states = []
    for x_t in np.moveaxis(x, 1, 0):
        given = {k: x_t @ p[f"i{k}"]["kernel"] + p[f"i{k}"]["bias"] for k in "rzn"}
        r, z = (expit(given[k] + h @ p[f"h{k}"]["kernel"]) for k in "rz")
        n = np.tanh(given["n"] + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"]))
        h = (1 - z) * n + z * h
        states.append(h)
    return np.stack(states, axis=1)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize(("cell", "equations"), [("lstm", lstm), ("gru", gru)])
def test_two_layers_equal_the_cell_equations(cell, equations, pooling):
    model = RNN(widths=(5, 7), outputs=2, cell=cell, pooling=pooling)
    shapes = jax.eval_shape(lambda: model.init(KEY, X, train=False))["params"]
    p = jax.tree.map(lambda a: RNG.standard_normal(a.shape), shapes)
    h = equations(X.astype(np.float64), p[f"{cell}_0"], 5)
    h = equations(h, p[f"{cell}_1"], 7)
    h = h[:, -1] if pooling == "last" else h.mean(axis=1)
    expected = h @ p["head"]["kernel"] + p["head"]["bias"]
    apply = jax.jit(lambda p: model.apply({"params": p}, X, train=False))
    logits = apply(jax.tree.map(jnp.float32, p))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_an_image_is_read_row_by_row():
    image = RNG.integers(0, 16, (3, 8, 8, 1)).astype(np.uint8)
    model = RNN((5,), 10)
    params = model.init(KEY, image, train=False)
    rows = model.apply(params, image[..., 0].astype(np.float32), train=False)
    np.testing.assert_array_equal(model.apply(params, image, train=False), rows)
    assert params["params"]["lstm_0"]["ii"]["kernel"].shape == (8, 5) and rows.shape == (3, 10)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dropout_acts_in_training_only(cell):
    model = RNN((20,), 2, cell=cell, dropout=0.5)
    params = model.init(KEY, X, train=False)
    still = [model.apply(params, X, train=False) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    a, b = (model.apply(params, X, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(a, b)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_low_precision_compute_stays_near_and_keeps_float32_outside(cell):
    model = RNN((16,), 3, cell=cell)
    variables = jax.jit(lambda: model.init(KEY, X, train=False))()
    narrow = ModelInPrecision(model, Precision("bfloat16"))
    logits, exact = jax.jit(lambda v: [m.apply(v, X, train=False) for m in (narrow, model)])(
        variables
    )
    assert logits.dtype == jnp.float32 and 1e-6 < np.abs(logits - exact).max() < 0.05


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cell": "lsmt"}, "model.cell: unknown 'lsmt' .did you mean 'lstm'"),
        ({"pooling": "max"}, "model.pooling: unknown 'max'"),
    ],
)
def test_unknown_names_are_the_users_error(kwargs, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: RNN((5,), 2, **kwargs).init(KEY, X, train=False))


def test_an_input_that_is_no_sequence_is_the_users_error():
    with pytest.raises(UserError, match=r"not an input of shape \(3, 6\)"):
        jax.eval_shape(lambda: RNN((5,), 2).init(KEY, X[..., 0], train=False))
