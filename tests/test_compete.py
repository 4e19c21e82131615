"""Affines that want one tensor in different ways: the plan that removes the most work wins, whatever the order."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold import affine
from bnfold.affine import Storage
from bnfold.graph import Model, Node
from bnfold.rules import Accept
from bnfold.solver import solve
from bnfold.solver.compete import compete
from bnfold.solver.state import State
from bnfold.solver.sweep import GraphSolver
from bnfold.source import read
from tests.builder import Builder
from tests.law import check, fold, law

MIXED = np.array([0.7, -1.3, 0.9, 1.1])
OTHER = np.array([0.7, 1.3, -0.9, 1.1])
POSITIVE = np.abs(MIXED)


def stream(b: Builder, *gammas: np.ndarray, size: int = 6) -> str:
    """A residual stream that one BN, ReLU and padded convolution after another read and write."""
    x = b.conv(b.input(3, 4, size, size), 4, 3, pads=[1, 1, 1, 1])
    for i, gamma in enumerate(gammas):
        y = b.node("Relu", b.bn(x, gamma=gamma, name=f"bn_{i}"))
        x = b.node("Add", x, b.conv(y, 4, 3, pads=[1, 1, 1, 1]))
    return b.conv(x, 4, 1)


def kept(model: onnx.ModelProto) -> set[str]:
    return {o.node.label for o in solve(Model(read(model))).outcomes if not o.folded}


@pytest.mark.parametrize(
    ("gammas", "left"),
    [
        ((POSITIVE, POSITIVE, POSITIVE), set()),
        ((MIXED,), set()),
        ((MIXED, MIXED), set()),
        ((MIXED, POSITIVE, POSITIVE), {"bn_0"}),
        ((POSITIVE, MIXED, MIXED), {"bn_0"}),
        ((MIXED, OTHER, OTHER, OTHER), {"bn_0"}),
        ((OTHER, MIXED, MIXED, OTHER, OTHER), {"bn_1", "bn_2"}),
        ((POSITIVE, POSITIVE, MIXED, MIXED, MIXED, MIXED, MIXED), {"bn_0", "bn_1"}),
        ((POSITIVE, POSITIVE, POSITIVE, MIXED, MIXED, MIXED, MIXED, MIXED), {"bn_0", "bn_1", "bn_2"}),
    ],
)
def test_the_larger_party_of_signs_wins(gammas: tuple[np.ndarray, ...], left: set[str]) -> None:
    b = Builder()
    stream(b, *gammas)
    case = law(b.model())
    assert set(case.codes()) == left
    assert all(codes & {"negative-scale", "conflict"} for codes in case.codes().values())


def test_a_fold_past_a_node_that_had_left_is_taken_back_with_it() -> None:
    """Once the BN is back, it refuses what a later fold made of the tensor in front of it. Its zeros let both leave."""
    b = Builder(13)
    first = b.node("Sub", b.constant(np.array([1.1, -1.5, 0.4, 0.7, -0.3]).reshape(5, 1)), b.input(3, 4, 5, 4))
    second = b.node("Sub", b.constant(np.array([1.6, 0.2, -1.4, -1.5]).reshape(4, 1, 1)), first)
    padded = b.node("Pad", second, b.constant([0, 0, 1, 0, 0, 1, 0, 0]), b.constant(0.5))
    rows = b.node("Mul", padded, b.constant(np.array([1.9, -1.5, 0.7]).reshape(3, 1, 1, 1)))
    zeros: dict[str, Any] = {"beta": [0.6, 0, 0.6, 0, 0.6], "mean": [0.0] * 5, "variance": [1.0] * 5, "epsilon": 0.0}
    b.conv(b.bn(rows, gamma=[0, 1, 0, 1, 0], **zeros), 2, 1)
    b.conv(b.node("Gather", first, b.constant(3), axis=3), 2, 1)
    law(b.model())


def test_a_fold_that_left_behind_a_tensor_stored_otherwise_is_taken_back_with_it() -> None:
    """One reader of the convolution leaves while the other has a shift in its bias, which then goes back out of it."""
    b = Builder(22)
    x = b.conv(b.input(2, 3, 5), 3, 1)

    def shifted(x: str) -> str:
        return b.node("Add", x, b.constant(b.normal(3, 1)))

    first, second = shifted(b.node("Mul", x, b.constant(1.0))), shifted(x)
    part = b.node("Slice", second, b.constant([1]), b.constant([100]), b.constant([1]))
    part = b.node("Add", b.node("Mul", part, b.constant(-2.0)), b.constant(0.25))
    part = b.node("InstanceNormalization", b.matmul(part, 2, True), b.constant(b.normal(2)), b.constant(b.normal(2)))
    b.conv(part, 2, 1, group=2, pads=[0, 1])
    y = b.bn(shifted(first), gamma=[1.7, -1.6, 0.0], variance=[0.0, 0.86, 1.6])
    b.conv(b.node("Trilu", b.node("CastLike", y, x)), 2, 1)
    law(b.model())


def test_the_larger_tensor_wins() -> None:
    """Two readers of a pool want its input's sign differently; one of them works on four times the elements."""
    b = Builder()
    x = b.conv(b.input(3, 4, 8, 8), 4, 1)
    b.conv(b.node("Relu", b.bn(x, gamma=MIXED, name="large")), 4, 3, pads=[1, 1, 1, 1])
    small = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    b.conv(b.node("Relu", b.bn(small, gamma=OTHER, name="small")), 4, 3, pads=[1, 1, 1, 1])
    assert set(law(b.model()).codes()) == {"small"}


