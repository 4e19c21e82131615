"""What a test puts beside an affine: an operator with inputs of every kind, a channel that is dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tests.builder import Builder
from tests.law import Folded, fold
from tests.rows import IMAGE, Apply

INT, FLOAT, DOUBLE = TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE


def at_run_time(*shape: int | str, type_: int = INT) -> Callable[[Builder], str]:
    return lambda b: b.input(*shape, name="given", type_=type_)


def with_inputs(op: str, *more: Callable[[Builder], str] | object, **attributes: Any) -> Apply:
    """An operator whose further inputs are constants, or what a function adds to the graph; None is left out."""

    def apply(b: Builder, x: str) -> str:
        inputs = ["" if one is None else one(b) if callable(one) else b.constant(np.asarray(one)) for one in more]
        return b.node(op, x, *inputs, **attributes)

    return apply


def unknown(axis: int, apply: Apply) -> Apply:
    """The operator behind a tensor of which one dimension is known at run time only."""

    def wrapped(b: Builder, x: str) -> str:
        shape = b.shape(x)
        b.inputs[0].type.tensor_type.shape.dim[axis].dim_param = "D"
        b.declare(x, *shape)
        return apply(b, x)

    return wrapped


def absorbed(apply: Apply) -> Apply:
    """The operator, and a Conv behind it."""
    return lambda b, x: b.absorber(apply(b, x))


def weighed(weights: object, *bias: object, **attributes: Any) -> Apply:
    """A Conv with these weights, and perhaps a bias."""
    return with_inputs("Conv", weights, *bias, **attributes)


def dead_behind(b: Builder, x: str) -> str:
    """A BatchNormalization that makes one channel a negative constant, and does nothing to the others."""
    alive = np.arange(6) != 2
    return b.bn(b.node("Relu", x), gamma=alive * 1.0, beta=alive - 1.0, mean=0.0, variance=1.0, epsilon=0.0)


def dead_in_front(apply: Apply) -> Apply:
    def made(b: Builder, x: str) -> str:
        alive = np.arange(6) != 2
        return apply(b, b.bn(x, gamma=alive * 1.0, beta=1.0 - alive, mean=0.0, variance=1.0, epsilon=0.0))

    return made


def normalised(opset: int = 17, shape: tuple[int | str, ...] = IMAGE, outputs: int = 1, **sizes: int) -> Builder:
    """A BatchNormalization with parameters of these sizes, 6 unless told."""
    b = Builder(opset)
    slots = [b.constant(np.full(sizes.get(name, 6), 0.5)) for name in ("scale", "bias", "mean", "variance")]
    made = ["y", *("mean", "variance")[: outputs - 1]]
    b.node("BatchNormalization", b.input(*shape), *slots, outputs=made)
    return b


def refused(model: onnx.ModelProto, text: str) -> Folded:
    """Nothing folds, and a reason says this."""
    case = fold(model)
    said = [reason.text for outcome in case.solution.outcomes for reason in outcome.reasons]
    assert any(text in one for one in said), said
    assert case.model == model
    return case
