"""GPTQ: a layer's weights in four bits, the error of each paid back by those not yet rounded.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", algorithm 1. On the host, in float64. Pure.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky

from bigjax.core.quantize import LARGEST

DAMPING = 0.01  # of the mean of the diagonal (their section 3.3, step 3)
INT4 = LARGEST["int4"]


def gptq(
    matrix: np.ndarray, hessian: np.ndarray, group: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(codes (m, n), scales (groups, n)) of a matrix W (m, n) that is used as x W.

    Inputs are rounded one by one, in their order; a group's scales are those of its weights as they
    are when its first input is reached.

    Args:
      hessian: (m, m), the sum of x' x over the calibration data's inputs x.
      group: inputs that share a scale; None: all.
    """
    weights, h = matrix.astype(np.float64).copy(), hessian.astype(np.float64).copy()
    m, n = weights.shape
    dead = np.diag(h) == 0  # an input that is always zero
    h[dead, dead] = 1.0
    weights[dead] = 0.0
    h[np.diag_indices(m)] += DAMPING * np.mean(np.diag(h))
    inverse = cholesky(np.linalg.inv(h), lower=False)  # upper: row i has what later inputs take on
    group = group or m
    codes, scales = np.zeros((m, n)), np.ones((-(-m // group), n))
    for i in range(m):
        block = i // group
        if i % group == 0:
            largest = np.abs(weights[i : i + group]).max(axis=0)
            scales[block] = np.where(largest > 0, largest / INT4, 1.0)
        codes[i] = np.clip(np.rint(weights[i] / scales[block]), -INT4, INT4)
        error = (weights[i] - codes[i] * scales[block]) / inverse[i, i]
        weights[i + 1 :] -= np.outer(inverse[i, i + 1 :], error)
    return codes, scales
