"""Regression against scikit-learn on the whole split."""

import jax
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from bigjax.core.errors import UserError
from bigjax.tasks.regression import Regression

N = 60


def draw(seed, columns=1, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = (offset + rng.standard_normal((N, columns))).astype(np.float32)
    return labels + (0.5 * rng.standard_normal((N, columns))).astype(np.float32), labels


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(1, N - 1), max_size=5),
    columns=st.sampled_from([1, 3]),
    offset=st.sampled_from([0.0, 1e4]),
    criterion=st.sampled_from(["mse", "mae"]),
)
def test_any_batch_split_equals_scikit_learn_on_the_whole_split(
    evaluate, seed, cuts, columns, offset, criterion
):
    values, labels = draw(seed, columns, offset)
    result = evaluate(Regression(criterion=criterion), values, labels, cuts)
    values, labels = values.astype(np.float64), labels.astype(np.float64)
    mse = sk.mean_squared_error(labels, values)
    mae = sk.mean_absolute_error(labels, values)
    expected = {
        "loss": mse if criterion == "mse" else mae,
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": mae,
        "r2": sk.r2_score(labels, values),
    }
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_a_constant_target_has_the_r2_of_scikit_learn(evaluate, error):
    labels = np.full(N, 3, np.float32)
    result = evaluate(Regression(), labels + np.float32(error), labels)
    assert result["r2"] == sk.r2_score(labels, labels + error)


def test_a_column_and_a_row_are_the_same_values(evaluate):
    values, labels = draw(0)
    expected = evaluate(Regression(), values, labels)
    assert evaluate(Regression(), values, labels[:, 0]) == expected
    assert evaluate(Regression(), values[:, 0], labels) == expected


def test_training_metrics_equal_the_evaluation(evaluate):
    values, labels = draw(0)
    loss, metrics = Regression().loss(values, {"label": labels, "mask": np.ones(N, np.float32)})
    result = evaluate(Regression(), values, labels)
    np.testing.assert_allclose(np.divide(*loss), result["loss"], rtol=1e-6)
    np.testing.assert_allclose(np.divide(*metrics["mae"]), result["mae"], rtol=1e-6)


def test_prediction_is_one_value_per_output():
    values, _ = draw(0, columns=3)
    np.testing.assert_array_equal(Regression().predict(values)["value"], values)
    np.testing.assert_array_equal(Regression().predict(values[:, :1])["value"], values[:, 0])


def test_shapes_that_do_not_fit_are_the_users_error_at_trace_time():
    batch = {"label": np.zeros(4), "mask": np.ones(4)}
    with pytest.raises(UserError, match="regression needs as many values"):
        jax.eval_shape(Regression().loss, np.zeros((4, 2)), batch)


def test_an_unknown_criterion_is_the_users_error():
    with pytest.raises(UserError, match=r"unknown 'msee' .did you mean 'mse'"):
        Regression(criterion="msee")
