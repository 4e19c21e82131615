"""What the output holds at a node, against its exact value: constants, zero points and float attributes."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from bnfold.certificate.formulas import BIAS
from bnfold.certificate.result import NotCertifiedError, WrongError
from bnfold.certificate.rounding import Exact, compare, fitted
from bnfold.certificate.wiring import Pair
from bnfold.constants import Constant
from bnfold.graph import Shape
from bnfold.source import FLOATS

DEFAULTS = {"epsilon": 1e-5}
"""Float attributes that may be left out."""


def stored_constant(pair: Pair, slot: int) -> Constant | None:
    """The new constant in the output."""
    if slot != BIAS:
        return pair.new.constant(slot)
    assert pair.bias is not None
    return next((c for own in (0, 1) if (c := pair.bias.constant(own)) is not None), None)


def as_often(exact: Exact, stored: Constant | None, whole: Shape | None) -> Exact:
    """One value for all that it stands for, where they are stored each and make the output no larger.

    Args:
        exact: what should be stored.
        stored: what is.
        whole: the output's shape, as far as it is known.
    """
    if stored is None or whole is None or exact.shape == stored.shape or fitted(exact.value, stored.shape) is not None:
        return exact
    try:
        shape = np.broadcast_shapes(exact.shape, stored.shape)
    except ValueError:
        return exact
    lifted = (1,) * (len(whole) - len(shape)) + shape
    if len(lifted) != len(whole) or any(n not in (1, size) for n, size in zip(lifted, whole, strict=True)):
        return exact
    doubt = exact.doubts(0, exact.shape[0] if exact.shape else 1, exact.value)
    return Exact.of(np.broadcast_to(exact.value, shape), np.broadcast_to(doubt, shape))


def check_constant(pair: Pair, slot: int, exact: Exact, narrowed: int = 0) -> None:
    """A new constant has the type of the one it replaces, of the weight, or the smaller one; and the right values."""
    stored = stored_constant(pair, slot)
    if stored is None:
        raise NotCertifiedError(f"its new input {slot} is no constant")
    replaced = pair.old.constant(slot) if slot != BIAS else None
    model = replaced or pair.old.constant(1) or pair.old.constant(0)
    what = "its bias" if slot == BIAS else f"the constant {stored.name!r} at input {slot}"
    if replaced is not None and stored.type == replaced.type and stored.type not in FLOATS:
        _check_zero_point(pair, stored, exact)
        return
    of_data = model is None or pair.old.op == "Pad"
    type_ = pair.old.graph.type(pair.old.inputs[0] if pair.old.op == "Pad" else pair.old.outputs[0])
    type_ = type_ if of_data or model is None else model.type
    smaller = narrowed and type_ == TensorProto.FLOAT and stored.type == narrowed
    if (stored.type != type_ and not smaller) or stored.type not in FLOATS:
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


def check_attribute(pair: Pair, name: str, exact: Exact) -> None:
    """A float attribute is its exact value, rounded once to the float32 that it is stored in."""
    held = np.asarray(pair.new.get_float(name, DEFAULTS.get(name, math.nan)), np.float32)
    error = compare(Constant(name, TensorProto.FLOAT, (), lambda: held), exact)
    if error:
        raise WrongError("constant", f"its attribute {name!r} is off by {error:.3g} units in the last place", error)
