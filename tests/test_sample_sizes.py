"""The sizes of what the certificate tests a node with.

An axis of unknown size is as long as the node's constants presuppose; one that is long is cut short where nothing
varies along it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.certificate import certify
from bnfold.certificate.evaluate import evaluate
from bnfold.certificate.groups import reshaped
from bnfold.certificate.least import settled
from bnfold.certificate.result import NotCertifiedError
from bnfold.graph import Model, Shape
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.source import read
from tests.builder import Builder
from tests.law import Folded, fold

FLOAT = TensorProto.FLOAT

NODES: dict[str, Callable[[Builder, str], str]] = {
    "a Gather": lambda b, x: b.node("Gather", x, b.constant([5, -7]), axis=0),
    "a Gather from behind": lambda b, x: b.node("Gather", x, b.constant([-7, 2]), axis=3),
    "a Compress": lambda b, x: b.node("Compress", x, b.constant(np.array([False] * 5 + [True] * 2)), axis=2),
    "a Slice": lambda b, x: b.node("Slice", x, b.constant([7]), b.constant([1 << 40]), b.constant([2])),
    "a Slice from behind": lambda b, x: b.node("Slice", x, b.constant([-9]), b.constant([-6]), b.constant([0])),
    "a Slice that goes back": lambda b, x: b.node(
        "Slice", x, *(b.constant([n]) for n in (-5, -(1 << 40), 3)), b.constant([-2])
    ),
    "a Split": lambda b, x: b.node("Split", x, b.constant([5, 7]), outputs=["first", "second"], axis=2),
    "equal parts": lambda b, x: b.node("Split", x, outputs=["first", "second", "third"], axis=0),
    "a crop": lambda b, x: b.node("Pad", x, b.constant([0, 0, -5, 0, -3, 0, -6, 0])),
    "a smaller image": lambda b, x: b.node("Resize", x, "", b.constant([1, 1, 0.1, 0.05], type_=FLOAT)),
    "blocks": lambda b, x: b.node("DepthToSpace", b.node("SpaceToDepth", x, blocksize=3), blocksize=3),
    "an Expand": lambda b, x: b.node("Expand", x, b.constant([7, 4, 5, 9])),
    "a Reshape": lambda b, x: b.node("Reshape", x, b.constant([-1, 4, 6, 7])),
    "a Reshape that keeps": lambda b, x: b.node("Reshape", x, b.constant([0, 4, 42, -1])),
    "a Reshape of known size": lambda b, x: b.node("Reshape", x, b.constant([3, 4, 5, 7])),
    "two Reshapes": lambda b, x: b.node(
        "Reshape", b.node("Reshape", x, b.constant([0, 4, 35])), b.constant([0, 4, 5, 7])
    ),
    "a Flatten": lambda b, x: b.node("Reshape", b.node("Flatten", x, axis=2), b.constant([-1, 4, 5, 7])),
}


@pytest.mark.parametrize("node", NODES)
def test_what_a_node_presupposes_is_there(node: str) -> None:
    b = Builder()
    y = NODES[node](b, b.node("Mul", b.input("N", 4, "H", "W"), b.constant(np.float32(0.6))))
    _is_tested(fold(b.model(b.node("Conv", y, b.constant(b.normal(5, 4, 1, 1), "weight")))), y)


def test_a_reshape_of_which_two_sizes_are_not_known() -> None:
    """Heads of an attention whose length comes from another tensor than the one that is taken apart."""
    b = Builder()
    x, other = b.input("N", "L", 64), b.input("N", "M")
    length = [b.node("Gather", b.node("Shape", name), b.constant([axis])) for name, axis in ((x, 0), (other, 1))]
    scaled = b.node("Mul", b.node("Sigmoid", x), b.constant(np.float32(0.25)))
    y = b.node("Reshape", scaled, b.node("Concat", *length, b.constant([-1, 16]), axis=0))
    case = fold(b.model(b.node("MatMul", y, b.constant(b.normal(16, 5)))))
    assert case.left == 0, case.codes()
    before, after = Model(read(case.original)), Model(read(case.model))
    assert certify(before, after, witness_of(Rewrite.of(case.solution.plan))).failures == ()


def _is_tested(case: Folded, name: str, left: int = 0) -> None:
    """The fold is certified; and not, where a tensor is told to be stored in another way."""
    assert case.left == left, case.codes()
    before, after = Model(read(case.original)), Model(read(case.model))
    witness = witness_of(Rewrite.of(case.solution.plan))
    assert certify(before, after, witness).failures == ()
    main = witness.main
    wrong = main.storage | {name: replace(main.storage[name], num=2 * main.storage[name].num)}
    failures = certify(before, after, replace(witness, graphs=(replace(main, storage=wrong),))).failures
    maker = next(node.name for node in case.original.graph.node if name in node.output)
    assert maker in [failure.node for failure in failures], "it is tested at all"


LARGE: dict[str, Callable[[Builder, str], str]] = {
    "scales": lambda b, x: b.node("Resize", x, "", b.constant([1.0, 1, 2, 0.5], type_=FLOAT), mode="linear"),
    "sizes": lambda b, x: b.node("Resize", x, "", "", b.constant([2, 4, 6000, 1000]), mode="cubic"),
    "sizes of some axes": lambda b, x: b.node("Resize", x, "", "", b.constant([9000, 4000]), axes=[2, 3]),
    "a border": lambda b, x: b.node("Pad", x, b.constant([0, 0, 3, 3, 0, 0, 3, 3]), mode="reflect"),
    "copies": lambda b, x: b.node("Tile", x, b.constant([1, 1, 2, 3000])),
    "an Expand": lambda b, x: b.node("Expand", x, b.constant([9, 1, 1, 1, 4000])),
    "a Slice": lambda b, x: b.node("Slice", x, *(b.constant([n]) for n in (7, 2900, 2, 2))),
    "a Slice that goes back": lambda b, x: b.node("Slice", x, *(b.constant([n]) for n in (-7, 3, -1, -2))),
    "equal parts": lambda b, x: b.node("Split", x, outputs=["first", "second"], axis=3, num_outputs=2),
    "picked at run time": lambda b, x: b.node("Gather", x, b.input(900, 2, name="i", type_=TensorProto.INT64), axis=2),
    "a Split": lambda b, x: b.node("Split", x, b.constant([5, 2995]), outputs=["first", "second"], axis=2),
    "a Compress": lambda b, x: b.node("Compress", x, b.constant(np.arange(3000) % 3 == 1), axis=2),
    "a Gather": lambda b, x: b.node("Gather", x, b.constant(np.arange(2000).reshape(40, 50)), axis=3),
    "more axes": lambda b, x: b.node("Reshape", x, b.constant([0, 4, -1, 2, 4000])),
    "tokens": lambda b, x: b.node("Transpose", b.node("Reshape", x, b.constant([0, 4, -1])), perm=[0, 2, 1]),
    "channels in two": lambda b, x: b.node("Reshape", x, b.constant([0, 2, 2, 3000, 4000])),
    "new axes": lambda b, x: b.node("Unsqueeze", x, b.constant([0, -1])),
    "fewer axes": lambda b, x: b.node("Squeeze", b.node("Unsqueeze", x, b.constant([3])), b.constant([3])),
    "a Flatten": lambda b, x: b.node("Flatten", x, axis=2),
    "a Transpose": lambda b, x: b.node("Transpose", x, perm=[3, 1, 0, 2]),
    "the largest": lambda b, x: b.node("ReduceMax", x, b.constant([2, 3]), keepdims=0),
    "a mean": lambda b, x: b.node("ReduceMean", x, b.constant([-1])),
    "a sum": lambda b, x: b.node("ReduceSum", x, b.constant([3])),
    "a norm": lambda b, x: b.node("ReduceL2", x, b.constant([2, 3])),
    "sums": lambda b, x: b.node("CumSum", x, b.constant(2)),
    "a triangle": lambda b, x: b.node("Trilu", x),
    "blocks": lambda b, x: b.node("SpaceToDepth", x, blocksize=2),
    "a larger image": lambda b, x: b.node("DepthToSpace", x, blocksize=2),
}


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("node", LARGE)
def test_large_images_are_cut_short(node: str, batch: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 million elements; the scale behind the node goes into the one in front of it."""
    monkeypatch.setattr("bnfold.certificate.extents.MOST_ELEMENTS", 1 << 16)
    b = Builder(18)
    x = b.node("Mul", b.node("Tanh", b.input(batch, 4, 3000, 4000)), b.constant(0.6))
    y = LARGE[node](b, x)
    case = fold(b.model(b.node("Tanh", b.node("Mul", y, b.constant(-3.0)))))
    _is_tested(case, y, 1)


