"""Convolutions in the form a CPU likes against XLA's own, and what the convolutional families share."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.tree_util import tree_leaves

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.core.settings import Precision
from bigjax.mesh import sharding
from bigjax.mesh.placement import logical_names, place, vocabulary
from bigjax.models import on_cpu, winograd
from bigjax.models.convolution import batch_norm, convolve, divisible, max_pool
from bigjax.models.efficientnet import EfficientNet
from bigjax.models.efficientnet_lite import EfficientNetLite
from bigjax.models.mobilenet import MobileNetV2
from bigjax.models.resnet import PRESETS, ResNet
from bigjax.models.vgg import VGG, average_to
from bigjax.models.vit import ViT

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((4, 16, 16, 3)), jnp.float32)
SMALL = dict(layers=(1, 1), width=8, outputs=3)


def init(model, x=X):
    return jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()


@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1)), ((0, 2), (1, 0))])
@pytest.mark.parametrize(
    ("kernel", "groups", "stride"),
    [
        ((3, 3), 6, 1),
        ((5, 3), 6, 2),
        ((1, 1), 1, 2),
        ((3, 3), 1, 1),
        ((2, 5), 1, 2),
        ((3, 3), 2, 1),
    ],
)
def test_on_a_cpu_values_and_gradients_are_those_of_xlas_convolution(
    kernel, groups, stride, padding, monkeypatch
):
    x = jnp.asarray(RNG.standard_normal((2, 9, 8, 6)), jnp.float32)
    channels = 6 if groups == 6 else 4
    k = jnp.asarray(RNG.standard_normal((*kernel, 6 // groups, channels)), jnp.float32)
    options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)

    monkeypatch.setattr(jax, "device_count", lambda: 1)  # several have the compiler's form

    def run(function, x, k):
        y = function(x, k, (stride, stride), padding, **options)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    def both(function):
        f = jax.value_and_grad(functools.partial(run, function), argnums=(0, 1), has_aux=True)
        return jax.jit(f)(x, k)

    ours, theirs = both(convolve), both(lax.conv_general_dilated)
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cached", [1, 1000, 2**20])
def test_a_dense_kernels_gradient_is_the_same_in_any_number_of_parts(cached, monkeypatch):
    monkeypatch.setattr(on_cpu, "CACHED", cached)
    x, dy = (RNG.standard_normal(shape) for shape in ((3, 13, 9, 4), (3, 6, 4, 5)))
    kernel = jnp.zeros((3, 3, 4, 5))
    _, pull_back = jax.vjp(lambda k: on_cpu.dense(jnp.asarray(x), k, (2, 2), ((0, 0),) * 2), kernel)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwckl,bhwd->klcd", windows, dy)  # by hand, in float64
    np.testing.assert_allclose(pull_back(jnp.asarray(dy))[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sides", "pads", "cached"),  # one image at a time, two, all
    [
        ((9, 8), ((1, 1), (1, 1)), 1),
        ((4, 7), ((0, 2), (1, 0)), 2 * 8 * 5),
        ((5, 5), ((3, 0), (0, 0)), 2**17),
    ],
)
def test_winograds_convolution_and_its_gradients_are_those_of_float64(
    sides, pads, cached, monkeypatch
):
    monkeypatch.setattr(winograd, "CACHED", cached)
    x, kernel = (RNG.standard_normal(shape) for shape in ((4, *sides, 5), (3, 3, 5, 6)))
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    y = np.einsum("bhwckl,klcd->bhwd", windows, kernel)
    dy = RNG.standard_normal(y.shape)
    dpadded, (H, W) = np.zeros_like(padded), y.shape[1:3]
    for i, j in np.ndindex(3, 3):
        dpadded[:, i : i + H, j : j + W] += dy @ kernel[i, j].T
    dx = dpadded[:, pads[0][0] :, pads[1][0] :][:, : sides[0], : sides[1]]
    dkernel = np.einsum("bhwckl,bhwd->klcd", windows, dy)

    def run(form):
        values = (jnp.asarray(each, jnp.float32) for each in (x, kernel, dy))
        both = lambda x, k, dy: (form(x, k), *jax.vjp(form, x, k)[1](dy))  # noqa: E731
        return jax.jit(both)(*values)

    ours = run(lambda x, k: winograd.convolution(x, k, (1, 1), pads))
    order = ("NHWC", "HWIO", "NHWC")
    xlas = run(lambda x, k: lax.conv_general_dilated(x, k, (1, 1), pads, dimension_numbers=order))
    for found, xla, expected in zip(ours, xlas, (y, dx, dkernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(found, xla, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_winograds_form_is_that_of_wide_float32_3x3_kernels_of_stride_1_on_one_device(monkeypatch):
    def is_plain(sides=(8, 8), side=3, channels=64, stride=1, dtype=jnp.float32, batch=8):
        x = jax.ShapeDtypeStruct((batch, *sides, channels), dtype)
        kernel = jax.ShapeDtypeStruct((side, side, channels, 64), dtype)
        options = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=1)
        run = jax.jit(lambda x, k: convolve(x, k, (stride, stride), "SAME", **options))
        return "stablehlo.convolution" in run.lower(x, kernel).as_text()

    assert is_plain()  # several devices
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert not is_plain()
    assert is_plain(side=5) and is_plain(channels=32) and is_plain(stride=2)
    assert is_plain(dtype=jnp.bfloat16)
    assert is_plain(batch=7) and is_plain(sides=(1, 1), batch=128)  # few tiles, small images


@pytest.mark.parametrize(("window", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 0), (2, 3, 0)])
def test_a_pool_and_its_gradient_are_xlas_ties_too(window, stride, pad):
    x = jnp.asarray(RNG.integers(-3, 2, (2, 11, 8, 3)).clip(-1), jnp.float32)  # full of ties

    def both(function):
        y, pull_back = jax.vjp(lambda x: function(x, window, stride, pad), x)
        return y, pull_back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

    for a, b in zip(both(max_pool), both(on_cpu.pool_by_xla), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("size", "side"), [(7, 7), (9, 4), (2, 3), (8, 2)])
def test_average_to_is_pytorchs_adaptive_pool(size, side):
    torch = pytest.importorskip("torch")
    x = RNG.standard_normal((2, size, size + 1, 3)).astype(np.float32)
    pool = torch.nn.AdaptiveAvgPool2d(side)
    expected = pool(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(average_to(jnp.asarray(x), side), expected, atol=1e-6)


def test_channels_are_rounded_to_eights_and_never_by_more_than_a_tenth():
    assert [divisible(c) for c in (3, 16, 35.2, 22.4, 1280)] == [8, 16, 32, 24, 1280]
    assert all(divisible(c) >= 0.9 * c and divisible(c) % 8 == 0 for c in range(1, 500))


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    counts = {}
    for name, values in PRESETS.items():
        model = ResNet(outputs=1000, **values)
        shapes = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), X, train=False))
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert counts == {"18": 11_689_512, "34": 21_797_672, "50": 25_557_032}
    b0 = EfficientNet(outputs=1000, width=1.0, depth=1.0)
    shapes = jax.eval_shape(lambda: b0.init(jax.random.key(0), X, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 5_288_548


def placements(model, mesh, x):
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))["params"]
    words = vocabulary(model, settings.Sharding())
    return place([(".*", "tensor")], nn.unbox(params), mesh, logical_names(params), words)


MESH = sharding.make_mesh(settings.Mesh(data=4, tensor=2))


@pytest.mark.parametrize(
    "model",
    [
        ResNet(outputs=8, **PRESETS["18"]),
        ResNet(outputs=8, **PRESETS["50"]),
        VGG(outputs=8, layers=(1, 1), batch_norm=True),
        MobileNetV2(outputs=8),
        EfficientNetLite(outputs=8),
        EfficientNet(outputs=8),
        ViT(outputs=8, image=16, patch=4, layers=1, width=8, heads=2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_tensor_rules_split_more_than_half_of_the_parameters(model):
    placed = placements(model, MESH, X)
    split = [p for p in placed.values() if "tensor" in tuple(p.spec)]
    assert sum(math.prod(p.shape) for p in split) > 0.5 * sum(
        math.prod(p.shape) for p in placed.values()
    )


def test_a_batch_and_channels_over_eight_devices_give_the_numbers_of_one():
    model = ResNet(outputs=4, layers=(1,), width=8, stem="small")
    variables = init(model)
    step = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    one = step(variables, X)
    layout = sharding.layout(placements(model, MESH, X), variables["params"], MESH)
    params = jax.device_put(variables["params"], layout)
    statistics = jax.device_put(variables["batch_stats"], sharding.replicated(MESH))
    x = jax.device_put(X, sharding.batch_sharding(MESH))
    eight = step({"params": params, "batch_stats": statistics}, x)
    assert any(leaf.sharding.spec for leaf in tree_leaves(params))
    for a, b in zip(tree_leaves(one), tree_leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.slow), True])
def test_frozen_statistics_stay_and_training_sees_what_evaluation_sees(frozen):
    model = ResNet(**SMALL, frozen_statistics=frozen)
    variables = init(model)
    still = jax.jit(lambda v: model.apply(v, X, train=False))(variables)
    step = jax.jit(lambda v: model.apply(v, X, train=True, mutable=["batch_stats"]))
    logits, state = step(variables)
    same = jax.tree.map(np.array_equal, state["batch_stats"], variables["batch_stats"])
    assert all(tree_leaves(same)) == frozen
    assert np.allclose(logits, still, atol=1e-6) == frozen


def test_low_precision_compute_keeps_logits_in_float32():
    model = ModelInPrecision(ResNet(**SMALL), Precision("bfloat16"))
    logits = jax.eval_shape(lambda: model.apply(init(model.model), X, train=False))
    assert logits.shape == (4, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize("model", [ResNet(**SMALL), MobileNetV2(outputs=3)])
def test_an_input_that_is_no_image_is_the_users_error(model):
    with pytest.raises(UserError, match=r"not an input of shape \(4, 64\)"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((4, 64)), train=False))


def test_unknown_blocks_and_stems_are_told_with_the_known_ones():
    for wrong, message in ((dict(block="basics"), "model.block"), (dict(stem="big"), "model.stem")):
        with pytest.raises(UserError, match=f"{message}: unknown"):
            jax.eval_shape(lambda w=wrong: init(ResNet(**SMALL, **w)))


def float64_batch_norm(x, scale, bias, dy, epsilon):
    """BatchNorm and its gradients, its mean and variance, in NumPy."""
    rows = tuple(range(x.ndim - 1))
    mean, variance = x.mean(rows), x.var(rows)
    deviation = np.sqrt(variance + epsilon)
    normed = (x - mean) / deviation
    dx = scale / deviation * (dy - dy.mean(rows) - normed * (dy * normed).mean(rows))
    return normed * scale + bias, (dy * normed).sum(rows), dy.sum(rows), dx, mean, variance


@pytest.mark.parametrize("side", [8, 48])  # the larger has rows enough to be summed in parts
def test_batch_norm_on_one_cpu_has_the_values_and_gradients_of_float64_and_of_xla(
    side, monkeypatch
):
    shape = (4, side, side, 5)
    x, dy = (RNG.standard_normal(shape).astype(np.float32) for _ in range(2))
    x, (scale, bias) = 2 * x + 1, RNG.standard_normal((2, 5)).astype(np.float32)
    before = {"mean": np.zeros(5, np.float32), "var": np.ones(5, np.float32)}

    def run(params, x, dy):
        norm = batch_norm("norm", train=True, momentum=0.75, epsilon=1e-3)

        def of(params, x):
            given = {"params": params, "batch_stats": before}
            return norm.apply(given, x, mutable="batch_stats")

        y, back, changed = jax.vjp(of, params, x, has_aux=True)
        return y, back(dy), changed["batch_stats"]

    params = {"scale": scale, "bias": bias}
    theirs = jax.jit(run)(params, x, dy)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    ours = jax.jit(lambda *given: run(*given))(params, x, dy)
    wide = (each.astype(np.float64) for each in (x, scale, bias, dy))
    y, dscale, dbias, dx, mean, variance = float64_batch_norm(*wide, 1e-3)
    averages = {"mean": 0.25 * mean, "var": 0.75 + 0.25 * variance}
    want = (y, ({"scale": dscale, "bias": dbias}, dx), averages)
    for got, other, exact in zip(*map(tree_leaves, (ours, theirs, want)), strict=True):
        np.testing.assert_allclose(got, exact, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(got, other, rtol=2e-5, atol=1e-5)
