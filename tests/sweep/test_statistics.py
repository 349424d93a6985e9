"""Every statistic against SciPy's own function for it, or the formula by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bigjax.sweep.statistics import holm, paired, summarize

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=12)


@given(numbers)
def test_t_interval_is_scipys(values):
    found = summarize(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    if found.sd > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_bootstrap_interval_is_repeatable_and_is_scipys_bca():
    values = [0.91, 0.95, 0.93, 0.99, 0.92, 0.90]
    found = summarize(values, "bootstrap")
    assert found == summarize(values, "bootstrap")
    other = stats.bootstrap((values,), np.mean, n_resamples=20000, method="BCa", rng=7)
    interval = other.confidence_interval
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=2e-3)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("interval", ["t", "bootstrap"])
def test_too_few_numbers_have_no_interval(interval):
    one = summarize([0.5], interval)
    assert one.mean == 0.5 and math.isnan(one.sd) and math.isnan(one.low)
    none = summarize([], interval)
    assert none.n == 0 and math.isnan(none.mean)
    same = summarize([0.5, 0.5, 0.5], interval)
    assert (same.low, same.high) == (0.5, 0.5)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=10))
def test_paired_comparison_is_scipys_paired_t_test(pairs):
    a, b = (np.round(x, 4) for x in np.asarray(pairs).T)
    if np.std(a - b) < 1e-6:
        return
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    reference = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    interval = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-6, abs=1e-9
    )
    assert found.d_z == pytest.approx(reference.statistic / math.sqrt(len(a)), rel=1e-6, abs=1e-9)


def test_pairs_are_matched_by_seed_and_lonely_seeds_left_out():
    found = paired({3: 0.9, 1: 0.7, 8: 0.1}, {1: 0.5, 3: 0.8, 9: 1.0})
    assert found.n == 2 and found.mean == pytest.approx(0.15)


def test_equal_results_are_no_difference_and_a_constant_one_has_no_doubt():
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1
    assert paired({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0}).p == 0
    assert math.isnan(paired({0: 1.0}, {0: 0.5}).p)


def test_holm_by_hand():
    # Sorted: .01 x 4, .02 x 3, .03 x 2 -> .06, .04 x 1 -> .06: never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    with_hole = holm([math.nan, 0.01])
    assert math.isnan(with_hole[0]) and with_hole[1] == 0.01
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    # Holm 1979: go up the sorted p-values while p_(k) <= alpha / (m - k + 1).
    alpha, m = 0.05, len(p_values)
    rejected = set()
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if p_values[i] * (m - rank) > alpha:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected
