"""What becomes of a model: which calls of model-local functions are replaced, which nodes merged, which affines folded.

Nodes are merged first: one convolution takes up what its branches could not agree on; before that the terms of a sum
change places where branches among them become one. Every call is replaced first;
then again only those of which something changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import onnx

from bnfold import merges, rules
from bnfold.calls import Functions, callee
from bnfold.constants import Constant
from bnfold.graph import Graph, Model, Node
from bnfold.inline import Inlined, inline
from bnfold.merges import Almost
from bnfold.patch import patch
from bnfold.plan import Merged, Plan, Regrouping, Rewrite
from bnfold.protos import every_node
from bnfold.reasons import Reason
from bnfold.regroup import reordered
from bnfold.rules import Source
from bnfold.rules.unlocks import VALID
from bnfold.solver import Outcome, is_matmul_bias, opted_out, solve
from bnfold.solver.computed import Reader, computed_constants, readers_of
from bnfold.witness import Regrouped, Where


@dataclass(frozen=True)
class Folded:
    """What becomes of a model, and of every affine node of the original in graph order."""

    rewrite: Rewrite
    outcomes: list[Outcome]
    almost: tuple[Almost, ...] = ()

    @property
    def changes(self) -> list[str]:
        """Labels of the affines that leave, of the last node of every merge, and of every pool that changes places."""
        merged = [self.rewrite.before_regrouping(merge.root).label for merge in self.rewrite.merges]
        regrouped = self.rewrite.regrouped
        merged += [pool.label for _, pool in regrouped.swapped] if regrouped is not None else []
        return [outcome.node.label for outcome in self.outcomes if outcome.folded and outcome.way != MERGED] + merged


BATCHNORM = "BatchNormalization"

MALFORMED = f"it has inputs, outputs or attributes that {BATCHNORM} has not"

MERGED = "merge"
"""The way of an affine that became part of a merged node."""

ROUNDS = 32
"""How often merged nodes may be merged again: each time a chain gets half as long."""


@dataclass(frozen=True)
class Wishes:
    """What may be folded, as for :func:`bnfold.solver.solve`, and whether nodes may be merged."""

    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    drop: Mapping[str, bool] = field(default_factory=dict)
    bits: float = math.inf
    merge: bool = True
    narrow: int = 0
    """A smaller float type to which the result will be converted: every call that can be replaced is, constants fit."""

    def allow(self, node: Node) -> bool:
        """Whether a node may be merged with others."""
        return opted_out(node, self.keep, self.only, self.drop) is None


class Folder:
    """Solves one model, as often as asked, with calls replaced as folds need it."""

    def __init__(self, given: Model) -> None:
        self.given = given
        self.functions = Functions(given.proto)

    def solve(self, wishes: Wishes = Wishes()) -> Folded:
        """What becomes of the model.

        Where nothing changes, and where no change needs a call replaced, the original in it is the model given.
        """
        model, inlined = self._everything
        first = found = _solve(model, inlined, wishes)
        while not wishes.narrow and (needed := _needed(found.rewrite, inlined)) != set(found.rewrite.calls):
            model, inlined = self._with(needed)
            again = _solve(model, inlined, wishes)
            if len(again.changes) < len(found.changes):
                break
            found = again
        return replace(found, outcomes=_all_outcomes(first.outcomes, found.outcomes))

    def hidden(self) -> list[tuple[str, str, Reason]]:
        """Label, operator and reason of every malformed BatchNormalization, and of those in calls that stay."""
        found = [
            (node.label, BATCHNORM, Reason("unsupported-form", MALFORMED, node.label, VALID))
            for node in self.given.nodes()
            if node.op == f"malformed.{BATCHNORM}"
        ]
        for label, function, obstacle in self._everything[1].kept:
            text = f"it is part of the model-local function {function.name!r}, which cannot be inlined: {obstacle}"
            reason = Reason("inside-function", text, label, "export without functions, or inline it by hand")
            found += [(f"{label}/{name}", BATCHNORM, reason) for name in self._batchnorms(function)]
        return found

    def _batchnorms(self, function: onnx.FunctionProto) -> list[str]:
        """Names of the BatchNormalization nodes in a function, but not in functions that it calls itself."""
        nodes = [node for node in every_node(function.node) if callee(node) not in self.functions.by_key]
        return [n.name or next(iter(n.output), "") for n in nodes if n.op_type == BATCHNORM]

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


def _solve(model: Model, inlined: Inlined, wishes: Wishes) -> Folded:
    model.narrow = wishes.narrow
    rewrite, almost = _merge(Rewrite(model, model, Plan([]), calls=inlined.calls), wishes)
    solution = solve(rewrite.model, wishes.keep, wishes.only, wishes.drop, wishes.bits)
    rewrite = replace(rewrite, plan=solution.plan)
    return Folded(rewrite, _with_merged(rewrite, solution.outcomes), almost)


def _merge(rewrite: Rewrite, wishes: Wishes) -> tuple[Rewrite, tuple[Almost, ...]]:
    """Merge what can be, once sums are regrouped as far as that lets more merge."""
    if not wishes.merge:
        return rewrite, ()
    apart = set[Node]()

    def allowed(node: Node) -> bool:
        return wishes.allow(node) and node not in apart

    while True:
        wanted = merges.regrouped(rewrite.original, allowed)
        start = _regroup(rewrite, wanted.sums, wishes)
        found, almost = _merged(start, wishes)
        alone = _unmerged(found)
        if not alone:
            own = dict.fromkeys((each.node, each.text) for each in (*wanted.almost, *almost))
            return found, tuple(Almost(*each) for each in own)
        assert not alone <= apart
        apart |= alone


def _regroup(rewrite: Rewrite, sums: Mapping[str, Sequence[Regrouped]], wishes: Wishes) -> Rewrite:
    """With sums in another order."""
    if not sums:
        return rewrite
    model = rewrite.original
    made = reordered(model, sums)
    labels: dict[str, list[str]] = {}
    taken = {node.label for node in model.nodes()}
    for graph in model.graphs if made.origin else ():
        origin = made.origin.get(graph.path, range(len(graph.nodes)))
        labels[graph.path] = [graph.nodes[index].label for index in origin]
        for place in made.new.get(graph.path, ()):
            label = f"{labels[graph.path][place]}.branches"
            labels[graph.path][place] = next(name for n in count(1) if (name := f"{label}{n}") not in taken)
            taken.add(labels[graph.path][place])
    after = Model(replace(model.source, proto=made.proto, raw=None), model.pending, labels)
    after.narrow = wishes.narrow
    return replace(rewrite, model=after, regrouped=Regrouping(model, after, sums, made.origin, made.new))


def _unmerged(rewrite: Rewrite) -> set[Node]:
    """The sums that were regrouped for branches that did not become one."""
    regrouped = rewrite.regrouped
    if regrouped is None:
        return set()
    merged = {node for merge in rewrite.merges for node in merge.members}
    return {
        regrouped.before(node)
        for graph in regrouped.model.graphs
        for node in graph.nodes
        if regrouped.is_new(node) and node not in merged
    }


def _merged(rewrite: Rewrite, wishes: Wishes) -> tuple[Rewrite, tuple[Almost, ...]]:
    """Merge until nothing is left to merge: a sum of branches may stand behind another convolution."""
    almost: tuple[Almost, ...] = ()
    for _ in range(ROUNDS):
        found = merges.find(rewrite.model, wishes.allow)
        almost = tuple(Almost(rewrite.original_node(each.node), each.text) for each in found.almost)
        if not found:
            break
        plan = Plan(list(found.plans))
        patched = patch(rewrite.model, plan)
        pending = {
            tensor.name: Constant(tensor.name, edit.type, edit.shape, edit.value, tensor, edit.rows, edit.parts)
            for tensor, edit in patched.pending
        }
        source = replace(rewrite.model.source, proto=patched.proto, raw=None)
        after = Model(source, pending, _labels(rewrite.model, plan, patched.origin))
        after.narrow = wishes.narrow
        rewrite = rewrite.after(plan, after, patched.origin)
    return rewrite, almost


def _labels(model: Model, plan: Plan, origin: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """The labels that nodes had before a merge, so that wishes and reports mean the same nodes after it."""
    kept = {merge.root: merge.kept.label for own in plan.graphs for merge in own.merges}
    found: dict[str, list[str]] = {}
    taken = {node.label for node in model.nodes()}
    for graph in model.graphs:
        own = found[graph.path] = []
        for index in origin[graph.path]:
            node = graph.nodes[index]
            label = kept.get(node, node.label)
            if own and own[-1] == label:  # the bias that a merged MatMul needs
                label = next(name for n in count(1) if (name := f"{label}.add_bias{n}") not in taken)
                taken.add(label)
            own.append(label)
    return found


def _with_merged(rewrite: Rewrite, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes by nodes of the original, those of affines that became part of a merged node among them."""
    if not rewrite.merges:
        return list(outcomes)
    own = {node.label for node in rewrite.original.nodes()}
    kept = {merge.root: merge.kept.label for merge in rewrite.merges}
    names = {
        node.label: kept[rewrite.start_node(node)] for node in rewrite.model.nodes() if node.label not in own
    }  # biases that merged MatMuls needed
    scales = {merge.root: merge for merge in rewrite.merges if isinstance(rules.as_source(merge.kept), Source)}
    found = [
        replace(
            outcome,
            node=_affine_of(rewrite, outcome.node, scales),
            into=tuple(dict.fromkeys(names.get(label, label) for label in outcome.into)),
            reasons=tuple(replace(reason, at=names.get(reason.at, reason.at)) for reason in outcome.reasons),
        )
        for outcome in outcomes
    ]
    told = {outcome.node for outcome in found}
    for merge in rewrite.merges:
        affines = [node for node in rewrite.members(merge) if isinstance(rules.as_source(node), Source)]
        gone = [node for node in affines if node not in told and not is_matmul_bias(node)]
        found += [Outcome(node, True, MERGED, (merge.kept.label,)) for node in gone]
    told |= {outcome.node for outcome in found}
    for node in (node for graph in rewrite.original.graphs for node in computed_constants(graph)):
        if node not in told:  # it computed weights that became part of others
            found.append(Outcome(node, True, MERGED, tuple(_merged_with(rewrite, readers_of(node)))))
    places = {id(graph): place for place, graph in enumerate(rewrite.original.graphs)}
    return sorted(found, key=lambda outcome: (places[id(outcome.node.graph)], outcome.node.index))


