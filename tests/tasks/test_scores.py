"""The calibration bins by hand: their edges, and what each of them sums."""

import numpy as np
import pytest
import sklearn.metrics as sk

from bigjax.tasks.binary import Binary
from bigjax.tasks.classification import Classification
from bigjax.tasks.multilabel import MultiLabel
from bigjax.tasks.scores import calibration, calibration_error
from bigjax.tasks.token_tagging import TokenTagging


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    confidence = np.array([0.0, 0.2, 0.21, 0.6, 0.61, 1.0, np.nan], np.float32)
    mask = np.array([1, 1, 1, 1, 1, 1, 0], np.float32)
    bins = calibration(confidence, np.ones(7, bool), mask)
    assert np.flatnonzero(bins["count"]).tolist() == [0, 2, 3, 8, 9, 14]
    assert bins["count"].sum() == bins["correct"].sum() == 6
    np.testing.assert_allclose(bins["confidence"].sum(), 2.62, rtol=1e-6)


def test_errors_of_neighbouring_bins_do_not_cancel():
    bins = calibration(np.array([0.9, 0.95]), np.array([True, False]), np.ones(2))
    bins = {name: np.asarray(values) for name, values in bins.items()}
    assert calibration_error(bins) == pytest.approx((0.1 + 0.95) / 2, rel=1e-6)


# 90 rows, half of them of a class that the model has no output for; the others all right.
LABELS = np.tile([0, 3, 1, 3, 2, 3], 15)
PREDICTED = np.where(LABELS == 3, np.arange(90) % 3, LABELS)
LOGITS = np.float32(np.eye(3)[PREDICTED])


@pytest.mark.parametrize("outside", [3, 7, -1])
def test_a_label_that_the_model_has_no_output_for_is_an_error(evaluate, outside):
    labels = np.where(LABELS == 3, outside, LABELS).astype(np.int32)
    result = evaluate(Classification(), LOGITS, labels, cuts=(40,))
    assert (result["accuracy"], result["errors"], result["labels_outside"]) == (0.5, 45, 45)
    assert np.isnan(result["loss"])
    theirs = sk.precision_recall_fscore_support(labels, PREDICTED, labels=range(3))
    for name, values in zip(("precision", "recall", "f1"), theirs, strict=False):
        np.testing.assert_allclose(result[f"{name}_per_class"], values)
    pair, metrics = Classification().loss(LOGITS, {"label": labels, "mask": np.ones(90)})
    assert np.isnan(pair[0]) and metrics["accuracy"][0] / metrics["accuracy"][1] == 0.5


def test_no_labels_outside_is_not_spoken_of(evaluate):
    assert "labels_outside" not in evaluate(
        Classification(), LOGITS, np.minimum(LABELS, 2), cuts=(40,)
    )


@pytest.mark.parametrize("outside", [2.0, -1.0])
def test_a_label_that_is_no_probability_is_an_error_of_the_sigmoid_tasks(evaluate, outside):
    labels = np.float32(np.tile([0, 1, outside, 1, 0, outside], 15))
    logits = np.float32(np.where(labels > 0.5, 1, -1))
    result = evaluate(Binary(), logits, labels, cuts=(40,))
    assert (result["accuracy"], result["errors"]) == (60 / 90, 30)
    assert np.isnan(result["loss"])
    many = np.stack([labels, np.zeros(90, np.float32)], axis=1)
    result = evaluate(
        MultiLabel(), np.stack([logits, -np.ones(90, np.float32)], axis=1), many, cuts=(40,)
    )
    assert result["errors"] == 30 and np.isnan(result["loss"])
    for task, x, y in ((Binary(), logits, labels), (MultiLabel(), many, many)):
        pair, metrics = task.loss(x, {"label": y, "mask": np.ones(90, np.float32)})
        assert np.isnan(pair[0]) and metrics["accuracy"][0] <= 60


def test_a_tag_that_the_model_has_no_output_for_is_an_error():
    task = TokenTagging()
    labels = LABELS.reshape(9, 10).astype(np.int32)
    batch = {"labels": labels, "mask": np.ones(9, np.float32)}
    statistics = task.statistics(LOGITS.reshape(9, 10, 3), batch)
    result = task.summarize({k: np.asarray(v) for k, v in statistics.items()}, {})
    assert (result["accuracy"], result["errors"], result["labels_outside"]) == (0.5, 45, 45)
