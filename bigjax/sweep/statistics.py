"""The statistics of a table: intervals, paired differences, correction for many comparisons. Pure.

SciPy's own; it is imported where it is used: a sweep that only runs does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 9999  # of the bootstrap


@dataclass(frozen=True)
class Summary:
    """Of n numbers: mean, standard deviation (n - 1), and the 95 % interval of the mean.

    What n is too small for, or a number is NaN for, is NaN.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float

    @property
    def d_z(self) -> float:
        """Mean / standard deviation; of paired differences, Cohen 1988, section 2.3.5."""
        if self.sd == 0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.sd

    @property
    def p(self) -> float:
        """Two-sided, of the t test that the mean is 0 (Student 1908)."""
        from scipy.stats import t

        return float(2 * t.sf(abs(self.d_z) * math.sqrt(self.n), self.n - 1))


def summarize(values: Sequence[float], interval: Literal["t", "bootstrap"] = "t") -> Summary:
    """The summary of some numbers.

    Args:
      interval: "t": mean ± t(n - 1) sd / sqrt(n); "bootstrap": BCa (Efron 1987), always with the
        same resamples.
    """
    x = np.asarray(values, np.float64)
    n, mean = len(x), float(x.mean()) if len(x) else math.nan
    sd = float(x.std(ddof=1)) if n > 1 and math.isfinite(mean) else math.nan
    if not sd > 0:
        low = high = mean if sd == 0 else math.nan
    elif interval == "bootstrap":
        from scipy.stats import bootstrap

        how = dict(confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=0)
        low, high = bootstrap((x,), np.mean, **how).confidence_interval
    else:
        from scipy.stats import t

        low, high = t.interval(CONFIDENCE, n - 1, mean, sd / math.sqrt(n))
    return Summary(n, mean, sd, float(low), float(high))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Summary:
    """The differences a - b of two sets of results, seed -> result, over the seeds that both have."""
    return summarize([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all comparisons together (Holm 1979); a NaN stays and does not count."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted
