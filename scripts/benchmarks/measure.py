"""What the benchmarks share: a summary of noisy figures, and what machine they come from."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import numpy as np


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Median and quartiles, rounded to four digits."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    rounded = (float(f"{value:.4g}") for value in (middle, low, high))
    return {
        **dict(zip(("median", "quarter", "three_quarters"), rounded, strict=True)),
        "runs": len(values),
    }


def machine() -> dict[str, str | int | float]:
    """Where this ran, and how busy the machine was."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
