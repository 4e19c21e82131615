"""Weights behind a DequantizeLinear take a scale; activations between integers say what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.builder import KINDS, Builder
from tests.law import Folded, fold, law
from tests.rows import certified, runs_alike

FLOAT = TensorProto.FLOAT
TOLERANCE = 2e-6
"""Constants are float32: these operators know no float64."""

SHIFTLESS = "upsz"


def stored(b: Builder, values: Any, type_: int, name: str) -> str:
    """A constant of an integer type, four bits included."""
    array = np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(type_))
    b.initializers.append(numpy_helper.from_array(array, b.name(name)))
    return b.initializers[-1].name


def weights(
    b: Builder,
    *shape: int,
    axis: int | None = None,
    zero: bool = True,
    type_: int = TensorProto.INT8,
    one: bool = False,
    block: int = 0,
    written: int | None = None,
) -> str:
    """Quantized weights and their DequantizeLinear: one scale, or one along an axis, or for each block."""
    low, high = (-7, 8) if type_ == TensorProto.INT4 else (0, 255) if type_ == TensorProto.UINT8 else (-127, 128)
    q = stored(b, b.rng.integers(low, high, shape), type_, "q")
    size: tuple[int, ...] = (1,) if one else () if axis is None else (shape[axis],)
    if block:
        size = tuple(n // block if at == axis else n for at, n in enumerate(shape))
    scale = b.constant(b.rng.uniform(0.01, 0.1, size), "scale", FLOAT)
    more = [stored(b, b.rng.integers(max(low, 0), 4, size), type_, "zero")] if zero else []
    attributes: dict[str, Any] = (
        {} if axis is None and written is None else {"axis": axis if written is None else written}
    )
    return b.node("DequantizeLinear", q, scale, *more, **attributes | ({"block_size": block} if block else {}))


def conv(b: Builder, x: str, *shape: int, group: int = 1, bias: bool = False, **form: Any) -> str:
    inputs = [x, weights(b, *shape, **form)]
    inputs += [b.constant(b.normal(shape[0]), "bias")] if bias else []
    return b.node("Conv", *inputs, group=group)


def gemm(b: Builder, x: str, **form: Any) -> str:
    return b.node("Gemm", x, weights(b, 4, 6, **form), b.constant(b.normal(4), "c"), transB=1)


def matmul(b: Builder, x: str, **form: Any) -> str:
    return b.node("MatMul", x, weights(b, 6, 4, **form))


def deconv(b: Builder, x: str, **form: Any) -> str:
    return b.node("ConvTranspose", x, weights(b, 6, 2, 3, 3, **form), group=2, strides=[2, 1])


IMAGE = (3, 6, 7, 5)
# name, operator, input shape, opset, kinds that leave behind it, kinds that leave in front of it
FORMS: list[tuple[str, Any, tuple[int, ...], int, str, str]] = [
    ("conv", lambda b, x: conv(b, x, 4, 6, 3, 3), IMAGE, 13, KINDS, SHIFTLESS),
    ("conv with a bias", lambda b, x: conv(b, x, 4, 6, 1, 1, bias=True), IMAGE, 17, KINDS, SHIFTLESS),
    ("conv by channel", lambda b, x: conv(b, x, 4, 6, 1, 1, axis=0), IMAGE, 13, KINDS, "u"),
    ("conv by input channel", lambda b, x: conv(b, x, 4, 6, 1, 1, axis=1), IMAGE, 13, "uct", SHIFTLESS),
    ("conv by input channel, from the end", lambda b, x: conv(b, x, 4, 6, 1, 1, axis=1, written=-3), IMAGE, 17, "uct",
     SHIFTLESS),
    ("conv, no zero point", lambda b, x: conv(b, x, 4, 6, 3, 3, zero=False), IMAGE, 13, KINDS, SHIFTLESS),
    ("conv, uint8, a scale in a list", lambda b, x: conv(b, x, 4, 6, 1, 1, type_=TensorProto.UINT8, one=True), IMAGE,
     13, KINDS, SHIFTLESS),
    ("conv of opset 10", lambda b, x: conv(b, x, 4, 6, 1, 1), IMAGE, 10, "uct", "u"),
    ("conv, int4 by channel", lambda b, x: conv(b, x, 4, 6, 1, 1, axis=0, type_=TensorProto.INT4), IMAGE, 21, KINDS,
     "u"),
    ("conv, int4 with one scale", lambda b, x: conv(b, x, 4, 6, 1, 1, type_=TensorProto.INT4), IMAGE, 21, "uct", "u"),
    ("conv depthwise", lambda b, x: conv(b, x, 6, 1, 3, 3, group=6, axis=0), IMAGE, 13, KINDS, SHIFTLESS),
    ("conv transposed", deconv, IMAGE, 13, "uct", SHIFTLESS),
    ("gemm", gemm, (3, 6), 13, KINDS, SHIFTLESS),
    ("gemm by channel", lambda b, x: gemm(b, x, axis=0), (3, 6), 13, KINDS, "u"),
    ("matmul by channel", lambda b, x: matmul(b, x, axis=1), (3, 6), 13, "upsz", "u"),
    ("matmul in blocks", lambda b, x: matmul(b, x, axis=0, block=3, type_=TensorProto.INT4), (3, 6), 21, "upsz", "u"),
]  # fmt: skip


def built(form: Any, shape: tuple[int, ...], opset: int, side: str, kind: str) -> Builder:
    b = Builder(opset, FLOAT, ir=10)
    x = b.input(*shape)
    if side == "behind":
        b.affine(form(b, x), kind)
    else:
        form(b, b.affine(x, kind))
    return b


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("side", ["behind", "front"])
@pytest.mark.parametrize(("name", "form", "shape", "opset", "behind", "front"), FORMS, ids=[row[0] for row in FORMS])
def test_a_scale_goes_to_the_scale_of_quantized_weights(
    name: str, form: Any, shape: tuple[int, ...], opset: int, behind: str, front: str, side: str, kind: str
) -> None:
    case = law(built(form, shape, opset, side, kind).model(), tolerance=TOLERANCE)
    assert (case.left == 0) == (kind in (behind if side == "behind" else front)), (name, case.codes())
    certified(case)
    if case.left == 0:
        runs_alike(case, optimize="matmul" not in name)  # ONNX Runtime fuses it into one that is rounded


def quantized_bias(b: Builder, x: str, by_channel: bool) -> str:
    scale = b.constant(b.rng.uniform(0.01, 0.1, (4,) if by_channel else ()), "scale", FLOAT)
    axis: dict[str, Any] = {"axis": 0} if by_channel else {}
    values = stored(b, b.rng.integers(-900, 900, 4), TensorProto.INT32, "b")
    bias = b.node("DequantizeLinear", values, scale, **axis)
    return b.node("Conv", x, weights(b, 4, 6, 1, 1, zero=False), bias)


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_quantized_bias_takes_a_scale_only(kind: str, by_channel: bool) -> None:
    b = Builder(13, FLOAT)
    b.affine(quantized_bias(b, b.input(*IMAGE), by_channel), kind)
    case = law(b.model(), 0 if kind in SHIFTLESS else 1, tolerance=TOLERANCE)
    certified(case)
    if case.left:
        assert case.reason("quantized").unlock.startswith("fold before quantising")
    else:
        runs_alike(case)


def test_weights_that_are_quantized_in_the_graph() -> None:
    """As quantization-aware training exports them: float weights, QuantizeLinear, DequantizeLinear."""
    b = Builder(13, FLOAT)
    scale, zero = b.constant(0.02, "scale", FLOAT), stored(b, 0, TensorProto.INT8, "zero")
    q = b.node("QuantizeLinear", b.constant(b.normal(4, 6, 3, 3), "w"), scale, zero)
    b.affine(b.node("Conv", b.input(*IMAGE), b.node("DequantizeLinear", q, scale, zero)), "n")
    case = law(b.model(), 0, tolerance=TOLERANCE)
    certified(case)
    runs_alike(case)


def activation(b: Builder, x: str, size: int | None = None) -> str:
    """A tensor that passes through integers."""
    scales = 0.05 if size is None else b.rng.uniform(0.05, 0.1, size)
    shape = () if size is None else (size,)
    pair = b.constant(scales, "scale", FLOAT), stored(b, np.full(shape, 7), TensorProto.INT8, "zero")
    return b.node("DequantizeLinear", b.node("QuantizeLinear", x, *pair), *pair)


@pytest.mark.parametrize("side", ["front", "behind"])
@pytest.mark.parametrize(("factor", "left"), [(0.5, 0), (-0.5, 1), (0.0, 1), ([1, 2, 4, 8, 0.5, 0.25], 1)])
def test_a_quantized_activation_takes_one_positive_scale(side: str, factor: Any, left: int) -> None:
    b = Builder(13, FLOAT)
    x = b.input(*IMAGE)
    x = b.per_channel("Mul", x, factor) if side == "front" else b.node("Sigmoid", x)
    y = activation(b, x)
    if side == "behind":
        y = b.per_channel("Mul", y, factor)
    b.node("Sigmoid", y)
    case = law(b.model(), left, tolerance=TOLERANCE)
    certified(case)
    if left:
        case.reason("quantized")
    else:
        runs_alike(case)


def test_a_quantizer_by_channel_takes_a_scale_by_channel() -> None:
    b = Builder(13, FLOAT)
    b.node("Sigmoid", activation(b, b.per_channel("Mul", b.input(*IMAGE), [1, 2, 4, 8, 0.5, 0.25]), 6))
    case = law(b.model(), 0, tolerance=TOLERANCE)
    certified(case)
    runs_alike(case)


def test_a_batchnorm_between_integers_says_what_to_do() -> None:
    b = Builder(13, FLOAT)
    x = activation(b, b.input(*IMAGE))
    activation(b, b.bn(x))
    case = law(b.model(), 1, tolerance=TOLERANCE)
    assert case.reason("quantized").unlock == "fold before quantising: run bnfold on the float model, then quantise"


def test_operators_on_integers_say_what_to_do() -> None:
    b = Builder(13, FLOAT)
    scale, zero = b.constant(0.1, "scale", FLOAT), stored(b, 0, TensorProto.UINT8, "zero")
    low = b.node("DynamicQuantizeLinear", b.bn(b.input(*IMAGE)), outputs=["q", "s", "z"])
    b.node("DequantizeLinear", low, scale, zero)
    law(b.model(), 1, tolerance=TOLERANCE).reason("quantized")


def test_shared_weights_of_two_convolutions_agree_or_stay() -> None:
    b = Builder(13, FLOAT)
    w, x = weights(b, 4, 6, 1, 1), b.input(*IMAGE)
    b.affine(b.node("Conv", x, w), "p")
    b.node("Sigmoid", b.node("Conv", x, w))
    certified(law(b.model(), 1, tolerance=TOLERANCE))


def two_by_channel() -> Folded:
    b = Builder(13, FLOAT)
    b.affine(conv(b, b.input(*IMAGE), 4, 6, 1, 1), "n")
    return fold(b.model())


@pytest.mark.parametrize("what", ["axis", "scale", "zero", "shape"])
def test_the_certificate_sees_wrong_scales_and_zero_points(what: str) -> None:
    case = two_by_channel()
    certified(case)
    (node,) = [n for n in case.model.graph.node if n.op_type == "DequantizeLinear"]
    if what == "axis":
        node.attribute[0].i = 1
    else:
        name = node.input[1 if what == "scale" else 2]
        (tensor,) = [t for t in case.model.graph.initializer if t.name == name]
        values = numpy_helper.to_array(tensor).copy()
        values[1] = np.nextafter(values[1], np.float32(9)) if what == "scale" else values[1] + (what == "zero")
        tensor.CopyFrom(numpy_helper.from_array(values[:1] if what == "shape" else values, name))
    with pytest.raises(AssertionError, match="Failure"):
        certified(case)
