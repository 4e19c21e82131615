"""What a constant loses when it is rounded to a smaller type: values beyond its range, digits below it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bnfold.affine import Array
from bnfold.constants import Constant
from bnfold.precision.types import LONG, largest, roundoff
from bnfold.write import rounded

LOST = 8.0
"""How many times a rounding's own error the constant as a whole may lose: more, and its values lie below the range."""

CHUNK = 1 << 18
"""Elements that are looked at in one go."""


def trouble(constant: Constant, type_: int) -> tuple[str, str] | None:
    """Why a constant does not fit the type: a code and a sentence; None where it does."""
    error = size = 0.0
    most = 0.0
    for values in _pieces(constant):
        with np.errstate(all="ignore"):
            held = rounded(values, type_).astype(np.float64)
        finite = np.isfinite(values)
        if np.any(finite & ~np.isfinite(held)):
            worst = float(np.max(np.abs(values), where=finite, initial=0.0))
            return "constant-overflow", f"its constant {constant.name!r} holds {worst:.3g}, {_range(type_)}"
        error += float(np.sum(np.square(np.subtract(held, values, where=finite, out=np.zeros(values.shape)))))
        size += float(np.sum(np.square(values), where=finite))
        most = max(most, float(np.max(np.abs(values), where=finite, initial=0.0)))
    if error > (LOST * roundoff(type_)) ** 2 * size:
        lost = math.sqrt(error / size)
        text = f"its constant {constant.name!r} would lose {lost:.2g} of its size: its largest value is {most:.2g}"
        return "constant-lost", text
    return None


def variance_trouble(variance: Constant, epsilon: float, type_: int) -> tuple[str, str] | None:
    """The same of a BatchNormalization's variance, each channel of which counts, beside its epsilon."""
    values = variance.float64()
    with np.errstate(all="ignore"):
        held = rounded(values, type_).astype(np.float64)
        lost = np.abs(held - values) / np.abs(values + epsilon)
    worst = float(np.max(lost, where=np.isfinite(lost), initial=0.0))
    if not np.isfinite(held).all() or worst > LOST * roundoff(type_):
        least = float(np.min(values, initial=math.inf))
        text = f"its variance {variance.name!r} goes down to {least:.2g}, and a channel would lose {worst:.2g} of it"
        return "constant-lost", text
    return None


def _range(type_: int) -> str:
    return f"and {LONG[type_]} ends at {largest(type_):.5g}"


def _pieces(constant: Constant) -> Iterator[Array]:
    rows = constant.shape[0] if constant.shape else 1
    step = max(1, CHUNK * rows // max(1, math.prod(constant.shape)))
    for start in range(0, rows, step):
        yield np.asarray(constant.rows(start, min(rows, start + step)), np.float64)
