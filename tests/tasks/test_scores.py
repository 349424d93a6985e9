"""The calibration bins by hand: their edges, and what each of them sums."""

import numpy as np
import pytest

from bigjax.tasks.scores import calibration, calibration_error


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
