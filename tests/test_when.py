"""When something is due."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigjax.config.when import When
from bigjax.core.errors import UserError

totals = st.integers(1, 400)
fractions = st.integers(1, 999).map(lambda thousandths: thousandths / 1000)


def due_steps(every, total):
    when = When(every, total)
    return [step for step in range(total + 2) if when.due(step)]


def test_every_few_steps_and_at_the_end():
    assert due_steps(3, 10) == [3, 6, 9, 10]
    assert due_steps(100, 10) == [10]


def test_a_fraction_of_the_run():
    assert due_steps(0.25, 10) == [3, 5, 8, 10]
    assert due_steps(0.1, 1000) == list(range(100, 1001, 100))
    assert due_steps(0.4, 10) == [4, 8, 10]


def test_end_and_never():
    assert due_steps("end", 7) == [7]
    assert due_steps("never", 7) == []


@given(st.integers(1, 500), totals)
def test_n_steps_are_due_ceil_total_over_n_times(every, total):
    steps = due_steps(every, total)
    assert len(steps) == math.ceil(total / every) and steps[-1] == total


@given(fractions, totals)
def test_a_fraction_is_due_when_its_next_multiple_is_complete(every, total):
    exact = Fraction(round(every * 1000), 1000)
    multiples = {math.ceil(k * exact * total) for k in range(1, 1001) if k * exact <= 1}
    assert due_steps(every, total) == sorted(multiples | {total})


@given(st.integers(1, 50) | fractions | st.just("end"), totals)
def test_the_end_is_always_due_and_nothing_outside_the_run(every, total):
    steps = due_steps(every, total)
    assert steps[-1] == total and 0 not in steps


@pytest.mark.parametrize(
    "every", [0, -1, 0.0, 1.0, 1.5, -0.1, float("nan"), True, "often", "", None, [3]]
)
def test_nonsense_is_refused_naming_the_key(every):
    with pytest.raises(UserError, match=r"^checkpoint\.every: "):
        When(every, 10, key="checkpoint.every")
