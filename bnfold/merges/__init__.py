"""Linear nodes that become one: parallel branches of one tensor, and a convolution or matrix product behind another.

Re-parameterisation with no model code (X. Ding et al., "RepVGG", CVPR 2021): convolution is linear in its kernel, so
branches that read one tensor and are added are one convolution, and so is one convolution behind another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold import witness
from bnfold.affine import Array
from bnfold.graph import Graph, Model, Node
from bnfold.guards import misfits
from bnfold.merges.gathering import gather
from bnfold.merges.nodes import PRODUCTS, WEIGHTED, is_linear
from bnfold.merges.search import Found, branches, chains
from bnfold.merges.terms import Kernel
from bnfold.plan import Edit, GraphPlan, Merge, NewBias, NewConstant, SetAttribute
from bnfold.protos import Names

__all__ = ["Almost", "Merges", "Regrouped", "find", "is_linear", "regrouped"]


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
    """Sums in another order, by path of a graph; and what almost merges once a sum is in another order."""

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

    for search in (branches, chains):
        for root, found in search(graph, free):
            if not isinstance(found, Found):
                if not found.unrelated:
                    yield Almost(root, str(found))
            elif obstacle := _obstacle(found):
                yield from [Almost(root, obstacle)] if obstacle != FAR else []
            else:
                taken |= set(found.members)
                yield _merge(found)


def regrouped(model: Model, allowed: Callable[[Node], bool] = lambda node: True) -> Regrouped:
    """The sums whose terms must stand in another order for branches among them to meet.

    Args:
        model: not changed.
        allowed: whether a node may leave or change.
    """
    names, sums, almost = Names(model.proto), dict[str, list[witness.Regrouped]](), list[Almost]()
    for graph in model.graphs:
        for tree, groups, obstacles in gather(graph, allowed, _obstacle):
            almost += [Almost(tree.root, text) for text in obstacles if text != FAR]
            if groups and (made := tree.regrouped(groups, names)) is not None:
                sums.setdefault(graph.path, []).append(made)
    return Regrouped(sums, tuple(almost))


FAR = "one node would cost much more"
"""An obstacle that is not spoken of."""


def _obstacle(found: Found) -> str:
    """What speaks against a merge; '' where nothing does."""
    if found.pays:
        return _misfit(found)
    times = found.merged_cost / found.cost
    return f"one {found.kept.op} would cost {times:.2f} times as much" if times < CLOSE else FAR


def _misfit(found: Found) -> str:
    """What about the constants' types speaks against a merge; '' where nothing does."""
    weights = [node.constant(1) for node in found.members if node.op in WEIGHTED]
    types = {weight.type for weight in weights if weight is not None} | {found.root.graph.type(found.source)} - {0}
    if len(types) != 1:
        return "the weights are not of the type of what they meet"
    return misfits(_edits(found), found.root.graph.model.narrow)


def _merge(found: Found) -> Merge:
    return Merge(found.root, found.kept, found.members, found.source, _edits(found))


def _edits(found: Found) -> tuple[Edit, ...]:
    kept, kernel = found.kept, found.kernel
    return _product(kept, kernel) if kept.op in PRODUCTS else _convolution(kept, kernel)


def _convolution(kept: Node, kernel: Kernel) -> tuple[Edit, ...]:
    axes = kernel.axes
    attributes: dict[str, int | list[int]] = {
        "group": kernel.group,
        "kernel_shape": list(kernel.taps),
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.begin for axis in axes] + [axis.end for axis in axes],
    }
    weight = kept.constant(1)
    assert weight is not None
    edits: list[Edit] = [SetAttribute("auto_pad", None), *(SetAttribute(*each) for each in attributes.items())]
    edits.append(NewConstant(1, "weight", weight.type, kernel.shape, weight, values=kernel.rows))
    return (*edits, *_bias(kept, kernel, weight.type))


def _bias(kept: Node, kernel: Kernel, type_: int) -> tuple[Edit, ...]:
    old, bias = kept.constant(2), kernel.bias
    if old is None and bias is None:
        return ()

    def values(start: int, stop: int) -> Array:
        return np.zeros(stop - start) if bias is None else bias()[start:stop]

    return (NewConstant(2, "bias", type_, (kernel.outputs,), old, values=values),)


def _product(kept: Node, kernel: Kernel) -> tuple[Edit, ...]:
    weight = kept.constant(1)
    assert weight is not None
    turned = kept.op == "Gemm" and bool(kept.get_int("transB", 0))
    shape = kernel.shape if turned else kernel.shape[::-1]

    def values(start: int, stop: int) -> Array:
        return kernel.rows(start, stop) if turned else kernel.rows(0, kernel.outputs).T[start:stop]

    edits: list[Edit] = [NewConstant(1, "weight", weight.type, shape, weight, values=values)]
    if kept.op == "MatMul":
        return (*edits, *([] if kernel.bias is None else [NewBias(weight.type, kernel.bias())]))
    edits += [SetAttribute(name, 1.0) for name in ("alpha", "beta") if kept.get_float(name, 1.0) != 1.0]
    if kept.version < 7 and kernel.bias is not None:
        edits.append(SetAttribute("broadcast", 1))
    return (*edits, *_bias(kept, kernel, weight.type))
