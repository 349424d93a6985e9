"""The language-model task against sums written out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
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


def test_prediction_is_the_token_after_the_last():
    predicted = LanguageModel().predict(jnp.asarray(LOGITS))
    last = np.exp(LOGITS[:, -1].astype(np.float64))
    np.testing.assert_array_equal(predicted["token"], last.argmax(1))
    np.testing.assert_allclose(predicted["probability"], last.max(1) / last.sum(1), rtol=1e-6)


def test_logits_of_another_length_are_refused():
    with pytest.raises(UserError, match=r"needs logits \(B, T, V\)"):
        LanguageModel().loss(jnp.asarray(LOGITS[:, :3]), BATCH)
