"""BatchNormalization of constants: weights are standardised by one, and exporters leave it in the graph.

What it computes is a constant. The nodes behind it that read what becomes of it store that instead, and it goes, with
all that computed it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.constants import Constant
from bnfold.graph import Graph, Node
from bnfold.guards import unlock
from bnfold.plan import GraphPlan, NewConstant
from bnfold.reasons import Reason
from bnfold.rules.base import pinned_reason
from bnfold.rules.scaling import is_constant
from bnfold.solver.state import pinned
from bnfold.source import FLOATS, limits_of

Reader = tuple[Node, int]
"""A node that is no constant, and the slot at which it reads one."""


def computed_constants(graph: Graph) -> list[Node]:
    """The BatchNormalizations of a graph that compute constants."""
    return [node for node in graph.nodes if is_constant(node)]


def readers_of(node: Node) -> list[Reader] | Reason:
    """Who reads what a constant node computes, or what others compute of that; why it must stay where it must."""
    graph, found, waiting = node.graph, list[Reader](), [node.outputs[0]]
    if any(graph.consumers.get(name) or name in graph.output_set for name in filter(None, node.outputs[1:])):
        return Reason("training-mode", "its statistics outputs are used", node.label, "drop those outputs")
    seen = set(waiting)
    for name in waiting:
        code = pinned(graph, name)
        if code:
            return pinned_reason(code, name)
        for reader, slot in graph.consumers.get(name, []):
            constants = [output for output in reader.outputs if output and graph.stored(output) is not None]
            constant = reader.constant(slot)
            if not constants and constant is not None and not _fits(constant):
                text = f"what {reader.label!r} would store of it would overflow {FLOATS[constant.type].name}"
                return Reason("out-of-range", text, reader.label, unlock(graph))
            if not constants:
                found.append((reader, slot))
            waiting += [output for output in constants if output not in seen]
            seen.update(constants)
    return found


def _fits(constant: Constant) -> bool:
    if constant.type not in FLOATS:
        return True
    return bool(np.all(np.abs(constant.float64()) <= limits_of(FLOATS[constant.type]).max))


def store(plan: GraphPlan, node: Node, readers: Sequence[Reader]) -> None:
    """Let the readers store what they read, those that stay and do not store it in another way already."""
    plan.computed.add(node.index)
    for reader, slot in readers:
        edits = plan.edits.get(reader.index, ())
        held = any(isinstance(edit, NewConstant) and edit.slot == slot for edit in edits)
        constant = reader.constant(slot)
        if constant is not None and reader.index not in plan.removed and not held:
            new = NewConstant(slot, "computed", constant.type, constant.shape, constant)
            plan.edits[reader.index] = (*edits, new)
