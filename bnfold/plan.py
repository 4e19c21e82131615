"""What will change: constants, attributes, new biases, nodes that leave or become one. Pure data, made by rules,
solver and merges.

Nothing is computed from weights here: an edit holds small per-channel arrays in float64, and the weights are read once,
when the model is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.constants import Constant
from bnfold.graph import Graph, Model, Node
from bnfold.witness import Call, Regrouped, Where


@dataclass(frozen=True, eq=False)
class NewConstant:
    """A node's input becomes the constant ``base * factors[0] * ... + shift``, or `values`, rounded once to `type`."""

    slot: int
    hint: str
    """What the constant is to its node (weight, bias, scale): part of its new name."""
    type: int
    shape: tuple[int, ...]
    base: Constant | None
    """The constant it is made from, or takes the place of; None for zero."""
    factors: tuple[Array, ...] = ()
    shift: Callable[[], Array] | None = None
    values: Callable[[int, int], Array] | None = None
    """Rows of the new values, where they are not made from the base alone."""
    read: int = 0
    """Stored constants that are read to make these; 0 where they are made from the base alone."""

    @property
    def parts(self) -> int:
        """Stored constants that are read to make the new values."""
        return self.read or (1 if self.base is None else self.base.parts)

    def rows(self, start: int, stop: int) -> Array:
        """The new values in float64, along the first axis from `start` to `stop` (a scalar has one row)."""
        if self.values is not None:
            return self.values(start, stop)
        whole = not self.shape or (start == 0 and stop >= self.shape[0])
        pick = (lambda array: array) if whole else (lambda array: _rows(array, len(self.shape), start, stop))
        size = self.shape if whole else (min(stop, self.shape[0]) - start, *self.shape[1:])
        value: Array = np.zeros((1,) * len(size)) if self.base is None else self._base(start, stop, whole)
        value = np.array(np.broadcast_to(value, size)) if value.shape != size else value
        for factor in self.factors:
            value *= pick(factor)
        if self.shift is not None:
            value += pick(self.shift())
        return value

    def _base(self, start: int, stop: int, whole: bool) -> Array:
        base = self.base
        assert base is not None
        own = not whole and len(base.shape) == len(self.shape) and base.shape[0] != 1
        return np.asarray(base.rows(start, stop) if own else base.load()).astype(np.float64)

    def value(self) -> Array:
        """All new values in float64, not yet rounded."""
        return self.rows(0, self.shape[0] if self.shape else 1)


def _rows(array: Array, rank: int, start: int, stop: int) -> Array:
    return array[start:stop] if array.ndim == rank and array.shape[0] != 1 else array


@dataclass(frozen=True)
class SetAttribute:
    """An attribute of the node gets a new value, or goes (None)."""

    name: str
    value: int | float | list[int] | None


@dataclass(frozen=True)
class SetOperator:
    """The node becomes another operator with the same inputs, outputs and attributes: Max becomes Min."""

    op: str


@dataclass(frozen=True, eq=False)
class NewBias:
    """An Add of a constant is put right behind the node's first output: the bias that a MatMul has no slot for."""

    type: int
    shift: Array
    """Float64, broadcasts against the output."""


@dataclass(frozen=True, eq=False)
class Merge:
    """Nodes that together are one linear map of one tensor, and become one node."""

    root: Node
    """The last of them; the merged node writes its output."""
    kept: Node
    """The one that becomes the merged node, in its place."""
    members: tuple[Node, ...]
    """All of them, in graph order."""
    source: str
    """The tensor that they read."""
    edits: tuple[Edit, ...]
    """Of the kept node."""


Edit = NewConstant | SetAttribute | SetOperator | NewBias


@dataclass
class GraphPlan:
    """What changes in one graph."""

    graph: Graph
    storage: dict[str, Storage] = field(default_factory=dict)
    """How every re-stored tensor is stored, relative to the original model."""
    removed: dict[int, str] = field(default_factory=dict)
    """Index of every node that leaves, with the input that its output becomes one with."""
    edits: dict[int, tuple[Edit, ...]] = field(default_factory=dict)
    """By node index, in the original graph."""
    merges: list[Merge] = field(default_factory=list)
    computed: set[int] = field(default_factory=set)
    """Nodes that only computed constants, which their readers now store: they go unless somebody still reads them."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes in it."""
        return not (self.removed or self.merges or self.computed)

    def names(self) -> dict[str, str]:
        """Tensor names that change: where nodes leave, several tensors become one, which keeps the best name.

        A graph output's name always stays; else a name whose meaning did not change; else the producer's.
        """
        one: dict[str, str] = {}

        def root(name: str) -> str:
            while one.get(name, name) != name:
                name = one[name]
            return name

        for index, source in sorted(self.removed.items()):
            one[self.graph.nodes[index].outputs[0]] = root(source)
        members: dict[str, list[str]] = {}
        for name in one:
            members.setdefault(root(name), []).append(name)
        new: dict[str, str] = {}
        for first, others in members.items():
            group = [first, *others]
            best = min(group, key=lambda name: self._badness(name, group))
            new.update({name: best for name in group if name != best})
        return new

    def _badness(self, name: str, group: list[str]) -> tuple[bool, bool, int]:
        changed = name in self.storage and not self.storage[name].is_identity
        pinned = name in self.graph.output_set or name not in self.graph.producers
        return (not pinned, changed, -group.index(name))


