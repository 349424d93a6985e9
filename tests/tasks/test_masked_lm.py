"""The masked-LM task against sums written out by hand."""

import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.tasks.masked_lm import MaskedLM

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((3, 4, 5)).astype(np.float32)
LABELS = np.array([[-100, 3, -100, 0], [-100, -100, 4, -100], [1, 1, 1, 1]], np.int32)
MASK = np.array([1, 1, 0], np.float32)  # the third row is padding
HIDDEN = [(0, 1), (0, 3), (1, 2)]
BATCH = {"labels": LABELS, "mask": MASK}


def test_loss_is_the_sum_over_hidden_tokens_of_real_rows():
    (loss, weight), metrics = MaskedLM().loss(jnp.asarray(LOGITS), BATCH)
    expected = hits = 0.0
    for row, t in HIDDEN:
        logits = LOGITS[row, t].astype(np.float64)
        expected += np.log(np.exp(logits).sum()) - logits[LABELS[row, t]]
        hits += logits.argmax() == LABELS[row, t]
    assert float(weight) == 3 == float(metrics["accuracy"][1])
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["accuracy"][0]) == hits


def test_what_stands_in_padding_rows_and_unscored_places_does_not_matter():
    poisoned = np.full_like(LOGITS, np.nan)
    for row, t in HIDDEN:
        poisoned[row, t] = LOGITS[row, t]
    (loss, _), _ = MaskedLM().loss(jnp.asarray(poisoned), BATCH)
    assert float(loss) == float(MaskedLM().loss(jnp.asarray(LOGITS), BATCH)[0][0])


def test_summary_in_nats_perplexity_and_bits():
    summary = MaskedLM().summarize({"loss": (8 * math.log(2), 4), "accuracy": (3, 4)}, {})
    assert summary == {
        "loss": pytest.approx(2 * math.log(2)),
        "perplexity": pytest.approx(4),
        "bits_per_token": pytest.approx(2),
        "accuracy": 0.75,
    }


WORDS = ["[PAD]", "[MASK]", "the", "cat", "sat"]
SOURCE = SimpleNamespace(
    tokenizer=SimpleNamespace(
        mask=1, token=lambda i: WORDS[i], decode=lambda ids: " ".join(WORDS[i] for i in ids)
    )
)


def test_mask_tokens_of_a_text_are_filled_in():
    columns = {
        "tokens": np.array([[2, 1, 4, 0], [1, 3, 1, 4]]),
        "segments": np.array([[1, 1, 1, 0], [1, 1, 1, 1]]),
        "likely": np.array([[3, 3, 3, 3], [2, 2, 4, 2]]),
    }
    assert MaskedLM().present(columns, columns, SOURCE) == {
        "text": ["the cat sat", "the cat sat sat"],
        "filled": [["cat"], ["the", "sat"]],
    }


def test_mask_tokens_are_filled_in_from_the_places_that_the_model_looked_at():
    columns = {
        "tokens": np.array([[2, 1, 4, 0], [1, 1, 1, 4]]),
        "segments": np.array([[1, 1, 1, 0], [1, 1, 1, 1]]),
        "places": np.array([[1, 4], [0, 1]]),
        "likely": np.array([[3, 2], [2, 3]]),
    }
    task = MaskedLM(input=("tokens", "segments", "places"))
    assert task.present(columns, columns, SOURCE) == {
        "text": ["the cat sat", "the cat [MASK] sat"],
        "filled": [["cat"], ["the", "cat"]],
    }


def test_logits_of_another_length_are_refused():
    with pytest.raises(UserError, match=r"needs logits \(B, T, V\)"):
        MaskedLM().loss(jnp.asarray(LOGITS[:, :3]), BATCH)