def two_parties(b: Builder) -> None:
    stream(b, MIXED, OTHER, OTHER, POSITIVE, MIXED, OTHER)


def two_streams(b: Builder) -> None:
    x = stream(b, MIXED, POSITIVE)
    for gamma in (OTHER, OTHER, MIXED):
        x = b.node("Add", x, b.conv(b.node("Relu", b.bn(x, gamma=gamma)), 4, 3, pads=[1, 1, 1, 1]))
    b.conv(x, 3, 1)


def dense_block(b: Builder) -> None:
    x = b.conv(b.input(3, 4, 5, 5), 4, 1)
    for _ in range(4):
        y = b.conv(b.node("Relu", b.bn(x)), 4, 1)
        x = b.node("Concat", x, b.conv(b.node("Relu", b.bn(y)), 3, 3, pads=[1, 1, 1, 1]), axis=1)
    b.conv(b.node("Relu", b.bn(x)), 4, 1)


@pytest.mark.parametrize("make", [two_parties, two_streams, dense_block])
def test_order_does_not_matter(make: Callable[[Builder], None]) -> None:
    b = Builder()
    make(b)
    model = b.model()
    expected = kept(model)
    assert expected
    for seed in range(6):
        assert kept(shuffled(model, seed)) == expected


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph, its nodes in another topological order."""
    rng, result = np.random.default_rng(seed), onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    made = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer} | {""}
    waiting = list(model.graph.node)
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        node = ready[rng.integers(len(ready))]
        waiting.remove(node)
        made.update(node.output)
        result.graph.node.append(node)
    return result


def test_a_trial_that_loses_leaves_no_trace() -> None:
    b = Builder()
    stream(b, POSITIVE, MIXED, POSITIVE, POSITIVE, OTHER)
    case = fold(b.model())
    check(case)
    assert set(case.codes()) == {"bn_1", "bn_4"}


def test_signs_go_forward_where_nothing_refuses_them() -> None:
    """In front of a padded convolution only the shift must go back: the stream keeps its signs."""
    b = Builder()
    x = b.conv(b.input(3, 4, 6, 5), 4, 3, pads=[1, 1, 1, 1])
    for gamma in (MIXED, OTHER, MIXED):
        y = b.conv(b.bn(x, gamma=gamma), 4, 3, pads=[1, 1, 1, 1])
        x = b.node("Add", x, b.conv(y, 4, 1))
    b.conv(x, 2, 1)
    case = law(b.model(), left=0)
    storage = case.solution.plan.graphs[0].storage
    sums = [node.output[0] for node in case.original.graph.node if node.op_type == "Add"]
    assert all(np.all(storage[name].num == storage[name].den) for name in sums if name in storage)


def test_each_part_of_the_channels_goes_its_own_way() -> None:
    """One half can only be pulled (a ReLU behind it), the other only pushed (a ReLU in front of it)."""
    b = Builder()
    x = b.input(3, 4, 5, 5)
    joined = b.node("Concat", b.conv(x, 3, 1), b.node("Relu", b.conv(x, 2, 1)), axis=1)
    y = b.bn(joined, gamma=[0.5, -0.8, 1.2, -0.6, 0.9])
    parts = [b.name("part") for _ in range(2)]
    b.node("Split", y, b.constant([3, 2], "sizes"), outputs=parts, axis=1)
    b.conv(b.node("Relu", parts[0]), 2, 1)
    b.conv(parts[1], 2, 1)
    case = law(b.model(), left=0)
    assert [o.way for o in case.solution.outcomes] == ["split"]


def affines_that_come_back(b: Builder) -> None:
    """Trials take back affines that then take up what others demand."""
    y = b.input(3, 4, 5, 5)
    for kind in "nbsbtsbnt":
        y = b.affine(y, kind)
    b.node("Relu", y)
    z = b.node("Add", y, b.affine(b.conv(y, 4, 1), "n"))
    b.affine(b.affine(b.node("Relu", z), "s"), "b")


@pytest.mark.parametrize("make", [two_parties, two_streams, dense_block, affines_that_come_back])
@pytest.mark.parametrize("seed", range(4))
def test_the_plan_edits_every_node_that_sees_a_restored_tensor(make: Callable[[Builder], None], seed: int) -> None:
    b = Builder(seed=seed)
    make(b)
    solver = GraphSolver(Model(read(shuffled(b.model(), seed))).main, (), (), {}, math.inf)
    solver.sweep(solver.sources)
    compete(solver)
    state = solver.state
    for node in state.graph.nodes:
        if node.index not in state.leaving:
            (accept,) = state.ask(node, {}, everything_fixed=True)
            assert len(accept.edits) == len(state.plan.edits.get(node.index, ())), node.label


def test_what_is_taken_back_takes_up_the_demands_that_stay() -> None:
    """The first affine was pushed into the second, which then left: taken back, it holds what the first one was."""
    b = Builder()
    x = b.bn(b.input(3, 4, 5, 5), name="first")
    b.conv(b.bn(x, name="second"), 2, 1)
    solver = GraphSolver(Model(read(b.model())).main, (), (), {}, math.inf)
    first, second = (node for node in solver.graph.nodes if node.op == "BatchNormalization")
    solver.sweep([first.index])
    solver.sweep([second.index])
    state = solver.state
    assert set(state.leaving) == {first.index, second.index}
    state.undo(state.depending([second.index]))
    (accept,) = state.ask(second, {}, everything_fixed=True)
    assert set(state.leaving) == {first.index}
    assert len(state.plan.edits[second.index]) == len(accept.edits) > 0


def asked(blocks: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many nodes are asked where scales compete: every second one stands beside what it reads."""
    b, scale = Builder(), {"gamma": POSITIVE, "beta": np.zeros(4), "mean": np.zeros(4)}
    x = b.input(1, 4, 5, 6)
    for _ in range(blocks):
        x = b.bn(b.node("Add", x, b.node("LeakyRelu", b.bn(x, **scale))), **scale)
    count, ask = 0, State.ask

    def counted(state: State, node: Node, *arguments: Any, **options: Any) -> list[Accept]:
        nonlocal count
        count += 1
        return ask(state, node, *arguments, **options)

    monkeypatch.setattr(State, "ask", counted)
    monkeypatch.setattr(sys.modules["bnfold.solver.compete"], "TRIALS", math.inf)
    solve(Model(read(b.model(x))))
    monkeypatch.undo()
    return count


