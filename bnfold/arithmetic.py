"""Arithmetic on a few numbers in their own type, rounded at every step as a runtime does.

Source: ONNX operators Add, Sub, Mul, Div, Mod, Neg, Abs, Ceil, Floor, Max, Min, Clip, opset 11 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnfold.constants import Value

if TYPE_CHECKING:
    from bnfold.graph import Node

LARGE = 2**31
"""Numbers of this magnitude are not computed with: they are no sizes, and could overflow."""


def are_sizes(values: Iterable[Value]) -> bool:
    """Whether they are small enough to be computed with."""
    return all(bool(np.all(np.abs(value.astype(np.float64)) < LARGE)) for value in values)


def computed(node: Node, inputs: Sequence[Value | None]) -> Value | None:
    """What one of the operators makes of its inputs, None where that is not certain.

    Args:
        node: its operator is one of `ARITHMETIC`.
        inputs: None where they are left out.
    """
    known = [value for value in inputs if value is not None]
    if node.version < 11 or not known or not are_sizes(known) or len({value.dtype for value in known}) > 1:
        return None
    dtype = known[0].dtype
    # Integers are computed in 64 bits: what would not fit the smaller type is too large anyhow.
    wide = [None if value is None else value.astype(np.int64) if dtype.kind == "i" else value for value in inputs]
    try:
        with np.errstate(all="ignore"):
            made = _RULES[node.op](node, wide)
    except ValueError:  # shapes that do not fit
        return None
    return None if made is None or not are_sizes([made]) else np.asarray(made, dtype)


Numbers = NDArray[Any]
Rule = Callable[["Node", Sequence[Value | None]], Value | None]


def _elementwise(compute: Callable[..., Value | None]) -> Rule:
    return lambda node, inputs: compute(*(value for value in inputs if value is not None))


def _divide(x: Numbers, y: Numbers) -> Value | None:
    if not np.all(y):
        return None
    if x.dtype.kind == "i":  # integers are divided towards zero
        return np.asarray(np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y)))
    return np.asarray(x / y)


def _modulo(node: Node, inputs: Sequence[Value | None]) -> Value | None:
    x, y = inputs
    if x is None or y is None or x.dtype.kind != "i" or not np.all(y) or node.get_int("fmod", 0):
        return None
    return np.asarray(np.mod(x, y))


def _clip(node: Node, inputs: Sequence[Value | None]) -> Value | None:
    x, least, most = (*inputs, None, None)[:3]
    if x is None:
        return None
    x = x if least is None else np.maximum(x, least)
    return x if most is None else np.minimum(x, most)


_RULES: Mapping[str, Rule] = {
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Ceil": _elementwise(np.ceil),
    "Floor": _elementwise(np.floor),
    "Max": _elementwise(lambda *values: np.max(np.broadcast_arrays(*values), axis=0)),
    "Min": _elementwise(lambda *values: np.min(np.broadcast_arrays(*values), axis=0)),
    "Mod": _modulo,
    "Clip": _clip,
}

ARITHMETIC = frozenset(_RULES)
"""The operators."""