def test_only_what_varies_is_tested_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 numbers that differ with the place, and a batch of 8 beside them."""
    monkeypatch.setattr("bnfold.certificate.extents.MOST_ELEMENTS", 1 << 16)
    b = Builder()
    y = b.conv(b.input(8, 3, 30, 40), 50, 1)
    added = b.node("Add", y, b.constant(b.normal(50, 30, 40)))
    case = fold(b.model(b.node("Tanh", b.node("Mul", added, b.constant(-3.0)))))
    _is_tested(case, added, 1)


GROUPS: list[tuple[Shape, Shape, list[tuple[tuple[int, ...], tuple[int, ...]]]]] = [
    ((1, 64, 540, 960), (1, 64, 518400), [((0,), (0,)), ((1,), (1,)), ((2, 3), (2,))]),
    (("N", 3, 1, 1), ("N", 3), [((0,), (0,)), ((1,), (1,)), ((2,), ()), ((3,), ())]),
    ((1, 5), (5,), [((0, 1), (0,))]),
    ((5,), (1, 5), [((0,), (0, 1))]),
    ((2, 3, 4), (4, 3, 2), [((0, 1, 2), (0, 1, 2))]),
    (("N * T", 8), ("N", "T", 8), [((0,), (0, 1)), ((1,), (2,))]),
    (("2 * N", 3), ("N", 6), [((0, 1), (0, 1))]),
    ((), (1,), [((), (0,))]),
    (("N", None), ("N", 3), []),
    ((4, 6), (5, 5), []),
    ((0, 3), (3, 0), []),
    (tuple("ABCDEFG"), tuple("ABCDEFG"), []),
]


@pytest.mark.parametrize(("before", "after", "groups"), GROUPS, ids=str)
def test_groups_of_a_reshape(
    before: Shape, after: Shape, groups: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    assert reshaped(before, after) == groups


SETTLED: list[tuple[Shape, Shape, dict[object, int]]] = [
    (("N", 4, "H", "W"), (None, 4, 6, 7), {"N": 1, "H": 1, "W": 42}),
    (("N", 4, "H", "W"), ("N", 4, 42, None), {"H": 1, "W": 42}),
    (("N", 4, "H", "W"), ("N", 4, "H * W"), {}),
    (("N", 4, None), (2, 4, 5), {"N": 1, (0, 2): 10}),
    (("N", 3), (7,), {}),
    (("S", "S"), (9,), {}),
    (("N", "S", "S"), (None, 7), {"S": 1, "N": 7}),
    (("N", 0), (None, 7), {}),
    ((5, 6), (30,), {}),
]


@pytest.mark.parametrize(("entering", "leaving", "sizes"), SETTLED, ids=str)
def test_sizes_that_follow_from_a_target(entering: Shape, leaving: Shape, sizes: dict[object, int]) -> None:
    assert settled(entering, leaving) == sizes


def test_what_would_be_made_is_bounded() -> None:
    """Whatever stands in a witness: 10^14 places are not laid out."""
    b = Builder()
    b.node("Resize", b.input(1, 4, 10, 10), "", b.constant([1, 1, 1e6, 1e6], type_=FLOAT))
    (node,) = Model(read(b.model())).main.nodes
    with pytest.raises(NotCertifiedError, match="too large to be tested"):
        evaluate(node, [np.ones((1, 4, 10, 10)), None, np.array([1, 1, 1e6, 1e6])])


@pytest.mark.parametrize(
    ("op", "count", "text"),
    [
        ("Slice", 1 << 20, "longer than any tensor has axes"),
        ("Gather", (1 << 25) + 1, "too large to be tested"),
    ],
)
def test_numbers_given_at_run_time_are_not_laid_out_without_end(op: str, count: int, text: str) -> None:
    """A table moved by an input of so many numbers is given up before these are written down."""
    b = Builder()
    table, many = b.constant(b.normal(5, 6)), b.input(count, type_=TensorProto.INT64)
    zero = b.constant([0])
    moved = b.node("Slice", table, zero, many, zero) if op == "Slice" else b.node(op, table, many)
    case = fold(b.model(b.node("Sigmoid", b.node("Mul", moved, b.constant(b.normal(6))))))
    witness = witness_of(Rewrite.of(case.solution.plan))
    failures = certify(Model(read(case.original)), Model(read(case.model)), witness).failures
    assert [failure.text for failure in failures if text in failure.text]
