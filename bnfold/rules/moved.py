"""A constant that is moved, by what is known at run time only, to where a demand reaches it.

A table of which a Gather picks rows (an embedding), a token that an Expand repeats for every image of a batch,
positions of which a Slice takes as many as there are.
"""

from __future__ import annotations

from bnfold.rules.base import Accept, View, restored_constant
from bnfold.rules.unlocks import ONE_EACH

MOVES = frozenset({"Expand", "Gather", "Slice", "Tile", "Compress"})
"""Operators whose first input may be such a constant."""


def stored_anew(view: View, accept: Accept) -> Accept:
    """The answer, with an edit that stores the constant as its port says.

    Raises:
        Refused: others read the constant too, or it is an outer graph's, so that there would be two of it.
    """
    port = view.ports.get(0)
    if port is None or port.constant is None or accept.assign.get(0, port.storage).is_identity:
        return accept
    graph, name = view.node.graph, view.node.inputs[0]
    alone = graph.owner(name) is graph and len(graph.consumers.get(name, ())) == 1 and name not in graph.captured
    if not alone:
        text = f"{name!r} is a constant of {view.node.op} that others may read too: it would be there twice"
        raise view.refuse("conflict", text, ONE_EACH)
    return accept if accept.assign else accept._replace(edits=(*accept.edits, *restored_constant(view, 0, "moved")))
