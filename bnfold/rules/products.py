"""Products, quotients and powers.

Source: ONNX operators Mul, Div -1/6/7/13/14, Pow -1/7/12/13/15, Sqrt, Reciprocal -1/6/13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.rules.base import OUT, Accept, View, channels_where, faults, lift, need_encode, refuse_signs
from bnfold.rules.dead import passes_constants
from bnfold.rules.elementwise import refuse_shift
from bnfold.rules.operands import constant_edits, first_accepted, fitted_scale, refuse_axis
from bnfold.rules.unlocks import CONSTANT, LESS_EXTREME, NO_SHIFT, NOT_ZERO


def _product(view: View, values: Sequence[Array]) -> Array:
    return values[0] * values[1]


@passes_constants(_product, annihilates=True)
def mul(view: View) -> list[Accept]:
    """y = x1 x2: a scale goes to the output or to one operand, a_y = a_1 a_2; no shift passes."""
    return _with_powers(view, (1, 1))


def div(view: View) -> list[Accept]:
    """y = x1 / x2: a scale goes to the output or to one operand, a_y = a_1 / a_2; no shift passes."""
    return _with_powers(view, (1, -1))


def _with_powers(view: View, powers: tuple[int, int]) -> list[Accept]:
    refuse_axis(view)
    out = view.port(OUT)
    scales: dict[int, Array] = {}
    for key in (0, 1, OUT):
        port = view.port(key)
        scale, shift = need_encode(view, port.storage)
        if np.any(shift != 0):
            text = f"a shift does not pass a product of two tensors ({port.name!r})"
            raise view.refuse("shift-through-nonlinear", text, NO_SHIFT, *faults(shift != 0, shift))
        if powers[key] < 0 and np.any(scale == 0):
            raise view.refuse("zero-scale", "a divisor cannot become zero", NOT_ZERO, channels_where(scale == 0))
        scales[key] = lift(scale, out.rank)
    made = scales[0] * scales[1] ** powers[1]
    edits = constant_edits(view, (0, 1), "factor")
    if np.all(scales[OUT] == made):
        return [Accept({}, edits)]
    ways: list[Callable[[], Accept]] = []
    if not view.port(OUT).fixed:
        ways.append(lambda: view.settle({OUT: fitted_scale(view, OUT, made)}, edits))
    if view.node.input(0) != view.node.input(1):
        for key, other in ((0, 1), (1, 0)):
            divides = powers[key] < 0 and np.any(scales[OUT] == 0)
            if not view.port(key).fixed and np.all(scales[other] != 0) and not divides:
                # a_y = a_1^p a_2^q with p, q = +-1: solved for one of them
                wanted = (scales[OUT] * scales[other] ** -powers[other]) ** powers[key]
                ways.append(_operand_way(view, key, wanted))
    if not ways:
        return [view.settle({OUT: fitted_scale(view, OUT, made)}, edits)]
    return first_accepted(ways, view, "conflict", "no operand is free to take the scale")


def _operand_way(view: View, key: int, scale: Array) -> Callable[[], Accept]:
    return lambda: view.settle({key: fitted_scale(view, key, scale)})


def power(view: View) -> list[Accept]:
    """y = x^p with one constant p: a passes as a^p. It must be positive where p is no integer; b = 0."""
    p = _exponent(view)
    x, y = view.port(0), view.port(OUT)
    backwards = y.fixed and not x.fixed
    storage = (y if backwards else x).storage
    a, b = need_encode(view, storage)
    refuse_shift(view, storage, b != 0)
    needs_positive = not p.is_integer() or (backwards and p % 2 == 0)
    if np.any(a == 0) or (needs_positive and np.any(a < 0)):
        refuse_signs(view, storage, a <= 0)
    if p == 0:
        raise view.refuse("opaque-op", "a power of zero", "drop the power, whose result is one")
    with np.errstate(all="ignore"):
        moved = np.sign(a) * np.abs(a) ** (1 / p) if backwards else a**p
    if not np.all(np.isfinite(moved)) or np.any(moved == 0):
        raise view.refuse(
            "out-of-range",
            f"the scale to the power of {p:g} does not fit",
            LESS_EXTREME,
        )
    return [view.settle({0 if backwards else OUT: Storage.encode(moved, np.zeros_like(moved))})]


def _exponent(view: View) -> float:
    if view.node.op != "Pow":
        return {"Sqrt": 0.5, "Reciprocal": -1.0}[view.node.op]
    constant = view.node.constant(1)
    if constant is None or int(np.prod(constant.shape, dtype=np.int64)) != 1:
        raise view.refuse("opaque-op", "the exponent is not one constant number", CONSTANT)
    return float(np.asarray(constant.load(), np.float64).reshape(()))
