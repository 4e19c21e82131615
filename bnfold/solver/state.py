"""A graph while it is being folded: how every tensor is stored by now, which affines left, what a node says to that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bnfold import rules
from bnfold.affine import Storage, TooLargeError
from bnfold.constants import Constant
from bnfold.graph import Graph, Node, Shape
from bnfold.plan import Edit, GraphPlan, NewBias
from bnfold.rules import TOO_LARGE, Accept, Source, View
from bnfold.rules.base import Port, Refused
from bnfold.rules.composites import GELU, composite_of
from bnfold.rules.unlocks import LAYER_BETWEEN
from bnfold.solver.joined import Joined
from bnfold.solver.removed import is_matmul_bias, removed

_ABSORBERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})

Decided = Mapping[str, Storage]


def pinned(graph: Graph, name: str) -> str:
    """Why the meaning of a tensor of this graph must stay, '' where it need not."""
    if name in graph.output_set:
        return "graph-output"
    if name in graph.captured:
        return "captured"
    if name in graph.annotated:
        return "annotated"
    return "" if name in graph.producers else "graph-input"


class _Slot(NamedTuple):
    """What never changes about a tensor at one port of a node."""

    key: int
    own: str
    """The tensor's name; a constant operand has a name of its own for each use."""
    shape: Shape
    identity: Storage
    constant: Constant | None
    near: int
    pinned: str

    def port(self, storage: Storage, fixed: bool) -> Port:
        """The port, as a rule sees it."""
        fixed = fixed or bool(self.pinned)
        return Port(self.own, self.shape, storage, fixed, self.constant, self.near, self.pinned)


@dataclass(frozen=True, eq=False)
class Fold:
    """One affine that left, and what that changed."""

    source: Source
    before: dict[str, Storage | None]
    """The tensors that were re-stored, with how they were stored until then."""
    nodes: frozenset[int]
    """The affine's own, and every one that was asked."""


def _is_untouched(view: View) -> bool:
    return all(port.storage.is_identity for port in view.ports.values())


