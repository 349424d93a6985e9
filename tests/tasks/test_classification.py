"""Classification against scikit-learn on the whole split, for any cut into ragged batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import softmax

from bigjax.core.errors import UserError
from bigjax.tasks.classification import Classification

N, K = 60, 8
ABSENT = (2, 5)  # never a label; 5 is never predicted either
CLASSES = range(K)


def draw(seed):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((N, K))).astype(np.float32)
    logits[:, 5] = -20
    labels = rng.choice([k for k in CLASSES if k not in ABSENT], N).astype(np.int32)
    return logits, labels


def calibration_error(logits, labels, bins=15):
    p = softmax(logits.astype(np.float64), -1)
    confidence, correct = p.max(-1), p.argmax(-1) == labels
    total = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            total += inside.mean() * abs(gap)
    return total


def reference(logits, labels):
    p = softmax(logits.astype(np.float64), -1)
    predicted = logits.argmax(-1)
    expected = {
        "loss": sk.log_loss(labels, p, labels=CLASSES),
        "accuracy": sk.accuracy_score(labels, predicted),
        "errors": np.sum(predicted != labels),
        "top_3": sk.top_k_accuracy_score(labels, logits, k=3, labels=CLASSES),
        "confusion_matrix": sk.confusion_matrix(labels, predicted, labels=CLASSES),
        "ece": calibration_error(logits, labels),
    }
    for average in ("macro", None):
        among = (
            None if average else CLASSES
        )  # the mean: scikit-learn's own, of those that are there
        values = sk.precision_recall_fscore_support(
            labels, predicted, labels=among, average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
            expected[f"{name}_{average or 'per_class'}"] = value
    return expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, N - 1), max_size=5))
def test_any_batch_split_equals_scikit_learn_on_the_whole_split(evaluate, seed, cuts):
    logits, labels = draw(seed)
    result = evaluate(Classification(top_k=3), logits, labels, cuts)
    expected = reference(logits, labels)
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_summary_is_plain_numbers_and_lists(evaluate):
    for value in evaluate(Classification(), *draw(0)).values():
        assert isinstance(value, float | list)


def test_top_k_is_reported_only_where_there_are_more_classes(evaluate):
    logits, labels = draw(0)
    assert "top_5" in evaluate(Classification(), logits, labels)
    assert "top_8" not in evaluate(Classification(top_k=8), logits, labels)


def test_statistics_over_eight_devices_equal_one():
    logits, labels = (array[:56] for array in draw(0))
    batch = {"label": labels, "mask": (np.arange(56) % 5 > 0).astype(np.float32)}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((logits, batch), NamedSharding(mesh, PartitionSpec("data")))
    statistics = jax.jit(Classification().statistics)
    for a, b in zip(
        *map(jax.tree.leaves, (statistics(logits, batch), statistics(*spread))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_training_loss_is_smoothed_and_evaluation_is_not(evaluate):
    logits, labels = draw(0)
    batch = {"label": labels, "mask": np.ones(N, np.float32)}
    (total, weight), metrics = Classification(label_smoothing=0.2).loss(logits, batch)
    log_p = np.log(softmax(logits.astype(np.float64), -1))
    plain = -log_p[np.arange(N), labels].mean()
    np.testing.assert_allclose(total / weight, 0.8 * plain - 0.2 * log_p.mean(), rtol=1e-6)
    result = evaluate(Classification(label_smoothing=0.2), logits, labels)
    np.testing.assert_allclose(result["loss"], plain, rtol=1e-6)
    np.testing.assert_allclose(np.divide(*metrics["accuracy"]), result["accuracy"], rtol=1e-6)


def test_soft_labels_weigh_the_loss_and_count_by_their_largest_class(evaluate):
    logits, labels = draw(0)
    hard, soft = np.eye(K, dtype=np.float32)[labels], np.full((N, K), 1 / K, np.float32)
    mixed = 0.7 * hard + 0.3 * soft
    result, expected = (evaluate(Classification(), logits, y) for y in (mixed, labels))
    log_p = np.log(softmax(logits.astype(np.float64), -1))
    np.testing.assert_allclose(result["loss"], -(mixed * log_p).sum(-1).mean(), rtol=1e-6)
    assert result["confusion_matrix"] == expected["confusion_matrix"]


def test_prediction_is_the_top_class_and_its_probability():
    logits, _ = draw(0)
    predicted = Classification().predict(jnp.asarray(logits, jnp.bfloat16))
    p = softmax(np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float64), -1)
    assert predicted["class"].dtype == jnp.int32 and predicted["probability"].dtype == jnp.float32
    np.testing.assert_array_equal(predicted["class"], p.argmax(-1))
    np.testing.assert_allclose(predicted["probability"], p.max(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        ((4, 1), np.zeros(4, np.int32), "classification needs logits .*task 'binary'"),
        ((4,), np.zeros(4, np.int32), "classification needs logits"),
        ((4, 3), np.zeros(4, np.float32), r"labels 'label' are float32 \(4,\)"),
        ((4, 3), np.zeros((4, 2), np.float32), r"labels 'label' are float32 \(4, 2\)"),
        ((4, 3), np.zeros((4, 1), np.int32), r"need integers \(4,\)"),
    ],
)
@pytest.mark.parametrize("method", ["loss", "statistics"])
def test_shapes_that_do_not_fit_are_the_users_error_at_trace_time(method, outputs, labels, message):
    batch = {"label": labels, "mask": np.ones(4, np.float32)}
    with pytest.raises(UserError, match=message):
        jax.eval_shape(getattr(Classification(), method), np.zeros(outputs, np.float32), batch)


def test_a_missing_key_names_the_nearest_one():
    with pytest.raises(UserError, match=r"task.input: .* no 'imag' .did you mean 'image'"):
        Classification(input="imag").inputs({"image": 0, "label": 0})


@pytest.mark.parametrize(
    "kwargs", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"top_k": 0}]
)
def test_options_out_of_range_are_the_users_error(kwargs):
    with pytest.raises(UserError, match="task." + next(iter(kwargs))):
        Classification(**kwargs)
