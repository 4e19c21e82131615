"""Where affines compete: an affine that stays because others left is tried in their place.

The others are taken back, with all that came to depend on them; the affine goes first, they and all that waited come
behind it. Whichever plan removes the most work stays.
"""

from __future__ import annotations

from bnfold.solver.sweep import GraphSolver

TRIALS = 0.25
"""Nodes that all trials may ask together, for each that was asked before."""

LARGE = 256
"""Folds that one trial may take back."""

ROUNDS = 8
"""Times that one trial may take back what stands in the way by then."""


def compete(solver: GraphSolver) -> None:
    """Look for a better plan, as far as the budget goes; the plan never gets worse."""
    start, budget = solver.steps, solver.steps * TRIALS
    tried = set[int]()
    while solver.steps - start < budget:
        waiting = [i for i, stuck in solver.verdicts.stuck.items() if stuck.blockers and i not in tried]
        if not waiting:
            return
        index = min(waiting, key=lambda i: solver.rank[i])
        tried.add(index)
        _trial(solver, index)


def _trial(solver: GraphSolver, index: int) -> None:
    """Let one affine leave first, all that stood in its way behind it."""
    verdicts = solver.verdicts
    saved = None
    taken, staying = set[int](), 0
    for _ in range(ROUNDS):
        blockers = _cheapest(solver, verdicts.stuck[index].blockers)
        undone = solver.state.depending(blockers)
        own = {fold.source.node.index for fold in undone}
        rivals = {
            i for i, stuck in verdicts.stuck.items() if i != index and not (taken | own).isdisjoint(stuck.all_blockers)
        }
        # At least one of the blockers will stay.
        staying += min(map(solver.work, blockers), default=0)
        most = solver.work(index) + sum(map(solver.work, rivals)) - staying
        if not undone or len(taken | own) > LARGE or most <= 0:
            break
        saved = saved or (solver.state.snapshot(), verdicts.copy())
        own = {fold.source.node.index for fold in solver.undo(undone)}
        taken |= own
        for one in own:
            del verdicts.done[one]
        solver.sweep([index])
        if index in verdicts.done:
            solver.sweep([*taken, *rivals])
            break
    if saved is not None and sum(map(solver.work, verdicts.done)) <= sum(map(solver.work, saved[1].done)):
        solver.state, solver.verdicts = saved


def _cheapest(solver: GraphSolver, blockers: list[frozenset[int]]) -> frozenset[int]:
    """Those whose folds did the least work."""
    return min(blockers, key=lambda found: sum(map(solver.work, found)), default=frozenset())


def find_rivals(solver: GraphSolver) -> None:
    """Note who stands in the way of the affines that stay, as far as the budget goes: try each without them."""
    start, budget = solver.steps, solver.steps * TRIALS
    found: dict[frozenset[int], list[int]] = {}
    for index, stuck in solver.verdicts.stuck.items():
        for blockers in dict.fromkeys(stuck.blockers):
            found.setdefault(blockers.intersection(solver.state.leaving), []).append(index)
    for blockers, waiting in found.items():
        undone = solver.state.depending(blockers)
        if len(undone) > LARGE or solver.steps - start > budget:
            continue
        saved = solver.state.snapshot()
        solver.undo(undone)
        for index in waiting:
            if index not in solver.verdicts.rivals and solver.could_leave(index):
                solver.verdicts.rivals[index] = blockers
        solver.state = saved
