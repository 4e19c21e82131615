"""What an affine that leaves asks of the tensors on its two sides, and which Adds are no affines at all."""

from __future__ import annotations

import numpy as np

from bnfold.graph import Node
from bnfold.rules import Accept, Source, View
from bnfold.rules.base import OUT
from bnfold.rules.unlocks import NOT_ZERO


def removed(view: View, source: Source) -> Accept:
    """Its input and its output share their memory: y' = x'."""
    slot = source.slot
    x, y = view.port(slot), view.port(OUT)
    if not y.fixed:
        return view.settle({OUT: x.storage.after(source.affine)})
    # Backwards where both are fixed: forwards, a channel of scale zero would lose what x says of it.
    back = y.storage.before(source.affine)
    free = (back.den == 0) & (back.num == 0)
    if np.any(free & (back.off != 0)):
        raise view.refuse("zero-scale", "a constant channel would have to be two constants", NOT_ZERO)
    if free.any():  # y is dead there, and x may stay as it is
        back = back.but(free, x.storage)
    return view.settle({slot: back})


def is_matmul_bias(node: Node) -> bool:
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
