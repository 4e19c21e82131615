"""Which affine nodes can leave, and what every tensor around them must then be stored as.

One affine at a time: re-store its input and output so that it becomes the identity, and let the demands travel until
every rule is content. A depth-first search over the alternatives that rules offer, all or nothing. What was refused is
tried again after a success, until nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from bnfold import rules
from bnfold.affine import Array, Storage
from bnfold.constants import Constant
from bnfold.graph import Graph, Model, Node
from bnfold.guards import Spreads, misfit
from bnfold.plan import Edit, GraphPlan, NewBias, NewConstant, Plan
from bnfold.reasons import Reason
from bnfold.rules import Accept, Refused, Source, View
from bnfold.rules.base import OUT, Port, pinned_reason

VISITS = (8, 64, 5000)
"""Node visits that one attempt may take: the near ways are all tried before the far ones."""

BACKTRACKS = 20
"""Times that one attempt may take back a choice. On 160 networks no fold that succeeded ever had to."""

URGENT = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
"""Affine operators, the most expensive at run time first."""


@dataclass(frozen=True)
class Outcome:
    """What became of one affine node."""

    node: Node
    folded: bool
    way: str = ""
    """pull, push or split."""
    into: tuple[str, ...] = ()
    """Labels of the nodes whose constants took it up."""
    reasons: tuple[Reason, ...] = ()
    """Why it stays: one for each way, the most telling first."""


@dataclass
class Solution:
    """The plan, and the outcome for every affine node in graph order."""

    plan: Plan
    outcomes: list[Outcome]


@dataclass(eq=False)
class _Attempt:
    """Storage decided so far in one attempt, over what earlier attempts decided."""

    decided: dict[str, Storage] = field(default_factory=dict)
    agenda: dict[int, Node] = field(default_factory=dict)
    """Nodes to ask, by index, in the order in which they came up."""
    choices: dict[int, Node] = field(default_factory=dict)
    """Nodes that offered several ways: asked again when nothing else is left, for fewer may be open by then."""
    visited: set[int] = field(default_factory=set)

    def copy(self) -> _Attempt:
        return _Attempt(dict(self.decided), dict(self.agenda), dict(self.choices), set(self.visited))

    def ask(self, nodes: Iterable[Node]) -> None:
        """Put nodes on the agenda."""
        for node in nodes:
            self.choices.pop(node.index, None)
            self.agenda.setdefault(node.index, node)


@dataclass(frozen=True, eq=False)
class _Found:
    way: str
    attempt: _Attempt
    edits: dict[int, tuple[Edit, ...]]
    cost: tuple[float, ...]


def solve(
    model: Model,
    keep: Iterable[str] = (),
    only: Iterable[str] = (),
    drop: Iterable[str] = (),
    bits: float = math.inf,
) -> Solution:
    """Fold what can be folded.

    Args:
        model: the model as read; not changed.
        keep: names or globs of nodes that must stay.
        only: names or globs; where given, every other node stays.
        drop: labels of nodes whose fold failed verification.
        bits: how many bits a tensor of several readers may lose at most, where that is less than the usual limit.
    """
    plans, outcomes = [], []
    for graph in model.graphs:
        solver = _GraphSolver(graph, tuple(keep), tuple(only), frozenset(drop), bits)
        outcomes += solver.run()
        plans.append(solver.plan)
    return Solution(Plan(plans), outcomes)


class _GraphSolver:
    def __init__(
        self, graph: Graph, keep: tuple[str, ...], only: tuple[str, ...], drop: frozenset[str], bits: float
    ) -> None:
        self.graph = graph
        self.plan = GraphPlan(graph)
        self.sources: dict[int, Source] = {}
        self.removed: dict[int, Source] = {}
        self.kept: dict[int, tuple[Reason, ...]] = {}
        self.done: dict[int, Outcome] = {}
        self.merged: dict[str, list[str]] = {}
        """Tensors that became one, as a graph: where an affine left, its input and its output are neighbours."""
        self.explored: dict[int, set[int]] = {}
        """Nodes that the failed attempts for a source asked: only a change at one of them can change the answer."""
        self.changed: dict[int, int] = {}
        """By node: how many folds had succeeded when its ports last changed."""
        self.folds = 0
        self.tried: dict[int, int] = {}
        """By source: how many folds had succeeded when it was last tried."""
        for node in graph.nodes:
            found = None if _is_matmul_bias(node) else rules.as_source(node)
            if found is None:
                continue
            if isinstance(found, Source):
                reason = _opted_out(node, keep, only, drop)
                if reason is None:
                    self.sources[node.index] = found
                else:
                    self.kept[node.index] = (reason,)
            else:
                self.kept[node.index] = (found,)
        self.spreads = Spreads(graph, self.sources, bits)

    def run(self) -> list[Outcome]:
        waiting = sorted(self.sources, key=lambda index: (URGENT.index(self.sources[index].node.op), index))
        moved = True
        while moved and waiting:
            moved, still = False, []
            for index in waiting:
                if self._may_differ(index) and self._fold(self.sources[index]):
                    moved = True
                else:
                    still.append(index)
            waiting = still
        for index, reasons in self.kept.items():
            self.done[index] = Outcome(self.graph.nodes[index], False, reasons=reasons)
        return [self.done[index] for index in sorted(self.done)]

    def _may_differ(self, index: int) -> bool:
        last = self.tried.get(index, -1)
        return last < 0 or any(self.changed.get(node, -1) > last for node in self.explored[index])

    def _fold(self, source: Source) -> bool:
        index = source.node.index
        self.tried[index], self.explored[index] = self.folds, {index}
        for visits in VISITS:
            ways: list[_Found] = []
            reasons: list[Reason] = []
            for way, x, y in self._ways(source):
                found = self._attempt(source, way, x, y, visits)
                if isinstance(found, Reason):
                    reasons.append(found)
                    continue
                ways.append(found)
                if found.cost[0] <= 1:
                    break
            if ways:
                self._commit(source, min(ways, key=lambda way: way.cost))
                return True
            if not any(reason.code == "search-limit" for reason in reasons):
                break
        self.kept[index] = tuple(sorted(reasons, key=_telling))
        return False

    def _ways(self, source: Source) -> Iterator[tuple[str, Storage, Storage]]:
        """Pull, push and split, as storages of the affine's input and output."""
        x, y = self._current(source.node.inputs[source.slot]), self._current(source.node.outputs[0])
        if x is None or y is None:
            return
        yield "pull", y.before(source.affine), y
        yield "push", x, x.after(source.affine)
        if not (x.has_decode and y.has_encode):
            return
        s, t = source.affine.scale, source.affine.shift
        scale, shift = y.a * s * x.alpha, y.a * (s * x.beta + t) + y.b
        zero = scale == 0
        if np.any(zero):
            alpha, beta = np.where(zero, 0.0, 1.0), np.where(zero, shift, 0.0)
            yield (
                "pull",
                x.then_encode(np.where(zero, 1.0, scale), np.where(zero, 0.0, shift)),
                y.then_decode(alpha, beta),
            )
        if np.any(shift != 0):
            alpha, beta = np.where(zero, 0.0, np.abs(scale)), np.where(zero, shift, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                a = np.where(zero, 1.0, np.sign(scale))
                b = np.where(zero, 0.0, shift / np.where(zero, 1.0, np.abs(scale)))
            yield "split", x.then_encode(a, b), y.then_decode(alpha, beta)

    def _current(self, name: str) -> Storage | None:
        found = self.plan.storage.get(name)
        if found is not None:
            return found
        rank = self.graph.rank(name)
        return None if rank is None else Storage.identity(rank)

    def _attempt(self, source: Source, way: str, x: Storage, y: Storage, visits: int) -> _Found | Reason:
        node = source.node
        start = _Attempt()
        for name, storage in ((node.inputs[source.slot], x), (node.outputs[0], y)):
            current, pinned = self._current(name), self._pinned(name)
            assert current is not None
            if storage.is_degenerate:
                return Reason("zero-scale", "a channel would be constant before and after", node.label)
            self.explored[node.index].update(n.index for n in self._neighbours(name))
            if pinned and not storage.agrees(current):
                return pinned_reason(pinned, name)
            start.decided[name] = storage
            if not storage.agrees(current):
                start.ask(n for n in self._neighbours(name) if n is not node)
        if self._named(node.inputs[source.slot]) and self._named(node.outputs[0]):
            return pinned_reason("graph-output", node.outputs[0])
        self.removed[node.index] = source
        try:
            attempt = self._search(start, self.explored[node.index], visits)
            if isinstance(attempt, Reason):
                return attempt
            edits = self._settled(attempt)
            if isinstance(edits, Reason):
                return edits
        finally:
            del self.removed[node.index]
        changed = sum(1 for name, s in attempt.decided.items() if (c := self._current(name)) and not s.agrees(c))
        return _Found(way, attempt, edits, (changed, ("pull", "push", "split").index(way)))

    def _search(self, attempt: _Attempt, explored: set[int], limit: int) -> _Attempt | Reason:
        saved: list[tuple[_Attempt, Node, Accept]] = []
        first: Reason | None = None
        visits = backtracks = 0
        while attempt.agenda or attempt.choices:
            visits += 1
            if visits > limit:
                return Reason("search-limit", f"more than {limit} steps", self.graph.nodes[min(attempt.visited)].label)
            forced = bool(attempt.agenda)
            queue = attempt.agenda if forced else attempt.choices
            node = queue.pop(next(iter(queue)))
            attempt.visited.add(node.index)
            explored.add(node.index)
            try:
                accepts = self._ask(node, attempt.decided)
                if forced and len(accepts) > 1:
                    attempt.choices[node.index] = node
                    continue
                saved += [(attempt.copy(), node, other) for other in reversed(accepts[1:])]
                self._assign(attempt, node, accepts[0])
            except Refused as refusal:
                first = first or refusal.reason
                backtracks += 1
                resumed = self._resume(saved) if backtracks <= BACKTRACKS else None
                if resumed is None:
                    return first
                attempt = resumed
        return attempt

    def _resume(self, saved: list[tuple[_Attempt, Node, Accept]]) -> _Attempt | None:
        while saved:
            attempt, node, accept = saved.pop()
            try:
                self._assign(attempt, node, accept)
            except Refused:
                continue
            return attempt
        return None

    def _ask(self, node: Node, decided: dict[str, Storage], everything_fixed: bool = False) -> list[Accept]:
        view = self._view(node, decided, everything_fixed)
        if node.index in self.removed:
            return [_removed(view, self.removed[node.index])]
        return rules.apply(view)

    def _assign(self, attempt: _Attempt, node: Node, accept: Accept) -> None:
        for key, storage in accept.assign.items():
            name = self._port_name(node, key)
            known = attempt.decided.get(name)
            if known is not None:
                if not known.agrees(storage):
                    raise Refused(Reason("conflict", f"two ports of one node want {name!r} differently", node.label))
                continue
            attempt.decided[name] = storage
            if not name.startswith("#"):
                attempt.ask(n for n in self._neighbours(name) if n is not node)
                if sum(used == name for used in node.inputs) > 1:
                    attempt.ask([node])

    def _settled(self, attempt: _Attempt) -> dict[int, tuple[Edit, ...]] | Reason:
        """The edits of every node visited, now that all is decided; a reason where rounding or range forbids one."""
        edits: dict[int, tuple[Edit, ...]] = {}
        for index in sorted(attempt.visited):
            node = self.graph.nodes[index]
            try:
                (accept,) = self._ask(node, attempt.decided, everything_fixed=True)
            except Refused as refusal:
                return refusal.reason
            assert not accept.assign, node.label
            for edit in accept.edits:
                if isinstance(edit, NewConstant) and edit.base is not None and edit.base.name in self.graph.annotated:
                    return pinned_reason("annotated", edit.base.name)
                if text := misfit(edit):
                    return Reason("out-of-range", text, node.label, "fold before converting to a smaller type")
            edits[index] = accept.edits
        for name, storage in attempt.decided.items():
            before = self._current(name)
            reason = self.spreads.lost(name, storage, before) if before is not None else None
            if reason is not None:
                return reason
        return edits

    def _commit(self, source: Source, found: _Found) -> None:
        index = source.node.index
        self.removed[index] = source
        x, y = source.node.inputs[source.slot], source.node.outputs[0]
        self.plan.removed[index] = x
        self.merged.setdefault(x, []).append(y)
        self.merged.setdefault(y, []).append(x)
        self.plan.storage.update(found.attempt.decided)
        self.plan.edits.update(found.edits)
        self.plan.edits.pop(index, None)
        self.kept.pop(index, None)
        self.folds += 1
        self.changed.update(dict.fromkeys((index, *found.attempt.visited), self.folds))
        into = tuple(self.graph.nodes[i].label for i, edits in sorted(found.edits.items()) if edits)
        self.done[index] = Outcome(source.node, True, found.way, into)

    def _view(self, node: Node, decided: dict[str, Storage], everything_fixed: bool) -> View:
        ports: dict[int, Port] = {}
        keyed = [*enumerate(node.inputs), *((-1 - i, name) for i, name in enumerate(node.outputs))]
        for key, name in keyed:
            if not name:
                continue
            constant = self.graph.constant(name) if key >= 0 else None
            shape = constant.shape if constant is not None else self.graph.shape(name)
            if shape is None:
                continue
            own = self._port_name(node, key)
            storage = decided.get(own) or self.plan.storage.get(own) or Storage.identity(len(shape))
            pinned = "" if constant is not None else self._pinned(name)
            fixed = everything_fixed or own in decided or bool(pinned)
            ports[key] = Port(own, shape, storage, fixed, constant, self._near(node, key, constant), pinned)
        matmul = node.op == "MatMul"
        return View(node, ports, matmul and self._bias_behind(node), matmul and self._only_moves(node))

    def _port_name(self, node: Node, key: int) -> str:
        """A tensor's name; a constant operand has a name of its own for each use."""
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
        return bool(readers) and all(_is_matmul_bias(reader) for reader, _ in readers)

    def _only_moves(self, node: Node) -> bool:
        """Whether a new Add behind this MatMul would only replace the Add that is to leave."""
        leaving = next(reversed(self.removed.values()), None)
        own = any(isinstance(edit, NewBias) for edit in self.plan.edits.get(node.index, ()))
        return leaving is not None and leaving.node.op in ("Add", "Sub") and not own

    def _neighbours(self, name: str) -> list[Node]:
        producer = self.graph.producers.get(name)
        found = [] if producer is None else [producer]
        for node, _ in self.graph.consumers.get(name, []):
            if node not in found:
                found.append(node)
        return found

    def _pinned(self, name: str) -> str:
        """Why a tensor's meaning must stay, '' where it need not."""
        graph = self.graph
        if name in graph.output_set:
            return "graph-output"
        if name in graph.captured:
            return "captured"
        if name in graph.annotated:
            return "annotated"
        return "" if name in graph.producers else "graph-input"

    def _named(self, name: str) -> bool:
        """Whether the tensor, or one that it became one with, has a name that must stay."""
        members, stack = {name}, [name]
        while stack:
            for other in self.merged.get(stack.pop(), ()):
                if other not in members:
                    members.add(other)
                    stack.append(other)
        return any(member in self.graph.output_set or member not in self.graph.producers for member in members)


_ABSORBERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})


