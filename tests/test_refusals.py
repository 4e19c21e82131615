"""Guards of rules that no other table triggers: an affine beside the operator stays, for the reason in the row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from bnfold import rules
from bnfold.affine import Affine, Storage
from bnfold.graph import Model
from bnfold.rules import Refused, Source, View, base
from bnfold.rules.base import OUT, Port
from bnfold.solver.removed import removed
from bnfold.source import read
from tests.beside import (
    DOUBLE,
    FLOAT,
    INT,
    absorbed,
    at_run_time,
    dead_behind,
    dead_in_front,
    refused,
    unknown,
    weighed,
    with_inputs,
)
from tests.builder import Builder
from tests.law import law
from tests.rows import IMAGE, Apply, node


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


def rows_of_a_gemm(b: Builder, x: str) -> str:
    return b.node("Identity", b.gemm(x, 4))


def square(b: Builder) -> str:
    return b.node("Relu", b.input(5, 5, name="weights"))


def any_weights(b: Builder) -> str:
    return b.node("Relu", b.input("O", 6, 1, 1, name="weights"))


def quantized_by(count: int, b: Builder, x: str) -> str:
    """A Conv by quantized weights with so many scales of its output channels."""
    weights = b.constant(np.ones((6, 6, 1, 1), np.int8))
    scales = b.constant(np.linspace(0.1, 0.2, count))
    return b.node("Conv", x, b.node("DequantizeLinear", weights, scales, axis=0))


quantized_by_output, quantized_by_seven = partial(quantized_by, 6), partial(quantized_by, 7)


def split_into(size: int) -> Apply:
    """A Split into one part of this size, whatever its output is said to be."""

    def apply(b: Builder, x: str) -> str:
        y = b.node("Split", x, b.constant([size]), axis=1)
        b.declare(y, *IMAGE)
        return y

    return apply


def second_part(b: Builder, x: str) -> str:
    """The second part of a Split, where the first one, which nobody reads, is said to have less than nothing."""
    b.node("Split", x, b.constant([-2, 6]), axis=1, outputs=["", "part"])
    b.declare("part", *IMAGE)
    return "part"


def to_integers(b: Builder, x: str) -> str:
    return b.node("Cast", x, to=INT)


def from_integers(b: Builder, x: str) -> str:
    return b.node("Cast", b.node("Cast", x, to=INT), to=DOUBLE)


def group_norm(groups: int) -> Apply:
    return with_inputs("GroupNormalization", np.ones(6), np.zeros(6), num_groups=groups)


NORMS: dict[str, Apply] = {
    "instance": with_inputs("InstanceNormalization", np.ones(6), np.zeros(6)),
    "group": group_norm(2),
    "root": with_inputs("RMSNormalization", np.ones(5)),
}
EVERYWHERE = [0, 0, 1, 0, 0, 0, 2, 1]
SLOPES = np.linspace(0.5, 1.5, 210).reshape(6, 7, 5)

REFUSALS = [
    # What steers an operator must be known.
    Refusal("how much it pads is computed", with_inputs("Pad", at_run_time(8))),
    Refusal("how much it pads is computed at run time", with_inputs("Pad", [1, 1], None, at_run_time(1)), opset=18),
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
    Refusal("the indices of Gather are computed", with_inputs("Gather", at_run_time(2, "K"), axis=1), "behind", "s"),
    Refusal("the condition of Compress is computed", with_inputs("Compress", at_run_time(6, type_=9), axis=1)),
    Refusal("Compress without an axis", with_inputs("Compress", np.array([True, False]))),
    Refusal("input 1 of Slice is computed", with_inputs("Slice", at_run_time(1), [4], [1])),
    Refusal("the axes of Slice are known at run time", with_inputs("Slice", at_run_time("K"), at_run_time("K"))),
    Refusal("the rank of output 0 of Tile is not known", with_inputs("Tile", [2], [1]), opset=5),
    Refusal("the axis of CumSum is computed", with_inputs("CumSum", at_run_time(1))),
    Refusal("the bounds of Clip are computed", absorbed(with_inputs("Clip", at_run_time(type_=DOUBLE))), kind="0.5"),
    Refusal("the scale of QuantizeLinear is", with_inputs("QuantizeLinear", at_run_time(type_=FLOAT)), type_=FLOAT),
    # What may not be stored differently at all, or has no rule in this form.
    Refusal("steers PRelu", lambda b, x: b.node("PRelu", b.input(*IMAGE, name="data"), x)),
    Refusal("Dropout", lambda b, x: b.node("Not", b.node("Dropout", x, outputs=["kept", "mask"]) and "mask")),
    Refusal("Dropout", lambda b, x: b.dropout(x, training=True), opset=6),
    Refusal("broadcasting along an axis", with_inputs("Add", np.ones(6), broadcast=1, axis=1), opset=6),
    Refusal("spatial is 0", lambda b, x: b.bn(x, spatial=0), opset=7),
    Refusal("passes a sign at most", node("Cos")),
    Refusal("Abs passes only positive scales", node("Abs"), "behind", "s"),
    Refusal("does not pass the rounding", with_inputs("QuantizeLinear", np.float32(0.1)), kind="t", type_=FLOAT),
    Refusal("the values of graph output 'mul2'", with_inputs("Mul", lambda b: b.input(*IMAGE, name="gate"))),
    Refusal("MatMul has no bias of its own", with_inputs("MatMul", square), "behind", "b"),
    # Sizes that are known at run time only.
    Refusal("an input of Concat along axis 2", with_inputs("Concat", at_run_time(3, 6, "D", 5, type_=DOUBLE), axis=2),
            axis=2),
    Refusal("the repeats of Tile are not known", with_inputs("Tile", at_run_time(4)), axis=1),
    Refusal("mixes channels with a dimension", unknown(2, with_inputs("Reshape", [3, -1, 5]))),
    Refusal("ReduceSum adds a number of elements", unknown(2, with_inputs("ReduceSum", [2])), kind="t"),
    Refusal("rank of output 0 of Compress", with_inputs("Compress", np.arange(6) > 2, axis=1), opset=9),
    Refusal("rank of output 0 of Reshape", with_inputs("Reshape", lambda b: b.input("N", name="given", type_=INT))),
    Refusal("pads its input", unknown(2, weighed(np.ones((2, 6, 3, 1)), pads=[0, 0, 1, 0])), kind="t"),
    Refusal("pads its input", unknown(2, weighed(np.ones((2, 6, 3, 1)), auto_pad="SAME_UPPER")), kind="t"),
    Refusal("the shape of the weights of Conv is not", with_inputs("Conv", any_weights)),
    Refusal("mixes channels with a dimension", unknown(2, with_inputs("Reshape", [3, 42, 5]))),
    Refusal("mixes channels with a dimension", with_inputs("Reshape", at_run_time(3))),
    Refusal("the channel count of InstanceNormalization", NORMS["instance"], kind="0.5", shape=(6,)),
    Refusal("counts padded zeros", node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), kind="t", opset=6),
    # Axes along which the operator works.
    Refusal("works along axis 2", with_inputs("Pad", EVERYWHERE, mode="edge"), axis=2),
    Refusal("pools over axis 2", node("LpPool", kernel_shape=[2, 2]), axis=2),
    Refusal("the shift varies on axis 2", NORMS["instance"], kind="t", axis=2),
    Refusal("the scale varies on axis 2", NORMS["instance"], axis=2),
    Refusal("the shift varies on axis 2", NORMS["group"], kind="t", axis=2, opset=21),
    Refusal("output's scale varies on axis 1", NORMS["root"], "behind", opset=23),
    Refusal("share one scale", with_inputs("QuantizeLinear", np.full(6, np.float32(0.1)), axis=1),
            shape=(3, 6, 6, 5), axis=2, type_=FLOAT),
    Refusal("one element for outputs", with_inputs("Gather", [3, 1, 3], axis=1), "behind"),
    Refusal("Gather picks what axis 1 of 6 does not have", with_inputs("Gather", [0, 6], axis=1)),
    Refusal("Split takes what axis 1 of 6 does not have", split_into(1 << 40)),
    Refusal("Split takes what axis 1 of 6 does not have", split_into(-1)),
    Refusal("Split takes what axis 1 of 6 does not have", second_part),
    Refusal("Gather picks what axis 1 of 6 does not have", with_inputs("Gather", [0, -7], axis=1)),
    Refusal("varies on axis 1, where DequantizeLinear has no scales", quantized_by_output, type_=FLOAT),
    Refusal("the scales of DequantizeLinear have shape (7,)", quantized_by_seven, "behind", type_=FLOAT),
    # Forms that no rule knows.
    Refusal("the weights of Conv are not of a float type", weighed(np.ones((2, 6, 1, 1), np.int64))),
    Refusal("the weights of Conv have shape (4, 6)", weighed(np.ones((4, 6)))),
    Refusal("the weights of Conv have shape (4, 6)", weighed(np.ones((4, 6))), shape=(3, 6)),
    Refusal("the weights of Conv have shape (4, 6, 1)", weighed(np.ones((4, 6, 1)))),
    Refusal("the weights of Conv have shape (4, 2, 1, 1)", weighed(np.ones((4, 2, 1, 1)), group=3)),
    Refusal("the bias of Conv is no vector of 2 floats", weighed(np.ones((2, 6, 1, 1)), [1, 2]), kind="t"),
    Refusal("the bias of Conv is no vector of 2 floats", weighed(np.ones((2, 6, 1, 1)), np.ones(1)), kind="t"),
    Refusal("the bias of Gemm, of shape (7,), does not fit", with_inputs("Gemm", np.ones((6, 4)), np.ones(7)),
            shape=(3, 6), kind="t"),
    Refusal("the bias of Gemm, of shape (7,), does not fit", with_inputs("Gemm", np.ones((6, 4)), np.ones(7)),
            shape=(3, 6), kind="s"),
    Refusal("the bias of Gemm, of shape (4,), does not fit", with_inputs("Gemm", np.ones((6, 4)), np.ones(4)),
            shape=(3, 6), opset=6),
    Refusal("the bias of Gemm, of shape (1, 4), does not fit", with_inputs("Gemm", np.ones((6, 4)), np.ones((1, 4))),
            shape=(3, 6), opset=6),
    Refusal("malformed.Conv is not affine", weighed(np.ones((4, 6, 1, 1)), group=-1)),
    Refusal("the operands of Gemm are no matrices", with_inputs("Gemm", np.ones((5, 4))), shape=(3, 6, 5)),
    Refusal("MatMul of a number", with_inputs("MatMul", 2.0)),
    Refusal("MatMul of a number", with_inputs("MatMul", np.ones(3)), shape=(), kind="0.5"),
    Refusal("not one of two plain operands", node("Einsum", equation="ijkl->ijlk")),
    Refusal("does not fit its operands", with_inputs("Einsum", np.ones((6, 2)), equation="nchw,c->nhw")),
    Refusal("the weights of RNN have shape", with_inputs("RNN", np.ones((4, 6)), np.ones((1, 4, 4)), hidden_size=4),
            shape=(3, 2, 6), axis=2),
    Refusal("which do not match", with_inputs("Reshape", [3, 4, 9, 5])),
    Refusal("do not make 4 groups", group_norm(4), opset=21),
    Refusal("malformed.GroupNormalization is not affine", group_norm(0), opset=21),
    Refusal("the scale of InstanceNormalization", with_inputs("InstanceNormalization", np.ones(6, int), np.zeros(6)),
            "behind"),
    Refusal("the scale of QuantizeLinear", with_inputs("QuantizeLinear", np.int32(1)), type_=FLOAT),
    Refusal("slopes of PRelu have more axes", with_inputs("PRelu", np.ones((1, 1, 6))), shape=(3, 6)),
    Refusal("one slope for each channel", absorbed(with_inputs("PRelu", SLOPES)), kind="s", opset=6),
    Refusal("repeats one pattern along an axis", node("SpaceToDepth", blocksize=2), shape=(3, 5, 6, 4), axis=2),
    Refusal("without axes does not reduce", node("ReduceL1", noop_with_empty_axes=1), opset=18),
    Refusal("without axes does not reduce", node("ReduceLogSumExp", noop_with_empty_axes=1), kind="t", opset=18),
    Refusal("rows of scale zero", rows_of_a_gemm, kind="z", shape=(3, 6), axis=0),
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


def test_a_cut_along_an_axis_of_unknown_size() -> None:
    b = Builder()
    y = b.node("Slice", b.input(3, "C", 7, 5), b.constant([0]), b.constant([4]), b.constant([1]))
    b.declare(y, 3, 4, 7, 5)
    b.bn(y)
    refused(b.model(), "axis 1 of Slice has no known size")


@pytest.mark.parametrize(
    ("text", "apply"),
    [
        ("the axes of ReduceSum are computed", with_inputs("ReduceSum", at_run_time(1))),
        ("perm does not permute 4 axes", node("Transpose", perm=[0, 1, 1, 2])),
        ("perm does not permute 4 axes", node("Transpose", perm=[0, 1, 2])),
    ],
)
def test_a_rank_that_inference_does_not_tell(text: str, apply: Apply) -> None:
    """A user may."""
    b = Builder()
    apply(b, b.affine(b.input(*IMAGE), "p"))
    model = b.model()
    for _ in IMAGE:
        model.graph.output[0].type.tensor_type.shape.dim.add()
    refused(model, text)


@pytest.mark.parametrize("op", ["LeakyRelu", "GlobalAveragePool", "Relu"])
def test_a_constant_whose_node_cannot_store_it_differently(op: str) -> None:
    """Of weights that a node makes from a constant, unless bnfold computes them itself."""
    b = Builder()
    weight = b.node(op, b.constant(b.normal(6, 6, 3, 3), "weight"))
    b.bn(b.node("Conv", b.input(3, 6, 7, 5), weight), gamma=[1, 2, 3, 4, 5, 6])
    law(b.model(), left=int(op != "Relu"))
    if op != "Relu":
        refused(b.model(), "the demand reaches 'weight', a constant of")


def test_no_tensor_relates_nothing_to_nothing() -> None:
    b = Builder()
    b.node("Identity", b.input(*IMAGE))
    one = Storage.identity(4)
    view = View(Model(read(b.model())).graphs[0].nodes[0], {key: Port("x", IMAGE, one, False) for key in (0, OUT)})
    with pytest.raises(Refused, match="constant before and after"):
        view.settle({OUT: Storage(0 * one.den, 0 * one.num, one.den)})


def test_no_channel_is_two_constants() -> None:
    b = Builder()
    b.node("Mul", b.input(*IMAGE), b.constant(0.0))
    node = Model(read(b.model())).graphs[0].nodes[0]
    one, number = Storage.identity(4), np.ones((1,) * 4)
    ports = {0: Port("x", IMAGE, one, True), OUT: Port("y", IMAGE, Storage.decode(0 * number, number), True)}
    with pytest.raises(Refused, match="two constants"):
        removed(View(node, ports), Source(node, 0, Affine(0 * number, 2 * number)))


def test_a_border_is_not_written_out_for_every_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    b.node("Pad", b.input(*IMAGE), b.constant([0, 0, 0, 500, 0, 0, 0, 500]), mode="constant")
    node, one = Model(read(b.model())).graphs[0].nodes[0], np.ones((1,) * 4)
    channels, places = np.arange(1.0, 1 + IMAGE[1]), np.arange(1.0, 1 + IMAGE[3])
    storage = Storage(one, channels.reshape(1, -1, 1, 1), places.reshape(1, 1, 1, -1))
    view = View(node, {0: Port("x", IMAGE, storage, True), OUT: Port("y", IMAGE, Storage.identity(4), False)})
    assert rules.apply(view)
    monkeypatch.setattr(base, "MOST_VALUES", 1000)
    with pytest.raises(Refused, match="spread the demand over more than 1,000 places"):
        rules.apply(view)
