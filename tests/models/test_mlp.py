"""The MLP against a forward pass written out in float64, and what train=True changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import tree_leaves

from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.core.settings import Precision
from bigjax.models.mlp import MLP

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 4, 3)).astype(np.float32)
KEY = jax.random.key(0)


def randomized(tree, seed=1):
    """Every leaf replaced by random positive-mean values, so that no zero bias hides an error."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (0.5 + rng.random(a.shape)).astype(np.float32), tree)


def test_forward_equals_hand_computation():
    model = MLP(widths=(7, 5), outputs=3)
    variables = model.init(KEY, X, train=False)
    p = jax.tree.map(lambda a: RNG.standard_normal(a.shape), variables["params"])
    h = X.reshape(8, 12).astype(np.float64)
    for name in ("dense_0", "dense_1"):
        h = np.maximum(h @ p[name]["kernel"] + p[name]["bias"], 0)
    expected = h @ p["head"]["kernel"] + p["head"]["bias"]
    logits = model.apply({"params": jax.tree.map(jnp.float32, p)}, X, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_equals_hand_computation_in_training_and_evaluation():
    model = MLP(widths=(6,), outputs=2, batch_norm=True)
    variables = randomized(model.init(KEY, X, train=False))
    p, s = variables["params"], variables["batch_stats"]["norm_0"]
    z = X.reshape(8, 12).astype(np.float64) @ p["dense_0"]["kernel"]

    def head(mean, var):
        normed = (z - mean) / np.sqrt(var + 1e-5) * p["norm_0"]["scale"] + p["norm_0"]["bias"]
        return np.maximum(normed, 0) @ p["head"]["kernel"] + p["head"]["bias"]

    trained, update = model.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(trained, head(z.mean(0), z.var(0)), rtol=1e-4)
    np.testing.assert_allclose(
        model.apply(variables, X, train=False), head(s["mean"], s["var"]), rtol=1e-4
    )
    after = update["batch_stats"]["norm_0"]
    np.testing.assert_allclose(after["mean"], 0.9 * s["mean"] + 0.1 * z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after["var"], 0.9 * s["var"] + 0.1 * z.var(0), rtol=1e-4)


def test_batch_norm_over_four_devices_equals_one_device():
    model = MLP(widths=(6,), outputs=2, batch_norm=True)
    variables = model.init(KEY, X, train=False)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    @jax.jit
    def step(variables, x):
        def loss(params):
            out, state = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(out**2), (out, state)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    one = step(variables, X)
    spread = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    four = step(whole, spread)
    assert len(spread.addressable_shards[0].data) == 2
    for a, b in zip(tree_leaves(one), tree_leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    model = MLP(widths=(4000,), outputs=1, dropout=0.5)
    params = randomized(model.init(KEY, X, train=False))
    still = [model.apply(params, X, train=False) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    a, b = (model.apply(params, X, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(np.sum(a), np.sum(still[0]), rtol=0.05)


@pytest.mark.parametrize("model", [MLP((4,), 3, batch_norm=True), MLP((), 3)])
def test_low_precision_compute_keeps_logits_in_float32(model):
    variables = model.init(KEY, X, train=False)
    logits = ModelInPrecision(model, Precision("bfloat16")).apply(variables, X, train=False)
    assert logits.shape == (8, 3) and logits.dtype == jnp.float32


def test_low_precision_really_computes_in_low_precision():
    model = MLP((64,), 3)
    variables = model.init(KEY, X, train=False)
    exact = model.apply(variables, X, train=False)
    narrow = ModelInPrecision(model, Precision("bfloat16")).apply(variables, X, train=False)
    difference = np.abs(narrow - exact).max()
    assert 1e-5 < difference < 0.1


def test_rectifiers_start_with_he_variance_and_others_with_lecun():
    x = np.zeros((1, 500))
    for name, variance in (("relu", 2 / 500), ("tanh", 1 / 500)):
        kernel = MLP((1000,), 1, activation=name).init(KEY, x, train=False)["params"]["dense_0"][
            "kernel"
        ]
        np.testing.assert_allclose(np.var(kernel), variance, rtol=0.02)


@pytest.mark.parametrize("name", ["gelu", "tanh", "silu"])
def test_activation_is_the_one_named(name):
    model = MLP((5,), 2, activation=name)
    params = model.init(KEY, X, train=False)["params"]
    h = X.reshape(8, 12) @ params["dense_0"]["kernel"]
    expected = getattr(nn, name)(h) @ params["head"]["kernel"]
    np.testing.assert_allclose(
        model.apply({"params": params}, X, train=False), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["rellu", "one_hot", "Dense"])
def test_unknown_activation_is_the_users_error(name):
    with pytest.raises(UserError, match="model.activation: unknown '" + name):
        jax.eval_shape(lambda: MLP((5,), 2, activation=name).init(KEY, X, train=False))
