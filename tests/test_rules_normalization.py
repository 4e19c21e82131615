"""Normalisations by the tensor's own statistics, Softmax: what vanishes in front of them, what they take up behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, numpy_helper

from bnfold.graph import Model
from bnfold.source import read
from tests.builder import Builder
from tests.law import fold, law
from tests.rows import ALL, SCALES, Apply, Row, built, cases, certified, holds, node, runs_alike


def instance(**attributes: Any) -> Apply:
    def apply(b: Builder, x: str) -> str:
        c = b.shape(x)[1]
        inputs = (x, b.constant(b.normal(c), "scale"), b.constant(b.normal(c), "bias"))
        return b.node("InstanceNormalization", *inputs, **attributes)

    return apply


def groups(count: int, **attributes: Any) -> Apply:
    def apply(b: Builder, x: str) -> str:
        size = count if b.opset < 21 else b.shape(x)[1]
        inputs = (x, b.constant(b.normal(size), "scale"), b.constant(b.normal(size), "bias"))
        return b.node("GroupNormalization", *inputs, num_groups=count, **attributes)

    return apply


def layer(*size: int, bias: bool = True, **attributes: Any) -> Apply:
    def apply(b: Builder, x: str) -> str:
        inputs = [x, b.constant(b.normal(*size), "scale")]
        inputs += [b.constant(b.normal(*size), "bias")] if bias else []
        return b.node("LayerNormalization", *inputs, **attributes)

    return apply


def rms(*size: int, **attributes: Any) -> Apply:
    return lambda b, x: b.node("RMSNormalization", x, b.constant(b.normal(*size), "scale"), **attributes)


ROWS = [
    # One epsilon for all channels: a scale in front leaves where it is one number (but for its sign).
    Row("instance norm", instance(), "uct", ALL, opsets=(6, 17, 22)),
    Row("instance norm 1d", instance(epsilon=1e-6), "uct", ALL, (3, 6, 9)),
    Row("instance norm 3d", instance(), "uct", ALL, (3, 6, 4, 3, 5)),
    Row("group norm", groups(3), "u", ALL, opsets=(21, 22)),
    Row("group norm, one scale for each group", groups(3), "u", "u", opsets=(18,)),
    Row("group norm of single channels", groups(6), "uct", ALL, opsets=(18, 21)),
    Row("group norm of one group", groups(1), "u", ALL, opsets=(21,)),
    Row("layer norm of the last axis", layer(5), "uct", ALL, axis=3, opsets=(17, 22)),
    Row("layer norm of several axes", layer(6, 7, 5, axis=1), "u", ALL),
    Row("layer norm of two axes", layer(7, 5, axis=2), "uct", ALL, axis=2),
    Row("layer norm without bias", layer(5, bias=False), "uct", ALL, axis=3),
    Row("layer norm of rows", layer(6), "u", ALL, (3, 6)),
    Row("layer norm, seen from an axis that it does not normalise", layer(5), "uct", "u"),
    Row("rms norm", rms(5), "u", SCALES, axis=3, opsets=(23,)),
    Row("rms norm of several axes", rms(7, 5, axis=-2), "u", SCALES, axis=2, opsets=(23,)),
    Row("rms norm of rows", rms(6), "u", SCALES, (3, 6), opsets=(23,)),
    Row("lp norm", node("LpNormalization"), "up", "", opsets=(1, 17, 22)),
    Row("lp norm of channels", node("LpNormalization", axis=1, p=1), "u", ""),
    Row("lp norm of another axis", node("LpNormalization", axis=-2), "up", ""),
    Row("softmax of another axis", node("Softmax"), "t", "", opsets=(13, 17)),
    Row("softmax of all axes from one on", node("Softmax", axis=2), "t", "", opsets=(1, 11)),
    Row("softmax of channels and space", node("Softmax"), "", "", opsets=(1, 11)),
    Row("log softmax", node("LogSoftmax", axis=2), "t", "", opsets=(11, 13, 17)),
]


@pytest.mark.parametrize(("row", "side", "kind", "opset"), cases(ROWS))
def test_an_affine_leaves_or_stays(row: Row, side: str, kind: str, opset: int) -> None:
    holds(row, side, kind, opset)


@pytest.mark.parametrize("side", ["front", "behind"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.name))
def test_onnx_runtime_runs_what_comes_out(row: Row, side: str) -> None:
    opset = row.opsets[-1] if row.name != "lp norm" else 17  # ONNX Runtime has LpNormalization-22 since 1.25
    for kind in (row.front if side == "front" else row.behind)[:3]:
        runs_alike(law(built(row, side, kind, opset, TensorProto.FLOAT).model(), left=0, tolerance=1e-5))


SIGNED = [-0.3, 0.3, 0.3, -0.3, 0.3, -0.3]
WITH_ZEROS = [0.0, 2.0, -2.0, 0.0, -2.0, 2.0]
BY_GROUP = [-2.0, -2.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("apply", "factors", "shifts", "left", "opset"),
    [
        (instance(), SIGNED, range(6), 0, 17),
        (instance(epsilon=0.5), WITH_ZEROS, range(6), 0, 17),
        (instance(), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0001], range(6), 1, 17),
        (groups(3), BY_GROUP, [1, 1, 2, 2, 3, 3], 0, 18),
        (groups(3), BY_GROUP, [1, 1, 2, 2, 3, 3], 0, 21),
        (groups(3), BY_GROUP, [1, 1, 2, 2, 3, 3.5], 1, 21),
        (groups(2), BY_GROUP, [1, 1, 1, 2, 2, 2], 1, 21),
        (layer(5), [-1.5], range(6), 0, 17),
        (layer(5), SIGNED, [1], 1, 17),
        (layer(5), [0.0], [1], 0, 17),
        (rms(5), [-0.25], [0], 0, 23),
        (rms(5), [0.25], [1], 1, 23),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scales_that_differ_in_their_sign_only(
    apply: Apply, factors: Sequence[float], shifts: Sequence[float], left: int, opset: int
) -> None:
    b = Builder(opset)
    x = b.bn(b.input(3, 6, 7, 5), gamma=factors, beta=list(shifts), mean=0.0, variance=1 - float(np.float32(1e-5)))
    b.absorber(apply(b, x))
    certified(law(b.model(), left))


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 0.5])
def test_epsilon_moves_with_the_square_of_the_scale(epsilon: float) -> None:
    b = Builder()
    b.absorber(instance(epsilon=epsilon)(b, b.per_channel("Mul", b.input(3, 6, 7, 5), 0.25)))
    (found,) = [a.f for n in law(b.model(), 0).model.graph.node for a in n.attribute if a.name == "epsilon"]
    assert found == np.float32(epsilon) * 16


@pytest.mark.parametrize(
    ("apply", "factor", "code"),
    [
        (instance(), 1e25, "out-of-range"),
        (instance(), 1e-25, "out-of-range"),
        (node("LpNormalization"), -2.0, "negative-scale"),
        (instance(), [1, 2, 3, 4, 5, 6], "not-uniform"),
        (layer(5), [1, 2, 3, 4, 5, 6], "not-uniform"),
        (node("Softmax"), 2.0, "opaque-op"),
    ],
)
def test_what_stays_says_why(apply: Apply, factor: ArrayLike, code: str) -> None:
    b = Builder()
    b.absorber(apply(b, b.per_channel("Mul", b.input(3, 6, 7, 5), factor)))
    law(b.model(), 1).reason(code)


def test_statistics_that_are_read_stay_what_they_are() -> None:
    b = Builder()
    x = b.per_channel("Mul", b.input(3, 6, 5), 3.0)
    b.node("LayerNormalization", x, b.constant(b.normal(5)), outputs=["y", "mean"])
    law(b.model("y", "mean"), 1).reason("unsupported-form")


@pytest.mark.parametrize("side", ["front", "behind"])
def test_parameters_computed_at_run_time(side: str) -> None:
    b = Builder()
    x, scale, bias = b.input(3, 6, 7), b.input(6, name="scale"), b.input(6, name="bias")
    if side == "front":  # a shift vanishes all the same
        b.node("InstanceNormalization", b.per_channel("Add", x, b.normal(6)), scale, bias)
        certified(law(b.model(), 0))
        return
    b.bn(b.node("InstanceNormalization", x, scale, bias))
    law(b.model(), 1).reason("dynamic-parameters")


@pytest.mark.parametrize("slot", [None, 1, 2])
def test_the_certificate_sees_a_wrong_epsilon_scale_or_bias(slot: int | None) -> None:
    b = Builder()
    x = b.per_channel("Mul", b.input(3, 6, 7, 5), -0.3)
    b.bn(instance()(b, x))
    case = fold(b.model())
    certified(case)
    (node_,) = [n for n in case.model.graph.node if n.op_type == "InstanceNormalization"]
    if slot is None:
        (epsilon,) = node_.attribute
        epsilon.f = float(np.nextafter(np.float32(epsilon.f), np.float32(1)))
    else:
        (tensor,) = [t for t in case.model.graph.initializer if t.name == node_.input[slot]]
        values = numpy_helper.to_array(tensor).copy()
        values[2] *= 1 + 1e-9
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(AssertionError, match="epsilon" if slot is None else f"input {slot}"):
        certified(case)


def test_shapes_are_known_behind_a_group_normalization() -> None:
    b = Builder(21)
    b.node("Relu", b.matmul(groups(3)(b, b.input(3, 6, 7, 5)), 4))
    graph = Model(read(b.model())).main
    assert graph.shape("matmul") == (3, 6, 7, 4)


@pytest.mark.parametrize("apply", [instance(), groups(3), layer(5), layer(6, 7, 5, axis=1)])
def test_one_scale_written_for_every_element(apply: Apply) -> None:
    b = Builder(21)
    x = b.node("Mul", b.input(3, 6, 7, 5), b.constant(np.full((6, 7, 5), -0.25)))
    b.absorber(apply(b, x))
    certified(law(b.model(), 0))
