"""The CNN against explicit loops in float64, its shapes, and what train=True changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import tree_leaves

from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.core.settings import Precision
from bigjax.models.cnn import CNN

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 8, 8, 2)).astype(np.float32)


def init(model, x=X):
    return jax.jit(lambda: model.init(KEY, x, train=False))()


def convolve(x, kernel, bias):
    """Same-size cross-correlation, stride 1, odd window."""
    side = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i, j in np.ndindex(x.shape[1:3]):
        window = padded[:, i : i + kernel.shape[0], j : j + kernel.shape[1]]
        out[:, i, j] = np.einsum("bhwc,hwcd->bd", window, kernel) + bias
    return out


def max_pool(x, size):
    b, h, w, c = x.shape
    x = x[:, : h // size * size, : w // size * size]
    return x.reshape(b, h // size, size, w // size, size, c).max(axis=(2, 4))


@pytest.mark.parametrize("average", [False, True])
def test_forward_equals_hand_computation(average):
    model = CNN(channels=(3, 5), outputs=4, dense=(6,), global_average_pool=average)
    shapes = jax.eval_shape(lambda: model.init(KEY, X, train=False))["params"]
    p = jax.tree.map(lambda a: RNG.standard_normal(a.shape), shapes)
    h = X.astype(np.float64)
    for name in ("conv_0", "conv_1"):
        h = max_pool(np.maximum(convolve(h, p[name]["kernel"], p[name]["bias"]), 0), 2)
    h = h.mean(axis=(1, 2)) if average else h.reshape(4, -1)
    h = np.maximum(h @ p["dense_0"]["kernel"] + p["dense_0"]["bias"], 0)
    expected = h @ p["head"]["kernel"] + p["head"]["bias"]
    apply = jax.jit(lambda p: model.apply({"params": p}, X, train=False))
    logits = apply(jax.tree.map(jnp.float32, p))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)


def test_images_without_a_channel_axis_are_read_as_grey():
    model = CNN(channels=(3,), outputs=2)
    params = init(model, X[..., :1])
    grey = model.apply(params, X[..., 0], train=False)
    np.testing.assert_array_equal(grey, model.apply(params, X[..., :1], train=False))


def test_odd_sizes_are_pooled_as_far_as_they_go():
    x = np.zeros((2, 28, 28, 1))
    params = jax.eval_shape(lambda: CNN((4, 5, 6), 10).init(KEY, x, train=False))["params"]
    assert params["head"]["kernel"].shape == (3 * 3 * 6, 10)


def test_pooling_an_image_away_is_the_users_error():
    with pytest.raises(UserError, match="stage 3 would pool 2x2 windows of an image of 1x1"):
        jax.eval_shape(lambda: CNN((2, 2, 2, 2), 10).init(KEY, X, train=False))


def test_an_input_that_is_no_image_is_the_users_error():
    with pytest.raises(UserError, match=r"not an input of shape \(4, 64\)"):
        jax.eval_shape(lambda: CNN((2,), 10).init(KEY, np.zeros((4, 64)), train=False))


def test_dropout_acts_in_training_only():
    model = CNN((3,), 2, dense=(50,), dropout=0.5)
    params = init(model)
    still = [model.apply(params, X, train=False) for _ in range(2)]
    np.testing.assert_array_equal(*still)
    a, b = (model.apply(params, X, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(a, b)


def test_batch_norm_over_four_devices_equals_one_device():
    model = CNN((3, 4), 2, batch_norm=True)
    variables = init(model)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    one = step(variables, X)
    whole = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    four = step(whole, jax.device_put(X, NamedSharding(mesh, PartitionSpec("data"))))
    assert not np.allclose(one[1]["batch_stats"]["norm_0"]["mean"], 0)
    for a, b in zip(tree_leaves(one), tree_leaves(four), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_evaluation_uses_the_running_statistics_and_leaves_them_alone():
    model = CNN((3,), 2, batch_norm=True)
    variables = init(model)
    whole, state = model.apply(variables, X, train=False, mutable=["batch_stats"])
    alone = model.apply(variables, X[:1], train=False)
    np.testing.assert_allclose(alone, whole[:1], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("average", [False, True])
def test_low_precision_compute_keeps_logits_in_float32(average):
    model = CNN((3,), 2, batch_norm=True, dense=(4,), global_average_pool=average)
    variables = init(model)
    narrow = ModelInPrecision(model, Precision("bfloat16"))
    logits = jax.jit(lambda v: narrow.apply(v, X, train=False))(variables)
    assert logits.shape == (4, 2) and logits.dtype == jnp.float32
