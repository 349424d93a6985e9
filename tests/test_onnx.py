"""ONNX graphs of every family against the models themselves; needs jax2onnx, onnx and onnxruntime.

The rewritings that spare jax2onnx what it does not know are tested without them.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from bigjax.config import resolve as configs
from bigjax.core.errors import UserError
from bigjax.export import onnx
from bigjax.export.answer import Answer
from bigjax.tasks.base import Task
from tests import parity

TEXT = dict(vocab=40, layers=2, width=16, heads=2)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 40, (3, 8)).astype(np.int32)
SEGMENTS = np.int32([[1] * 8, [1] * 5 + [0] * 3, [1] * 3 + [2] * 5])
IMAGE = RNG.normal(size=(3, 32, 32, 3)).astype(np.float32)
FAMILIES = {
    "mlp": ("mlp", dict(widths=(8,), outputs=3), (IMAGE[:, 0, 0],)),
    "cnn": ("cnn", dict(channels=(4, 8), outputs=3), (IMAGE,)),
    "rnn": ("rnn", dict(widths=(8,), outputs=3), (IMAGE[:, 0],)),
    "resnet": ("resnet", dict(layers=(1, 1), outputs=3), (IMAGE,)),
    "vgg": ("vgg", dict(layers=(1, 1), outputs=3), (IMAGE,)),
    "mobilenet_v2": ("mobilenet_v2", dict(outputs=3), (IMAGE,)),
    "efficientnet_lite": ("efficientnet_lite", dict(outputs=3), (IMAGE,)),
    "vit": (
        "vit",
        dict(image=32, patch=16, layers=2, width=16, heads=2, outputs=3),
        (IMAGE,),
    ),
    "bert": ("bert", dict(**TEXT, context=8), (TOKENS, SEGMENTS)),
    "distilbert": ("bert", dict(**TEXT, context=8, types=0, pooled="relu"), (TOKENS, SEGMENTS)),
    "gpt2": ("gpt2", dict(**TEXT, context=8), (TOKENS, SEGMENTS)),
    "llama": ("llama", dict(**TEXT, context=8, kv_heads=1, mlp_width=24), (TOKENS, SEGMENTS)),
    "t5": ("t5", dict(**TEXT, positions="relative"), (TOKENS, SEGMENTS, TOKENS, SEGMENTS)),
}


class Outputs(Task):
    """The model's outputs and no more."""

    def __init__(self, count):
        self.input = tuple(f"x{i}" for i in range(count))

    def predict(self, outputs):
        return {}


def answer(name):
    """(the model's answer, its variables, inputs by name)."""
    kind, values, inputs = FAMILIES[name]
    model = parity.build(configs._complete_section("model", dict(type=kind, **values)))
    init = jax.jit(lambda: model.init(jax.random.key(0), *inputs, train=False))
    variables = jax.tree.map(lambda x: np.asarray(2 * x), nn.unbox(init()))
    rows = {f"x{i}": x for i, x in enumerate(inputs)}
    features = {n: (x.shape[1:], x.dtype) for n, x in rows.items()}
    return Answer(model, Outputs(len(inputs)), (), features), variables, rows


class Folder:
    """What `onnx.read` asks of a card."""

    def __init__(self, folder):
        self.folder = folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_graph_gives_what_the_model_gives_for_any_batch(name, tmp_path):
    for package in ("jax2onnx", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    model, variables, rows = answer(name)
    onnx.write(model, model.needed(variables), variables, tmp_path)
    run = onnx.read(Folder(tmp_path))
    expected = jax.jit(model)(variables, rows)["outputs"]
    for count in (3, 1):
        found = run({n: x[:count] for n, x in rows.items()})["outputs"]
        assert found.shape == expected[:count].shape
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found / scale, expected[:count] / scale, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((1, 2, 2, 1), (1, 2, 2, 1), ((0, 0),) * 4),
        ((1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 0), (0, 0))),
    ],
)
def test_a_pool_is_the_largest_of_shifted_slices(window, strides, padding):
    def pool(x):
        return lax.reduce_window(x, -np.inf, lax.max, window, strides, padding)

    x = IMAGE[:, :9, :8]
    found = onnx.plainly(pool, x)(x)
    np.testing.assert_array_equal(found, pool(x))
    names = {eqn.primitive.name for eqn in jax.make_jaxpr(onnx.plainly(pool, x))(x).eqns}
    assert not names & {"reduce_window_max", "pad"}


def test_what_the_converter_does_not_know_is_said_otherwise_with_the_same_numbers():
    def function(x, which):
        @jax.jit
        def inner(x):
            return lax.platform_dependent(x, cpu=lambda x: x * 2.0, default=lambda x: x + x)

        whole = lax.cummax(jnp.round(9 * x).astype(jnp.int32), axis=1)
        either = jnp.where(which, x > 0, x < -1)
        return inner(jnp.pad(x, ((0, 0), (1, 2)), constant_values=7.0)), whole, either

    x, which = IMAGE[:, 0, :, 0], IMAGE[:, 1, :, 0] > 0
    plain = onnx.plainly(function, x, which)
    for found, expected in zip(plain(x, which), function(x, which), strict=True):
        np.testing.assert_array_equal(found, expected)
    names = {eqn.primitive.name for eqn in jax.make_jaxpr(plain)(x, which).eqns}
    assert not names & {"pad", "platform_index", "cond", "jit", "pjit"}


def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        UserError,
        match=r"needs jax2onnx: .*pip install --no-deps jax2onnx.* && .*pip install equinox onnx",
    ):
        onnx.write(None, {}, {}, tmp_path)
