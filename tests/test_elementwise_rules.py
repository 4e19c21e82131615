"""Rules of elementwise operators under what `tests.test_rules` has no letter for: signs, uniform affines, zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto

from bnfold.certificate import certify
from bnfold.graph import Model
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.source import read
from tests.builder import Builder
from tests.law import Folded, check, fold, law

Apply = Callable[[Builder, str], str]
Row = tuple[Apply, int]

SIDES = ("front", "behind")
IMAGE = (3, 6, 7, 5)


def around(
    apply: Apply, side: str, scale: ArrayLike, shift: ArrayLike = 0.0, opset: int = 17, type_: int = TensorProto.DOUBLE
) -> onnx.ModelProto:
    """A Mul and an Add in front of an operator, or behind it, and what takes them up on its other side."""
    b = Builder(opset, type_)

    def affine(x: str) -> str:
        scaled = b.per_channel("Mul", x, scale) if np.any(np.asarray(scale) != 1) else x
        return b.per_channel("Add", scaled, shift) if np.any(np.asarray(shift) != 0) else scaled

    x = b.input(*IMAGE)
    if side == "front":
        b.absorber(apply(b, affine(x)))
    else:
        affine(apply(b, b.absorber(x, out=IMAGE[1])))
    return b.model()


def node(op: str, **attributes: Any) -> Apply:
    return lambda b, x: b.node(op, x, **attributes)


def reduced(op: str) -> Apply:
    return lambda b, x: b.node(op, x, axes=[2], keepdims=1)


def cropped(b: Builder, x: str) -> str:
    roi = b.constant([0.0, 0.0, -0.25, 0.0, 1.0, 1.0, 0.75, 1.0], "roi", TensorProto.FLOAT)
    scales = b.constant([1.0, 1.0, 2.0, 1.0], "scales", TensorProto.FLOAT)
    how: dict[str, Any] = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 0.5}
    return b.node("Resize", x, roi, scales, mode="linear", **how)


# One scale and one shift for all channels: bounds, borders and slopes move along.

UNIFORM: dict[str, Row] = {
    "clip": (lambda b, x: b.node("Clip", x, b.constant(-0.5), b.constant(1.5)), 17),
    "clip by attributes": (node("Clip", min=-0.5, max=1.5), 6),
    "clip by attributes of opset 10": (node("Clip", min=-0.5, max=1.5), 10),
    "max": (lambda b, x: b.node("Max", x, b.constant(0.25)), 17),
    "min of all": (lambda b, x: b.node("Min", x, b.constant(b.normal(*IMAGE))), 17),
    "reduce max": (reduced("ReduceMax"), 17),
    "reduce max along an axis that is named twice": (node("ReduceMax", axes=[3, -1]), 17),
    "where": (lambda b, x: b.node("Where", b.constant(b.normal(7, 5) > 0), x, b.constant(0.25)), 17),
    "pad": (lambda b, x: b.node("Pad", x, b.constant([0, 0, 1, 0, 0, 0, 2, 1])), 17),
    "pad with a number": (lambda b, x: b.node("Pad", x, b.constant([0, 1, 1, 0, 0, 0, 2, 1]), b.constant(-0.5)), 17),
    "pad of one axis": (lambda b, x: b.node("Pad", x, b.constant([1, 2]), b.constant(-0.5), b.constant([3])), 18),
    "pad by attributes": (node("Pad", mode="constant", value=-0.5, pads=[0, 0, 1, 0, 0, 0, 2, 1]), 2),
    "crop": (cropped, 17),
}  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("scale", "shift"), [(-0.5, 0.0), (2.0, 0.75), (-2.0, 0.25), (1.0, -0.5)])
@pytest.mark.parametrize("row", UNIFORM)
def test_one_scale_and_shift_for_all(row: str, scale: float, shift: float, side: str) -> None:
    apply, opset = UNIFORM[row]
    law(around(apply, side, scale, shift, opset), left=0)


@pytest.mark.parametrize("op", ["Max", "ReduceMax"])
def test_a_negative_scale_turns_the_largest_into_the_smallest(op: str) -> None:
    apply = UNIFORM["max"][0] if op == "Max" else reduced(op)
    assert law(around(apply, "behind", -1.5), left=0).ops == ["Conv", op.replace("Max", "Min")]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_where_the_largest_is_does_not_depend_on_scale_and_shift(op: str, last: int) -> None:
    def apply(b: Builder, x: str) -> str:
        return b.node(op, x, axis=2, select_last_index=last)

    def model(kind: str) -> onnx.ModelProto:
        b = Builder(13)
        apply(b, b.affine(b.input(*IMAGE), kind))
        return b.model()

    other = {"ArgMax": "ArgMin", "ArgMin": "ArgMax"}[op]
    assert law(model("b"), left=0).ops == [op]
    assert law(model("c"), left=0).ops == [other]
    assert "negative-scale" in law(model("s"), left=1).codes()["mul"]
    assert "zero-scale" in law(model("z"), left=1).codes()["mul"]
    across = Builder(13)
    across.node(op, across.affine(across.input(*IMAGE), "p"), axis=1)
    assert "not-uniform" in law(across.model(), left=1).codes()["mul"]


ONE_BOUND: list[Row] = [
    (lambda b, x: b.node("Clip", x, b.constant(0.25)), 17),
    (lambda b, x: b.node("Clip", x, "", b.constant(0.25)), 17),
    (node("Clip", max=0.25), 6),
]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("row", ONE_BOUND)
def test_a_clip_with_one_bound_keeps_it(row: Row, side: str) -> None:
    law(around(row[0], side, 2.0, -1.0, row[1]), left=0)
    assert "negative-scale" in law(around(row[0], side, -2.0, 0.0, row[1]), left=1).codes()["mul"]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("alpha", "left"), [(0.25, 0), (2.0, 0), (0.3, 1), (-0.25, None)])
def test_a_leaky_relu_turns_over_where_its_slope_can_be_held(alpha: float, left: int | None, side: str) -> None:
    expected = left if left is not None else 0 if side == "front" else 1
    law(around(node("LeakyRelu", alpha=alpha), side, -3.0), left=expected)
    law(around(node("LeakyRelu", alpha=alpha), side, [1.0, 2.0, 0.5, -1.0, 1.0, 1.0]), left=1)


def float_law(model: onnx.ModelProto, left: int) -> Folded:
    """The law in float32: what it lacks in digits, the certificate has."""
    case = fold(model)
    check(case, tolerance=1e-5)
    assert case.left == left, case.codes()
    return case


@pytest.mark.parametrize("row", ["clip by attributes", "pad by attributes", "crop"])
def test_an_attribute_is_rounded_in_a_float32_model_and_not_in_a_float64_one(row: str) -> None:
    apply, opset = UNIFORM[row]
    case = float_law(around(apply, "behind", 0.7, 0.1, opset, TensorProto.FLOAT), left=0)
    name = {"clip by attributes": "max", "pad by attributes": "value", "crop": "extrapolation_value"}[row]
    found = next(a for n in case.model.graph.node for a in n.attribute if a.name == name)
    plan = witness_of(Rewrite.of(case.solution.plan))
    for ulps, good in ((0, True), (2, False)):
        found.f = float(np.nextafter(np.float32(found.f), np.float32(9), dtype=np.float32)) if ulps else found.f
        found.f = float(np.nextafter(np.float32(found.f), np.float32(9), dtype=np.float32)) if ulps else found.f
        proof = certify(Model(read(case.original)), Model(read(case.model)), plan)
        assert proof.ok is good, proof.failures
    codes = law(around(apply, "behind", 0.7, 0.1, opset)).codes()
    assert any("out-of-range" in found for found in codes.values()), codes


# Signs: they pass odd functions, vanish in even ones, and turn a sigmoid over.

SIGNS = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0]
ODD = {
    "Tanh": 13, "Erf": 13, "Sin": 22, "Atan": 22, "Asinh": 22, "Softsign": 22, "Sign": 13, "Round": 22, "Sinh": 22,
    "Tan": 22,
}  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("op", ODD)
def test_a_sign_passes_an_odd_function(op: str, side: str) -> None:
    law(around(node(op), side, SIGNS, opset=ODD[op]), left=0)
    assert "opaque-op" in law(around(node(op), side, [-2.0, *SIGNS[1:]], opset=ODD[op]), left=1).codes()["mul"]


@pytest.mark.parametrize("op", ["Asin", "Atanh"])
def test_a_sign_passes_odd_functions_of_an_interval(op: str) -> None:
    law(around(lambda b, x: b.node(op, b.node("Tanh", x)), "front", SIGNS, opset=22), left=0)


@pytest.mark.parametrize("op", ["Cos", "Cosh", "Abs"])
def test_a_sign_vanishes_in_an_even_function(op: str) -> None:
    law(around(node(op), "front", SIGNS, opset=22), left=0)
    law(around(node(op), "behind", SIGNS, opset=22), left=1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("op", ["Sigmoid", "HardSigmoid"])
def test_a_sign_turns_a_sigmoid_over(op: str, side: str) -> None:
    def model(shift: ArrayLike) -> onnx.ModelProto:
        b = Builder()
        known: dict[str, Any] = {"gamma": SIGNS, "beta": shift, "mean": 0.0, "variance": 1.0, "epsilon": 0.0}
        if side == "front":
            b.absorber(b.node(op, b.bn(b.input(*IMAGE), **known)))
        else:
            b.bn(b.node(op, b.absorber(b.input(*IMAGE), out=6)), **known)
        return b.model()

    flips = np.asarray(SIGNS)
    law(model(0.0 if side == "front" else (1 - flips) / 2), left=0)
    assert "opaque-op" in law(model(0.25), left=1).codes()["bn"]
    if op == "HardSigmoid":
        law(around(node(op, beta=0.25), side, flips), left=1)


# Gates and quotients.


def gate_under(b: Builder, x: str) -> str:
    return b.node("Div", x, b.node("Sigmoid", b.input(*IMAGE, name="gate")))


def gate_over(b: Builder, x: str) -> str:
    return b.node("Div", b.node("Sigmoid", b.input(*IMAGE, name="gate")), x)


QUOTIENTS: dict[str, tuple[Apply, int]] = {
    "divided by a gate": (gate_under, 17),
    "a gate divided": (gate_over, 17),
    "a constant divided": (lambda b, x: b.node("Div", b.constant(b.normal(6, 1, 1)), x), 17),
    "a number divided": (lambda b, x: b.node("Div", b.constant(2.0), x), 7),
    "divided by what enlarges it": (lambda b, x: b.node("Div", x, b.constant(b.normal(2, 1, 1, 1, 1))), 17),
    "reciprocal": (node("Reciprocal"), 13),
    "power of minus two": (lambda b, x: b.node("Pow", x, b.constant(-2.0)), 13),
    "power of minus three": (lambda b, x: b.node("Pow", x, b.constant(np.array(-3))), 13),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("row", QUOTIENTS)
def test_a_scale_passes_a_quotient(row: str, side: str) -> None:
    apply, opset = QUOTIENTS[row]
    even, enlarged = row == "power of minus two", "enlarges" in row
    scales = [0.5, 2.0, 1e-3, 1.0, 3.0, 0.7]
    b_scale: ArrayLike = 0.7 if enlarged else scales
    law(around(apply, side, b_scale, opset=opset), left=0)
    if not enlarged:
        law(around(apply, side, [-0.5, *scales[1:]], opset=opset), left=int(even and side == "behind"))
        codes = law(around(apply, side, 1.0, scales, opset=opset), left=1).codes()["add"]
        assert codes & {"shift-through-nonlinear", "graph-output"}


@pytest.mark.parametrize("op", ["Pow", "Sqrt"])
def test_a_negative_scale_does_not_pass_a_root(op: str) -> None:
    def apply(b: Builder, x: str) -> str:
        return b.node(op, x, b.constant(4.0)) if op == "Pow" else b.node(op, b.node("Abs", x))

    model = around(apply, "behind", [-1.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    assert "negative-scale" in law(model, left=1).codes()["mul"]


def test_a_quotient_by_itself() -> None:
    law(around(lambda b, x: b.node("Div", x, x), "front", SIGNS), left=0)
    law(around(lambda b, x: b.node("Div", x, x), "behind", SIGNS), left=1)


@pytest.mark.parametrize("known", [True, False])
def test_a_power_at_run_time_or_of_several_exponents_refuses(known: bool) -> None:
    def apply(b: Builder, x: str) -> str:
        return b.node("Pow", b.node("Abs", x), b.constant([1.0, 2.0, 3.0, 2.0, 1.0]) if known else b.input(1, name="p"))

    assert "opaque-op" in law(around(apply, "front", [1.0, 2.0, 3.0, 1.0, 1.0, 1.0]), left=1).codes()["mul"]


# Constant channels: a BN whose gamma is zero on some channels, and does nothing on the others.


def some_dead(b: Builder, x: str, beta: float = -0.75) -> str:
    alive = np.arange(IMAGE[1]) % 3 != 1
    return b.bn(x, gamma=alive * 1.0, beta=np.where(alive, 0.0, beta), mean=0.0, variance=1.0, epsilon=0.0)


DEAD: dict[str, Row] = {
    **{op: (node(op), 22) for op in (
        "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softsign", "Cos", "Elu", "Selu", "Gelu", "HardSwish",
        "Softplus", "Mish", "Shrink", "ThresholdedRelu", "Floor", "Ceil", "Round", "Sign", "Relu", "LeakyRelu", "Abs",
    )},
    "Gelu by tanh": (node("Gelu", approximate="tanh"), 22),
    "Selu of opset 1": (node("Selu"), 6),
    "HardSigmoid with attributes": (node("HardSigmoid", alpha=0.4, beta=0.3), 17),
    "Shrink with attributes": (node("Shrink", lambd=0.3, bias=0.2), 17),
    "Swish": (node("Swish", alpha=1.5), 24),
    "PRelu": (lambda b, x: b.prelu(x, [0.5, -0.4, 1.7, 0.01, -2.0, 0.25]), 17),
    "Clip": (lambda b, x: b.node("Clip", x, b.constant(-0.5), b.constant(0.5)), 17),
    "Clip from above": (lambda b, x: b.node("Clip", x, "", b.constant(0.5)), 17),
    "Clip by attributes": (node("Clip", min=-0.25, max=0.5), 10),
    "Max": (lambda b, x: b.node("Max", x, b.constant(b.normal(6, 1, 1))), 17),
    "Add": (lambda b, x: b.node("Add", x, b.node("Tanh", x)), 17),
    "Mul": (lambda b, x: b.node("Mul", x, b.node("Sigmoid", x)), 17),
    "Sub": (lambda b, x: b.node("Sub", b.node("GlobalAveragePool", x), x), 17),
    "MaxPool": (node("MaxPool", kernel_shape=[2, 2], pads=[1, 0, 0, 0]), 17),
    "ReduceMean": (reduced("ReduceMean"), 17),
}  # fmt: skip


@pytest.mark.parametrize("row", DEAD)
def test_a_constant_channel_passes(row: str) -> None:
    apply, opset = DEAD[row]
    b = Builder(opset)
    b.absorber(apply(b, some_dead(b, b.input(*IMAGE))))
    law(b.model(), left=0)


def test_a_constant_channel_passes_celu() -> None:
    b = Builder(17, TensorProto.FLOAT)  # Celu knows float32 only
    b.absorber(b.node("Celu", some_dead(b, b.input(*IMAGE)), alpha=0.7))
    float_law(b.model(), left=0)


def test_a_channel_that_is_zero_passes_a_gate() -> None:
    b = Builder()
    gate = b.node("Sigmoid", b.input(*IMAGE, name="gate"))
    b.absorber(b.node("Mul", gate, some_dead(b, b.input(*IMAGE), beta=0.0)))
    law(b.model(), left=0)


ALIVE: dict[str, Apply] = {
    "a sum with one that varies": lambda b, x: b.node("Add", x, b.input(*IMAGE, name="side")),
    "a gate that is not zero": lambda b, x: b.node("Mul", x, b.input(*IMAGE, name="side")),
    "an exponential": node("Exp"),
    "a tangent": node("Tan"),
    "a largest of two": lambda b, x: b.node("Max", x, b.input(*IMAGE, name="side")),
    "an Lp pool": node("GlobalLpPool"),
}


@pytest.mark.parametrize("row", ALIVE)
def test_a_constant_channel_does_not_pass(row: str) -> None:
    b = Builder(22)
    b.absorber(ALIVE[row](b, some_dead(b, b.input(*IMAGE))))
    assert {"zero-scale", "opaque-op"} & law(b.model(), left=1).codes()["bn"]


# Activations written out: the scale behind goes into their constant factor, whatever the order of the operands.


def gelu(b: Builder, x: str, order: int) -> str:
    root, one, half = b.constant(np.sqrt(2.0)), b.constant(1.0), b.constant(0.5)
    inner = b.node("Add", b.node("Erf", b.node("Div", x, root)), one)
    if order == 0:
        return b.node("Mul", b.node("Mul", x, half), inner)
    if order == 1:
        return b.node("Mul", inner, b.node("Mul", half, x))
    if order == 2:
        return b.node("Mul", b.node("Mul", x, inner), half)
    return b.node("Mul", x, b.node("Mul", inner, half))


def hard_swish(b: Builder, x: str, order: int) -> str:
    bounds = b.constant(0.0), b.constant(6.0)
    inner = b.node("Clip", b.node("Add", x, b.constant(3.0)), *bounds)
    if order == 0:
        return b.node("Div", b.node("Mul", x, inner), b.constant(6.0))
    if order == 1:
        return b.node("Mul", x, b.node("Div", inner, b.constant(6.0)))
    if order == 2:
        return b.node("Mul", b.node("Mul", inner, b.constant(1 / 6)), x)
    return b.node("Mul", b.node("Mul", b.constant(1 / 6), x), inner)


Written = Callable[[Builder, str, int], str]


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("function", [gelu, hard_swish])
def test_a_scale_behind_a_written_out_activation(function: Written, order: int) -> None:
    b = Builder()
    gamma = [1.0, -2.0, 0.5, 0.0 if function is gelu else 2.0, 1e-3, -1.0]  # a divisor takes no zero
    b.bn(function(b, b.absorber(b.input(*IMAGE), out=6), order), gamma, beta=0, mean=0)
    assert "BatchNormalization" not in law(b.model()).ops
    b.bn(b.node("Identity", function(b, b.absorber(b.input(*IMAGE, name="other"), out=6), order)))
    assert "shift-through-nonlinear" in law(b.model()).codes()["bn2"]


def test_a_scale_behind_x_times_its_sigmoid_stays() -> None:
    b = Builder()
    x = b.absorber(b.input(*IMAGE), out=6)
    b.affine(b.node("Mul", x, b.node("Sigmoid", x)), "p")
    law(b.model(), left=1)