def test_taking_back_costs_what_was_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that agreed once are not asked again because another one refuses."""
    few, many = (asked(blocks, monkeypatch) for blocks in (20, 80))
    assert many < 12 * few  # each trial takes back more; asked again for every refusal it would be 20 times


def test_ends_that_vary_along_different_axes_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone is small; together they would be a value for every pair of channel and column."""
    b = Builder()
    b.node("Relu", b.node("Mul", b.node("Relu", b.input(1, 40, 1, 50)), b.constant(2.0)))
    graph = Model(read(b.model())).graphs[0]
    solver = GraphSolver(graph, (), (), {}, 8.0)
    (index,) = solver.sources
    along = np.arange(1.0, 41.0).reshape(1, 40, 1, 1), np.arange(1.0, 51.0).reshape(1, 1, 1, 50)
    for name, scale in zip((graph.nodes[index].inputs[0], graph.nodes[index].outputs[0]), along, strict=True):
        solver.state.plan.storage[name] = Storage.encode(scale, np.zeros((1,) * 4))
    monkeypatch.setattr(affine, "MOST_TOGETHER", 1000)
    affine.together.cache_clear()
    solver.sweep([index])
    assert {reason.code for outcome in solver.outcomes() for reason in outcome.reasons} == {"search-limit"}
    affine.together.cache_clear()