def _merged_with(rewrite: Rewrite, readers: list[Reader] | Reason) -> Iterator[str]:
    """Labels of the merged nodes that these became part of."""
    nodes = set() if isinstance(readers, Reason) else {reader for reader, _ in readers}
    for merge in rewrite.merges:
        if not nodes.isdisjoint(rewrite.members(merge)):
            yield merge.kept.label


def _affine_of(rewrite: Rewrite, node: Node, scales: Mapping[Node, Merged]) -> Node:
    """The affine of the original that this one is after the merges.

    Where scales became one that is the one which took the others up.
    """
    merge = scales.get(rewrite.start_node(node))
    return rewrite.original_node(node) if merge is None else rewrite.before_regrouping(merge.kept)


def _all_outcomes(first: list[Outcome], last: list[Outcome]) -> list[Outcome]:
    """The last outcome of every affine: some are in calls that were not replaced again, and stay."""
    if first is last:
        return first
    final = {outcome.node.label: outcome for outcome in last}
    return [final.pop(outcome.node.label, outcome) for outcome in first] + list(final.values())


def _needed(rewrite: Rewrite, inlined: Inlined) -> set[Where]:
    """The calls from which nodes come that are removed, merged, changed, or fed with what is stored in another way."""
    found: set[Where] = set()
    if not inlined.owners:
        return found
    for node in _makers(set(_touched(rewrite))):
        found.update(inlined.owner(node.proto))
    return found | {where[:depth] for where in found for depth in range(1, len(where))}


def _touched(rewrite: Rewrite) -> Iterator[Node]:
    for plan in rewrite.plan.graphs:
        graph = plan.graph
        restored = {name for name, storage in plan.storage.items() if not storage.is_identity}
        indices = {index for index, edits in plan.edits.items() if edits} | set(plan.removed) | plan.computed
        indices |= {node.index for node in graph.nodes if restored.intersection((*node.inputs, *node.outputs))}
        yield from (rewrite.original_node(graph.nodes[index]) for index in indices)
    for merge in rewrite.merges:
        yield from rewrite.members(merge)
    if rewrite.regrouped is not None:
        for graph in rewrite.original.graphs:
            for each in rewrite.regrouped.sums.get(graph.path, ()):
                yield from (graph.nodes[index] for index in each.nodes)


def _makers(nodes: set[Node]) -> set[Node]:
    """These nodes, and those that compute constants which they read."""
    found = set(nodes)
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
