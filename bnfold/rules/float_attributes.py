"""Float attributes: ONNX stores them in float32, whatever the type of the model."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bnfold.plan import SetAttribute
from bnfold.rules.base import View
from bnfold.rules.unlocks import LESS_EXTREME


def set_float(view: View, name: str, value: float, exactly: bool = False) -> SetAttribute:
    """The edit that gives an attribute a value, rounded once to float32.

    Refused where it would overflow; and where it would be rounded in a float64 model, or anywhere if `exactly`: the
    attribute would hold fewer digits than the constants around it.
    """
    with np.errstate(over="ignore"):
        stored = float(np.float32(value))
    precise = exactly or view.node.graph.type(view.node.inputs[0]) not in _COARSE
    if not np.isfinite(stored) or (precise and stored != value) or (value != 0 and abs(stored) < _SMALLEST):
        raise view.refuse(
            "out-of-range",
            f"{value:.9g} does not fit the attribute {name!r} of {view.node.op}, which is a float32",
            LESS_EXTREME,
        )
    return SetAttribute(name, stored)


_COARSE = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_SMALLEST = float(np.finfo(np.float32).smallest_normal)
