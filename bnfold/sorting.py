"""Whether the nodes of a model can run one after the other: in any order, but not in a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from bnfold.graph import Graph, Model, Node


def check_acyclic(model: Model) -> None:
    """See that no node waits for itself, in its own graph or through what its bodies read.

    Raises:
        ModelError: nodes of a graph form a circle.
    """
    captured = _captured(model)
    for graph in model.graphs:
        needs = {node: _needed(node, captured) for node in graph.nodes}
        if any(before.index >= node.index for node, others in needs.items() for before in others):
            _sort(model, needs)


def _needed(node: Node, captured: dict[Node, set[Node]]) -> set[Node]:
    """The nodes of the same graph that must run before."""
    producers = node.graph.producers
    return {producers[name] for name in node.inputs if name in producers} | captured.get(node, set())


def _captured(model: Model) -> dict[Node, set[Node]]:
    """For every node with bodies: the nodes of its own graph whose results these read, however deep."""
    found: dict[Node, set[Node]] = {}
    for graph in model.graphs[1:]:
        own = graph.producers.keys() | graph.input_set | graph.initializers.keys()
        read = {name for node in graph.nodes for name in node.inputs} | graph.output_set
        for name in read - own - {""}:
            holder: Graph = graph
            while (outer := holder.parent) is not None:
                made = outer.producers.get(name)
                if made is not None:
                    found.setdefault(outer.nodes[holder.trail[-1][0]], set()).add(made)
                if made is not None or name in outer.input_set or name in outer.initializers:
                    break
                holder = outer
    return found


def _sort(model: Model, needs: dict[Node, set[Node]]) -> None:
    waiting = {node: len(others) for node, others in needs.items()}
    readers: dict[Node, list[Node]] = {}
    for node, others in needs.items():
        for before in others:
            readers.setdefault(before, []).append(node)
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        for node in readers.get(ready.pop(), []):
            waiting[node] -= 1
            if not waiting[node]:
                ready.append(node)
    stuck = [node for node, count in waiting.items() if count]
    if stuck:
        raise ModelError(f"{model.source.label}: the node {stuck[0].label!r} waits for its own result; export it again")
