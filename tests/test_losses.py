"""Losses against float64 numpy, finite differences, and their algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from bigjax.core.losses import (
    absolute_error,
    kl_divergence,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    squared_error,
)

B, K = 12, 5
MASK = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 1], np.float32)
seeds = st.integers(0, 2**31)


def draw(seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return {
        "logits": (scale * rng.standard_normal((B, K))).astype(np.float32),
        "other": (scale * rng.standard_normal((B, K))).astype(np.float32),
        "labels": rng.integers(0, K, B).astype(np.int32),
        "soft": rng.dirichlet(np.ones(K), B).astype(np.float32),
        "bits": rng.integers(0, 2, (B, K)).astype(np.float32),
    }


def smoothed(labels, e):
    q = np.eye(K)[labels] if labels.ndim == 1 else np.float64(labels)
    return (1 - e) * q + e / K


def reference_sigmoid(x, y):
    x, y = np.float64(x), np.float64(y)
    p = 1 / (1 + np.exp(-x))
    return (-y * np.log(p) - (1 - y) * np.log(1 - p)).mean(axis=-1)


def reference_kl(t, s, T):
    t, s = np.float64(t) / T, np.float64(s) / T
    return (softmax(t, -1) * (log_softmax(t, -1) - log_softmax(s, -1))).sum(-1)


D = draw()
CASES = {  # name: (loss of (varied argument, mask), varied argument, float64 reference per example)
    "softmax_hard": (
        lambda x, m: softmax_cross_entropy(x, D["labels"], m, 0.1),
        D["logits"],
        lambda x: -(smoothed(D["labels"], 0.1) * log_softmax(np.float64(x), -1)).sum(-1),
    ),
    "softmax_soft": (
        lambda x, m: softmax_cross_entropy(x, D["soft"], m, 0.2),
        D["logits"],
        lambda x: -(smoothed(D["soft"], 0.2) * log_softmax(np.float64(x), -1)).sum(-1),
    ),
    "sigmoid": (
        lambda x, m: sigmoid_cross_entropy(x, D["bits"], m),
        D["logits"],
        lambda x: reference_sigmoid(x, D["bits"]),
    ),
    "squared": (
        lambda x, m: squared_error(x, D["other"], m),
        D["logits"],
        lambda x: np.square(np.float64(x) - D["other"]).mean(-1),
    ),
    "absolute": (
        lambda x, m: absolute_error(x, D["other"], m),
        D["logits"],
        lambda x: np.abs(np.float64(x) - D["other"]).mean(-1),
    ),
    "kl_student": (
        lambda x, m: kl_divergence(D["other"], x, m, 2.5),
        D["logits"],
        lambda x: reference_kl(D["other"], x, 2.5),
    ),
    "kl_teacher": (
        lambda x, m: kl_divergence(x, D["other"], m, 2.5),
        D["logits"],
        lambda x: reference_kl(x, D["other"], 2.5),
    ),
}
every_loss = pytest.mark.parametrize("name", CASES)


@every_loss
def test_sum_and_weight_equal_the_float64_formula(name):
    loss, x, reference = CASES[name]
    total, weight = jax.jit(loss)(x, MASK)
    np.testing.assert_allclose(total, (reference(x) * MASK).sum(), rtol=1e-6)
    assert weight == MASK.sum()
    assert total.dtype == weight.dtype == jnp.float32


@every_loss
def test_gradient_equals_finite_differences_of_the_float64_formula(name):
    loss, x, reference = CASES[name]
    gradient = jax.grad(lambda x: loss(x, MASK)[0])(x)
    step, numeric = 1e-6, np.zeros((B, K))
    for i in np.ndindex(B, K):
        shift = np.zeros((B, K))
        shift[i] = step
        numeric[i] = ((reference(x + shift) - reference(x - shift)) * MASK).sum() / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=2e-6)


@every_loss
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_masked_rows_leave_no_trace_whatever_they_hold(name, poison):
    loss, x, _ = CASES[name]
    poisoned = np.where(MASK[:, None] > 0, x, np.float32(poison))
    clean, dirty = (jax.value_and_grad(lambda x: loss(x, MASK)[0])(v) for v in (x, poisoned))
    np.testing.assert_array_equal(dirty[0], clean[0])
    np.testing.assert_array_equal(dirty[1], clean[1])
    assert not np.any(dirty[1][MASK == 0])


@every_loss
def test_large_logits_give_finite_values_and_gradients(name):
    loss, _, _ = CASES[name]
    x = (1e4 * np.sign(draw(1)["logits"])).astype(np.float32)
    value, gradient = jax.value_and_grad(lambda x: loss(x, MASK)[0])(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@every_loss
def test_low_precision_logits_are_summed_in_float32(name):
    loss, x, reference = CASES[name]
    x = jnp.asarray(x, jnp.bfloat16)
    total, _ = loss(x, jnp.ones(B, jnp.bfloat16))
    expected = reference(np.asarray(x, np.float64)).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert total.dtype == jnp.float32


def test_masked_labels_may_hold_anything():
    soft = np.where(MASK[:, None] > 0, D["soft"], np.nan)
    hard = np.where(MASK > 0, D["labels"], -1)
    for dirty, clean in ((soft, D["soft"]), (hard, D["labels"])):
        expected = softmax_cross_entropy(D["logits"], clean, MASK)
        np.testing.assert_array_equal(softmax_cross_entropy(D["logits"], dirty, MASK), expected)


@pytest.mark.parametrize("label", [-1, K])
def test_an_impossible_label_shows_as_nan(label):
    total, _ = softmax_cross_entropy(D["logits"], np.full(B, label), MASK)
    assert np.isnan(total)


def test_sequences_are_batches_with_one_more_axis():
    flat = softmax_cross_entropy(D["logits"], D["labels"], MASK)
    shaped = [D["logits"].reshape(3, 4, K), D["labels"].reshape(3, 4), MASK.reshape(3, 4)]
    np.testing.assert_allclose(softmax_cross_entropy(*shaped), flat, rtol=1e-6)


def test_single_logit_equals_its_column_form():
    x, y = D["logits"][:, 0], D["bits"][:, 0]
    column = sigmoid_cross_entropy(x[:, None], y[:, None], MASK)
    np.testing.assert_array_equal(sigmoid_cross_entropy(x, y, MASK), column)


@pytest.mark.parametrize("loss", [squared_error, absolute_error, sigmoid_cross_entropy])
def test_a_column_against_a_row_is_refused_not_broadcast(loss):
    with pytest.raises(ValueError, match=r"\(12,\) do not fit outputs \(12, 1\)"):
        loss(np.zeros((B, 1)), np.zeros(B), MASK)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shift=st.floats(-100, 100))
def test_softmax_cross_entropy_does_not_see_a_shift_of_all_logits(seed, shift):
    d = draw(seed)
    plain = softmax_cross_entropy(d["logits"], d["labels"], MASK)[0]
    shifted = softmax_cross_entropy(d["logits"] + np.float32(shift), d["labels"], MASK)[0]
    np.testing.assert_allclose(shifted, plain, rtol=2e-5)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, temperature=st.floats(0.5, 20))
def test_kl_is_zero_on_itself_and_never_negative(seed, temperature):
    d = draw(seed)
    assert kl_divergence(d["logits"], d["logits"], MASK, temperature)[0] == 0
    near = d["logits"] + np.float32(1e-4) * d["other"]
    for student in (d["other"], near):
        assert kl_divergence(d["logits"], student, MASK, temperature)[0] >= -1e-5


JITTED = {
    loss: jax.jit(loss) for loss in (softmax_cross_entropy, sigmoid_cross_entropy, kl_divergence)
}


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds, cut=st.sampled_from([1, 4]), name=st.sampled_from(["hard", "soft", "bits", "kl"])
)
def test_the_parts_of_a_batch_add_up_to_the_batch(seed, cut, name):
    d = draw(seed)
    mask = np.random.default_rng(seed).integers(0, 2, B).astype(np.float32)
    loss, labels = {
        "hard": (softmax_cross_entropy, d["labels"]),
        "soft": (softmax_cross_entropy, d["soft"]),
        "bits": (sigmoid_cross_entropy, d["bits"]),
        "kl": (kl_divergence, d["other"]),
    }[name]
    loss = JITTED[loss]
    whole = loss(d["logits"], labels, mask)
    parts = [loss(d["logits"][s], labels[s], mask[s]) for s in (slice(cut), slice(cut, B))]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5, atol=1e-5)


def test_label_smoothing_and_temperature_may_be_traced():
    smoothing = jax.jit(lambda e: softmax_cross_entropy(D["logits"], D["labels"], MASK, e)[0])
    np.testing.assert_allclose(smoothing(0.1), CASES["softmax_hard"][0](D["logits"], MASK)[0])
    heat = jax.jit(lambda t: kl_divergence(D["other"], D["logits"], MASK, t)[0])
    expected = (reference_kl(D["other"], D["logits"], 2.5) * MASK).sum()
    np.testing.assert_allclose(heat(2.5), expected, rtol=1e-6)
