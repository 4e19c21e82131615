"""The certificate on axes of unknown size: a sample is as long as the node's constants presuppose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bnfold.certificate import certify
from bnfold.certificate.least import settled
from bnfold.graph import Model, Shape
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.source import read
from tests.builder import Builder
from tests.law import fold

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
    "a smaller image": lambda b, x: b.node("Resize", x, "", b.constant(np.array([1, 1, 0.1, 0.05], np.float32))),
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
    case = fold(b.model(b.node("Conv", y, b.constant(b.normal(5, 4, 1, 1), "weight"))))
    assert case.left == 0, case.codes()
    before, after = Model(read(case.original)), Model(read(case.model))
    witness = witness_of(Rewrite.of(case.solution.plan))
    assert certify(before, after, witness).failures == ()
    main = witness.main
    wrong = main.storage | {y: replace(main.storage[y], num=2 * main.storage[y].num)}
    failures = certify(before, after, replace(witness, graphs=(replace(main, storage=wrong),))).failures
    assert case.original.graph.node[-2].name in [failure.node for failure in failures], "it is tested at all"


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