@dataclass
class Plan:
    """What changes in the whole model."""

    graphs: list[GraphPlan]

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes at all."""
        return all(plan.is_empty for plan in self.graphs)


@dataclass(frozen=True, eq=False)
class Merged:
    """Nodes that became one, in one step or several: of the original, where its sums are regrouped."""

    root: Node
    kept: Node
    members: tuple[Node, ...]


@dataclass(frozen=True)
class Rewrite:
    """Everything that becomes of a model: calls are replaced, sums regrouped, nodes merged, affines folded."""

    original: Model
    """The model as given, with calls replaced."""
    model: Model
    """The same after the merges: the one that the plan is for."""
    plan: Plan
    merges: tuple[Merged, ...] = ()
    origin: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By path of a graph with merges: for every node after them its index before; a merged one has its root's."""
    calls: Mapping[Where, Call] = field(default_factory=dict)
    regrouped: Regrouping | None = None
    """What was done to sums before the merges."""

    @staticmethod
    def of(plan: Plan) -> Rewrite:
        """Folds alone."""
        model = plan.graphs[0].graph.model
        return Rewrite(model, model, plan)

    @property
    def is_empty(self) -> bool:
        """Whether the output is the input."""
        return self.regrouped is None and not self.merges and self.plan.is_empty

    @property
    def start(self) -> Model:
        """The model that nodes are merged in: the original, its sums regrouped."""
        return self.original if self.regrouped is None else self.regrouped.model

    def original_node(self, node: Node) -> Node:
        """The node of the original that is this one after the merges; the root of the merge for one that was merged.

        For a sum that regrouping made, the whole sum that it is part of.
        """
        return self.before_regrouping(self.start_node(node))

    def start_node(self, node: Node) -> Node:
        """The node that is this one before the merges, and once sums are regrouped."""
        if not self.merges:
            return node
        path = node.graph.path
        return self._graphs[path].nodes[self.origin[path][node.index] if path in self.origin else node.index]

    def before_regrouping(self, node: Node) -> Node:
        """The node of the original that is this one once sums are regrouped."""
        return node if self.regrouped is None else self.regrouped.before(node)

    def members(self, merge: Merged) -> tuple[Node, ...]:
        """The nodes of the original that became one, those among them that regrouping made left out."""
        if self.regrouped is None:
            return merge.members
        return tuple(self.before_regrouping(node) for node in merge.members if not self.regrouped.is_new(node))

    @cached_property
    def _graphs(self) -> dict[str, Graph]:
        """The graphs before the merges by path."""
        return {graph.path: graph for graph in self.start.graphs}

    def after(self, plan: Plan, model: Model, origin: Mapping[str, Sequence[int]]) -> Rewrite:
        """With the merges of a plan for the model made: what that became, and where its nodes were before."""
        made = {merge.root: merge for merge in self.merges}
        for merge in (merge for graph in plan.graphs for merge in graph.merges):
            members = [self.start_node(node) for node in merge.members]
            earlier = {node: made.pop(node) for node in members if node in made}
            every = {inner for node in members for inner in (earlier[node].members if node in earlier else [node])}
            kept = self.start_node(merge.kept)
            kept = earlier[kept].kept if kept in earlier else kept
            root = self.start_node(merge.root)
            made[root] = Merged(root, kept, tuple(sorted(every, key=lambda node: node.index)))
        paths = {
            path: [self.origin[path][index] for index in own] if path in self.origin else own
            for path, own in origin.items()
        }
        merges = tuple(sorted(made.values(), key=lambda merge: merge.root.index))
        return replace(self, model=model, plan=Plan([]), merges=merges, origin={**self.origin, **paths})


@dataclass(frozen=True)
class Regrouping:
    """Sums in another order, before nodes are merged."""

    original: Model
    model: Model
    """After it."""
    sums: Mapping[str, Sequence[Regrouped]]
    """By path of a graph."""
    origin: Mapping[str, Sequence[int]]
    """By path: for every node after it its index before; that of the whole sum for a new one."""
    new: Mapping[str, Collection[int]]
    """By path: which nodes are new."""

    def before(self, node: Node) -> Node:
        """The node that this one was."""
        graph = self._graphs[node.graph.path]
        return graph.nodes[self.origin[graph.path][node.index] if graph.path in self.origin else node.index]

    def is_new(self, node: Node) -> bool:
        """Whether there was none."""
        return node.index in self.new.get(node.graph.path, ())

    @property
    def swapped(self) -> list[tuple[Node, Node]]:
        """Every convolution and pool that change places, as they were."""
        return [
            (graph.nodes[each.nodes[0]], graph.nodes[each.nodes[1]])
            for graph in self.original.graphs
            for each in self.sums.get(graph.path, ())
            if each.is_swap
        ]

    def gone(self, root: Node) -> tuple[Node, ...]:
        """The nodes of a sum, by its last one, that are in it no more."""
        graph = root.graph
        own = (each for each in self.sums.get(graph.path, ()) if each.nodes[-1] == root.index)
        return tuple(
            graph.nodes[index] for each in own for index in each.nodes if index not in {made.like for made in each.sums}
        )

    @cached_property
    def _graphs(self) -> dict[str, Graph]:
        return {graph.path: graph for graph in self.original.graphs}
