"""Folding through calls of model-local functions: which calls must be replaced, and the plan for the model after that.

Every call is replaced first; then again only those of which a fold changed something.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType

import onnx

from bnfold.calls import Functions, callee
from bnfold.graph import Graph, Model, Node
from bnfold.inline import Inlined, inline
from bnfold.plan import GraphPlan, Plan
from bnfold.protos import every_node
from bnfold.reasons import Reason
from bnfold.solver import Outcome, Solution, solve
from bnfold.witness import Where


class Folder:
    """Solves one model, as often as asked, with calls replaced as folds need it."""

    def __init__(self, given: Model) -> None:
        self.given = given
        self.functions = Functions(given.proto)

    def solve(
        self,
        keep: Iterable[str] = (),
        only: Iterable[str] = (),
        drop: Mapping[str, bool] = MappingProxyType({}),
        bits: float = math.inf,
    ) -> tuple[Model, Solution]:
        """The model in which the folds are made, and the folds; arguments as for :func:`bnfold.solver.solve`.

        Where nothing folds, and where no fold needs a call replaced, the model is the one given.
        """
        keep, only = tuple(keep), tuple(only)
        model, inlined = self._everything
        first = solution = solve(model, keep, only, drop, bits)
        calls: Collection[Where] = inlined.calls
        while (needed := _needed(solution.plan, inlined)) != set(calls):
            smaller, fewer = self._with(needed)
            again = solve(smaller, keep, only, drop, bits)
            if _folded(again) < _folded(solution):
                break
            model, inlined, solution, calls = smaller, fewer, again, needed
        plan = Plan(solution.plan.graphs, inlined.calls)
        return model, Solution(plan, _all_outcomes(first, solution))

    def hidden(self) -> list[tuple[str, str, Reason]]:
        """Label, operator and reason of every BatchNormalization in calls that cannot be replaced."""
        found: list[tuple[str, str, Reason]] = []
        for label, function, obstacle in self._everything[1].kept:
            text = f"it is part of the model-local function {function.name!r}, which cannot be inlined: {obstacle}"
            reason = Reason("inside-function", text, label, "export without functions, or inline it by hand")
            found += [(f"{label}/{name}", "BatchNormalization", reason) for name in self._batchnorms(function)]
        return found

    def _batchnorms(self, function: onnx.FunctionProto) -> list[str]:
        """Names of the BatchNormalization nodes in a function, but not in functions that it calls itself."""
        nodes = [node for node in every_node(function.node) if callee(node) not in self.functions.by_key]
        return [n.name or next(iter(n.output), "") for n in nodes if n.op_type == "BatchNormalization"]

    @cached_property
    def _everything(self) -> tuple[Model, Inlined]:
        return self._with(None)

    def _with(self, calls: Collection[Where] | None) -> tuple[Model, Inlined]:
        """The model with these calls replaced; with all that can be for None."""
        if not self.functions.by_key:
            return self.given, Inlined(self.given.proto)
        inlined = inline(self.given.proto, self.functions, lambda where: calls is None or where in calls)
        if not inlined.calls:
            inlined.proto = self.given.proto
            return self.given, inlined
        return Model(replace(self.given.source, proto=inlined.proto, raw=None)), inlined


def _folded(solution: Solution) -> int:
    return sum(outcome.folded for outcome in solution.outcomes)


def _all_outcomes(first: Solution, last: Solution) -> list[Outcome]:
    """The last outcome of every affine: some are in calls that were not replaced again, and stay."""
    if first is last:
        return first.outcomes
    final = {outcome.node.label: outcome for outcome in last.outcomes}
    return [final.pop(outcome.node.label, outcome) for outcome in first.outcomes] + list(final.values())


def _needed(plan: Plan, inlined: Inlined) -> set[Where]:
    """The calls from which nodes come that the plan removes, changes, or feeds with what is stored in another way."""
    found: set[Where] = set()
    for own in plan.graphs:
        for node in _touched(own):
            found.update(inlined.owner(node.proto))
    return found | {where[:depth] for where in found for depth in range(1, len(where))}


def _touched(plan: GraphPlan) -> set[Node]:
    graph = plan.graph
    restored = {name for name, storage in plan.storage.items() if not storage.is_identity}
    touched = {graph.nodes[index] for index, edits in plan.edits.items() if edits}
    touched |= {graph.nodes[index] for index in plan.removed}
    touched |= {node for node in graph.nodes if restored.intersection((*node.inputs, *node.outputs))}
    return touched | _makers(touched)


def _makers(nodes: Iterable[Node]) -> set[Node]:
    """The nodes that compute constants which these nodes read."""
    found: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        for name in node.inputs:
            owner: Graph | None = node.graph.owner(name) if name and node.graph.constant(name) else None
            maker = owner.producers.get(name) if owner else None
            if maker is not None and maker not in found:
                found.add(maker)
                stack.append(maker)
    return found
