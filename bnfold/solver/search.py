"""One attempt: demands travel from node to node until every rule is content, or one refuses for good.

Depth first over the alternatives that rules offer. A refusal goes back to the last choice that had a part in it
(conflict-directed backjumping), and the search is run again with the next alternative there: choices are few, and
nothing need be copied to be able to go back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from bnfold.affine import Storage
from bnfold.graph import Node
from bnfold.reasons import Reason, plural
from bnfold.rules import Accept, Refused
from bnfold.rules.unlocks import ONE_EACH
from bnfold.solver.state import State

RETRIES = 250
"""Times that one attempt may take back a choice."""

LARGE = 1 << 15
"""Numbers of a storage that count as one more step."""

READERS = 32
"""Nodes around one tensor that count as one more step, before they are asked."""

NOTHING: frozenset[int] = frozenset()

ABSORBERS = frozenset({"Conv", "ConvTranspose", "BatchNormalization"})
"""Operators whose rules never ask whether a port is fixed."""


@dataclass(eq=False)
class Attempt:
    """The storages decided so far in one attempt, over what earlier folds decided."""

    decided: dict[str, Storage]
    asked: dict[int, Node]
    """Every node that was asked, by index."""
    settled: dict[int, Accept] = field(default_factory=dict)
    """What some of them answered, by index, where that is their answer to all that was decided."""


@dataclass(frozen=True, eq=False)
class Failure:
    """Why an attempt failed."""

    reason: Reason
    blockers: frozenset[int] = NOTHING
    """Affines whose earlier folds had a part in the refusal."""
    chain: frozenset[int] = NOTHING
    """The nodes that led to the refusal: only a change at one of them can change the answer."""
    partial: bool = False
    """Whether only those channels were tried that turned out to have no way at all."""


@dataclass(eq=False)
class _Choice:
    """A node that offered several ways."""

    taken: int
    ways: int
    conflict: frozenset[int] = NOTHING
    """Earlier choices that had a part in what its exhausted ways ran into."""


class Search:
    """The search for one attempt."""

    def __init__(self, state: State, start: dict[str, Storage], skip: Node, limit: int) -> None:
        self.state, self.start, self.skip, self.limit = state, start, skip, limit
        self.steps = 0
        self.script: list[_Choice] = []
        self.answers: dict[tuple[int, tuple[Storage | None, ...]], list[Accept] | Reason] = {}
        """By node and by what was decided around it: a walk begins as the one before it did."""

    def ask(self, node: Node, decided: dict[str, Storage]) -> list[Accept]:
        """What the node's rule says.

        Raises:
            Refused: it refuses.
        """
        key = self._key(node, decided)
        answer = self.answers.get(key)
        if answer is None:
            try:
                answer = self.answers[key] = self.state.ask(node, decided)
            except Refused as refusal:
                answer = self.answers[key] = refusal.reason
        if isinstance(answer, Reason):
            raise Refused(answer)
        return answer

    def _key(self, node: Node, decided: dict[str, Storage]) -> tuple[int, tuple[Storage | None, ...]]:
        return node.index, tuple([decided.get(slot.own) for slot in self.state.slots(node)])

    def _settled(self, walk: _Walk) -> dict[int, Accept]:
        """The answers of nodes that would say the same were everything fixed, if they leave nothing open."""
        found: dict[int, Accept] = {}
        for index, node in walk.asked.items():
            key = self._key(node, walk.decided)
            blind = node.op in ABSORBERS and index not in self.state.leaving
            answer = self.answers.get(key) if blind or None not in key[1] else None
            if isinstance(answer, list) and len(answer) == 1 and not answer[0].assign:
                found[index] = answer[0]
        return found

    def run(self) -> Attempt | Failure:
        """Search until all is decided.

        Returns:
            The attempt, every rule content; or the first refusal that was met.
        """
        reason: Reason | None = None
        blockers, chain = NOTHING, NOTHING
        for _ in range(1 + RETRIES):
            walk = _Walk(self)
            try:
                walk.go()
                return Attempt(walk.decided, walk.asked, self._settled(walk))
            except Refused as refusal:
                reason = reason or refusal.reason
            led = walk.chain()
            blockers, chain = blockers | walk.blockers(led), chain | led
            if self.steps > self.limit:
                reason = self.too_far(self.skip)
                break
            if not self._turn(frozenset(walk.chosen[index] for index in led if index in walk.chosen)):
                break
        else:
            reason = self.too_far(self.skip)
        assert reason is not None
        if self.steps <= self.limit:
            self.state.trouble |= chain
        return Failure(reason, blockers, chain)

    def too_far(self, node: Node) -> Reason:
        """Why a search ends at a node without an answer."""
        text = f"the search for it takes more than {plural(self.limit, 'step')} or {plural(RETRIES, 'attempt')}"
        unlock = "bring a layer with weights nearer, or fold it alone with --only"
        return Reason("search-limit", text, node.label, unlock)

    def _turn(self, relevant: frozenset[int]) -> bool:
        """Take the next alternative of the last choice that matters; false where there is none."""
        while self.script:
            at = len(self.script) - 1
            choice = self.script[-1]
            if at in relevant:
                choice.conflict |= relevant - {at}
                if choice.taken + 1 < choice.ways:
                    choice.taken += 1
                    return True
                relevant = choice.conflict
            self.script.pop()
        return False


class _Walk:
    """One run through the graph, with the choices of the script."""

    def __init__(self, search: Search) -> None:
        self.search, self.state = search, search.state
        self.decided = dict(search.start)
        self.asked: dict[int, Node] = {}
        self.agenda: tuple[deque[Node], deque[Node]] = deque(), deque()
        """Nodes to ask: first those where an earlier attempt led to a refusal, for it may be met again."""
        self.waiting: set[int] = set()
        self.choices: dict[int, Node] = {}
        """Nodes that offered several ways: asked again when nothing else is left, for fewer may be open by then."""
        self.chosen: dict[int, int] = {}
        """By node that chose: the number of its choice in the script."""
        self.cause: dict[str, int] = {}
        """By tensor: the node that decided its storage."""
        self.at: Node = search.skip

    def go(self) -> None:
        """Until nothing is left to ask.

        Raises:
            Refused: by the node `at`.
        """
        for name in self.state.restored(self.search.start):
            self._ask([n for n in self.state.neighbours(name) if n is not self.search.skip])
        while self.waiting or self.choices:
            self.search.steps += 1
            forced = bool(self.waiting)
            queue = self.agenda[0] or self.agenda[1]
            node = queue.popleft() if forced else self.choices.pop(next(iter(self.choices)))
            self.waiting.discard(node.index)
            self.at = self.asked[node.index] = node
            if self.search.steps > self.search.limit:
                raise Refused(self.search.too_far(node))
            accepts = self.search.ask(node, self.decided)
            if len(accepts) == 1:
                self._assign(node, accepts[0])
            elif forced:
                self.choices[node.index] = node
            else:
                self._choose(node, accepts)

    def _choose(self, node: Node, accepts: list[Accept]) -> None:
        script, number = self.search.script, len(self.chosen)
        if number == len(script):
            script.append(_Choice(0, len(accepts)))
        self.chosen[node.index] = number
        self._assign(node, accepts[script[number].taken])

    def _ask(self, nodes: Collection[Node]) -> None:
        self.search.steps += len(nodes) // READERS
        if self.search.steps > self.search.limit:
            raise Refused(self.search.too_far(self.at))
        for node in nodes:
            self.choices.pop(node.index, None)
            if node.index not in self.waiting:
                self.waiting.add(node.index)
                self.agenda[node.index not in self.state.trouble].append(node)

    def _assign(self, node: Node, accept: Accept) -> None:
        for key, storage in accept.assign.items():
            name = self.state.port_name(node, key)
            known = self.decided.get(name)
            if known is not None:
                if not known.agrees(storage):
                    text = f"two ports of one node want {name!r} differently"
                    raise Refused(Reason("conflict", text, node.label, ONE_EACH))
                continue
            self.decided[name] = storage
            self.search.steps += max(map(math.prod, storage.shapes)) // LARGE
            self.cause[name] = node.index
            if not name.startswith("#"):
                self._ask([n for n in self.state.neighbours(name) if n is not node])
                if sum(used == name for used in node.inputs) > 1:
                    self._ask([node])

    def chain(self) -> frozenset[int]:
        """The nodes that led to the one that refused."""
        found, stack = {self.at.index}, [self.at]
        while stack:
            for slot in self.state.slots(stack.pop()):
                index = self.cause.get(slot.own)
                if index is not None and index not in found:
                    found.add(index)
                    stack.append(self.state.graph.nodes[index])
        return frozenset(found)

    def blockers(self, chain: frozenset[int]) -> frozenset[int]:
        """The affines whose earlier folds had a part in the refusal: they left in between, or stored what is seen."""
        owner = self.state.owner
        seen = (owner[slot.own] for slot in self.state.slots(self.at) if slot.own in owner)
        return (chain & self.state.leaving.keys()).union(seen) - {self.search.skip.index}
