"""What BERT's form promises; tests/test_parity_bert.py compares its numbers with transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.models.bert import BERT
from bigjax.models.common import gelu

MODEL = BERT(vocab=11, layers=2, width=8, heads=2, context=8, head="mlm")
ALBERT = MODEL.clone(layers=3, shared=True, embedding_width=6)
MODERN = MODEL.clone(
    types=0,
    norm="layer_no_bias",
    norm_places="before",
    bare_start=True,
    gated=True,
    biases=(),
    positions="rotary",
    layer_kinds=("full", "local"),
    window=2,
    transformed=True,
    pooled="gelu",
)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (2, 7)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]], np.int32)


def initial(model, *inputs):
    """Random in every leaf, so that no zero bias hides an error."""
    rng = np.random.default_rng(1)
    variables = nn.unbox(
        jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    )
    return jax.tree.map(lambda a: jnp.float32(0.3 * rng.standard_normal(a.shape)), variables)


def outputs(model, variables, *inputs):
    return np.asarray(jax.jit(lambda v: model.apply(v, *inputs, train=False))(variables))


def test_texts_packed_into_one_row_are_read_as_if_alone():
    variables = initial(MODEL, TOKENS)
    packed = outputs(MODEL, variables, TOKENS, SEGMENTS)
    first = outputs(MODEL, variables, TOKENS[:1, :3])
    second = outputs(MODEL, variables, TOKENS[:1, 3:])
    padded = outputs(MODEL, variables, TOKENS[1:, :5])
    np.testing.assert_allclose(packed[0, :3], first[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 3:], second[0], atol=1e-5)
    np.testing.assert_allclose(packed[1, :5], padded[0], atol=1e-5)


def test_embeddings_ignore_padding_and_have_length_one():
    model = MODEL.clone(head="embedding")
    variables = initial(model, TOKENS)
    segments = np.array([[1, 1, 1, 1, 0, 0, 0], [0] * 7], np.int32)
    with_padding = outputs(model, variables, TOKENS, segments)
    np.testing.assert_allclose(np.linalg.norm(with_padding[0]), 1, rtol=1e-6)
    np.testing.assert_allclose(
        with_padding[0], outputs(model, variables, TOKENS[:1, :4])[0], atol=1e-6
    )
    np.testing.assert_array_equal(with_padding[1], 0)  # a row of padding: no numbers, no NaN


@pytest.mark.parametrize("head", ["mlm", "sequence", "tokens", "embedding"])
@pytest.mark.parametrize("model", [MODEL, ALBERT, MODERN], ids=["bert", "albert", "modernbert"])
def test_every_parameter_names_every_axis(model, head):
    model = model.clone(head=head, outputs=3 if head in ("sequence", "tokens") else None)
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, train=False))["params"]
    names = nn.get_partition_spec(boxed)
    shapes = jax.tree.map(lambda a: a.ndim, nn.unbox(boxed))
    assert jax.tree.map(len, names, is_leaf=lambda x: isinstance(x, tuple)) == shapes
    named = {name for spec in jax.tree.leaves(names) for name in spec}
    assert {name for name, _ in model.LOGICAL_RULES} <= named


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_narrow_numbers_stay_near_float32(policy):
    variables = initial(MODEL, TOKENS)
    narrow = ModelInPrecision(MODEL, settings.Precision(policy=policy))
    logits, full = outputs(narrow, variables, TOKENS, SEGMENTS), outputs(
        MODEL, variables, TOKENS, SEGMENTS
    )  # fmt: skip
    assert logits.dtype == np.float32
    assert 0 < np.max(np.abs(logits - full)) < 0.05 * np.max(np.abs(full))


def test_a_loop_over_one_shared_block_is_the_same_block_again_and_again():
    variables = initial(ALBERT, TOKENS)
    assert [name for name in variables["params"] if "block" in name] == ["shared_block"]
    written_out = outputs(ALBERT, variables, TOKENS, SEGMENTS)
    looped = outputs(ALBERT.clone(scan_layers=True), variables, TOKENS, SEGMENTS)
    np.testing.assert_allclose(looped, written_out, atol=1e-5)
    deeper = outputs(ALBERT.clone(layers=4), variables, TOKENS, SEGMENTS)
    assert np.max(np.abs(deeper - written_out)) > 1e-4


def test_a_window_reaches_as_far_ahead_as_back():
    model = MODERN.clone(layers=1, layer_kinds=("local",), head="none")
    variables = initial(model, TOKENS)
    other = TOKENS.copy()
    other[:, 3] = (other[:, 3] + 1) % 11
    before, after = (outputs(model, variables, tokens) for tokens in (TOKENS, other))
    changed = np.max(np.abs(after - before), axis=(0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, True, True, False, False]


def test_wrong_sizes_are_refused_by_name():
    def init(**changed):
        model = MODEL.clone(**changed)
        jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, train=False))

    with pytest.raises(UserError, match=r"model\.context: 4 is less than the 7 tokens"):
        init(context=4)
    with pytest.raises(UserError, match=r"model\.heads: 3 heads do not share width 8"):
        init(heads=3)
    with pytest.raises(UserError, match=r"model\.outputs: heads 'sequence' and 'tokens' need it"):
        init(head="sequence")
    with pytest.raises(UserError, match=r"model\.head: unknown 'mml'.*mlm"):
        init(head="mml")
    with pytest.raises(UserError, match=r"model\.positions: unknown 'rotory'.*rotary"):
        init(positions="rotory")
    with pytest.raises(UserError, match=r"model\.heads: 8 heads of width 1; rotary"):
        init(positions="rotary", heads=8)
    with pytest.raises(UserError, match=r"model\.window goes with 'local'"):
        init(positions="rotary", window=3)
    with pytest.raises(UserError, match=r"model\.scan_layers: the first block is another"):
        init(bare_start=True, norm_places="before", scan_layers=True)


def test_logits_at_some_places_are_those_of_all_places():
    variables = initial(MODEL, TOKENS)
    places = np.array([[0, 3, 8], [5, 8, 8]])[: len(TOKENS)]  # 8: none
    whole = outputs(MODEL, variables, TOKENS)
    some = outputs(MODEL, variables, TOKENS, None, None, places)
    for row, at in enumerate(places):
        kept = at < TOKENS.shape[1]
        np.testing.assert_allclose(some[row, kept], whole[row, at[kept]], atol=1e-6)


def test_gelu_and_its_slopes_are_those_of_float64():
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -40.0, 40.0]])
    cdf = scipy.stats.norm.cdf
    density = scipy.stats.norm.pdf(x)
    value, slope, bend = x * cdf(x), cdf(x) + x * density, density * (2 - x**2)

    at = jnp.asarray(x, jnp.float32)
    first = jax.vmap(jax.grad(gelu))
    np.testing.assert_allclose(jax.jit(gelu)(at), value, atol=1e-6, rtol=3e-7)
    np.testing.assert_allclose(first(at), slope, atol=1e-6)
    np.testing.assert_allclose(
        jax.jvp(gelu, (at,), (2 * jnp.ones_like(at),))[1], 2 * slope, atol=2e-6
    )
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(gelu)))(at), bend, atol=1e-6)
    narrow = at.astype(jnp.bfloat16)
    assert gelu(narrow).dtype == first(narrow).dtype == jnp.bfloat16
    exact = np.asarray(narrow, np.float64) * cdf(np.asarray(narrow, np.float64))
    np.testing.assert_allclose(np.asarray(gelu(narrow), np.float64), exact, rtol=2**-8, atol=2e-6)
