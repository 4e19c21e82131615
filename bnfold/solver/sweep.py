"""The solver of one graph: every affine in turn, each in the best of its ways."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from bnfold import rules
from bnfold.affine import TooLargeError, together
from bnfold.graph import Graph, Node
from bnfold.guards import Spreads, misfits, unlock
from bnfold.plan import Edit, NewConstant
from bnfold.reasons import Reason
from bnfold.rules import Refused, Source
from bnfold.rules.base import channels_where, pinned_reason
from bnfold.rules.composites import composite_of
from bnfold.rules.unlocks import LAYER_BETWEEN, NOT_ZERO
from bnfold.solver.computed import Reader, computed_constants, readers_of, store
from bnfold.solver.removed import is_matmul_bias
from bnfold.solver.search import NOTHING, Attempt, Failure, Search
from bnfold.solver.state import Fold, State
from bnfold.solver.verdicts import Outcome, Stuck, Verdicts, opted_out, priority
from bnfold.solver.ways import Ends, Way

STEPS = (8, 64, 5000)
"""Nodes that one attempt may ask: all affines are tried with the few before one is with the many."""

FAR = (100_000, 30)
"""Nodes that all the far attempts of a graph may ask together: so many, and so many more for each node of the graph."""


@dataclass(frozen=True, eq=False)
class _Found:
    """A way that works."""

    way: Way
    attempt: Attempt
    edits: dict[int, tuple[Edit, ...]]
    changed: list[str]
    """The tensors that it stores differently."""
    cost: tuple[float, ...]


class GraphSolver:
    """Folds one graph."""

    def __init__(
        self, graph: Graph, keep: tuple[str, ...], only: tuple[str, ...], drop: Mapping[str, bool], bits: float
    ) -> None:
        self.graph = graph
        self.state = State(graph)
        self.verdicts = Verdicts()
        self.sources: dict[int, Source] = {}
        self.refused: dict[int, Outcome] = {}
        """Nodes that look like affines and are none, and those that the user keeps."""
        for node in graph.nodes:
            found = None if is_matmul_bias(node) or composite_of(node) is not None else rules.as_source(node)
            if found is None:
                continue
            reason = found if isinstance(found, Reason) else opted_out(node, keep, only, drop)
            if isinstance(found, Source) and reason is None:
                self.sources[node.index] = found
            elif reason is not None:
                self.refused[node.index] = Outcome(node, False, reasons=(reason,))
        self.computed: dict[int, list[Reader]] = {}
        """Nodes that compute constants, with those that will store them."""
        for node in computed_constants(graph):
            readers = opted_out(node, keep, only, drop) or readers_of(node)
            if isinstance(readers, Reason):
                self.refused[node.index] = Outcome(node, False, reasons=(readers,))
            else:
                self.computed[node.index] = readers
        self.spreads = Spreads(graph, self.sources, bits)
        self.rank = {index: (*priority(source), index) for index, source in self.sources.items()}
        self.far = FAR[0] + FAR[1] * len(graph.nodes)
        self.steps = 0
        self._last: tuple[int, frozenset[int]] = (-1, frozenset())

    def outcomes(self) -> list[Outcome]:
        """What became of every affine, in graph order."""
        kept = {i: Outcome(self.graph.nodes[i], False, reasons=self._reasons(i)) for i in self.verdicts.stuck}
        found = {**self.refused, **kept, **self.verdicts.done}
        return [found[index] for index in sorted(found)]

    def store_computed(self) -> None:
        """Let constants that nodes compute be stored, where no fold has done so."""
        for index, readers in self.computed.items():
            node, labels = self.graph.nodes[index], dict.fromkeys(reader.label for reader, _ in readers)
            store(self.state.plan, node, readers)
            self.verdicts.done[index] = Outcome(node, True, "push", tuple(labels))

    def _reasons(self, index: int) -> tuple[Reason, ...]:
        rivals = self.verdicts.rivals.get(index, NOTHING)
        labels = tuple(self.graph.nodes[rival].label for rival in sorted(rivals))
        return self.verdicts.stuck[index].reasons(rivals, labels)

    def could_leave(self, index: int) -> bool:
        """Whether an affine could leave as the state is now; changes nothing."""
        source, limit = self.sources[index], STEPS[-1]
        if any(isinstance(self.attempt(source, way, limit), _Found) for way in self._ways(source)):
            return True
        with suppress(TooLargeError):
            return self._mixed(source, limit, []) is not None
        return False

    def undo(self, folds: list[Fold]) -> list[Fold]:
        """Take folds back, as `State.undo` does."""
        before = self.state.asked
        undone = self.state.undo(folds)
        self.steps += self.state.asked - before
        return undone

    def work(self, index: int) -> int:
        """Elements that an affine goes through."""
        return -self.rank[index][1]

    def sweep(self, indices: Iterable[int]) -> None:
        """Fold what can be folded of these affines, near ways first, and again what a fold may have opened.

        On the last level every class of channels may go its own way.
        """
        levels: list[set[int]] = [set(indices), *(set[int]() for _ in STEPS)]
        while any(levels):
            level = next(i for i, waiting in enumerate(levels) if waiting)
            heap = [self.rank[index] for index in levels[level]]
            heapq.heapify(heap)
            levels[level] = set()
            changed = set[int]()
            while heap:
                index = heapq.heappop(heap)[-1]
                if index in self.verdicts.done:
                    continue
                restored = self._fold(index, level)
                if restored is not None:
                    changed |= restored
                elif level < len(STEPS):
                    far = level + 1 < len(STEPS) and self._may_go_further(index)
                    levels[level + 1 if far else len(STEPS)].add(index)
            if changed:
                open_ = {i for i in self.verdicts.stuck if not changed.isdisjoint(self.verdicts.stuck[i].seen)}
                levels[0] |= open_
                for higher in levels[1:]:
                    higher -= open_

    def _may_go_further(self, index: int) -> bool:
        return any(failure.reason.code == "search-limit" for failure in self.verdicts.stuck[index].failures)

    def _fold(self, index: int, level: int) -> frozenset[int] | None:
        """Let one affine leave; the nodes around what was re-stored, or None where it stays."""
        source, limit = self.sources[index], STEPS[min(level, len(STEPS) - 1)]
        if level >= len(STEPS) - 1:
            limit = min(limit, max(STEPS[-2], self.far))
        failures: list[Failure] = []
        found: list[_Found] = []
        start = self.steps
        ways = self._ways(source) if level < len(STEPS) else ()
        for way in ways:
            tried = self.attempt(source, way, limit)
            if isinstance(tried, Failure):
                failures.append(tried)
                continue
            found.append(tried)
            if tried.cost[0] <= 1:
                break
        if level == len(STEPS):
            with suppress(TooLargeError):
                mixed = self._mixed(source, limit, failures)
                found += [mixed] if mixed is not None else []
        if level >= len(STEPS) - 1:
            self.far -= self.steps - start
        if not found:
            self._keep(index, failures, level == len(STEPS))
            return None
        best = min(found, key=lambda each: each.cost)
        restored = best.changed
        self.state.commit(source, best.attempt.decided, restored, best.edits)
        self.verdicts.stuck.pop(index, None)
        into = tuple(self.graph.nodes[i].label for i, edits in sorted(best.edits.items()) if edits)
        self.verdicts.done[index] = Outcome(source.node, True, best.way.name, into, note=source.note)
        return frozenset(node.index for name in restored for node in self.state.neighbours(name)) | {index}

    def _keep(self, index: int, failures: list[Failure], last: bool) -> None:
        earlier = self.verdicts.stuck[index].failures if last and index in self.verdicts.stuck else ()
        if not failures and not earlier:
            failures = [Failure(self._no_way(self.sources[index]))]
        self.verdicts.stuck[index] = Stuck((*earlier, *failures))

    def _no_way(self, source: Source) -> Reason:
        """Why an affine cannot be tried."""
        ends = self._ends(source)
        return ends if isinstance(ends, Reason) else _too_large(source)

    def _ends(self, source: Source) -> Ends | Reason:
        """How both ends of an affine are stored by now; why it cannot be tried, where that is not known."""
        x, y = (self.state.current(name) for name in source.ends)
        if x is None or y is None:
            return Reason(
                "unknown-shape", "the rank of its output is not known", source.node.label, "export with shapes"
            )
        try:
            together(*x.shapes, *y.shapes, *source.affine.shapes)
        except TooLargeError:
            return _too_large(source)
        return Ends(x, y, source)

    def _ways(self, source: Source) -> Iterable[Way]:
        ends = self._ends(source)
        with suppress(TooLargeError):
            yield from () if isinstance(ends, Reason) else ends.ways()

    def _mixed(self, source: Source, limit: int, failures: list[Failure]) -> _Found | None:
        """A way of its own for every class of channels, where no one way serves all."""
        ends = self._ends(source)
        if isinstance(ends, Reason) or not (ends.x.has_decode and ends.y.has_encode):
            return None
        if any(failure.reason.code in ("search-limit", "graph-output", "graph-input") for failure in failures):
            return None
        classes = ends.classes(self.graph)
        if len(classes) < 2:
            return None
        ways, mixed = list(ends.ways()), ends.nothing
        for mask in classes:
            ranked: list[tuple[tuple[float, ...], Way]] = []
            refusals: list[Failure] = []
            for way in ways:
                tried = self.attempt(source, way.only(mask, ends.nothing), limit, alone=False)
                if isinstance(tried, Failure):
                    refusals.append(tried)
                else:
                    ranked.append((tried.cost, way))
            if not ranked:
                named = channels_where(mask) if mask is not classes[0] else ()  # the others have a way
                failures += [replace(f, reason=f.reason.on(named), partial=True) for f in refusals]
                return None
            mixed = min(ranked, key=lambda pair: pair[0])[1].only(mask, mixed)
        found = self.attempt(source, mixed, limit)
        if isinstance(found, Failure):
            failures.append(found)
            return None
        return found

    def _around(self, index: int, names: Sequence[str]) -> frozenset[int]:
        """The nodes at these tensors, which are those at both ends of one affine; for the last one they are known."""
        if self._last[0] != index:
            self._last = index, frozenset(n.index for name in names for n in self.state.neighbours(name))
        return self._last[1]

    def attempt(self, source: Source, way: Way, limit: int, alone: bool = True) -> _Found | Failure:
        """Try one way.

        Args:
            source: the affine.
            way: how both of its ends are to be stored.
            limit: nodes that may be asked.
            alone: whether the affine really leaves; else both ends are re-stored on some channels, to see if they can.
        """
        node, state = source.node, self.state
        ends = dict(zip(source.ends, (way.x, way.y), strict=True))
        around = self._around(node.index, source.ends)
        for name, storage in ends.items():
            current, pinned = state.current(name), state.pinned(name)
            assert current is not None
            if storage.is_degenerate:
                text = "a channel would be constant before and after"
                return Failure(Reason("zero-scale", text, node.label, NOT_ZERO), chain=around)
            if pinned and not storage.agrees(current):
                return Failure(pinned_reason(pinned, name), chain=around)
            if pinned:
                ends[name] = current  # to the last bit
        if all(map(state.is_named, ends)):
            return Failure(pinned_reason("graph-output", node.outputs[0]), chain=around)
        state.leaving[node.index] = source
        try:
            search = Search(state, ends, node, limit)
            tried = search.run()
            self.steps += search.steps
            if isinstance(tried, Failure):
                return replace(tried, chain=tried.chain | {node.index})
            edits = self._settled(tried, None if alone else node)
            if isinstance(edits, Reason):
                return Failure(edits, chain=frozenset(tried.asked) | around)
        finally:
            del state.leaving[node.index]
        changed = state.restored(tried.decided)
        return _Found(way, tried, edits, changed, (len(changed), self.spreads.most(tried.decided), way.name != "pull"))

    def _settled(self, attempt: Attempt, but: Node | None) -> dict[int, tuple[Edit, ...]] | Reason:
        """The edits of every node that was asked, now that all is decided; a reason where rounding forbids one."""
        edits: dict[int, tuple[Edit, ...]] = {}
        for index in sorted(attempt.asked):
            node = self.graph.nodes[index]
            if node is but:
                continue
            accept = attempt.settled.get(index)
            try:
                if accept is None:
                    (accept,) = self.state.ask(node, attempt.decided, everything_fixed=True)
            except Refused as refusal:
                return refusal.reason
            assert not accept.assign, node.label
            for edit in accept.edits:
                if isinstance(edit, NewConstant) and edit.base is not None and edit.base.name in self.graph.annotated:
                    return pinned_reason("annotated", edit.base.name)
            if text := misfits(accept.edits, self.graph.model.narrow):
                return Reason("out-of-range", text, node.label, unlock(self.graph))
            edits[index] = accept.edits
        for name, storage in attempt.decided.items():
            before = self.state.current(name)
            reason = self.spreads.against(name, storage, before) if before is not None else None
            if reason is not None:
                return reason
        return edits


def _too_large(source: Source) -> Reason:
    return Reason("search-limit", rules.TOO_LARGE, source.node.label, LAYER_BETWEEN)
