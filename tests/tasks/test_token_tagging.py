"""Token tagging against scikit-learn over the tags alone."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from bigjax.tasks.token_tagging import TokenTagging

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((6, 7, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, (6, 7)).astype(np.int32)
LABELS[RNG.random((6, 7)) < 0.4] = -100
MASK = np.array([1, 1, 1, 1, 0, 1], np.float32)
SCORED = (LABELS >= 0) & (MASK > 0)[:, None]


def test_scores_are_those_of_the_tagged_tokens_of_real_rows():
    poisoned = np.where(SCORED[..., None], LOGITS, np.nan)
    batch = {"labels": LABELS, "mask": MASK}
    statistics = TokenTagging().statistics(jnp.asarray(poisoned), batch)
    summary = TokenTagging().summarize(
        {key: np.asarray(value, np.float64) for key, value in statistics.items()}, {}
    )
    true, logits = LABELS[SCORED], LOGITS[SCORED].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = logits.argmax(1)
    assert summary["loss"] == pytest.approx(log_loss(true, probabilities), rel=1e-6)
    assert summary["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert summary["f1_macro"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert summary["errors"] == (true != predicted).sum()


def test_training_loss_is_the_mean_over_tags():
    batch = {"labels": LABELS, "mask": MASK}
    (loss, weight), metrics = TokenTagging().loss(jnp.asarray(LOGITS), batch)
    logits = LOGITS[SCORED].astype(np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), LABELS[SCORED]]
    assert float(weight) == SCORED.sum() == float(metrics["accuracy"][1])
    assert float(loss) == pytest.approx(expected.sum(), rel=1e-6)


def test_each_word_is_shown_with_the_tag_of_its_first_token():
    columns = {
        "labels": np.array([[-100, 0, -100, 0, -100], [-100, 0, -100, -100, -100]]),
        "tags": np.array([[9, 1, 9, 2, 9], [9, 0, 9, 9, 9]]),
    }
    source = SimpleNamespace(class_names=("at", "nn", "vb"))
    assert TokenTagging().present(columns, columns, source) == {"tags": [["nn", "vb"], ["at"]]}


def test_a_tag_beyond_the_names_is_shown_as_its_number():
    batch, source = {"labels": np.array([[0, 0]])}, SimpleNamespace(class_names=("at", "nn"))
    shown = TokenTagging().present({"tags": np.array([[1, 2]])}, batch, source)
    assert shown == {"tags": [["nn", 2]]}
