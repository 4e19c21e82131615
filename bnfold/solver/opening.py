"""A BatchNormalization that could only leave into a GELU: then the GELU's constants may change, although it is slower.

A runtime that finds a GELU whole computes it as one operator. Scales and shifts are not worth breaking it up for; a
BatchNormalization, which other runtimes and converters cannot do with at all, is.
"""

from __future__ import annotations

from bnfold.rules.composites import gelu_around
from bnfold.solver.sweep import GraphSolver


def open_gelus(solver: GraphSolver) -> None:
    """Try each BatchNormalization that a GELU keeps once more, with that GELU's nodes like any others."""
    by_label = {node.label: node for node in solver.graph.nodes}
    for index, stuck in list(solver.verdicts.stuck.items()):
        if solver.graph.nodes[index].op != "BatchNormalization" or index in solver.verdicts.done:
            continue
        places = {failure.reason.at for failure in stuck.failures if failure.reason.code == "part-of-operator"}
        nodes = {node.index for place in places for node in gelu_around(by_label[place])} - solver.state.opened
        solver.state.opened |= nodes
        solver.sweep([index] if nodes else [])
        if index not in solver.verdicts.done:
            solver.state.opened -= nodes
