"""What the output holds at a node, against its exact value: constants, zero points and float attributes."""

from __future__ import annotations

import math

import numpy as np

from bnfold.certificate.formulas import BIAS
from bnfold.certificate.result import NotCertifiedError, WrongError
from bnfold.certificate.rounding import EPS, Exact, compare
from bnfold.certificate.wiring import Pair
from bnfold.constants import Constant
from bnfold.source import FLOATS


def stored_constant(pair: Pair, slot: int) -> Constant | None:
    """The new constant in the output."""
    if slot != BIAS:
        return pair.new.constant(slot)
    assert pair.bias is not None
    return next((c for own in (0, 1) if (c := pair.bias.constant(own)) is not None), None)


def check_constant(pair: Pair, slot: int, exact: Exact) -> None:
    """A new constant has the type of the one that it replaces, or of the weight; and the right values."""
    stored = stored_constant(pair, slot)
    if stored is None:
        raise NotCertifiedError(f"its new input {slot} is no constant")
    replaced = pair.old.constant(slot) if slot != BIAS else None
    model = replaced or pair.old.constant(1) or pair.old.constant(0)
    what = "its bias" if slot == BIAS else f"the constant {stored.name!r} at input {slot}"
    if replaced is not None and stored.type == replaced.type and stored.type not in FLOATS:
        _check_zero_point(pair, stored, exact)
        return
    type_ = pair.old.graph.type(pair.old.outputs[0]) if model is None else model.type
    if stored.type != type_ or stored.type not in FLOATS:
        raise WrongError("constant", f"{what} has another element type than before")
    error = compare(stored, exact)
    if error:
        text = (
            f"off by {error:.3g} units in the last place" if math.isfinite(error) else "not finite, or of another shape"
        )
        raise WrongError("constant", f"{what} is {text}", error)


def _check_zero_point(pair: Pair, stored: Constant, exact: Exact) -> None:
    """Whole numbers are equal, and a zero point has the shape of its scale."""
    scale = pair.new.constant(1)
    if scale is None or stored.shape != scale.shape or not np.array_equal(stored.float64(), exact.value):
        raise WrongError("constant", f"the zero point {stored.name!r} is not what it was")


def check_attribute(pair: Pair, name: str, exact: float) -> None:
    """A float attribute has its exact value, rounded to the float32 that the format has for it."""
    stored = pair.new.get_float(name, pair.old.get_float(name, float(np.float32(1e-5))))
    unit = float(np.spacing(np.float32(stored)))
    if not abs(stored - exact) <= 0.5 * unit + 8 * EPS * abs(exact):
        error = abs(stored - exact) / unit
        raise WrongError("constant", f"its {name} is {stored}, not {exact}", error)
