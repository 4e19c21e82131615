"""What a rule allows although something like it is refused; and where nothing is stored differently, no change."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.graph import Model
from bnfold.solver.state import State
from bnfold.source import read
from tests.beside import (
    DOUBLE,
    FLOAT,
    INT,
    at_run_time,
    normalised,
    refused,
    unknown,
    weighed,
    with_inputs,
)
from tests.builder import Builder
from tests.law import fold, law
from tests.rows import IMAGE, Apply, node


def test_indices_of_a_largest_do_not_depend_on_a_positive_scale() -> None:
    b = Builder()
    b.node("MaxPool", b.affine(b.input(*IMAGE), "p"), outputs=["pooled", "indices"], kernel_shape=[2, 2])
    b.conv("pooled", 4, 1)
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


@pytest.mark.parametrize("apply", [
    unknown(2, node("ReduceSum", keepdims=1)),
    with_inputs("Mul", lambda b: b.input(7, 5, name="gate"), broadcast=1),
    with_inputs("Mul", lambda b: b.input(*IMAGE, name="gate"), axis=1),
])  # fmt: skip
def test_a_scale_for_all_passes(apply: Apply) -> None:
    b = Builder(6)
    b.absorber(apply(b, b.per_channel("Mul", b.input(*IMAGE), 0.5)))
    case = fold(b.model())
    assert case.left == 0, case.codes()


def test_a_pointwise_convolution_touches_no_padding_of_any_size() -> None:
    b = Builder()
    unknown(2, weighed(b.normal(4, 6, 1, 1), auto_pad="SAME_UPPER"))(b, b.affine(b.input(*IMAGE), "t"))
    law(b.model(), left=0)


def test_statistics_outputs_that_nobody_reads() -> None:
    b = normalised(outputs=3)
    b.node("Conv", "y", b.constant(np.ones((4, 6, 1, 1))))
    assert fold(b.model("conv")).left == 0


def test_integers_become_floats() -> None:
    b = Builder()
    b.absorber(b.affine(b.node("Cast", b.input(*IMAGE, type_=INT), to=DOUBLE), "s"))
    b.affine(b.node("Cast", b.input(*IMAGE, type_=INT), to=DOUBLE), "p")
    case = fold(b.model())
    assert case.reason("opaque-op").at == "cast2"
    assert case.left == 1


def test_a_refused_demand_takes_another_way() -> None:
    """Both operands are as near; the first passes no shift."""
    b = Builder()
    x = b.input(*IMAGE)
    b.affine(b.node("Add", b.node("Relu", b.conv(x, 6, 1)), b.node("Identity", b.conv(x, 6, 1))), "t")
    law(b.model(), left=0)


def test_the_end_of_a_demand_is_named() -> None:
    b = Builder()
    b.affine(b.node("Relu", b.input(*IMAGE)), "p")
    refused(b.model(), "the demand reaches 'x', which")


NOTHING: dict[str, Apply] = {
    "Conv": with_inputs("Conv", np.ones((4, 6, 1, 1)), at_run_time(4, type_=DOUBLE)),
    "Conv without bias": with_inputs("Conv", np.ones((4, 6, 1, 1))),
    "Max": with_inputs("Max", np.ones((6, 1, 1))),
    "Mul": with_inputs("Mul", np.ones((6, 1, 1))),
    "BatchNormalization": lambda b, x: b.bn(x),
    "InstanceNormalization": with_inputs("InstanceNormalization", *[at_run_time(6, type_=DOUBLE)] * 2),
}


@pytest.mark.parametrize("row", NOTHING)
def test_where_nothing_is_stored_differently_nothing_changes(row: str) -> None:
    b = Builder()
    NOTHING[row](b, b.input(*IMAGE))
    _nothing_changes(b)


def test_a_sum_along_an_axis_changes_nothing() -> None:
    b = Builder(6)
    b.node("Add", b.input(*IMAGE), b.input(6, name="other"), broadcast=1, axis=1)
    _nothing_changes(b)


def test_a_gemm_with_a_bias_at_run_time_changes_nothing() -> None:
    b = Builder()
    b.node("Gemm", b.input(3, 6), b.constant(np.ones((6, 4))), b.input(4, name="bias"))
    _nothing_changes(b)


def test_a_quantization_at_run_time_changes_nothing() -> None:
    b = Builder(type_=FLOAT)
    b.node("QuantizeLinear", b.input(*IMAGE), b.input(name="scale"))
    b.node("DequantizeLinear", "quantizelinear", "scale")
    _nothing_changes(b)


def _nothing_changes(b: Builder) -> None:
    graph = Model(read(b.model())).graphs[0]
    for one in graph.nodes:
        (accept,) = State(graph).ask(one, {}, everything_fixed=True)
        assert not accept.assign
        assert not accept.edits
