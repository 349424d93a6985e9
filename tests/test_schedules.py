"""Schedules against Optax's and against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigjax.core.errors import UserError
from bigjax.core.schedules import Constant, Cosine, Linear, Piecewise, Rsqrt, Step

TOTAL = 50


def factors(schedule, steps=TOTAL + 5):
    return np.array([schedule(step, TOTAL) for step in range(steps)])


def assert_equals_optax(schedule, reference):
    expected = np.array([reference(step) for step in range(TOTAL + 5)])
    np.testing.assert_allclose(factors(schedule), expected, rtol=1e-6, atol=1e-7)


def test_constant_equals_optax():
    assert_equals_optax(Constant(), optax.constant_schedule(1.0))
    assert_equals_optax(Constant(warmup_steps=7), optax.warmup_constant_schedule(0.0, 1.0, 7))


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_equals_optax(final):
    assert_equals_optax(Cosine(final=final), optax.cosine_decay_schedule(1.0, TOTAL, alpha=final))
    assert_equals_optax(
        Cosine(warmup_steps=10, final=final),
        optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, TOTAL, end_value=final),
    )


@pytest.mark.parametrize("final", [0.0, 0.25])
def test_linear_equals_optax(final):
    assert_equals_optax(Linear(final=final), optax.linear_schedule(1.0, final, TOTAL))
    joined = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, 10), optax.linear_schedule(1.0, final, TOTAL - 10)], [10]
    )
    assert_equals_optax(Linear(warmup_steps=10, final=final), joined)


def test_step_multiplies_at_boundaries_given_as_steps_or_fractions():
    expected = np.where(np.arange(55) < 20, 1.0, np.where(np.arange(55) < 40, 0.5, 0.25))
    np.testing.assert_allclose(factors(Step(boundaries=(20, 40), factor=0.5)), expected)
    np.testing.assert_allclose(factors(Step(boundaries=(0.4, 0.8), factor=0.5)), expected)


def test_piecewise_holds_each_factor_from_its_step_on():
    expected = np.concatenate([np.full(10, 1.0), np.full(20, 0.3), np.full(25, 2.0)])
    np.testing.assert_allclose(factors(Piecewise(pieces=((10, 0.3), (30, 2.0)))), expected, 1e-6)


def test_rsqrt_with_timescale_equal_to_warmup_is_vaswani():
    warmup, width = 16, 512
    steps = np.arange(1, 55, dtype=np.float64)
    vaswani = width**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
    expected = vaswani / (width**-0.5 * warmup**-0.5)
    ours = factors(Rsqrt(warmup_steps=warmup, timescale=warmup))[1:]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", [Constant, Cosine, Linear, Step, Rsqrt])
def test_warmup_grows_linearly_from_zero_to_the_peak(schedule):
    np.testing.assert_allclose(factors(schedule(warmup_steps=4))[:5], [0, 0.25, 0.5, 0.75, 1])


def test_the_step_may_be_traced():
    schedule = Cosine(warmup_steps=3)
    traced = jax.jit(lambda step: schedule(step, TOTAL))(jnp.int32(20))
    assert traced.shape == () and traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, schedule(20, TOTAL), rtol=1e-6)


def test_warmup_as_long_as_the_run_stays_finite():
    assert np.isfinite(factors(Cosine(warmup_steps=TOTAL))).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(warmup_steps=-1),
        lambda: Cosine(final=1.5),
        lambda: Linear(final=-0.1),
        lambda: Step(factor=-1.0),
        lambda: Step(boundaries=(1.5,)),
        lambda: Step(boundaries=(0,)),
        lambda: Piecewise(pieces=()),
        lambda: Piecewise(pieces=((10, 1.0), (5, 1.0))),
        lambda: Piecewise(pieces=((10, -1.0),)),
        lambda: Piecewise(pieces=((10,),)),
        lambda: Piecewise(pieces=(10, 1.0)),
        lambda: Rsqrt(timescale=0),
        lambda: Cosine(warmup_steps=TOTAL + 1).check(TOTAL),
        lambda: Step(boundaries=(TOTAL,)).check(TOTAL),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(UserError, match=r"^config\.optimizer\.schedule\.\w+: "):
        make()