def _removed(view: View, source: Source) -> Accept:
    """An affine that left: its input and its output share their memory."""
    slot = source.slot
    x, y = view.port(slot), view.port(OUT)
    if not y.fixed:
        return view.settle({OUT: x.storage.after(source.affine)})
    # Backwards where both are fixed: forwards, a channel of scale zero would lose what x says of it.
    back = y.storage.before(source.affine)
    free = (back.den == 0) & (back.num == 0)
    if np.any(free & (back.off != 0)):
        raise view.refuse("zero-scale", "a constant channel would have to be two constants")
    if np.any(free):  # y is dead there, and x may stay as it is
        pick: Callable[[Array, Array], Array] = lambda own, other: np.where(free, own, other)  # noqa: E731
        back = Storage(pick(x.storage.den, back.den), pick(x.storage.num, back.num), pick(x.storage.off, back.off))
    return view.settle({slot: back})


def _is_matmul_bias(node: Node) -> bool:
    """Whether a node adds a constant right behind a MatMul: that is the MatMul's bias, not an affine to remove."""
    if node.op != "Add" or len(node.inputs) != 2:
        return False
    constants = [node.constant(slot) is not None for slot in (0, 1)]
    if sum(constants) != 1:
        return False
    producer = node.graph.producers.get(node.inputs[0 if constants[1] else 1])
    if producer is None or producer.op != "MatMul":
        return False
    return any(producer.constant(slot) is not None for slot in (0, 1))


def _opted_out(node: Node, keep: tuple[str, ...], only: tuple[str, ...], drop: frozenset[str]) -> Reason | None:
    if node.label in drop:
        return Reason("verification-failed", "its fold did not pass verification", node.label)
    if any(fnmatchcase(node.label, pattern) for pattern in keep):
        return Reason("kept-by-user", "--keep names it", node.label, "remove --keep")
    if only and not any(fnmatchcase(node.label, pattern) for pattern in only):
        return Reason("kept-by-user", "--only does not name it", node.label, "add it to --only")
    return None


_TELLING = (
    "precision-loss",
    "padded-shift",
    "negative-scale",
    "out-of-range",
    "conflict",
    "zero-scale",
    "shift-through-nonlinear",
)


def _telling(reason: Reason) -> int:
    """Rank of a reason: those that name an obstacle of the algebra before those that name an end of the graph."""
    return _TELLING.index(reason.code) if reason.code in _TELLING else len(_TELLING)
