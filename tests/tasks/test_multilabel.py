"""Multi-label classification against scikit-learn on the whole split."""

import jax
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from bigjax.core.errors import UserError
from bigjax.tasks.multilabel import MultiLabel

N, K = 60, 4


def draw(seed):
    rng = np.random.default_rng(seed)
    logits = np.round(2 * rng.standard_normal((N, K)), 1).astype(np.float32)
    labels = rng.integers(0, 2, (N, K)).astype(np.int32)
    labels[:2] = [[0] * K, [1] * K]
    return logits, labels


def reference(logits, labels):
    predicted = (logits > 0).astype(int)
    p = expit(logits.astype(np.float64))
    exact = sk.accuracy_score(labels, predicted)
    expected = {
        "loss": np.mean(-np.where(labels, np.log(p), np.log1p(-p))),
        "accuracy": exact,
        "errors": round(N * (1 - exact)),
        "label_accuracy": 1 - sk.hamming_loss(labels, predicted),
        "roc_auc": sk.roc_auc_score(labels, logits, average="macro"),
        "roc_auc_per_class": sk.roc_auc_score(labels, logits, average=None),
    }
    for average in ("macro", None):
        values = sk.precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
            expected[f"{name}_{average or 'per_class'}"] = value
    return expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, N - 1), max_size=5))
def test_any_batch_split_equals_scikit_learn_on_the_whole_split(evaluate, seed, cuts):
    logits, labels = draw(seed)
    result = evaluate(MultiLabel(), logits, labels, cuts)
    expected = reference(logits, labels)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_label_that_never_occurs_scores_zero_and_leaves_the_mean_roc_auc(evaluate):
    logits, labels = draw(0)
    labels[:, 1], logits[:, 1] = 0, -1
    result = evaluate(MultiLabel(), logits, labels)
    predicted = (logits > 0).astype(int)
    expected = sk.f1_score(labels, predicted, average="macro", zero_division=0)
    np.testing.assert_allclose(result["f1_macro"], expected, rtol=1e-6)
    others = [0, 2, 3]
    expected = sk.roc_auc_score(labels[:, others], logits[:, others], average="macro")
    np.testing.assert_allclose(result["roc_auc"], expected, rtol=1e-6)
    assert np.isnan(result["roc_auc_per_class"][1])


def test_training_metrics_equal_the_evaluation(evaluate):
    logits, labels = draw(0)
    batch = {"label": labels, "mask": np.ones(N, np.float32)}
    loss, metrics = MultiLabel().loss(logits, batch)
    result = evaluate(MultiLabel(), logits, labels)
    np.testing.assert_allclose(np.divide(*loss), result["loss"], rtol=1e-6)
    np.testing.assert_allclose(np.divide(*metrics["accuracy"]), result["accuracy"], rtol=1e-6)


def test_prediction_gives_each_label_and_its_probability():
    logits, _ = draw(0)
    predicted = MultiLabel().predict(logits)
    np.testing.assert_array_equal(predicted["labels"], logits > 0)
    np.testing.assert_allclose(predicted["probability"], expit(logits), rtol=1e-6)


@pytest.mark.parametrize(("outputs", "labels"), [((4, 3), (4,)), ((4,), (4,)), ((4, 3), (4, 2))])
def test_shapes_that_do_not_fit_are_the_users_error_at_trace_time(outputs, labels):
    batch = {"label": np.zeros(labels), "mask": np.ones(4)}
    with pytest.raises(UserError, match="multi-label classification needs both"):
        jax.eval_shape(MultiLabel().loss, np.zeros(outputs), batch)