@dataclass(eq=False)
class State:
    """The fold of one graph so far."""

    graph: Graph
    plan: GraphPlan = field(init=False)
    leaving: dict[int, Source] = field(default_factory=dict)
    """Affines that left, or that the present attempt lets leave, by index."""
    folds: list[Fold] = field(default_factory=list)
    """In the order in which they were made."""
    owner: dict[str, int] = field(default_factory=dict)
    """By tensor: the affine whose fold stored it last."""
    trouble: set[int] = field(default_factory=set)
    """Nodes that led to a refusal."""
    opened: set[int] = field(default_factory=set)
    """Nodes of GELUs that may change, because a BatchNormalization has no other way."""
    asked: int = 0
    """Nodes that were asked anew because folds were taken back."""

    _near_by: dict[str, list[Node]] = field(default_factory=dict)
    """What `neighbours` found."""
    _joined: Joined | None = None
    """What became one where the affines of `leaving` left; None where that is not known."""

    def __post_init__(self) -> None:
        self.plan = GraphPlan(self.graph)

    def current(self, name: str) -> Storage | None:
        """How a tensor is stored by now; None where its rank is not known."""
        found = self.plan.storage.get(name)
        if found is not None:
            return found
        rank = self.graph.rank(name)
        return None if rank is None else Storage.identity(rank)

    def restored(self, decided: Decided) -> list[str]:
        """The tensors that a decision stores otherwise than they are."""
        known = ((name, storage, self.current(name)) for name, storage in decided.items())
        return [name for name, storage, now in known if now is None or not storage.agrees(now)]

    def ask(self, node: Node, decided: Decided, everything_fixed: bool = False) -> list[Accept]:
        """What the node's rule says.

        Raises:
            Refused: it refuses.
        """
        view = self._view(node, decided, everything_fixed)
        source = self.leaving.get(node.index)
        if node.index not in self.opened and composite_of(node) == GELU and not _is_untouched(view):
            text = f"{node.op} is part of a GELU, which runtimes compute as one operator"
            raise view.refuse("part-of-operator", text, LAYER_BETWEEN)
        if source is None:
            return rules.apply(view)
        try:
            return [removed(view, source)]
        except TooLargeError:
            raise view.refuse("search-limit", TOO_LARGE, LAYER_BETWEEN) from None

    def _view(self, node: Node, decided: Decided, everything_fixed: bool) -> View:
        stored = self.plan.storage
        ports: dict[int, Port] = {}
        for slot in self.slots(node):
            own = slot.own
            storage = decided.get(own)
            fixed = everything_fixed or storage is not None
            ports[slot.key] = slot.port(storage or stored.get(own) or slot.identity, fixed)
        if node.op != "MatMul":
            return View(node, ports)
        return View(node, ports, self._bias_behind(node), self._only_moves(node))

    def slots(self, node: Node) -> tuple[_Slot, ...]:
        """The ports of a node whose ranks are known."""
        found = node.memo.get("slots")
        if found is None:
            keyed = [*enumerate(node.inputs), *((-1 - i, name) for i, name in enumerate(node.outputs))]
            made = (self._slot(node, key, name) for key, name in keyed if name)
            found = node.memo["slots"] = tuple(slot for slot in made if slot is not None)
        assert isinstance(found, tuple)
        return found

    def _slot(self, node: Node, key: int, name: str) -> _Slot | None:
        constant = self.graph.constant(name) if key >= 0 else None
        shape = constant.shape if constant is not None else self.graph.shape(name)
        if shape is None:
            return None
        pinned = "" if constant is not None else self.pinned(name)
        near = self._near(node, key, constant)
        return _Slot(key, self.port_name(node, key), shape, Storage.identity(len(shape)), constant, near, pinned)

    def port_name(self, node: Node, key: int) -> str:
        """The name under which the tensor at a port is stored."""
        if key < 0:
            return node.outputs[-key - 1]
        name = node.inputs[key]
        return name if self.graph.constant(name) is None else f"#{node.index}:{key}"

    def _near(self, node: Node, key: int, constant: Constant | None) -> int:
        if constant is not None:
            return 0
        if key < 0:
            readers = self.graph.consumers.get(node.outputs[-key - 1], [])
            return 1 if len(readers) == 1 and readers[0][0].op in _ABSORBERS else 3
        producer = self.graph.producers.get(node.inputs[key])
        alone = len(self.graph.consumers.get(node.inputs[key], [])) == 1
        return 1 if producer is not None and producer.op in _ABSORBERS and alone else 2

    def _bias_behind(self, node: Node) -> bool:
        readers = self.graph.consumers.get(node.outputs[0], [])
        return bool(readers) and all(is_matmul_bias(reader) for reader, _ in readers)

    def _only_moves(self, node: Node) -> bool:
        """Whether a new Add behind this MatMul would only replace the Add that is to leave."""
        last = next(reversed(self.leaving.values()), None)
        own = any(isinstance(edit, NewBias) for edit in self.plan.edits.get(node.index, ()))
        return last is not None and last.node.op in ("Add", "Sub") and not own

    def neighbours(self, name: str) -> list[Node]:
        """Who makes a tensor, and who reads it."""
        known = self._near_by.get(name)
        if known is not None:
            return known
        producer = self.graph.producers.get(name)
        found = {} if producer is None else {producer.index: producer}
        for node, _ in self.graph.consumers.get(name, []):
            found.setdefault(node.index, node)
        return self._near_by.setdefault(name, list(found.values()))

    def pinned(self, name: str) -> str:
        """Why a tensor's meaning must stay, '' where it need not."""
        return pinned(self.graph, name)

    def is_named(self, name: str) -> bool:
        """Whether the tensor, or one that it became one with, has a name that must stay."""
        if self._joined is None:
            graph = self.graph
            self._joined = Joined(lambda each: each in graph.output_set or each not in graph.producers)
            for source in self.leaving.values():
                self._joined.join(*source.ends)
        return self._joined.is_named(name)

    def commit(
        self, source: Source, decided: Decided, changed: list[str], edits: Mapping[int, tuple[Edit, ...]]
    ) -> None:
        """Let an affine leave; `changed` are the tensors that are stored differently from now on."""
        index, plan = source.node.index, self.plan
        self.folds.append(Fold(source, {name: plan.storage.get(name) for name in changed}, frozenset((index, *edits))))
        self.leaving[index] = source
        if self._joined is not None:
            self._joined.join(*source.ends)
        plan.removed[index], _ = source.ends
        plan.storage.update(decided)
        plan.edits.update(edits)
        plan.edits.pop(index, None)
        self.owner.update(dict.fromkeys(changed, index))

    def depending(self, on: Iterable[int]) -> list[Fold]:
        """The folds of these affines, and every later one that re-stored a tensor once more, in order."""
        wanted, names = set(on), set[str]()
        found: list[Fold] = []
        for fold in self.folds:
            if fold.source.node.index in wanted or not names.isdisjoint(fold.before):
                found.append(fold)
                names.update(fold.before)
        return found

    def undo(self, folds: list[Fold]) -> list[Fold]:
        """Take folds back, with all that depend on them; returns all that were.

        Those of later ones too that relied on what is taken back: that re-stored a tensor past a node which had left by
        then and would not have let them, or left between two tensors of which one is now stored as it was.
        """
        undone, unsure = list[Fold](), set[int]()
        while folds:
            self._take_back(folds)
            undone += folds
            unsure.update(*(fold.nodes for fold in folds))
            folds = self._refused(unsure)
        return undone

    def _refused(self, unsure: set[int]) -> list[Fold]:
        """Ask nodes anew, all being fixed; the folds that have to go for one of them, none where all agree.

        Those that agree are no longer among them.
        """
        for index in sorted(unsure):
            self.asked += 1
            try:
                (accept,) = self.ask(self.graph.nodes[index], {}, everything_fixed=True)
            except Refused:
                last = next((fold for fold in reversed(self.folds) if index in fold.nodes), None)
                if last is None:
                    raise
                return self.depending([last.source.node.index])
            if index not in self.leaving:
                self.plan.edits[index] = accept.edits
            unsure.remove(index)
        return []

    def _take_back(self, folds: list[Fold]) -> None:
        """Store everything as it was before these folds; `depending` says which go together."""
        plan, gone, self._joined = self.plan, {id(fold) for fold in folds}, None
        for fold in reversed(folds):
            index = fold.source.node.index
            del self.leaving[index], plan.removed[index]
            for name, storage in fold.before.items():
                self.owner.pop(name, None)
                if storage is None:
                    plan.storage.pop(name, None)
                else:
                    plan.storage[name] = storage
        self.folds = [fold for fold in self.folds if id(fold) not in gone]
        for fold in self.folds:
            self.owner.update(dict.fromkeys(fold.before, fold.source.node.index))

    def snapshot(self) -> State:
        """A copy to go back to."""
        copy = State(self.graph, dict(self.leaving), list(self.folds), dict(self.owner), self.trouble, self.opened)
        own, plan = self.plan, copy.plan
        plan.storage, plan.removed, plan.edits = dict(own.storage), dict(own.removed), dict(own.edits)
        return copy
