"""What T5's form promises; tests/test_parity_t5.py compares its numbers with transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.models.t5 import T5, sinusoids

MODEL = T5(vocab=11, layers=2, width=8, heads=2, buckets=8, max_distance=6)
RNG = np.random.default_rng(0)
SOURCE = RNG.integers(0, 11, (1, 6)).astype(np.int32)
TARGET = RNG.integers(0, 11, (1, 7)).astype(np.int32)
SOURCE_SEGMENTS = np.array([[1, 1, 2, 2, 2, 0]], np.int32)
TARGET_SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2]], np.int32)
INPUTS = (SOURCE, SOURCE_SEGMENTS, TARGET, TARGET_SEGMENTS)


def initial(model):
    rng = np.random.default_rng(1)
    variables = nn.unbox(
        jax.eval_shape(lambda: model.init(jax.random.key(0), *INPUTS, train=False))
    )
    return jax.tree.map(lambda a: jnp.float32(0.3 * rng.standard_normal(a.shape)), variables)


def outputs(model, variables, *inputs):
    return np.asarray(jax.jit(lambda v: model.apply(v, *inputs, train=False))(variables))


@pytest.mark.parametrize("positions", ["relative", "sinusoidal"])
def test_pairs_packed_into_one_row_are_read_as_if_alone(positions):
    model = MODEL.clone(positions=positions)
    variables = initial(model)
    packed = outputs(model, variables, *INPUTS)
    for here, there, number in ((slice(0, 2), slice(0, 3), 1), (slice(2, 5), slice(3, 7), 2)):
        parts = (SOURCE[:, here], TARGET[:, there])
        source, target = parts
        alone = outputs(
            model, variables, source, np.ones_like(source), target, np.ones_like(target)
        )
        np.testing.assert_allclose(packed[:, there], alone, atol=1e-5, err_msg=str(number))


@pytest.mark.parametrize("options", [{}, dict(gated=True, tied=False, positions="sinusoidal")])
def test_every_parameter_names_every_axis(options):
    model = MODEL.clone(**options)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), *INPUTS, train=False))["params"]
    names = nn.get_partition_spec(boxed)
    shapes = jax.tree.map(lambda a: a.ndim, nn.unbox(boxed))
    assert jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple)) == shapes
    named = {name for spec in jax.tree.leaves(names) for name in spec}
    assert {name for name, _ in model.LOGICAL_RULES} <= named


def test_bfloat16_stays_near_float32():
    variables = initial(MODEL)
    half = ModelInPrecision(MODEL, settings.Precision(policy="bfloat16"))
    logits, full = outputs(half, variables, *INPUTS), outputs(MODEL, variables, *INPUTS)
    assert logits.dtype == np.float32
    assert 0 < np.max(np.abs(logits - full)) < 0.1 * np.max(np.abs(full))


def test_sinusoids_are_the_published_ones_sines_before_cosines():
    found = np.asarray(sinusoids(jnp.array([[0, 3]]), 6))
    rates = 3 / 10000 ** (np.array([0, 2, 4]) / 6)
    np.testing.assert_allclose(found[0, 0], [0, 0, 0, 1, 1, 1], atol=1e-7)
    np.testing.assert_allclose(found[0, 1], [*np.sin(rates), *np.cos(rates)], atol=1e-6)


def test_wrong_sizes_are_refused_by_name():
    for changed, message in (
        (dict(positions="rotary"), r"model\.positions: unknown 'rotary'"),
        (dict(buckets=2), r"2 buckets do not fit"),
        (dict(heads=3), r"model\.heads: 3 heads do not share width 8"),
    ):
        model = MODEL.clone(**changed)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda m=model: m.init(jax.random.key(0), *INPUTS, train=False))
