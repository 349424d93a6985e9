"""GPT-2 against a forward pass written out in float64, and what its form promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.models.gpt2 import GPT2

MODEL = GPT2(vocab=11, layers=2, width=8, heads=2, context=6)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def params():
    """Random in every leaf, so that no zero bias hides an error."""
    rng = np.random.default_rng(1)
    variables = nn.unbox(jax.eval_shape(lambda: MODEL.init(KEY, TOKENS, train=False)))
    return jax.tree.map(lambda a: 0.3 * rng.standard_normal(a.shape), variables["params"])


def by_hand(p, tokens, heads=2):
    """Equations of the paper, one sequence, one position and one head at a time."""

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p["scale"] + p["bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    logits = []
    for sequence in tokens:
        x = p["embedding"][sequence] + p["positions"][: len(sequence)]
        for i in range(2):
            block = p[f"block_{i}"]
            a, h = block["attention"], norm(x, block["attention_norm"])
            out = np.tile(a["out"]["bias"], (len(x), 1))
            for n in range(heads):
                q, k, v = (
                    h @ a[name]["kernel"][:, n] + a[name]["bias"][n]
                    for name in ("query", "key", "value")
                )
                for t in range(len(x)):
                    score = np.exp(q[t] @ k[: t + 1].T / np.sqrt(q.shape[-1]))
                    mixed = score @ v[: t + 1] / score.sum()
                    out[t] += mixed @ a["out"]["kernel"][n]
            x = x + out
            m, h = block["mlp"], norm(x, block["mlp_norm"])
            h = gelu(h @ m["up"]["kernel"] + m["up"]["bias"])
            x = x + h @ m["down"]["kernel"] + m["down"]["bias"]
        logits.append(norm(x, p["norm"]) @ p["embedding"].T)
    return np.stack(logits)


def test_forward_equals_hand_computation(params):
    logits = MODEL.apply({"params": jax.tree.map(jnp.float32, params)}, TOKENS, train=False)
    np.testing.assert_allclose(logits, by_hand(params, TOKENS), rtol=2e-5, atol=2e-5)


def test_no_position_sees_a_later_token(params):
    params = jax.tree.map(jnp.float32, params)
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = (
        MODEL.apply({"params": params}, tokens, train=False) for tokens in (TOKENS, changed)
    )
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


def test_every_parameter_names_every_axis():
    boxed = jax.eval_shape(lambda: MODEL.init(KEY, TOKENS, train=False))["params"]
    names = nn.get_partition_spec(boxed)
    shapes = jax.tree.map(lambda a: a.ndim, nn.unbox(boxed))
    assert jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple)) == shapes
    named = {name for spec in jax.tree.leaves(names) for name in spec}
    assert named == {"vocab", "embed", "position", "heads", "head", "mlp"}
    assert {name for name, _ in MODEL.LOGICAL_RULES} <= named


def test_residual_branches_start_smaller_in_deeper_models():
    deep = GPT2(vocab=11, layers=8, width=64, heads=2, context=6)
    params = jax.jit(lambda: nn.unbox(deep.init(KEY, TOKENS, train=False))["params"]["block_3"])()
    assert np.std(params["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["mlp"]["down"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.05)
    assert np.std(params["attention"]["out"]["kernel"]) == pytest.approx(0.02 / 4, rel=0.05)


def test_bfloat16_runs_stay_near_float32_and_give_float32_logits(params):
    params = {"params": jax.tree.map(jnp.float32, params)}
    half = ModelInPrecision(MODEL, settings.Precision(policy="bfloat16"))
    logits = half.apply(params, TOKENS, train=False)
    assert logits.dtype == jnp.float32
    full = MODEL.apply(params, TOKENS, train=False)
    assert 0 < np.max(np.abs(logits - full)) < 0.05 * np.max(np.abs(full))


def test_dropout_acts_in_training_only(params):
    params = {"params": jax.tree.map(jnp.float32, params)}
    model = MODEL.clone(dropout=0.5)
    a, b = (
        model.apply(params, TOKENS, train=True, rngs={"dropout": jax.random.key(k)}) for k in (1, 2)
    )
    assert np.any(a != b)
    np.testing.assert_array_equal(
        model.apply(params, TOKENS, train=False), MODEL.apply(params, TOKENS, train=False)
    )


def test_wrong_sizes_are_refused_by_name():
    with pytest.raises(UserError, match=r"model\.context: 4 is less than the 6 tokens"):
        MODEL.clone(context=4).init(KEY, TOKENS, train=False)
    with pytest.raises(UserError, match=r"model\.heads: 3 heads do not share width 8"):
        MODEL.clone(heads=3).init(KEY, TOKENS, train=False)
