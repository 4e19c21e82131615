"""Sums of products with cancellation, as if computed with twice the digits of float64."""

from __future__ import annotations

import numpy as np

from bnfold.affine import Array


@np.errstate(over="ignore", invalid="ignore")  # weights that are not finite
def exact_sum(terms: Array) -> Array:
    """Sum over the last axis: pairwise, with the rounding error of every addition carried along (TwoSum, Knuth)."""
    total, error = terms, np.zeros_like(terms)
    while total.shape[-1] > 1:
        if total.shape[-1] % 2:
            pad = [(0, 0)] * (total.ndim - 1) + [(0, 1)]
            total, error = np.pad(total, pad), np.pad(error, pad)
        x, y = total[..., 0::2], total[..., 1::2]
        s = x + y
        part = s - x
        rounding = (x - (s - part)) + (y - part)
        error = error[..., 0::2] + error[..., 1::2] + rounding
        total = s
    return np.asarray((total + error)[..., 0]) if total.shape[-1] else np.zeros(terms.shape[:-1])
