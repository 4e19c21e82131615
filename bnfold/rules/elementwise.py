"""What rules for one input and one output of the same shape share, and the operators that need no more.

Source: ONNX operators Identity, Dropout, Neg, Cast, CastLike, Shape, Size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold.affine import Storage
from bnfold.graph import Node
from bnfold.rules.base import OUT, Accept, Mask, View, arriving, channel_count, faults
from bnfold.rules.unlocks import NO_SHIFT
from bnfold.source import FLOATS


def same_on_both(view: View, check: Callable[[Storage], Storage]) -> list[Accept]:
    """Input 0 and output 0 are stored alike; `check` refuses, or says what the output is for this input."""
    x, y = view.port(0), view.port(OUT)
    if x.fixed or not y.fixed:
        return [view.settle({OUT: check(x.storage)})]
    check(y.storage)
    return [view.settle({0: y.storage})]


def refuse_shift(view: View, storage: Storage, shifted: Mask) -> None:
    """Refuse where there is a shift that counts."""
    if np.any(shifted):
        text = f"{view.node.op} does not pass the shift of {channel_count(shifted)}"
        raise view.refuse("shift-through-nonlinear", text, NO_SHIFT, *faults(shifted, arriving(view, storage)[1]))


def identity(view: View) -> list[Accept]:
    """y = x."""
    return same_on_both(view, lambda storage: storage)


def negate(view: View) -> list[Accept]:
    """y = -x: a passes, b changes its sign."""
    x, y = view.port(0), view.port(OUT)
    key, storage = (OUT, x.storage) if x.fixed or not y.fixed else (0, y.storage)
    return [view.settle({key: Storage(storage.den, storage.num, -storage.off)})]


def cast(view: View) -> list[Accept]:
    """y = x in another float type (Cast, CastLike): passes."""
    graph, node = view.node.graph, view.node
    if graph.type(node.inputs[0]) not in FLOATS or graph.type(node.outputs[0]) not in FLOATS:
        raise view.refuse(
            "opaque-op",
            f"{node.op} to or from another than a float type",
            "cast before the layers around the affine, or behind them",
        )
    return same_on_both(view, lambda storage: storage)


def indifferent(view: View) -> list[Accept]:
    """Shape, Size: the values do not matter."""
    return [Accept()]


def drops_nothing(node: Node) -> bool:
    """Dropout at inference whose mask nobody reads: no training_mode, or a constant false; before opset 7, is_test."""
    if any(node.graph.consumers.get(name) or name in node.graph.output_set for name in node.outputs[1:] if name):
        return False
    if node.version < 7:
        return bool(node.get_int("is_test", 0))
    mode = node.constant(2)
    return not node.input(2) or (mode is not None and not bool(mode.load().any()))
