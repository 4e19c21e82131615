"""What several nodes are together: the linear map of every tensor among them, and what they cost one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bnfold import rules
from bnfold.affine import Array
from bnfold.graph import Dim, Graph, Node
from bnfold.merges.cost import Extent, copy_cost, kernel_cost, sum_cost
from bnfold.merges.nodes import KERNELS, PRODUCTS, SUMS, WEIGHTED, dynamic, kernel_of, product, product_axis, weight_of
from bnfold.merges.terms import (
    Diagonal,
    Kernel,
    ObstacleError,
    Term,
    added,
    chained,
    inner_sizes,
    joined_axis,
    scaled,
    stacked,
)
from bnfold.rules import Source
from bnfold.rules.base import MOST_VALUES


@dataclass
class Evaluation:
    """The terms of every tensor in a set of nodes, and what the nodes cost."""

    graph: Graph
    source: str
    windowed: bool
    """Whether there are windows along all axes but the first two."""
    axis: int
    """Where the channels are; from the end where it is negative."""
    terms: dict[str, Term] = field(default_factory=dict)
    sizes: tuple[Dim, ...] = ()
    cost: float = 0.0
    products: int = 0
    """Multiplications for one output position, of all nodes."""

    def __post_init__(self) -> None:
        shape = self.graph.shape(self.source)
        if shape is None or len(shape) < (3 if self.windowed else 2):
            raise ObstacleError(f"the rank of {self.source!r} is not known, or too small")
        self.rank = len(shape)
        self.axis %= self.rank
        channels = shape[self.axis]
        if not isinstance(channels, int):
            raise ObstacleError(f"the number of channels of {self.source!r} is not known")
        if channels > MOST_VALUES:
            raise ObstacleError(f"{self.source!r} is said to have {channels:,} channels")
        self.sizes = shape[2:] if self.windowed else ()
        others = shape[:1] if self.windowed else [*shape[: self.axis], *shape[self.axis + 1 :]]
        self.extent = Extent.of(others, self.sizes)
        self.along = (channels, *(1 for _ in shape[self.axis + 1 :]))
        self.terms[self.source] = Diagonal.identity(channels)

    def step(self, node: Node) -> None:
        """Note the term of a node's output."""
        operands = [self.terms[name] for name in dynamic(node)]
        self.terms[node.outputs[0]] = self._term(node, operands)

    def _term(self, node: Node, operands: Sequence[Term]) -> Term:
        if node.op in SUMS and len(operands) == len(node.inputs):
            return self._sum(node, operands)
        if node.op == "Concat":
            return self._stack(node, operands)
        (operand,) = operands
        if node.op in KERNELS:
            return self._chain(node, operand)
        if node.op in ("Identity", "Dropout", "LeakyRelu"):
            return operand
        if node.op == "Neg":
            return _times(operand, -1.0)
        found = rules.as_source(node)
        assert isinstance(found, Source)
        shift = found.affine.shift if found.shift is None else found.shift
        channels = outputs_of(operand)
        return scaled(operand, *(self._along(array, channels) for array in (found.affine.scale, shift)))

    def total(self, tensors: Sequence[tuple[str, int]]) -> Term:
        """What tensors add up to, each with its sign."""
        return self._added([(self.terms[name], sign) for name, sign in tensors])

    def _sum(self, node: Node, operands: Sequence[Term]) -> Term:
        total = self._added([(each, -1 if node.op == "Sub" and slot else 1) for slot, each in enumerate(operands)])
        return _times(total, 1 / len(operands)) if node.op == "Mean" else total

    def _added(self, terms: Sequence[tuple[Term, int]]) -> Term:
        (total, sign), *others = terms
        if others:
            self.cost += sum_cost(len(terms), outputs_of(total), self._extent(total))
        total = total if sign > 0 else _times(total, -1.0)
        for other, sign in others:
            total = added(total, other if sign > 0 else _times(other, -1.0), self.sizes)
        return total

    def _stack(self, node: Node, operands: Sequence[Term]) -> Term:
        if node.get_int("axis", 1) % self.rank != self.axis:
            raise ObstacleError(f"{node.label} works on another axis than the channels")
        made = stacked(operands, self.sizes)
        self.cost += copy_cost(made.outputs, self._extent(made))
        return made

    def _chain(self, node: Node, inner: Term) -> Term:
        others = self.windowed or product_axis(node, self.rank) != self.axis
        if others if node.op in PRODUCTS else not self.windowed:
            raise ObstacleError(f"{node.label} works on other axes than the rest")
        sizes = inner_sizes(inner, self.sizes) if isinstance(inner, Kernel) else self.sizes
        own = product(node, self.rank) if node.op in PRODUCTS else kernel_of(node, outputs_of(inner), sizes)
        if own.inputs != outputs_of(inner):
            raise ObstacleError(f"the channels of {node.label} do not fit its input")
        self.cost += kernel_cost(own, self._extent(inner))
        self.products += own.products
        weight, bias = (weight_of(node), node.constant(2)) if node.op in WEIGHTED else (None, None)
        own = replace(own, parts=weight.parts if weight else 1, shifts=bias.parts if bias else 0)
        try:
            return chained(own, inner, self.sizes)
        except ObstacleError as obstacle:
            raise ObstacleError(str(obstacle), unrelated=not _could_pay(own, inner)) from None

    def _extent(self, term: Term) -> Extent:
        return self.extent.behind(term) if isinstance(term, Kernel) else self.extent

    def _along(self, array: Array, channels: int) -> Array:
        """An affine's array along the channels."""
        axis = self.axis - (self.rank - array.ndim)
        if axis < 0 or array.size not in (1, channels) or array.shape[axis] != array.size:
            raise ObstacleError("a scale or shift varies on another axis than the channels")
        return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)


def _could_pay(outer: Kernel, inner: Term) -> bool:
    """Whether one node would multiply no more than two."""
    if not isinstance(inner, Kernel):
        return True
    taps = math.prod(joined_axis(*axes).taps for axes in zip(outer.axes, inner.axes, strict=True))
    one = outer.outputs * inner.inputs // math.gcd(outer.group, inner.group) * taps
    return one <= outer.products + inner.products


def outputs_of(term: Term) -> int:
    """Its output channels."""
    return term.outputs if isinstance(term, Kernel) else len(term.scale)


def _times(term: Term, factor: float) -> Term:
    channels = outputs_of(term)
    return scaled(term, np.full(channels, factor), np.zeros(channels))
