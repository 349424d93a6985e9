"""The language-model task against sums written out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.tasks.language_model import LanguageModel

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((3, 4, 5)).astype(np.float32)
TOKENS = RNG.integers(0, 5, (3, 4)).astype(np.int32)
BATCH = {"tokens": TOKENS, "mask": np.array([1, 1, 0], np.float32)}


def expected(predicted):
    """Sum of -log p and of hits over the (row, position) pairs given, in float64."""
    loss = hits = 0.0
    for row, t in predicted:
        logits = LOGITS[row, t].astype(np.float64)
        loss += np.log(np.exp(logits).sum()) - logits[TOKENS[row, t + 1]]
        hits += logits.argmax() == TOKENS[row, t + 1]
    return loss, hits, len(predicted)


def check(task, batch, predicted):
    (loss, weight), metrics = task.loss(jnp.asarray(LOGITS), batch)
    want_loss, want_hits, want_weight = expected(predicted)
    assert float(weight) == want_weight == float(metrics["accuracy"][1])
    assert float(loss) == pytest.approx(want_loss, rel=1e-6)
    assert float(metrics["accuracy"][0]) == want_hits


def test_loss_is_the_sum_over_tokens_that_have_a_successor_in_real_rows():
    check(LanguageModel(), BATCH, [(row, t) for row in (0, 1) for t in range(3)])


def test_token_mask_says_which_tokens_are_predicted():
    mask = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
    task = LanguageModel(token_mask="real")
    check(task, {**BATCH, "real": mask}, [(0, 1), (0, 2), (1, 0), (1, 1)])


def test_summary_in_nats_perplexity_and_bits():
    summary = LanguageModel().summarize({"loss": (8 * math.log(2), 4), "accuracy": (3, 4)}, {})
    assert summary == {
        "loss": pytest.approx(2 * math.log(2)),
        "perplexity": pytest.approx(4),
        "bits_per_token": pytest.approx(2),
        "accuracy": 0.75,
    }


SEGMENTS = np.array([[1, 1, 2, 2], [1, 1, 1, 0], [1, 1, 1, 1]], np.int32)


def test_no_token_is_predicted_across_documents_or_on_padding():
    task = LanguageModel(input=("tokens", "segments"))
    batch = {**BATCH, "segments": SEGMENTS}
    assert [len(x) for x in task.inputs(batch)] == [3, 3]
    check(task, batch, [(0, 0), (0, 2), (1, 0), (1, 1)])


def test_bits_per_byte_are_all_bits_over_all_bytes_of_real_rows():
    task = LanguageModel()
    sums = task.statistics(jnp.asarray(LOGITS), {**BATCH, "bytes": np.array([10, 7, 5])})
    bits = expected([(row, t) for row in (0, 1) for t in range(3)])[0] / math.log(2)
    assert float(sums["bytes"]) == 17
    assert task.summarize(sums, {})["bits_per_byte"] == pytest.approx(bits / 17, rel=1e-6)


def apply(variables, tokens, segments=None, *, train, cache=0, mutable=()):
    """Logits that make 3 more than the last token (mod 5) the next one; its cache holds no key."""
    logits = 4.0 * (jnp.arange(5) == (tokens[..., None] + 3) % 5)
    if not cache:
        return logits
    at = jnp.where(segments > 0, jnp.arange(tokens.shape[1]), 0).max(1)
    return jnp.take_along_axis(logits, at[:, None, None], 1), {}


def test_without_generate_the_next_token_is_that_after_the_last_real_one():
    task = LanguageModel(input=("tokens", "segments"))
    found = task.decode(apply, {}, {**BATCH, "segments": SEGMENTS})
    last = TOKENS[[0, 1, 2], [3, 2, 3]]
    assert found["token"].tolist() == ((last + 3) % 5).tolist()
    probability = math.exp(4) / (math.exp(4) + 4)
    np.testing.assert_allclose(found["probability"], probability, rtol=1e-6)
    shown = task.present(jax.device_get(found), BATCH, Letters)
    assert list(shown) == ["token", "probability", "text"]
    assert shown["text"] == ["abcde"[token] for token in found["token"]]


class Letters:
    class tokenizer:
        decode = staticmethod(lambda ids: "".join("abcde"[i] for i in ids))


def test_with_generate_each_row_is_written_on_and_read_as_text():
    task = LanguageModel(input=("tokens", "segments"), generate=dict(max_new_tokens=3, stop=(4,)))
    batch = {
        "tokens": np.array([[1, 2], [4, 0]], np.int32),
        "segments": np.array([[1, 1], [1, 0]], np.int32),
        "sample": np.zeros(2, np.int32),
    }
    found = task.decode(apply, {}, batch)
    assert found["written"].tolist() == [[0, 3, 1], [2, 0, 3]]
    assert task.present(found, batch, Letters) == {"text": ["adb", "cad"]}
    ended = {"written": np.array([[0, 3, -1], [-1, -1, -1]])}
    assert task.present(ended, {}, Letters) == {"text": ["ad", ""]}
    assert task.present(ended, {}, None) == {"tokens": [[0, 3], []]}


def test_a_wrong_word_of_generate_is_told_with_the_right_one():
    with pytest.raises(UserError, match=r"task\.generate\.top_n.*mean 'top_p'"):
        LanguageModel(generate=dict(top_n=3))
    with pytest.raises(UserError, match=r"top_p: 1.5 must be above 0 and at most 1"):
        LanguageModel(generate=dict(top_p=1.5))


def test_logits_of_another_length_are_refused():
    with pytest.raises(UserError, match=r"needs logits \(B, T, V\)"):
        LanguageModel().loss(jnp.asarray(LOGITS[:, :3]), BATCH)
