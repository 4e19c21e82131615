"""Linear nodes that become one: parallel branches of one tensor, and a convolution or matrix product behind another.

Re-parameterisation with no model code (X. Ding et al., "RepVGG", CVPR 2021): convolution is linear in its kernel, so
branches that read one tensor and are added are one convolution, and so is one convolution behind another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold import rules, witness
from bnfold.graph import Graph, Model, Node
from bnfold.guards import misfits
from bnfold.merges.edits import convolution_edits, fits_scale, is_uniform, product_edits, scale_edits
from bnfold.merges.gathering import gather
from bnfold.merges.nodes import PRODUCTS, WEIGHTED, is_linear, weight_of
from bnfold.merges.search import Found, branches, chains, scales, siblings
from bnfold.merges.swapping import may_swap, swaps
from bnfold.merges.terms import Diagonal, Kernel
from bnfold.plan import Edit, GraphPlan, Merge
from bnfold.protos import Names
from bnfold.rules import Source

__all__ = ["Almost", "Merges", "Regrouped", "find", "is_linear", "may_swap", "regrouped"]


CLOSE = 2.0
"""Merges that would cost this many times as much are not spoken of."""


@dataclass(frozen=True)
class Almost:
    """Nodes that were not merged although they read one tensor, or stand one behind the other."""

    node: Node
    """The sum, or the second of two."""
    text: str


@dataclass(frozen=True)
class Merges:
    """What can be merged in a model, and what almost can."""

    plans: tuple[GraphPlan, ...]
    almost: tuple[Almost, ...] = ()

    def __bool__(self) -> bool:
        return any(plan.merges for plan in self.plans)


@dataclass(frozen=True)
class Regrouped:
    """Sums in another order and nodes that change places, by path of a graph; and what almost merges in such a sum."""

    sums: Mapping[str, Sequence[witness.Regrouped]]
    almost: tuple[Almost, ...] = ()


def find(model: Model, allowed: Callable[[Node], bool] = lambda node: True) -> Merges:
    """Find the merges of a model that pay.

    Args:
        model: not changed.
        allowed: whether a node may leave or change.
    """
    plans, almost = [], []
    for graph in model.graphs:
        own = GraphPlan(graph)
        for merge in _of(graph, allowed):
            if isinstance(merge, Almost):
                almost.append(merge)
            else:
                own.merges.append(merge)
        own.merges.sort(key=lambda merge: merge.root.index)
        plans.append(own)
    return Merges(tuple(plans), tuple(almost))


def _of(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[Merge | Almost]:
    taken: set[Node] = set()

    def free(node: Node) -> bool:
        return node not in taken and allowed(node)

    almost: dict[Node, str] = {}
    for search in (branches, siblings, chains, scales):
        for root, found in search(graph, free):
            if isinstance(found, Found) and not (obstacle := _obstacle(found)):
                taken |= set(found.members)
                yield _merge(found)
            elif isinstance(found, Found):
                almost.setdefault(root, obstacle)
            elif not found.unrelated:
                almost.setdefault(root, str(found))
    yield from (Almost(root, text) for root, text in almost.items() if text != FAR and root not in taken)


def regrouped(model: Model, allowed: Callable[[Node], bool] = lambda node: True) -> Regrouped:
    """The sums whose terms must stand in another order for branches among them to meet; pools that go to the front.

    Args:
        model: not changed.
        allowed: whether a node may leave or change.
    """
    names, sums, almost = Names(model.proto), dict[str, list[witness.Regrouped]](), list[Almost]()
    for graph in model.graphs:
        swapped = list(swaps(graph, allowed, names))
        if swapped:
            sums[graph.path] = swapped
        for tree, groups, obstacles in gather(graph, allowed, _obstacle):
            almost += [Almost(tree.root, text) for text in obstacles if text != FAR]
            if groups and (made := tree.regrouped(groups, names)) is not None:
                sums.setdefault(graph.path, []).append(made)
    return Regrouped(sums, tuple(almost))


FAR = "one node would cost much more"
"""An obstacle that is not spoken of."""


def _obstacle(found: Found) -> str:
    """What speaks against a merge; '' where nothing does."""
    if isinstance(found.map, Diagonal) and found.kept.op == "Mul" and np.any(found.map.shift):
        return "one Mul could not hold the shift, and there is no BatchNormalization to become"
    if _cancels(found):
        return "what varies along the channels cancels"
    if isinstance(found.map, Diagonal) and not fits_scale(found.kept, found.map):
        return "the constant of a Mul cannot grow before opset 7"
    if found.pays:
        return _misfit(found)
    times, what = found.merged_cost / found.cost, "cost {:.2f} times as much"
    if found.root.op == "Concat" and isinstance(found.map, Kernel):
        times, what = found.map.products / found.products, "multiply {:.2f} times as often"
    return f"one {found.kept.op} would {what.format(times)}" if times < CLOSE else FAR


def _cancels(found: Found) -> bool:
    """Whether scales that vary along one axis add up to one number, which could merge along another then."""
    if not isinstance(found.map, Diagonal) or not (is_uniform(found.map.scale) and is_uniform(found.map.shift)):
        return False
    affines = [source.affine for node in found.members if isinstance(source := rules.as_source(node), Source)]
    return any(affine.scale.size > 1 or affine.shift.size > 1 for affine in affines)


def _misfit(found: Found) -> str:
    """What about the constants' types speaks against a merge; '' where nothing does."""
    weighted = [node for node in found.members if node.op in WEIGHTED]
    weights = [weight_of(node) for node in weighted]
    types = {weight.type for weight in weights if weight is not None} | {found.root.graph.type(found.source)} - {0}
    if len(types) != 1 and weighted:
        return "the weights are not of the type of what they meet"
    return misfits(_edits(found), found.root.graph.model.narrow)


def _merge(found: Found) -> Merge:
    return Merge(found.root, found.kept, found.members, found.source, _edits(found))


def _edits(found: Found) -> tuple[Edit, ...]:
    kept, made = found.kept, found.map
    if isinstance(made, Diagonal):
        return scale_edits(kept, made, found.along)
    return product_edits(kept, made) if kept.op in PRODUCTS else convolution_edits(kept, made)
