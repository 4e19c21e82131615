"""Layer 2 of the proof: what it sees that rounding hides, and where it lets go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from bnfold.equivalence import Settings, algebra, verified
from bnfold.equivalence.algebra import ROUNDED, TOLERANCE, compare
from bnfold.graph import Model
from bnfold.patch import Patched, patch
from bnfold.plan import Edit, NewConstant, Plan, Rewrite
from bnfold.solver import solve
from bnfold.solver.state import State
from bnfold.source import read
from bnfold.write import folded
from tests.builder import Builder

FEEDS = {"x": np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)}


def network(depth: int = 8, last: str = "Sigmoid", steep: float = 1e4) -> onnx.ModelProto:
    """Convolution, BN and ReLU, again and again, and a sigmoid that saturates."""
    b = Builder()
    y = b.input(2, 3, 6, 5, name="x")
    for _ in range(depth):
        y = b.node("Relu", b.bn(b.conv(y, 4, 3, pads=[1, 1, 1, 1])))
    b.node(last, b.node("Mul", b.conv(y, 2, 1), b.constant(np.float32(steep), "steep")))
    return b.model()


def plan_of(model: onnx.ModelProto) -> Plan:
    given = Model(read(model))
    solution = solve(given)
    assert all(outcome.folded for outcome in solution.outcomes if outcome.node.op == "BatchNormalization")
    return solution.plan


def spoil(plan: Plan, hint: str, by: float) -> None:
    """Make one channel of the first new constant of this kind wrong by a factor."""
    graph = plan.graphs[0]
    index, at = next((i, k) for i, edits in graph.edits.items() for k, one in enumerate(edits) if is_new(one, hint))
    edits = graph.edits[index]
    edit = edits[at]
    assert isinstance(edit, NewConstant)
    value = edit.value().copy()
    value[1] *= 1 + by
    graph.edits[index] = (*edits[:at], replace(edit, base=None, factors=(), shift=lambda: value), *edits[at + 1 :])


def is_new(edit: Edit, hint: str) -> bool:
    return isinstance(edit, NewConstant) and edit.hint == hint


def test_a_right_fold_agrees_to_the_last_digits_of_float64() -> None:
    found = compare(Rewrite.of(plan_of(network())), FEEDS)
    assert found.status == "float64"
    assert found.passed
    assert found.compared >= 18
    assert 0 < found.worst[0].error < 1e-13


@pytest.mark.parametrize("hint", ["weight", "bias"])
@pytest.mark.parametrize("by", [1e-11, 1e-6])
def test_a_channel_that_is_hardly_wrong_is_seen_and_named(hint: str, by: float) -> None:
    plan = plan_of(network())
    spoil(plan, hint, by)
    found = compare(Rewrite.of(plan), FEEDS)
    assert not found.passed
    first = next(error.tensor for error in found.errors if error.error > TOLERANCE)
    assert f"tensor '{first}'" in found.problem, "the first one is named, not the worst"


def test_noise_alone_would_not_see_it() -> None:
    model = network()
    plan = plan_of(model)
    spoil(plan, "weight", 1e-7)
    settings = Settings(inputs=FEEDS, samples=0)
    blind = verified(model, folded(Rewrite.of(plan)), settings)
    seeing = verified(model, folded(Rewrite.of(plan)), settings, fold=Rewrite.of(plan))
    assert blind.passed
    assert blind.algebra is None
    assert not seeing.passed
    assert seeing.algebra is not None
    assert seeing.problems == (seeing.algebra.problem,)


def test_what_saturates_at_the_output_is_seen_inside() -> None:
    plan = plan_of(network(depth=1))
    spoil(plan, "weight", 1e-9)
    found = compare(Rewrite.of(plan), {"x": np.full((2, 3, 6, 5), 50, np.float32)})
    assert {error.tensor: error.error for error in found.errors}[plan.graphs[0].graph.outputs[0]] <= TOLERANCE
    assert not found.passed


def test_a_plan_that_forgets_a_reader_is_seen() -> None:
    b = Builder()
    x = b.conv(b.input(2, 3, 6, 5, name="x"), 4, 1)
    y = b.bn(x)
    b.conv(y, 2, 1), b.conv(y, 3, 1)
    plan = plan_of(b.model())
    last = max(plan.graphs[0].edits)
    plan.graphs[0].edits[last] = ()
    plan.graphs[0].edits[0] = ()
    assert not compare(Rewrite.of(plan), FEEDS).passed


def test_an_epsilon_that_is_a_float32_loosens_the_tolerance() -> None:
    b = Builder()
    x = b.node("Mul", b.input(2, 3, 6, 5, name="x"), b.constant(np.float32(0.3), "scale"))
    y = b.node("InstanceNormalization", x, b.constant(b.normal(3)), b.constant(b.normal(3)), epsilon=1e-3)
    b.node("Relu", y)
    given = Model(read(b.model()))
    found = compare(Rewrite.of(solve(given).plan), FEEDS)
    assert found.passed
    assert found.tolerance == ROUNDED


@pytest.mark.parametrize("by", [0.0, 1e-11])
def test_a_tensor_is_allowed_what_its_own_rounding_explains(by: float) -> None:
    """The sine of large numbers, as gates are in networks that nobody trained. The others are not allowed as much."""
    plan = plan_of(network(last="Sin", steep=1e6))
    spoil(plan, "weight", by)
    found = compare(Rewrite.of(plan), FEEDS)
    errors = {error.tensor: error for error in found.errors}
    sine = errors[plan.graphs[0].graph.outputs[0]]
    assert sine.error > 1e-10
    assert sine.passed == found.passed == (not by)
    assert errors["relu"].allowed == found.tolerance == TOLERANCE


def test_a_tensor_that_is_stored_far_from_zero_is_allowed_what_its_readers_lose() -> None:
    """A mean of 1e7 that the data does not have: right in algebra, and for the noise to judge."""
    b = Builder()
    x = b.conv(b.input(2, 3, 6, 5, name="x"), 4, 1)
    b.node("Elu", b.bn(x, gamma=np.ones(4), mean=[1e7, 0, 0, 0], beta=np.zeros(4), variance=np.ones(4)))
    b.node("Tanh", b.conv(x, 3, 1))
    found = compare(Rewrite.of(plan_of(b.model())), FEEDS)
    assert found.worst[0].error > TOLERANCE
    assert found.passed


def test_what_cannot_be_evaluated_is_said() -> None:
    plan = plan_of(network())
    found = compare(Rewrite.of(plan), {})
    assert found.status.startswith("not run: ")
    assert found.passed


def test_a_folded_model_that_cannot_be_evaluated_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(network())

    def broken(model: Model, plan: Plan) -> Patched:
        made = patch(model, plan)
        made.proto.graph.node[2].input[0] = "nothing makes this"
        return made

    monkeypatch.setattr(algebra, "patch", broken)
    found = compare(Rewrite.of(plan), FEEDS)
    assert not found.passed
    assert found.problem.startswith("in float64 the folded model is broken: tensor 'nothing makes this'")
    assert found.to_json()["status"] == found.status


def test_a_witness_cannot_store_an_output_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is wrong, and the witness agrees with it."""
    b = Builder()
    y = b.node("Relu", b.conv(b.input(2, 3, 6, 5, name="x"), 4, 1))
    b.conv(b.bn(b.conv(y, 4, 1)), 3, 1)
    plan = plan_of(b.model(*(b.nodes[at].output[0] for at in (2, 4))))
    assert compare(Rewrite.of(plan), FEEDS).passed
    with monkeypatch.context() as patched:
        patched.setattr(State, "pinned", lambda self, name: "")
        plan = plan_of(b.model(*(b.nodes[at].output[0] for at in (2, 4))))
    assert b.nodes[2].output[0] in plan.graphs[0].storage
    assert not compare(Rewrite.of(plan), FEEDS).passed
