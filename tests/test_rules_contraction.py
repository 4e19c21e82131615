"""MatMul, Gemm and Einsum: what their weights take up, what passes along the rows, and what computed operands take."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import TensorProto

from tests.builder import Builder
from tests.law import fold, law
from tests.rows import ALL, SCALES, Apply, Row, built, cases, certified, holds, runs_alike

SHIFTS = "upsztbn"  # all but c - x, which a MatMul without bias would only move


def matmul(*weight: int, left: bool = False) -> Apply:
    def apply(b: Builder, x: str) -> str:
        w = b.constant(b.normal(*weight), "w")
        return b.node("MatMul", *((w, x) if left else (x, w)))

    return apply


def gemm(*weight: int, c: tuple[int, ...] | None = None, left: bool = False, **attributes: Any) -> Apply:
    def apply(b: Builder, x: str) -> str:
        w = b.constant(b.normal(*weight), "w")
        operands = [w, x] if left else [x, w]
        operands += [] if c is None else [b.constant(b.normal(*c), "c")]
        if b.opset < 7 and c is not None:
            return b.node("Gemm", *operands, broadcast=1, **attributes)
        return b.node("Gemm", *operands, **attributes)

    return apply


def einsum(equation: str, *weight: int, left: bool = False) -> Apply:
    def apply(b: Builder, x: str) -> str:
        w = b.constant(b.normal(*weight), "w")
        return b.node("Einsum", *((w, x) if left else (x, w)), equation=equation)

    return apply


def heads(b: Builder, x: str) -> str:
    """A batch of weights, as heads of attention have."""
    return b.node("MatMul", x, b.constant(b.normal(6, 5, 4), "w"))


ROWS = [
    # Batches of weights: what varies from one to the next, and within.
    Row("matmul of a batch", heads, ALL, SHIFTS, (3, 6, 7, 5), 3, front_axis=3),
    Row("matmul of a batch, along the batch", heads, "upszbn", SHIFTS, (3, 6, 7, 5), 1, front_axis=1),
    Row("matmul of a batch of one", matmul(1, 5, 4), ALL, SHIFTS, (3, 6, 7, 5), 3, front_axis=3),
    Row("matmul of a batch of one, along the batch", matmul(1, 5, 4), "upszb", SHIFTS, (3, 6, 7, 5), 1),
    Row("matmul of a batch, constant left", matmul(6, 4, 7, left=True), "upszn", SHIFTS, (3, 6, 7, 5), 2, front_axis=2),
    # Rows: their scale passes, their shift arrives as a constant.
    Row("matmul, rows in front", matmul(5, 4), "upszb", SHIFTS, (3, 6, 5)),
    Row("matmul, rows in front, constant left", matmul(4, 6, left=True), ALL, "ut", (3, 6, 5), 2, (17,), 2),
    Row("matmul of vectors", matmul(5), ALL, SHIFTS, (3, 6, 5)),
    Row("gemm, rows", gemm(6, 4, c=(4,)), "uct", "uct", (3, 6), 0, (7, 17), 0),
    Row("gemm, rows, C of rows", gemm(6, 4, c=(3, 1), beta=0.5), "uct", "uct", (3, 6), 0, front_axis=0),
    Row("gemm, rows, no C", gemm(4, 6, transB=1, alpha=2.0), "uct", "uct", (3, 6), 0, front_axis=0),
    Row("gemm, constant left", gemm(4, 3, c=(4, 1), left=True), ALL, ALL, (3, 6), 0, (7, 17), 0),
    Row("gemm, constant left, transposed", gemm(3, 4, c=(6,), left=True, transA=1, alpha=2.0, beta=-0.5), ALL, ALL,
        (3, 6), 0, front_axis=0),
    Row("gemm, constant left, both transposed", gemm(6, 4, left=True, transA=1, transB=1), ALL, "uct", (3, 6), 1),
    Row("gemm, constant left, its rows", gemm(4, 3, c=(1,), left=True), "upsctb", ALL, (3, 6), 1),
    # Einsum has no bias: a shift passes on, and one behind it stays.
    Row("einsum", einsum("bck,kn->bcn", 5, 4), ALL, SCALES, (3, 6, 5), 2, (12, 17), 2),
    Row("einsum of channels", einsum("nchw,cd->nhwd", 6, 4), ALL, SCALES, (3, 6, 7, 5), 3),
    Row("einsum of a batch", einsum("nchw,cwd->ndch", 6, 5, 4), SCALES, SCALES, (3, 6, 7, 5), 2),
    Row("einsum, constant left, implicit", einsum("ck, bcs", 6, 4, left=True), ALL, SCALES, (3, 6, 5), 1),
    Row("einsum that keeps rows", einsum("bck,kn->bnc", 5, 4), ALL, SCALES, (3, 6, 5), 2),
    Row("einsum that sums rows", einsum("bck,kn->bn", 5, 4), "uct", SCALES, (3, 6, 5), 1),
    Row("einsum of a product", einsum("bck,ck->bck", 6, 5), SCALES, SCALES, (3, 6, 5), 1),
]  # fmt: skip


@pytest.mark.parametrize(("row", "side", "kind", "opset"), cases(ROWS))
def test_an_affine_leaves_or_stays(row: Row, side: str, kind: str, opset: int) -> None:
    holds(row, side, kind, opset)


@pytest.mark.parametrize("side", ["front", "behind"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.name))
def test_onnx_runtime_runs_what_comes_out(row: Row, side: str) -> None:
    for kind in (row.front if side == "front" else row.behind)[-2:]:
        runs_alike(law(built(row, side, kind, 17, TensorProto.FLOAT).model(), left=0, tolerance=1e-5))


COMPUTED: list[tuple[str, int]] = [("u", 0), ("p", 0), ("s", 0), ("t", 0), ("b", 0), ("z", 0), ("n", 0)]


@pytest.mark.parametrize(("kind", "left"), COMPUTED)
@pytest.mark.parametrize("beta", [1.0, -0.5])
def test_a_computed_addend_takes_what_the_output_takes(kind: str, left: int, beta: float) -> None:
    b = Builder()
    x = b.input(3, 6)
    y = b.node("Gemm", x, b.constant(b.normal(6, 4), "w"), b.gemm(x, 4), beta=beta)
    b.affine(y, kind)
    certified(law(b.model(), left))


@pytest.mark.parametrize(("kind", "left"), [("u", 0), ("s", 0), ("t", 0), ("n", 0)])
def test_an_affine_of_the_addend_goes_to_the_output(kind: str, left: int) -> None:
    b = Builder()
    x = b.affine(b.node("Sigmoid", b.input(3, 4)), kind)
    b.gemm(b.node("Gemm", b.gemm(b.input(3, 6, name="z"), 6), b.constant(b.normal(6, 4), "w"), x), 5)
    if kind == "n":  # a scale of zero cannot be undone for the product
        left = 1
    certified(law(b.model(), left))


def test_an_addend_that_lacks_the_axis() -> None:
    b = Builder()
    c = b.node("Sigmoid", b.input(3, 1, name="c"))
    b.affine(b.node("Gemm", b.gemm(b.input(3, 6), 6), b.constant(b.normal(6, 4), "w"), c), "s")
    law(b.model(), 1).reason("lacks-axis")


@pytest.mark.parametrize("equation", ["", "bqd,bkd->bqk"])
@pytest.mark.parametrize("axis", [None, 1, 2])
def test_a_scale_of_scores_goes_to_the_queries_or_the_keys(equation: str, axis: int | None) -> None:
    b = Builder()
    x = b.input(2, 4, 6)
    queries, keys = b.matmul(x, 5, bias=True), b.matmul(x, 5, bias=True)
    if equation:
        y = b.node("Einsum", queries, keys, equation=equation)
    else:
        y = b.node("MatMul", queries, b.node("Transpose", keys, perm=[0, 2, 1]))
    b.node("Softmax", b.per_channel("Mul", y, 0.125 if axis is None else b.normal(4), axis or 1))
    case = law(b.model(), 0 if axis is None else 1)
    certified(case)
    if axis is None:
        # Below 1.26 ONNX Runtime fuses the Transpose into a product that it does not have for float64.
        runs_alike(case, optimize=False)


def test_a_shift_of_a_computed_operand_stays() -> None:
    b = Builder()
    x = b.input(2, 4, 6)
    shifted = b.per_channel("Add", b.node("Sigmoid", b.matmul(x, 5)), b.normal(5), axis=2)
    b.node("MatMul", b.matmul(x, 4), shifted)
    law(b.model(), 1).reason("dynamic-weight")


def test_large_weights_are_summed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.certificate.rounding.CHUNK", 8)
    for equation, weight in (("bck,kn->bcn", (6, 4)), ("bck,nk->bcn", (4, 6))):
        b = Builder()
        b.matmul(einsum(equation, *weight)(b, b.affine(b.input(3, 5, 6), "n", 2)), 4, bias=True)
        certified(law(b.model(), 0))


def test_rows_that_would_take_too_long_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.rules.contraction.LIMIT", 6 * 5 * 4 - 1)
    b = Builder()
    b.absorber(matmul(5, 4)(b, b.affine(b.input(3, 6, 5), "b", 1)))
    law(b.model(), 1).reason("row-axis")


def test_a_vague_equation_stays() -> None:
    for equation in ("...k,kn->...n", "ii,ij->j"):
        b = Builder()
        x = b.affine(b.input(5, 5), "s")
        b.node("Einsum", x, b.constant(b.normal(5, 4)), equation=equation)
        assert fold(b.model()).reason("unsupported-form").at == "einsum"


def test_axes_of_size_one_are_broadcast() -> None:
    b = Builder()
    b.conv(einsum("bck,bkn->bcn", 1, 5, 4)(b, b.affine(b.input(3, 6, 5), "s", 1)), 4, 1)
    case = law(b.model(), 0)
    certified(case)
    assert list(case.model.graph.initializer[0].dims) == [1, 5, 4]


@pytest.mark.parametrize("left", [False, True])
def test_a_shift_becomes_one_number_behind_a_vector_of_weights(left: bool) -> None:
    b = Builder()
    x = b.node("Relu", b.input(5, 5))
    x = b.affine(x, "n", axis=0 if left else 1)
    w = b.constant(b.normal(5), "w")
    b.node("MatMul", *((w, x) if left else (x, w)))
    case = law(b.model(), left=0)
    certified(case)


def test_a_bias_of_a_matmul_may_repeat_one_value() -> None:
    b = Builder()
    y = b.reshape(b.matmul(b.input(2, 15), 2), 2, 2, 1)
    y = b.bn(b.node("Concat", y, y, axis=1), gamma=1.5, beta=2.0, mean=0.5, variance=1.0)
    law(b.model(b.node("GlobalMaxPool", y)), left=0)
