"""The part of the graph that one fold concerns: the node that leaves, those that took it up, and what lies between."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from bnfold.graph import Node

SIZE = 14
"""Nodes in a region, at most: more tell a person nothing."""

_REACH = 400


@dataclass(frozen=True)
class Place:
    """One node of a region. `role` is "leaves", "absorbs", or "" for one that only lies there."""

    label: str
    op: str
    role: str


@dataclass(frozen=True)
class Region:
    """Nodes in graph order, and by their positions which reads from which. `hidden` more took the affine up."""

    places: tuple[Place, ...]
    edges: tuple[tuple[int, int], ...]
    hidden: int = 0

    @property
    def form(self) -> object:
        """Equal for regions that differ in names only."""
        return tuple((place.op, place.role) for place in self.places), self.edges, self.hidden


def region(node: Node, into: Collection[str], gone: Collection[str]) -> Region:
    """The region around an affine node.

    Args:
        node: the affine that leaves.
        into: labels of the nodes that took it up.
        gone: labels of all nodes that leave.
    """
    found, shown = {node.index}, 0
    trails = _trails(node, into)
    for label in into:
        trail = trails.get(label, ())
        if trail and len(found | set(trail)) <= SIZE:
            found |= set(trail)
            shown += 1
    for near in _around(node):
        if len(found) < SIZE:
            found.add(near.index)
    nodes = [node.graph.nodes[index] for index in sorted(found)]
    at = {each.index: i for i, each in enumerate(nodes)}
    makers = ((each, node.graph.producers.get(name)) for each in nodes for name in each.inputs if name)
    edges = {(at[made.index], at[each.index]) for each, made in makers if made is not None and made.index in at}
    places = tuple(
        Place(each.label, each.op, "leaves" if each.label in gone else "absorbs" if each.label in into else "")
        for each in nodes
    )
    return Region(places, tuple(sorted(edges)), len(into) - shown)


def _trails(node: Node, into: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The nodes on a shortest way, in whatever direction, to each of `into`."""
    came: dict[int, Node | None] = {node.index: None}
    queue = deque([node])
    trails: dict[str, tuple[int, ...]] = {}
    while queue and len(trails) < len(into) and len(came) < _REACH:
        current = queue.popleft()
        if current.label in into and current is not node:
            step: Node | None = current
            trail = []
            while step is not None:
                trail.append(step.index)
                step = came[step.index]
            trails[current.label] = tuple(trail)
        for near in _around(current):
            if near.index not in came:
                came[near.index] = current
                queue.append(near)
    return trails


def _around(node: Node) -> tuple[Node, ...]:
    """What makes its inputs, and what reads its outputs; constants are nobody's neighbours."""
    found = node.memo.get("around")
    if found is None:
        graph = node.graph
        makers = [graph.producers[name] for name in node.inputs if name in graph.producers and not graph.constant(name)]
        found = node.memo["around"] = (*makers, *islice(_after(node), _REACH))
    assert isinstance(found, tuple)
    return found


def _after(node: Node) -> Iterator[Node]:
    for name in node.outputs:
        if name and node.graph.constant(name) is None:
            for reader, _ in node.graph.consumers.get(name, ()):
                yield reader
