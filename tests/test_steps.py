"""The pure steps: accumulation, moving average, frozen parameters, evaluation padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.core import steps
from bigjax.core.method import Method, split_rows
from bigjax.core.optimizers import OptimizerSettings, build
from bigjax.core.state import init_state, params_fingerprint
from bigjax.models.mlp import MLP
from bigjax.tasks.classification import Classification

BATCH, FEATURES, CLASSES = 16, 5, 3


def batch_of(seed=0, ragged=False):
    rng = np.random.default_rng(seed)
    mask = np.ones(BATCH, np.float32)
    if ragged:
        mask[[1, 4, 5, 11, 15]] = 0
    return {
        "image": rng.normal(size=(BATCH, FEATURES)).astype(np.float32),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "mask": mask,
        "sample": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
    }


def optimizer_of(**settings):
    return build(OptimizerSettings(**{"learning_rate": 0.1, **settings}), "sgd", {}, 100)


def state_of(model, optimizer, ema=False):
    x = jnp.zeros((1, FEATURES))
    collections = dict(model.init(jax.random.key(0), x, train=False))
    return init_state(
        collections.pop("params"),
        collections,
        optimizer,
        rng=jax.random.key_data(jax.random.key(1)),
        hyper={name: jnp.float32(value) for name, value in optimizer.hyper().items()},
        ema=ema,
    )


def step_of(model, optimizer, **options):
    return jax.jit(steps.build_train_step(recipe_of(model, optimizer, **options)))


def recipe_of(model, optimizer, method=None, **options):
    return steps.Recipe(method or Method(), model, Classification(), optimizer, **options)


def assert_trees_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_accumulated_gradient_equals_full_batch(count, ragged):
    model, optimizer = MLP(widths=(7,), outputs=CLASSES), optimizer_of()
    state, batch = state_of(model, optimizer), batch_of(ragged=ragged)
    whole, whole_metrics = step_of(model, optimizer)(state, batch, {})
    parts, parts_metrics = step_of(model, optimizer, accumulate=count)(state, batch, None)
    assert_trees_close(whole.params, parts.params, 1e-6)
    assert_trees_close(whole_metrics, parts_metrics, 1e-5)


def test_masked_rows_do_not_exist():
    model, optimizer = MLP(widths=(7,), outputs=CLASSES), optimizer_of()
    state, batch = state_of(model, optimizer), batch_of(ragged=True)
    real = batch["mask"] > 0
    kept = {name: values[real] for name, values in batch.items()}
    full, _ = step_of(model, optimizer)(state, batch, {})
    short, _ = step_of(model, optimizer)(state, kept, {})
    assert_trees_close(full.params, short.params, 1e-6)


def test_one_step_of_gradient_descent_by_hand_in_float64():
    model, optimizer = MLP(widths=(), outputs=CLASSES), optimizer_of(learning_rate=0.5)
    state, batch = state_of(model, optimizer), batch_of()
    after, metrics = step_of(model, optimizer)(state, batch, {})
    w = np.asarray(state.params["head"]["kernel"], np.float64)
    x, y = batch["image"].astype(np.float64), np.eye(CLASSES)[batch["label"]]
    logits = x @ w + np.asarray(state.params["head"]["bias"], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        after.params["head"]["kernel"], w - 0.5 * x.T @ (p - y) / BATCH, rtol=1e-5, atol=1e-6
    )
    loss_sum, weight = metrics["loss"]
    assert weight == BATCH
    np.testing.assert_allclose(loss_sum / weight, -np.log((p * y).sum(1)).mean(), rtol=1e-6)


def test_microbatches_hold_every_row_once():
    x = jnp.arange(24).reshape(12, 2)
    parts = split_rows(x, 3)
    assert parts.shape == (3, 4, 2)
    np.testing.assert_array_equal(parts[1], x[1::3])


def test_frozen_parameters_stay_bitwise_and_keep_no_optimizer_state():
    model = MLP(widths=(7,), outputs=CLASSES)
    optimizer = build(
        OptimizerSettings(
            learning_rate=0.1, learning_rate_rules=(("dense_0/.*", None), (".*", 1.0))
        ),
        "adam",
        {},
        100,
    )
    state = state_of(model, optimizer)
    after, _ = step_of(model, optimizer)(state, batch_of(), {})
    np.testing.assert_array_equal(
        after.params["dense_0"]["kernel"], state.params["dense_0"]["kernel"]
    )
    assert not np.array_equal(after.params["head"]["kernel"], state.params["head"]["kernel"])
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert (FEATURES, 7) not in shapes


def test_moving_average_by_hand():
    model, optimizer = MLP(widths=(), outputs=CLASSES), optimizer_of()
    state = state_of(model, optimizer, ema=True)
    step = step_of(model, optimizer, ema_decay=0.9)
    one, _ = step(state, batch_of(0), {})
    two, _ = step(one, batch_of(1), {})
    kernels = [np.asarray(s.params["head"]["kernel"], np.float64) for s in (state, one, two)]
    expected = 0.9 * (0.9 * kernels[0] + 0.1 * kernels[1]) + 0.1 * kernels[2]
    np.testing.assert_allclose(two.ema["head"]["kernel"], expected, rtol=1e-6, atol=1e-7)


def test_evaluation_uses_the_moving_average():
    model, optimizer = MLP(widths=(), outputs=CLASSES), optimizer_of()
    state = state_of(model, optimizer, ema=True)
    state = state.replace(ema=jax.tree.map(lambda p: p + 1.0, state.params))
    plain = state.replace(params=state.ema, ema=None)
    step = steps.build_predict_step(recipe_of(model, optimizer))
    assert_trees_close(step(state, batch_of(), {}), step(plain, batch_of(), {}), 0)


def test_changing_the_learning_rate_compiles_nothing():
    model, optimizer = MLP(widths=(7,), outputs=CLASSES), optimizer_of()
    state, step = state_of(model, optimizer), step_of(model, optimizer)
    slow, _ = step(state, batch_of(), {})
    hyper = {**state.hyper, "optimizer.learning_rate": jnp.float32(1.0)}
    fast, _ = step(state.replace(hyper=hyper), batch_of(), {})
    assert step._cache_size() == 1
    ratio = (fast.params["head"]["kernel"] - state.params["head"]["kernel"]) / (
        slow.params["head"]["kernel"] - state.params["head"]["kernel"]
    )
    np.testing.assert_allclose(ratio, 10.0, rtol=1e-3)


def test_dropout_differs_between_steps_and_repeats_with_the_same_state():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=not train)(x))

    optimizer = optimizer_of(learning_rate=0.0)
    state, step = state_of(Noisy(), optimizer), step_of(Noisy(), optimizer)
    _, first = step(state, batch_of(), {})
    _, again = step(state, batch_of(), {})
    _, second = step(state.replace(step=state.step + 1), batch_of(), {})
    assert first["loss"][0] == again["loss"][0] != second["loss"][0]


def test_batch_statistics_are_carried_in_the_state():
    model = MLP(widths=(7,), outputs=CLASSES, batch_norm=True)
    optimizer = optimizer_of()
    state = state_of(model, optimizer)
    after, _ = step_of(model, optimizer)(state, batch_of(), {})
    x = batch_of()["image"].astype(np.float64)
    hidden = x @ np.asarray(state.params["dense_0"]["kernel"], np.float64)
    expected = 0.1 * hidden.mean(0)  # flax: momentum 0.9 of the old mean, 0
    np.testing.assert_allclose(
        after.collections["batch_stats"]["norm_0"]["mean"], expected, rtol=1e-4, atol=1e-6
    )


def test_fingerprint_changes_with_one_bit_and_with_a_name():
    params = {"a": np.arange(4, dtype=np.float32), "b": np.zeros(2, np.float32)}
    flipped = {**params, "a": params["a"].copy()}
    flipped["a"].view(np.uint32)[2] ^= 1
    renamed = {"a": params["a"], "c": params["b"]}
    prints = {params_fingerprint(p) for p in (params, flipped, renamed)}
    assert len(prints) == 3
    assert params_fingerprint(dict(reversed(list(params.items())))) in prints
