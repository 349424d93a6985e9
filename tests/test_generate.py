"""Generation: the cache changes no number, choices follow their definitions, rows end where they should."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.models.generate import Sampling, choose_token, decode, generate
from bigjax.models.gpt2 import GPT2
from bigjax.models.llama import Llama

TOKENS = np.random.default_rng(0).integers(0, 30, (3, 9)).astype(np.int32)
SIZES = dict(vocab=30, layers=2, width=16, heads=4, context=20)
MODELS = {
    "gpt2": GPT2(**SIZES),
    "llama": Llama(**SIZES, kv_heads=2, mlp_width=24),
    "scanned": Llama(**SIZES, kv_heads=2, mlp_width=24, scan_layers=True),
}
LEFT = (np.arange(9) >= np.array([[0], [3], [8]])).astype(np.int32)
RIGHT = LEFT[:, ::-1].copy()


@functools.cache
def weights(name):
    """Larger than at the start of training, so that no two logits are near each other."""
    init = jax.jit(functools.partial(MODELS[name].init, train=False))
    return jax.tree.map(lambda x: 8 * x, nn.unbox(init(jax.random.key(0), TOKENS)))


@functools.cache
def jitted(name, cache=0):
    options = dict(train=False, cache=cache, mutable=["cache"] if cache else False)
    return jax.jit(functools.partial(MODELS[name].apply, **options))


def enter(name, cache, tokens, segments):
    return jitted(name, cache=12)({**weights(name), **cache}, tokens, segments)


def uncached(name, tokens):
    return jitted(name)(weights(name), tokens)


@functools.cache
def writing(name, sampling):
    return jax.jit(functools.partial(generate, MODELS[name].apply, sampling=sampling))


def write(name, tokens, segments, sampling, key=None):
    return writing(name, sampling)(weights(name), tokens, segments, key=key)


@pytest.mark.parametrize("name", MODELS)
def test_logits_with_the_cache_equal_those_without(name):
    """A prompt of 4, then 3 tokens at once, then one by one.

    To 3e-6 of the largest logit (16): each way is that far from float64 (3.4e-5 at most on jaxlib 0.12,
    2.7e-5 on 0.10), since 8-fold weights let rounding grow.
    """
    full = uncached(name, TOKENS)
    near = 3e-6 * np.abs(full).max()
    ones, cache = np.ones_like(TOKENS), {}
    for start, stop in ((0, 4), (4, 7), (7, 8), (8, 9)):
        logits, cache = enter(name, cache, TOKENS[:, start:stop], ones[:, start:stop])
        np.testing.assert_allclose(logits[:, 0], full[:, stop - 1], rtol=0, atol=near)


@pytest.mark.parametrize("segments", [LEFT, RIGHT], ids=["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_prompts_of_different_length_are_written_on_as_if_alone(name, segments):
    found = write(name, TOKENS, segments, Sampling(6))
    for row in range(3):
        tokens = TOKENS[row][segments[row] > 0].tolist()
        start = len(tokens)
        for _ in range(6):
            padded = np.array([tokens + [0] * (16 - len(tokens))], np.int32)
            tokens.append(int(np.argmax(uncached(name, padded)[0, len(tokens) - 1])))
        assert found["tokens"][row].tolist() == tokens[start:]
    assert found["length"].tolist() == [6, 6, 6]


def counting(cache, token_B):
    """A model that only counts: after token n comes n + 1; its cache is how often it was asked."""
    return 9.0 * jax.nn.one_hot(token_B + 1, 20), cache + 1


def count_from(starts, sampling):
    logits = 9.0 * jax.nn.one_hot(jnp.asarray(starts), 20)
    return decode(counting, jnp.int32(0), logits, sampling, jax.random.key(0))


def test_a_row_ends_before_its_stop_token_and_the_others_go_on():
    found = count_from([3, 7, 8], Sampling(5, stop=(8, 5)))
    assert found["tokens"].tolist() == [[3, 4, 0, 0, 0], [7, 0, 0, 0, 0], [0] * 5]
    assert found["length"].tolist() == [2, 1, 0]
    assert count_from([3], Sampling(1))["tokens"].tolist() == [[3]]


def test_the_loop_ends_when_all_rows_have_stopped():
    asked = []

    def step(cache, token_B):
        jax.debug.callback(lambda: asked.append(1))
        return counting(cache, token_B)

    logits = 9.0 * jax.nn.one_hot(jnp.array([6, 7]), 20)
    decode(step, jnp.int32(0), logits, Sampling(50, stop=(8,)), jax.random.key(0))
    jax.effects_barrier()
    assert len(asked) == 2  # after 6 comes 7, after 7 the stop


LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))


def drawn(count=4000, **options):
    """Shares of each token among many draws."""
    rows = jnp.tile(LOGITS, (count, 1))
    tokens = choose_token(rows, Sampling(**options), jax.random.key(1))
    return np.bincount(tokens, minlength=5) / count


@pytest.mark.parametrize(
    "options, shares",
    [
        (dict(temperature=1.0), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (dict(temperature=0.5), np.array([16, 9, 2.25, 1, 0.25]) / 28.5),
        (dict(temperature=1.0, top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (dict(temperature=1.0, top_k=9), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (dict(temperature=1.0, top_p=0.69), [4 / 7, 3 / 7, 0, 0, 0]),
        (dict(temperature=1.0, top_p=0.71), [8 / 17, 6 / 17, 3 / 17, 0, 0]),
        (dict(temperature=1.0, top_p=0.1), [1, 0, 0, 0, 0]),
        # top_p counts what top_k left: 4/7 of it is the first token's.
        (dict(temperature=1.0, top_k=2, top_p=0.5), [1, 0, 0, 0, 0]),
        (dict(), [1, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_shares_that_the_options_say(options, shares):
    np.testing.assert_allclose(drawn(**options), shares, atol=0.025)


def test_the_same_key_draws_the_same_text_and_another_key_another():
    def drawn_with(seed):
        sampling, key = Sampling(8, temperature=3.0), jax.random.key(seed)
        return write("gpt2", TOKENS, np.ones_like(TOKENS), sampling, key)["tokens"].tolist()

    first = drawn_with(1)
    assert drawn_with(1) == first != drawn_with(2)


def test_a_context_too_short_for_prompt_and_text_is_refused():
    with pytest.raises(UserError, match=r"model\.context: 20 is less than the 39 tokens"):
        write("gpt2", TOKENS, LEFT, Sampling(30))


@pytest.mark.parametrize(
    "wrong", [dict(temperature=-1.0), dict(top_p=0.0), dict(top_k=-1), dict(max_new_tokens=0)]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"generate.{next(iter(wrong))}: "):
        Sampling(**wrong)
