"""Contrastive learning against InfoNCE written out in float64, and Spearman against scipy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from bigjax.core.errors import UserError
from bigjax.tasks.contrastive import Contrastive

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 5, 8)).astype(np.float32)
MASK = np.array([1, 1, 1, 0, 1], np.float32)
REAL = MASK > 0
BATCH = {"mask": MASK, "label": np.array([0.1, 0.7, 0.3, 9.0, 0.5], np.float32)}


def outputs(a=A, b=B):
    return jnp.asarray(np.stack([a, b], axis=1).reshape(10, 8))


def cosines(a, b):
    a, b = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def test_loss_is_infonce_over_the_real_pairs_of_the_batch():
    (loss, weight), metrics = Contrastive(temperature=0.1).loss(outputs(), BATCH)
    logits = cosines(A[REAL], B[REAL]) / 0.1
    expected = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    assert float(weight) == 4
    assert float(loss) == pytest.approx(expected.sum(), rel=1e-5)
    assert float(metrics["accuracy"][0]) == (logits.argmax(1) == np.arange(4)).sum()


def test_padding_pairs_are_nobodys_negatives_whatever_they_hold():
    poisoned = outputs(*(np.where(REAL[:, None], x, np.nan) for x in (A, B)))
    (loss, _), _ = Contrastive().loss(poisoned, BATCH)
    assert float(loss) == float(Contrastive().loss(outputs(), BATCH)[0][0])


def test_both_texts_of_a_pair_are_read_and_told_apart_again():
    batch = {
        key: np.full((3, 4), i) for i, key in enumerate(("a", "a_segments", "b", "b_segments"))
    }
    tokens, segments = Contrastive().inputs(batch)
    assert tokens[:, 0].tolist() == [0, 2] * 3
    assert segments[:, 0].tolist() == [1, 3] * 3
    np.testing.assert_array_equal(Contrastive().predict(outputs())["embedding"], A)


def test_without_a_second_text_the_first_is_read_twice():
    batch = {"a": np.arange(6).reshape(3, 2), "a_segments": np.ones((3, 2))}
    tokens, _ = Contrastive(b=None).inputs(batch)
    assert tokens.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]


def test_scores_are_compared_by_rank():
    task = Contrastive(label="label")
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, B))
    collected = {
        k: np.asarray(v)[REAL] for k, v in task.collect(outputs(unit_a, unit_b), BATCH).items()
    }
    sums = {key: np.asarray(value) for key, value in task.statistics(outputs(), BATCH).items()}
    expected = spearmanr(np.diag(cosines(A, B))[REAL], BATCH["label"][REAL])[0]
    assert task.summarize(sums, collected)["spearman"] == pytest.approx(expected)


def test_nearest_lines_of_a_corpus():
    lines = ["east", "north", "west"]
    corpus = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    columns = {"embedding": np.array([[0.6, 0.8], [-0.8, -0.6]], np.float32)}
    found = Contrastive(nearest=2).present(
        columns, {}, None, corpus=(lines, {"embedding": corpus})
    )["nearest"]
    assert found == [
        [{"text": "north", "cosine": 0.8}, {"text": "east", "cosine": 0.6}],
        [{"text": "west", "cosine": 0.8}, {"text": "north", "cosine": -0.6}],
    ]


def test_a_model_that_gives_no_embedding_is_refused():
    with pytest.raises(UserError, match="one embedding a text"):
        Contrastive().loss(jnp.zeros((10, 3, 8)), BATCH)
