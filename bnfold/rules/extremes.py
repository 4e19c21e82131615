"""Operators that choose among values: Max, Min, Clip, Where.

Source: ONNX operators Max, Min -1/6/8/12/13, Clip -1/6/11/12/13, Where-9/16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.constants import Constant
from bnfold.plan import Edit, NewConstant, SetOperator
from bnfold.rules.base import OUT, Accept, View, lift, need_encode, refuse_signs, varies_on
from bnfold.rules.dead import passes_constants
from bnfold.rules.float_attributes import set_float
from bnfold.rules.operands import constant_edits, fitted
from bnfold.rules.unlocks import CONSTANT, NOT_ZERO, POSITIVE, UNIFORM

OPPOSITE = {"Max": "Min", "Min": "Max", "ReduceMax": "ReduceMin", "ReduceMin": "ReduceMax"}
OPPOSITE |= {"ArgMax": "ArgMin", "ArgMin": "ArgMax"}
"""-max(x) = min(-x)."""


def swapped(view: View, storage: Storage) -> tuple[Edit, ...]:
    """The edit that a scale asks for: none where it is positive, the opposite operator where all of it is negative."""
    negative = storage.num * storage.den < 0
    if np.any(negative) and np.all(negative):
        return (SetOperator(OPPOSITE[view.node.op]),)
    refuse_signs(view, storage)
    return ()


def _alike(view: View, slots: Sequence[int]) -> tuple[Storage, Accept]:
    """The operands and the output are stored alike: constants become a c + b."""
    out, keys = view.port(OUT), [*slots, OUT]
    fixed = [key for key in keys if view.port(key).fixed]
    lead = next((key for key in fixed if not view.port(key).storage.is_identity), fixed[0] if fixed else OUT)
    a, b = (lift(part, out.rank) for part in need_encode(view, view.port(lead).storage))
    accept = view.settle({key: fitted(view, view.port(key), a, b, out.rank) for key in keys})
    for slot in slots:
        constant = view.port(slot).constant
        if constant is not None and not _is_finite(view, slot, constant):
            raise view.refuse(
                "out-of-range", f"the constant at input {slot} of {view.node.op} is not finite", "make it finite"
            )
    return Storage.encode(a, b), Accept(accept.assign, constant_edits(view, slots, "operand"))


def _is_finite(view: View, slot: int, constant: Constant) -> bool:
    memo = view.node.memo
    if f"finite {slot}" not in memo:
        memo[f"finite {slot}"] = bool(np.all(np.isfinite(constant.float64())))
    return bool(memo[f"finite {slot}"])


def _extreme(view: View, values: Sequence[Array]) -> Array:
    found = values[0]
    for value in values[1:]:
        found = np.maximum(found, value) if view.node.op == "Max" else np.minimum(found, value)
    return found


@passes_constants(_extreme)
def extreme(view: View) -> list[Accept]:
    """y = max(x1, x2, ...): all are stored alike, a > 0 and any b, constants too; a < 0 for all swaps Max and Min."""
    storage, accept = _alike(view, range(len(view.node.inputs)))
    return [Accept(accept.assign, swapped(view, storage) + accept.edits)]


def where(view: View) -> list[Accept]:
    """y = x1 or x2: both are stored alike, any a and b, constants too."""
    return [_alike(view, (1, 2))[1]]


def _clipped(view: View, values: Sequence[Array]) -> Array:
    node, found = view.node, values[0]
    for slot, name, choose in ((1, "min", np.maximum), (2, "max", np.minimum)):
        if node.version < 11 and name in node.attributes:
            found = choose(found, node.get_float(name, 0.0))
        elif node.version >= 11 and node.input(slot):
            found = choose(found, values[slot])
    return found


_ONE_BOUND = "Clip has one bound only, which a negative scale would make the other one"


@passes_constants(_clipped)
def clip(view: View) -> list[Accept]:
    """y = min(max(x, low), high): one a != 0 for all channels, any b. The bounds become a m + b; a < 0 swaps them."""
    x, y = view.port(0), view.port(OUT)
    storage = y.storage if y.fixed and not x.fixed else x.storage
    mixed = varies_on(storage)
    if mixed:
        text = f"Clip has one bound for axis {min(mixed)}, on which the demand varies"
        raise view.refuse("not-uniform", text, UNIFORM)
    a, b = (float(part.reshape(())) for part in need_encode(view, storage))
    if a == 0:
        raise view.refuse("zero-scale", "Clip cannot undo a scale of zero", NOT_ZERO)
    accept = view.settle({OUT: storage, 0: storage})
    if (a, b) == (1.0, 0.0):
        return [accept]
    edits = _attribute_bounds(view, a, b) if view.node.version < 11 else _input_bounds(view, a, b)
    return [Accept(accept.assign, edits)]


def _input_bounds(view: View, a: float, b: float) -> tuple[Edit, ...]:
    node = view.node
    bounds = {slot: node.constant(slot) for slot in (1, 2) if node.input(slot)}
    if None in bounds.values():
        raise view.refuse("opaque-op", "the bounds of Clip are computed at run time", CONSTANT)
    if a < 0 and len(bounds) == 1:
        raise view.refuse("negative-scale", _ONE_BOUND, POSITIVE)
    found: list[Edit] = []
    for slot, hint in ((1, "min"), (2, "max")):
        bound = bounds.get(slot if a > 0 else 3 - slot)
        if bound is not None:
            found.append(_bound(bound, slot, hint, a, b))
    return tuple(found)


def _bound(bound: Constant, slot: int, hint: str, a: float, b: float) -> NewConstant:
    scale: Array = np.full(bound.shape, a)
    return NewConstant(slot, hint, bound.type, bound.shape, bound, (scale,), lambda: np.full(bound.shape, b))


def _attribute_bounds(view: View, a: float, b: float) -> tuple[Edit, ...]:
    node = view.node
    names = [name for name in ("min", "max") if name in node.attributes]
    if a < 0 and len(names) == 1:
        raise view.refuse("negative-scale", _ONE_BOUND, POSITIVE)
    target = {"min": "min", "max": "max"} if a > 0 else {"min": "max", "max": "min"}
    return tuple(set_float(view, target[name], a * node.get_float(name, 0.0) + b) for name in names)
