"""Mean and deviation of columns that are read in pieces, without loss by cancellation."""

from __future__ import annotations

import numpy as np


class Moments:
    """Means and sums of squared differences of the columns of rows (N, ...), in float64.

    Pieces are merged by Chan, Golub and LeVeque 1983, equation 2.1.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.float64(0), np.float64(0)

    def add(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        squares = ((rows - mean) ** 2).sum(0)
        total, apart = self.count + len(rows), mean - self.mean
        self.squares = self.squares + squares + apart**2 * (self.count * len(rows) / total)
        self.mean = self.mean + apart * (len(rows) / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Population deviation; 0 for a column that is constant but for rounding (scikit-learn's rule).

        That is: the variance is at most n eps var + (n eps mean)^2, eps of float64.
        """
        variance, eps = self.squares / self.count, np.finfo(np.float64).eps
        noise = self.count * eps * variance + (self.count * eps * self.mean) ** 2
        return np.where(variance <= noise, 0.0, np.sqrt(variance))
