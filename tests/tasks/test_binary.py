"""Binary classification against scikit-learn on the whole split."""

import warnings

import jax
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from bigjax.core.errors import UserError
from bigjax.tasks.binary import Binary

N = 60


def draw(seed):
    rng = np.random.default_rng(seed)
    logits = np.round(2 * rng.standard_normal(N), 1).astype(np.float32)  # rounded: with ties
    labels = rng.integers(0, 2, N).astype(np.int32)
    labels[:2] = 0, 1
    return logits, labels


def reference(logits, labels):
    p = expit(logits.astype(np.float64))
    predicted = (logits > 0).astype(int)
    confidence, correct = np.maximum(p, 1 - p), predicted == labels
    place = np.ceil(confidence * 15) - 1
    gaps = [abs(np.sum((correct - confidence)[place == m])) for m in range(15)]
    expected = {
        "loss": sk.log_loss(labels, p, labels=[0, 1]),
        "accuracy": sk.accuracy_score(labels, predicted),
        "errors": np.sum(predicted != labels),
        "roc_auc": sk.roc_auc_score(labels, logits),
        "confusion_matrix": sk.confusion_matrix(labels, predicted, labels=[0, 1]),
        "ece": np.sum(gaps) / len(labels),
    }
    for average, suffix in (("binary", ""), ("macro", "_macro"), (None, "_per_class")):
        values = sk.precision_recall_fscore_support(
            labels, predicted, labels=[0, 1], average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
            expected[name + suffix] = value
    return expected


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(1, N - 1), max_size=5),
    column=st.booleans(),
)
def test_any_batch_split_equals_scikit_learn_on_the_whole_split(evaluate, seed, cuts, column):
    logits, labels = draw(seed)
    result = evaluate(Binary(), logits[:, None] if column else logits, labels, cuts)
    expected = reference(logits, labels)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_split_with_one_class_has_no_roc_auc_and_no_warning(evaluate):
    logits, _ = draw(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(Binary(), logits, np.zeros(N, np.int32))
    assert np.isnan(result["roc_auc"]) and result["recall"] == 0


def test_a_diverged_model_is_still_summarized(evaluate):
    logits, labels = draw(0)
    result = evaluate(Binary(), np.full_like(logits, np.nan), labels)
    assert np.isnan(result["loss"]) and np.isnan(result["roc_auc"])


def test_prediction_gives_the_probability_of_the_predicted_class():
    predicted = Binary().predict(np.array([[-2.0], [3.0]], np.float32))
    np.testing.assert_array_equal(predicted["class"], [0, 1])
    np.testing.assert_allclose(predicted["probability"], expit([2.0, 3.0]), rtol=1e-6)


def test_training_metrics_equal_the_evaluation(evaluate):
    logits, labels = draw(0)
    batch = {"label": labels, "mask": np.ones(N, np.float32)}
    loss, metrics = Binary().loss(logits, batch)
    result = evaluate(Binary(), logits, labels)
    np.testing.assert_allclose(np.divide(*loss), result["loss"], rtol=1e-6)
    np.testing.assert_allclose(np.divide(*metrics["accuracy"]), result["accuracy"], rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ((4, 2), (4,), "needs one logit per example"),
        ((4, 1), (4, 3), r"shape \(4, 3\), not \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_the_users_error_at_trace_time(outputs, labels, message):
    batch = {"label": np.zeros(labels), "mask": np.ones(4)}
    with pytest.raises(UserError, match=message):
        jax.eval_shape(Binary().loss, np.zeros(outputs), batch)
