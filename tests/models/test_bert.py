"""What BERT's form promises; tests/test_parity_bert.py compares its numbers with transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import settings
from bigjax.core.errors import UserError
from bigjax.core.precision import ModelInPrecision
from bigjax.models.bert import BERT

MODEL = BERT(vocab=11, layers=2, width=8, heads=2, context=8, head="mlm")
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
def test_every_parameter_names_every_axis(head):
    model = MODEL.clone(head=head, outputs=3 if head in ("sequence", "tokens") else None)
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


def test_logits_at_some_places_are_those_of_all_places():
    variables = initial(MODEL, TOKENS)
    places = np.array([[0, 3, 8], [5, 8, 8]])[: len(TOKENS)]  # 8: none
    whole = MODEL.apply(variables, TOKENS, train=False)
    some = MODEL.apply(variables, TOKENS, None, None, places, train=False)
    for row, at in enumerate(places):
        kept = at < TOKENS.shape[1]
        np.testing.assert_allclose(some[row, kept], whole[row, at[kept]], atol=1e-6)
