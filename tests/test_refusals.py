"""Guards of rules that no other table triggers: an affine beside the operator stays, for the reason in the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from bnfold.affine import Storage
from bnfold.graph import Model
from bnfold.rules import Refused, View
from bnfold.rules.base import OUT, Port
from bnfold.source import read
from tests.builder import Builder
from tests.law import Folded, fold, law
from tests.rows import IMAGE, Apply, node

INT, FLOAT, DOUBLE = TensorProto.INT64, TensorProto.FLOAT, TensorProto.DOUBLE


@dataclass(frozen=True)
class Refusal:
    """An operator, an affine in front of it or behind it, and a part of the reason why that stays."""

    text: str
    apply: Apply
    side: str = "front"
    kind: str = "p"
    """A letter of `Builder.affine`; a number scales all channels alike."""
    opset: int = 17
    shape: tuple[int, ...] = IMAGE
    axis: int = 1
    type_: int = DOUBLE


def at_run_time(*shape: int, type_: int = INT) -> Callable[[Builder], str]:
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


def weighed(weights: object, **attributes: Any) -> Apply:
    """A Conv with these weights."""
    return with_inputs("Conv", weights, **attributes)


def to_integers(b: Builder, x: str) -> str:
    return b.node("Cast", x, to=INT)


def from_integers(b: Builder, x: str) -> str:
    return b.node("Cast", b.node("Cast", x, to=INT), to=DOUBLE)


def dead_behind(b: Builder, x: str) -> str:
    """A BatchNormalization that makes one channel a negative constant, and does nothing to the others."""
    alive = np.arange(6) != 2
    return b.bn(b.node("Relu", x), gamma=alive * 1.0, beta=alive - 1.0, mean=0.0, variance=1.0, epsilon=0.0)


def dead_in_front(apply: Apply) -> Apply:
    def made(b: Builder, x: str) -> str:
        alive = np.arange(6) != 2
        return apply(b, b.bn(x, gamma=alive * 1.0, beta=1.0 - alive, mean=0.0, variance=1.0, epsilon=0.0))

    return made


EVERYWHERE = [0, 0, 1, 0, 0, 0, 2, 1]
SLOPES = np.linspace(0.5, 1.5, 210).reshape(6, 7, 5)

REFUSALS = [
    # What steers an operator must be known.
    Refusal("the pads are computed", with_inputs("Pad", at_run_time(8))),
    Refusal("the axes of Pad are computed", with_inputs("Pad", [1, 1], None, at_run_time(1)), opset=18),
    Refusal("the constant of Pad is computed", with_inputs("Pad", EVERYWHERE, at_run_time(type_=DOUBLE))),
    Refusal("Pad puts -inf around", with_inputs("Pad", EVERYWHERE, -np.inf)),
    Refusal(
        "crops a region that is computed",
        with_inputs(
            "Resize",
            at_run_time(8, type_=FLOAT),
            None,
            [3, 6, 14, 5],
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
    ),
    Refusal("the indices of Gather are computed", with_inputs("Gather", at_run_time(2), axis=1)),
    Refusal("the condition of Compress is computed", with_inputs("Compress", at_run_time(6, type_=9), axis=1)),
    Refusal("Compress without an axis", with_inputs("Compress", np.array([True, False]))),
    Refusal("input 1 of Slice is computed", with_inputs("Slice", at_run_time(1), [4], [1])),
    Refusal("the repeats of Tile are not known", with_inputs("Tile", [2], [1]), opset=5),
    Refusal("the axis of CumSum is computed", with_inputs("CumSum", at_run_time(1))),
    Refusal("the bounds of Clip are computed", absorbed(with_inputs("Clip", at_run_time(type_=DOUBLE))), kind="0.5"),
    # Sizes that are known at run time only.
    Refusal("axis 2 of Slice has no known size", unknown(2, with_inputs("Slice", [0], [4], [2]))),
    Refusal("an input of Concat along axis 2", unknown(2, lambda b, x: b.node("Concat", x, x, axis=2))),
    Refusal("mixes channels with a dimension", unknown(2, with_inputs("Reshape", [3, -1, 5]))),
    Refusal("ReduceSum adds a number of elements", unknown(2, with_inputs("ReduceSum", [2])), kind="t"),
    Refusal("rank of output 0 of Reshape", with_inputs("Reshape", lambda b: b.input("N", name="given", type_=INT))),
    Refusal("pads its input", unknown(2, weighed(np.ones((2, 6, 3, 1)), pads=[0, 0, 1, 0])), kind="t"),
    Refusal("pads its input", unknown(2, weighed(np.ones((2, 6, 3, 1)), auto_pad="SAME_UPPER")), kind="t"),
    # Forms that no rule knows.
    Refusal("the weights of Conv are not of a float type", weighed(np.ones((2, 6, 1, 1), np.int64))),
    Refusal("the weights of Conv have shape (4, 6)", weighed(np.ones((4, 6)))),
    Refusal("the weights of Conv have shape (4, 2, 1, 1)", weighed(np.ones((4, 2, 1, 1)), group=3)),
    Refusal("the weights of Conv have shape (4, 6, 1, 1)", weighed(np.ones((4, 6, 1, 1)), group=-1)),
    Refusal("slopes of PRelu have more axes", with_inputs("PRelu", np.ones((1, 1, 6))), shape=(3, 6)),
    Refusal("one slope for each channel", absorbed(with_inputs("PRelu", SLOPES)), kind="s", opset=6),
    Refusal("repeats one pattern along an axis", node("SpaceToDepth", blocksize=2), shape=(3, 5, 6, 4), axis=2),
    Refusal("without axes does not reduce", node("ReduceL1", noop_with_empty_axes=1), opset=18),
    Refusal("to or from another than a float type", to_integers),
    Refusal("to or from another than a float type", from_integers, side="behind"),
    Refusal("training_mode is 1", lambda b, x: b.bn(x, training_mode=1)),
    Refusal("not a scale by a constant", with_inputs("Mul", np.inf)),
    # Numbers that do not fit.
    Refusal("a power of zero", with_inputs("Pow", 0.0)),
    Refusal("to the power of 40 does not fit", with_inputs("Pow", 40.0), kind="1e10"),
    Refusal("to the power of 40 does not fit", with_inputs("Pow", 40.0), kind="1e-10"),
    Refusal("the constant at input 1 of Max is not finite", absorbed(with_inputs("Max", -np.inf))),
    Refusal("Clip cannot undo a scale of zero", with_inputs("Clip", 0.5, 1.5), side="behind", kind="0"),
    Refusal("does not fit the attribute 'max'", node("Clip", max=3e38), "behind", "1e10", 6, type_=FLOAT),
    Refusal("does not fit the attribute 'max'", node("Clip", max=1e-36), "behind", "1e-4", 6, type_=FLOAT),
    Refusal("would cut off a constant channel", dead_behind, side="behind", kind=""),
    Refusal("of a constant channel is not finite", dead_in_front(with_inputs("Max", np.inf)), kind=""),
]  # fmt: skip


def refused(model: onnx.ModelProto, text: str) -> Folded:
    """Nothing folds, and a reason says this."""
    case = fold(model)
    said = [reason.text for outcome in case.solution.outcomes for reason in outcome.reasons]
    assert any(text in one for one in said), said
    assert case.model == model
    return case


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row.text} {row.kind} {row.side}")
def test_an_affine_stays_beside_an_operator(row: Refusal) -> None:
    b = Builder(row.opset, row.type_)
    x = b.input(*row.shape)

    def affine(x: str) -> str:
        if not row.kind:
            return x
        number = row.kind[0].isdigit()
        return b.per_channel("Mul", x, float(row.kind)) if number else b.affine(x, row.kind, row.axis)

    if row.side == "front":
        row.apply(b, affine(x))
    else:
        affine(row.apply(b, b.conv(x, 6, 1) if row.kind or row.apply is dead_behind else x))
    refused(b.model(), row.text)


def test_axes_of_a_reduction_that_are_computed() -> None:
    b = Builder()
    b.node("ReduceSum", b.affine(b.input(*IMAGE), "p"), b.input(1, name="given", type_=INT))
    model = b.model()
    for _ in IMAGE:  # inference does not tell the rank, a user may
        model.graph.output[0].type.tensor_type.shape.dim.add()
    refused(model, "the axes of ReduceSum are computed")


def test_no_tensor_relates_nothing_to_nothing() -> None:
    b = Builder()
    b.node("Identity", b.input(*IMAGE))
    one = Storage.identity(4)
    view = View(Model(read(b.model())).graphs[0].nodes[0], {key: Port("x", IMAGE, one, False) for key in (0, OUT)})
    with pytest.raises(Refused, match="constant before and after"):
        view.settle({OUT: Storage(0 * one.den, 0 * one.num, one.den)})


# One tensor that a zero scale would make constant, and whose other reader has no use for a constant.


def divisor(b: Builder, x: str) -> None:
    b.absorber(b.node("Div", b.node("Sigmoid", b.input(*IMAGE, name="gate")), x))


def largest(b: Builder, x: str) -> None:
    b.node("ArgMax", x, axis=2)


def smallest_backwards(b: Builder, x: str) -> None:
    b.node("MaxPool", x, outputs=["pooled", "indices"], kernel_shape=[2, 2])


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (divisor, "a divisor cannot become zero"),
        (largest, "a constant channel has no indices"),
        (smallest_backwards, "a constant channel has no indices"),
    ],
)
def test_a_channel_that_is_lost_to_another_reader(reader: Callable[[Builder, str], None], text: str) -> None:
    b = Builder()
    x = b.conv(b.input(*IMAGE), 6, 1)
    b.affine(x, "z")
    reader(b, x)
    refused(b.model(), text)


def test_a_sum_that_became_constant_takes_no_other_shift() -> None:
    b = Builder()
    x = b.input(*IMAGE)
    y = dead_in_front(lambda b, x: x)(b, b.node("Add", b.conv(x, 6, 1), b.conv(x, 6, 1)))
    b.affine(y, "s")
    law(b.model())


# What is allowed although something like it is not.


def test_indices_of_a_largest_do_not_depend_on_a_positive_scale() -> None:
    b = Builder()
    b.node("MaxPool", b.affine(b.conv(b.input(*IMAGE), 6, 1), "p"), outputs=["pooled", "indices"], kernel_shape=[2, 2])
    law(b.model(), left=0)


def test_a_reduction_of_no_axes_is_the_identity() -> None:
    b = Builder()
    b.node("ReduceSum", b.affine(b.conv(b.input(*IMAGE), 6, 1), "t"), noop_with_empty_axes=1)
    law(b.model(), left=0)


def test_a_bias_at_run_time_takes_what_leaves_it_alone() -> None:
    b = Builder()
    x = b.affine(b.input(*IMAGE), "s")
    b.node("Conv", x, b.constant(b.normal(4, 6, 1, 1)), b.input(4, name="bias"))
    law(b.model(), left=0)


# A BatchNormalization that is none, or whose parameters are not one for each channel.


def normalised(opset: int = 17, shape: tuple[int | str, ...] = IMAGE, outputs: int = 1, **sizes: int) -> Builder:
    """A BatchNormalization with parameters of these sizes, 6 unless told."""
    b = Builder(opset)
    slots = [b.constant(np.full(sizes.get(name, 6), 0.5)) for name in ("scale", "bias", "mean", "variance")]
    made = ["y", *("mean", "variance")[: outputs - 1]]
    b.node("BatchNormalization", b.input(*shape), *slots, outputs=made)
    return b


def test_parameters_of_integers() -> None:
    b = normalised()
    b.initializers[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(6, np.int64), b.initializers[0].name))
    refused(b.model(), "its scale is not of a float type")


@pytest.mark.parametrize(
    ("b", "text"),
    [
        (normalised(9, outputs=3), "its statistics outputs are used"),
        (normalised(17, outputs=3), "its statistics outputs are used"),
        (normalised(shape=(6,)), "the rank of its input is not known"),
        (normalised(bias=5), "not one per channel"),
        (normalised(scale=5, bias=5, mean=5, variance=5), "not one per channel"),
    ],
)
def test_a_batchnormalization_that_is_none(b: Builder, text: str) -> None:
    refused(b.model("y", *("mean",) * ("mean" in b.nodes[0].output and b.opset > 9)), text)


def test_parameters_of_two_axes() -> None:
    b = normalised()
    for tensor in b.initializers:
        tensor.dims[:] = [6, 1]
    refused(b.model(), "not one per channel")


def test_an_operand_whose_axis_lies_too_far_back() -> None:
    b = Builder(6)
    b.node("Add", b.input(*IMAGE), b.constant(b.normal(7, 5)), broadcast=1, axis=3)
    refused(b.model("add"), "enlarges the tensor")


def test_a_factor_that_is_not_finite() -> None:
    b = Builder()
    b.node("Mul", b.input(*IMAGE), b.constant([np.inf]))
    refused(b.model(), "is not finite, or divides by zero")
