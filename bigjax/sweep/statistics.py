"""The statistics of a table: intervals, paired differences, correction for many comparisons. Pure.

SciPy is imported where it is used: a sweep that only runs does not wait for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999  # of the bootstrap


@dataclass(frozen=True)
class Summary:
    """Of n numbers: mean, standard deviation (n - 1), and the 95 % interval of the mean.

    What n is too small for is NaN.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Of the differences a - b over the seeds that both have.

    Attributes:
      n: pairs.
      mean, low, high: of the differences, with the 95 % t interval.
      p: two-sided, of the paired t test (Student 1908).
      d_z: mean / standard deviation of the differences (Cohen 1988, section 2.3.5).
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    d_z: float


def summarize(values: Sequence[float], interval: Literal["t", "bootstrap"] = "t") -> Summary:
    """The summary of some numbers.

    Args:
      interval: "t": mean ± t(n - 1) sd / sqrt(n); "bootstrap": BCa (Efron 1987), always with the
        same resamples.
    """
    x = np.asarray(values, np.float64)
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if n > 1 else math.nan
    if interval == "bootstrap" and n > 1 and sd > 0:
        from scipy.stats import bootstrap

        found = bootstrap(
            (x,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=0
        ).confidence_interval
        return Summary(n, mean, sd, float(found.low), float(found.high))
    half = _t_quantile(n - 1) * sd / math.sqrt(n) if n > 1 else math.nan
    return Summary(n, mean, sd, mean - half, mean + half)


def paired(a: dict[int, float], b: dict[int, float]) -> Paired:
    """Compares two sets of results by seed.

    Args:
      a, b: seed -> result; seeds that only one of them has are left out.
    """
    both = sorted(a.keys() & b.keys())
    differences = np.asarray([a[seed] - b[seed] for seed in both], np.float64)
    found = summarize(differences)
    if found.n < 2:
        return Paired(found.n, found.mean, math.nan, math.nan, math.nan, math.nan)
    if found.sd == 0:  # the t statistic is 0 / 0 or infinite
        same = found.mean == 0
        p, d_z = (1.0, 0.0) if same else (0.0, math.copysign(math.inf, found.mean))
        return Paired(found.n, found.mean, found.low, found.high, p, d_z)
    from scipy.stats import t

    d_z = found.mean / found.sd
    p = float(2 * t.sf(abs(d_z) * math.sqrt(found.n), found.n - 1))
    return Paired(found.n, found.mean, found.low, found.high, p, d_z)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all comparisons together (Holm 1979); a NaN stays and does not count."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


@functools.cache
def _t_quantile(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))
