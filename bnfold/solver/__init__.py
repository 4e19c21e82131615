"""Which affine nodes can leave, and what every tensor around them must then be stored as.

One affine at a time: re-store its input and output so that it becomes the identity, and let the demands travel until
every rule is content. Near absorbers are tried for all affines before far ones for any; what was refused is tried
again after a change where it looked; where affines compete for a tensor, the plan that removes the most work wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from bnfold.graph import Model
from bnfold.plan import Plan
from bnfold.solver.compete import compete, find_rivals
from bnfold.solver.opening import open_gelus
from bnfold.solver.removed import is_matmul_bias
from bnfold.solver.sweep import GraphSolver
from bnfold.solver.verdicts import Outcome, Solution, matches, opted_out

__all__ = ["Outcome", "Solution", "is_matmul_bias", "matches", "opted_out", "solve"]


def solve(
    model: Model,
    keep: Iterable[str] = (),
    only: Iterable[str] = (),
    drop: Mapping[str, bool] = MappingProxyType({}),
    bits: float = math.inf,
) -> Solution:
    """Fold what can be folded.

    Args:
        model: the model as read; not changed.
        keep: names or globs of nodes that must stay.
        only: names or globs; where given, every other node stays.
        drop: labels of nodes whose fold was not proved, and whether it was exact all the same.
        bits: how many bits a tensor of several readers may lose at most, where that is less than the usual limit.
    """
    plans, outcomes = [], []
    for graph in model.graphs:
        solver = GraphSolver(graph, tuple(keep), tuple(only), drop, bits)
        solver.sweep(solver.sources)
        open_gelus(solver)
        compete(solver)
        find_rivals(solver)
        solver.store_computed()
        outcomes += solver.outcomes()
        plans.append(solver.state.plan)
    return Solution(Plan(plans), outcomes)
