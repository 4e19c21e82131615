"""Sums of scales and shifts of one tensor, with no convolution among them: one node, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold import merges
from bnfold.folding import Wishes
from bnfold.patch import witness_of
from bnfold.plan import NewConstant
from bnfold.witness import Merged, Witness
from tests.builder import Builder
from tests.merging import SAME, Row, agree, certified, check, image, ops, run, solved, spoilt

Make = Callable[[Builder, str], str]


def closed(make: Make, *shape: int | str) -> Callable[[Builder], str]:
    """Between two Sigmoids, through which no scale passes."""

    def made(b: Builder) -> str:
        x = b.node("Sigmoid", b.input(*(shape or (2, 4, 7, 6))))
        return b.node("Sigmoid", make(b, x))

    return made


def mul(b: Builder, x: str, axis: int = 1) -> str:
    return b.per_channel("Mul", x, b.normal(b.shape(x)[axis]), axis)


def cancelled(b: Builder, x: str) -> str:
    y = mul(b, x, 2)
    return b.node("Sub", y, y)


def times_negated(b: Builder, x: str) -> str:
    return b.per_channel("Mul", b.node("Neg", x), 0.3, left=True)


def shifted(b: Builder, x: str) -> str:
    """A BatchNormalization that is written out."""
    return b.per_channel("Add", mul(b, x), b.normal(4))


def plus_bn(b: Builder, x: str) -> str:
    return b.node("Add", b.bn(x), x)


def other_terms(b: Builder, x: str) -> str:
    return b.node("Add", b.node("Add", b.bn(x), b.node("Tanh", x)), x)


def through_relu(b: Builder) -> str:
    x = b.node("Sigmoid", image(b))
    scaled = b.node("Add", b.bn(x, gamma=[1, 2, 3, 4], beta=0.0, mean=0.0), x)
    return b.conv(b.node("Relu", scaled), 3, 1)


def two_behind(b: Builder) -> str:
    x = b.node("Sigmoid", image(b))
    return b.conv(b.node("Add", b.bn(x), b.bn(x)), 3, 1)


def behind_two(b: Builder) -> tuple[str, str]:
    x = b.node("Sigmoid", image(b))
    return b.conv(plus_bn(b, x), 3, 1), b.node("Tanh", x)


def side_by_side(b: Builder, x: str) -> str:
    """A sum of scales that is a convolution, which none of them can become."""
    one, other = (b.node("Concat", *pair, axis=1) for pair in ((mul(b, x), x), (x, b.bn(x))))
    return b.node("Add", one, other)


def read_elsewhere(b: Builder) -> tuple[str, str]:
    x = b.node("Sigmoid", image(b))
    y = mul(b, x)
    return b.node("Sigmoid", b.node("Add", y, x)), b.node("Tanh", y)


def scaled_behind(b: Builder) -> str:
    """The scale of the sum could go behind, and its shift could not."""
    x = b.node("Flatten", b.conv(b.node("Relu", image(b)), 4, 1), axis=1)
    halved = b.node("Add", b.node("Mul", x, b.constant(-0.5)), b.constant(0.5))
    width = b.shape(x)[1]
    total = b.node("Add", x, b.node("Mul", halved, b.constant(1.5 + b.normal(width) ** 2)))
    part = b.node("Slice", total, b.constant([0]), b.constant([9]), b.constant([1]), b.constant([1]))
    return b.node("Sigmoid", b.node("Mul", part, b.constant(1.5 + b.normal(9) ** 2)))


def places(b: Builder, x: str) -> str:
    return b.node("Add", b.node("Mul", x, b.constant(b.normal(4, 7, 6))), x)


def enlarged(b: Builder, x: str) -> str:
    return b.node("Add", b.node("Mul", x, b.constant(b.normal(4, 1, 1))), x)


NORM, MUL = "Sigmoid BatchNormalization Sigmoid", "Sigmoid Mul Sigmoid"

ROWS = [
    Row("a BN and its input", closed(plus_bn), NORM),
    Row("its input, a BN taken off", closed(lambda b, x: b.node("Sub", x, b.bn(x))), NORM),
    Row("two BN", closed(lambda b, x: b.node("Add", b.bn(x), b.bn(x))), NORM),
    Row("the mean of three", closed(lambda b, x: b.node("Mean", b.bn(x), x, mul(b, x))), NORM),
    Row("a BN of a negated tensor", closed(lambda b, x: b.node("Add", b.bn(b.node("Neg", x)), x)), NORM),
    Row("rank two", closed(plus_bn, 3, 6), NORM),
    Row("free sizes", closed(plus_bn, 2, 4, "H", "W"), NORM),
    Row("a free batch", closed(plus_bn, "N", 4, 5), NORM),
    Row("a scale and its input", closed(lambda b, x: b.node("Add", mul(b, x), x)), MUL),
    Row("one number", closed(lambda b, x: b.node("Add", x, b.per_channel("Mul", x, 0.3))), MUL),
    Row("from the left", closed(lambda b, x: b.node("Sub", x, times_negated(b, x))), MUL),
    Row("one and many", closed(lambda b, x: b.node("Add", b.per_channel("Mul", x, 0.3), mul(b, x))), MUL),
    Row("the last axis", closed(lambda b, x: b.node("Add", mul(b, x, 3), x)), MUL),
    Row("a divisor", closed(lambda b, x: b.node("Sub", b.per_channel("Div", x, b.normal(4)), mul(b, x))), MUL),
    Row(
        "one number written out along another axis",
        closed(lambda b, x: b.node("Sub", b.node("Mul", x, b.constant(np.full((1, 1, 6), 2.5))), mul(b, x))),
        MUL,
    ),
    Row(
        "one number written out along another axis, and another one",
        closed(lambda b, x: b.node("Sub", b.node("Mul", x, b.constant(np.full((1, 1, 6), 2.5))), x)),
        MUL,
    ),
    Row(
        "what varies along the last axis cancels, in front of a matrix on the left",
        lambda b: b.node("MatMul", b.constant(b.normal(2, 4)), closed(cancelled, 2, 4, 6)(b)),
        "Sigmoid Mul Sub Sigmoid MatMul",
    ),
    Row("opset 6", closed(lambda b, x: b.node("Add", mul(b, x), x)), MUL, opset=6, ir=3),
    Row("a shift too", closed(lambda b, x: b.node("Add", shifted(b, x), x)), "Sigmoid Mul Add Add Sigmoid"),
    Row("a shift too, and scales behind", scaled_behind, "Relu Conv Flatten Add Mul Add Slice Mul Sigmoid"),
    Row("other terms between", closed(other_terms), "Sigmoid BatchNormalization Tanh Add Sigmoid"),
    Row("into a Conv in front", lambda b: b.node("Tanh", plus_bn(b, b.conv(image(b), 4, 3, **SAME))), "Conv Tanh"),
    Row("into a Conv behind", lambda b: b.conv(plus_bn(b, b.node("Sigmoid", image(b))), 3, 1), "Sigmoid Conv"),
    Row("two BN into a Conv behind", two_behind, "Sigmoid Conv"),
    Row("into a Conv behind, read twice", behind_two, "Sigmoid Conv Tanh"),
    Row("into a Conv behind a Relu", through_relu, "Sigmoid Relu Conv"),
    Row("side by side", closed(side_by_side), "Sigmoid Mul BatchNormalization Concat Concat Add Sigmoid"),
    Row("two axes", closed(lambda b, x: b.node("Add", mul(b, x), mul(b, x, 3))), "Sigmoid Mul Mul Add Sigmoid"),
    Row("place by place", closed(places), "Sigmoid Mul Add Sigmoid"),
    Row("the tensor twice", closed(lambda b, x: b.node("Add", x, x)), "Sigmoid Add Sigmoid"),
    Row("shifts alone", closed(lambda b, x: b.node("Add", b.per_channel("Add", x, 2.0), x)), "Sigmoid Add Add Sigmoid"),
    Row("read elsewhere", read_elsewhere, "Sigmoid Mul Add Sigmoid Tanh"),
    Row("a factor that enlarges", closed(enlarged, 2, 1, 7, 6), "Sigmoid Mul Add Sigmoid"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_left(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.opset >= 17], ids=lambda row: row.name)
def test_the_runtime_agrees(row: Row) -> None:
    run(row)


def test_half_precision_with_parameters_in_float32() -> None:
    b = Builder(type_=TensorProto.FLOAT16)
    x = b.node("Sigmoid", image(b))
    b.node("Sigmoid", b.node("Add", b.bn(x, parameters=TensorProto.FLOAT), x))
    model = b.model()
    found, made = solved(model)
    assert ops(made) == NORM
    assert {tensor.data_type for tensor in made.graph.initializer} == {TensorProto.FLOAT}
    assert certified(model, made, witness_of(found.rewrite)).ok


def test_what_would_not_fit_half_precision_stays() -> None:
    b = Builder(type_=TensorProto.FLOAT16)
    x = b.node("Sigmoid", image(b))
    b.node("Sigmoid", b.node("Add", b.per_channel("Mul", x, 60000.0), b.per_channel("Mul", x, 60000.0)))
    found, _ = solved(b.model())
    assert [almost.text for almost in found.almost] == ["the new factor would overflow float16"]


@pytest.mark.parametrize("keep", ["bn", "add"])
def test_what_is_kept_stays(keep: str) -> None:
    model = Row("", closed(plus_bn), "").model()
    assert solved(model, Wishes(keep=(keep,)))[1] == model


def test_the_report_speaks_of_the_affines_of_the_original() -> None:
    """The one that took the others up is told of like any other; the others went into it."""

    def told(make: Callable[[Builder], Any]) -> tuple[dict[str, tuple[str, str, tuple[str, ...]]], list[Any]]:
        result = bnfold.explain(Row("", make, "").model())
        ways = {affine.node: (affine.status, affine.way, affine.into) for affine in result.affines}
        return ways, [(merge.root, merge.nodes, merge.into, merge.op) for merge in result.merges]

    two = closed(lambda b, x: b.node("Add", b.bn(x), b.bn(x)))
    ways, found = told(two)
    assert ways == {"bn": ("kept", "", ()), "bn2": ("folded", "merge", ("bn",))}
    assert found == [("add", ("bn", "bn2", "add"), "bn", "BatchNormalization")]
    ways, _ = told(lambda b: b.conv(plus_bn(b, b.node("Sigmoid", image(b))), 3, 1))
    assert ways == {"bn": ("folded", "push", ("conv",))}
    result = bnfold.explain(Row("", closed(lambda b, x: b.node("Add", shifted(b, x), x)), "").model())
    assert [(merge.root, merge.status) for merge in result.merges] == [("add2", "kept")]
    assert result.merges[0].reason.startswith("one Mul could not hold the shift")


# ------------------------------------------------------------------------------------------------------ the certificate


def other_epsilon(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "BatchNormalization").attribute.add(
        name="epsilon", f=1e-3, type=onnx.AttributeProto.FLOAT
    )


def other_input(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type in ("BatchNormalization", "Mul")).input[0] = "x"


def twice(b: Builder, x: str) -> str:
    return b.node("Add", mul(b, x), x)


SPOILT: list[tuple[Make, Callable[[onnx.ModelProto], None]]] = [
    *((plus_bn, spoilt(slot, "BatchNormalization")) for slot in (1, 2, 3, 4)),
    (plus_bn, other_epsilon),
    (plus_bn, other_input),
    (twice, spoilt(1, "Mul")),
    (twice, other_input),
]


@pytest.mark.parametrize("case", range(len(SPOILT)))
def test_the_certificate_sees_a_wrong_merge(case: int) -> None:
    make, spoil = SPOILT[case]
    model = Row("", closed(make), "").model()
    found, made = solved(model)
    witness = witness_of(found.rewrite)
    assert certified(model, made, witness).ok
    spoil(made)
    assert not certified(model, made, witness).ok


def test_the_certificate_sees_what_left_wrongly() -> None:
    """Into the convolution behind: its constants, and what is said to have become one."""
    model = Row("", lambda b: b.conv(plus_bn(b, b.node("Sigmoid", image(b))), 3, 1), "").model()
    found, made = solved(model)
    (graph,) = witness_of(found.rewrite).graphs
    assert (graph.removed, graph.merged) == ({2: ("sigmoid", "add")}, {2: Merged(1, (1, 2))})
    forgeries: tuple[dict[str, Any], ...] = (
        {"removed": {2: ("x", "add")}},
        {"removed": {1: ("sigmoid", "bn")}},
        {"removed": {}},
        {"merged": {}},
        {"merged": {2: Merged(1, (1,))}},
        {"merged": {2: Merged(0, (0, 1, 2))}},
        {"storage": {}},
    )
    for changes in forgeries:
        assert not certified(model, made, Witness((replace(graph, **changes),))).ok, changes
    for slot in (1, 2):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(made)
        spoilt(slot, "Conv", 1e-9)(wrong)
        assert not certified(model, wrong, Witness((graph,))).ok


def test_a_merge_that_is_wrong_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    right = merges._merge

    def wrong(found: Any) -> Any:
        merge = right(found)
        scale = next(edit for edit in merge.edits if isinstance(edit, NewConstant))
        return replace(merge, edits=(replace(scale, values=lambda *rows: scale.rows(*rows) * 1.01), *merge.edits[1:]))

    monkeypatch.setattr(merges, "_merge", wrong)
    model = Row("", closed(plus_bn), "").model(TensorProto.FLOAT)
    result = bnfold.optimize(model, samples=1)
    assert not [merge for merge in result.merges if merge.status == "merged"]
    assert any("add" in warning for warning in result.warnings)


# ------------------------------------------------------------------------------------------------------- random graphs


@pytest.mark.parametrize("seed", range(40))
def test_random_scales(seed: int) -> None:
    b = Builder(seed=seed)
    rng = np.random.default_rng(seed)
    x = b.node("Sigmoid", image(b)) if seed % 3 else b.conv(image(b), 4, 3, **SAME)
    pool = [x]
    makers: list[Callable[[str], str]] = [
        b.bn,
        lambda y: mul(b, y),
        lambda y: b.per_channel("Div", y, b.normal(4)),
        lambda y: b.per_channel("Add", y, b.normal(4)),
        lambda y: b.per_channel("Sub", y, 0.4, left=True),
        lambda y: b.node("Neg", y),
        lambda y: b.node(str(rng.choice(["Add", "Sub", "Sum", "Mean"])), y, str(rng.choice(pool))),
        lambda y: b.node("Add", str(rng.choice(pool)), y),
    ]
    for _ in range(int(rng.integers(3, 9))):
        pool.append(makers[int(rng.integers(len(makers)))](str(rng.choice(pool[-3:]))))
    if seed % 2:
        b.conv(pool[-1], 3, 1)
    model = b.model()
    found, made = solved(model)
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures
