"""Budgets for what a file can claim, made small here: what is beyond one is refused, and nothing is laid out for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from bnfold import affine, rules
from bnfold.affine import Array, Storage, TooLargeError
from bnfold.graph import Model
from bnfold.rules import Refused, View, base
from bnfold.rules.base import Port
from bnfold.solver.state import State
from bnfold.source import read
from tests.beside import at_run_time, weighed, with_inputs
from tests.builder import Builder
from tests.law import law
from tests.merging import SAME, Row, image, ops, solved
from tests.rows import IMAGE, Apply

PLACES = "bnfold.rules.base.MOST_VALUES"


def along(axis: int, size: int, rank: int = 4) -> Array:
    """A scale that varies along one axis."""
    return np.arange(1.0, 1 + size).reshape([size if each == axis else 1 for each in range(rank)])


def scaled(scale: Array) -> Storage:
    return Storage.encode(scale, np.zeros((1,) * scale.ndim))


@dataclass(frozen=True)
class Budget:
    """An operator that passes a scale of its channels within the limits as they are, and not within smaller ones."""

    name: str
    apply: Apply
    limits: Mapping[str, int]
    text: str = "would spread the demand over more than"


def parts(b: Builder, x: str) -> str:
    """Three, all of which are read."""
    names = ["one", "two", "three"]
    b.node("Split", x, outputs=names, axis=1, num_outputs=3)
    for name in names:
        b.node("Relu", name)
    return names[0]


RULES = [
    Budget("weights", weighed(np.ones((2, 6, 1, 1))), {PLACES: 5}),
    Budget("positions of a Slice", with_inputs("Slice", [0], [2], [1]), {PLACES: 5}),
    Budget("Tile", with_inputs("Tile", [1, 3, 1, 1]), {PLACES: 17}),
    Budget("Concat", lambda b, x: b.node("Concat", x, x, axis=1), {PLACES: 11}),
    Budget("Flatten", lambda b, x: b.node("Flatten", x), {PLACES: 209}),
    Budget("Gather", with_inputs("Gather", np.arange(18) % 6, axis=1), {PLACES: 17}),
    Budget("inputs", lambda b, x: b.node("Concat", x, x, x, axis=1), {"bnfold.rules.WIDE": 2}, "goes through 2 at"),
    Budget("outputs", parts, {"bnfold.rules.WIDE": 2}, "goes through 2 at"),
    Budget("affines that stay", with_inputs("Mul", along(0, 6, 3)),
           {"bnfold.constants.Room.AFFINES": 5, "bnfold.constants.Room.MANY": 5}, "nodes like it have more than 5"),
]  # fmt: skip


def asked(apply: Apply) -> list[rules.Accept]:
    """What an operator says where the channels of what it reads are scaled."""
    b = Builder(18)
    x = b.node("Relu", b.input(*IMAGE))
    y = apply(b, x)
    b.node("Relu", y)
    graph = Model(read(b.model())).graphs[0]
    return State(graph).ask(graph.producers[y], {x: scaled(along(1, 6))})


@pytest.mark.parametrize("row", RULES, ids=lambda row: row.name)
def test_a_demand_that_is_too_large_for_an_operator(row: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(row.apply)
    for name, limit in row.limits.items():
        monkeypatch.setattr(name, limit)
    with pytest.raises(Refused, match=row.text) as refusal:
        asked(row.apply)
    assert refusal.value.reason.code == "search-limit"


def test_a_demand_is_not_spread_over_the_axes_of_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to find that these are known at run time only."""
    b = Builder()
    y = with_inputs("Gather", at_run_time(3, 4), axis=1)(b, b.node("Relu", b.input(*IMAGE)))
    b.node("Relu", y)
    graph = Model(read(b.model())).graphs[0]
    for limit, text in ((12, "computed at run time"), (11, "spread the demand over more than 11 places")):
        monkeypatch.setattr(base, "MOST_VALUES", limit)
        with pytest.raises(Refused, match=text):
            State(graph).ask(graph.producers[y], {y: scaled(along(1, 3, 5))})


def test_a_demand_is_not_spread_over_any_number_of_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_VALUES", 100)
    b = Builder()
    case = law(b.model(b.gemm(b.node("Flatten", b.affine(b.input(3, 6, 5, 4), "p")), 2)), left=1)
    assert "search-limit" in set().union(*case.codes().values())


def test_scales_along_two_axes_do_not_meet_in_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    x, gate = (b.node("Relu", b.input(*IMAGE)) for _ in range(2))
    y = b.node("Mul", x, gate)
    b.node("Relu", y)
    graph = Model(read(b.model())).graphs[0]
    given = {x: scaled(along(1, 6)), gate: scaled(along(3, 5))}
    assert State(graph).ask(graph.producers[y], given)
    few_together(monkeypatch)
    with pytest.raises(Refused, match="the demand has too many values"):
        State(graph).ask(graph.producers[y], given)


def test_a_constant_along_one_axis_takes_no_scale_along_another(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    b.node("Max", b.input(*IMAGE), b.constant(np.ones((6, 1, 1))))
    node = Model(read(b.model())).graphs[0].nodes[0]
    view = View(node, {1: Port("c", (6, 1, 1), scaled(along(2, 5, 3)), True, node.constant(1))})
    assert base.restored_constant(view, 1, "bound")
    few_together(monkeypatch)
    with pytest.raises(TooLargeError):
        base.restored_constant(view, 1, "bound")


def few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty numbers are too many for a scale along one axis and a shift along another."""
    monkeypatch.setattr(affine, "MOST_TOGETHER", 20)
    affine.together.cache_clear()


def test_a_demand_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(view: rules.View) -> list[rules.Accept]:
        raise MemoryError

    monkeypatch.setitem(rules.RULES, "Neg", full)
    b = Builder()
    case = law(b.model(b.conv(b.node("Neg", b.affine(b.input(3, 6, 5, 4), "p")), 2, 1)), left=1)
    assert "search-limit" in set().union(*case.codes().values())


# ------------------------------------------------------------------------------------------------------------- merges


def branches(b: Builder) -> str:
    return b.node("Add", b.conv(x := image(b), 4, 3, group=2, **SAME), b.conv(x, 4, 1))


@pytest.mark.parametrize(
    "limits",
    [
        {"bnfold.merges.terms.MOST_PARTS": 2},
        {"bnfold.merges.terms.MOST_VALUES": 100, "bnfold.merges.terms.MOST_TIMES": 1},
        {"bnfold.merges.search.STEPS": 1, "bnfold.merges.search.STEPS_EACH": 0},
        {"bnfold.merges.evaluation.MOST_VALUES": 3},
    ],
    ids=lambda limits: next(iter(limits)).removeprefix("bnfold.merges."),
)
def test_branches_that_are_too_many_or_too_large_stay(
    limits: Mapping[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two groups, and of one: two nodes are looked through, and 72 numbers would become 144."""
    model = Row("", branches, "").model()
    assert ops(solved(model)[1]) == "Conv"
    for name, limit in limits.items():
        monkeypatch.setattr(name, limit)
    assert solved(model)[1] == model
