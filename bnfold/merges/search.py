"""Finding nodes that together are one linear map of one tensor.

From a node upwards: of the tensors that are read, the one that is made last is looked through, until one is left. That
one is what all branches have in common; no other tensor before it could be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold import rules
from bnfold.affine import Array
from bnfold.graph import Dim, Graph, Node
from bnfold.merges.cost import MARGIN, Extent, kernel_cost, sum_cost
from bnfold.merges.terms import Diagonal, Kernel, ObstacleError, Term, added, chained, inner_sizes, scaled
from bnfold.rules import Source
from bnfold.rules.composites import composite_of
from bnfold.windows import Axis, axes_of

LIMIT = 64
"""Nodes that one merge may take."""

SUMS = frozenset({"Add", "Sub", "Sum", "Mean"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
WEIGHTED = PRODUCTS | {"Conv"}


@dataclass(frozen=True, eq=False)
class Found:
    """Nodes that are one linear map, and that map."""

    root: Node
    members: tuple[Node, ...]
    source: str
    kernel: Kernel
    cost: float
    """Of the members, one by one."""
    merged_cost: float

    @property
    def kept(self) -> Node:
        """The member that becomes the merged node: the one whose kernel is the most like the new one."""
        weighted = [node for node in self.members if node.op in WEIGHTED]
        return max(weighted, key=lambda node: (node.op != "MatMul", _size(node), -node.index))

    @property
    def pays(self) -> bool:
        """Whether one node is cheaper."""
        return self.merged_cost <= MARGIN * self.cost


def _size(node: Node) -> int:
    weight = node.constant(1)
    return 0 if weight is None else math.prod(weight.shape)


def dynamic(node: Node) -> list[str]:
    """The inputs that are known only at run time."""
    return [name for name in node.inputs if name and node.graph.constant(name) is None]


def is_linear(node: Node) -> bool:
    """Whether it may be part of a merge, by its operator and its constants."""
    if node.op in SUMS and len(dynamic(node)) == len(node.inputs) > 0:
        return True
    if node.op in ("Identity", "Neg"):
        return len(node.inputs) == 1
    if node.op in WEIGHTED:
        weights = node.constant(1)
        computed = node.input(2) and node.constant(2) is None
        return weights is not None and weights.is_float and not computed and len(dynamic(node)) == 1
    if node.op == "Pad":
        return _zeros_around(node) is not None
    if node.op == "AveragePool":
        return not node.get_int("ceil_mode", 0)
    return isinstance(rules.as_source(node), Source) and composite_of(node) is None


def members_of(root: Node, allowed: Callable[[Node], bool], enough: Callable[[set[Node], set[str]], bool]) -> set[Node]:
    """The root, and what is looked through until it is enough.

    Raises:
        ObstacleError: a node in between cannot go.
    """
    graph, members, front = root.graph, {root}, set(dynamic(root))
    while not enough(members, front):
        latest = max(front, key=lambda name: _place(graph, name))
        node = graph.producers.get(latest)
        if node is None or not is_linear(node) or len(members) == LIMIT:
            raise ObstacleError("its operands are no linear maps of one tensor", unrelated=True)
        if not allowed(node):
            raise ObstacleError(f"{node.label} is to stay", unrelated=True)
        if _is_pinned(graph, latest) or any(reader not in members for reader, _ in graph.consumers[latest]):
            raise ObstacleError(f"{latest!r} is used elsewhere too", unrelated=root.op in WEIGHTED)
        members.add(node)
        front.remove(latest)
        front.update(dynamic(node))
    return members


def _place(graph: Graph, name: str) -> int:
    producer = graph.producers.get(name)
    return -1 if producer is None else producer.index


def _is_pinned(graph: Graph, name: str) -> bool:
    return name in graph.output_set or name in graph.captured or name in graph.annotated


def evaluated(root: Node, members: set[Node]) -> Found:
    """The map that the nodes are.

    Raises:
        ObstacleError: they are none that one node can make.
    """
    nodes = tuple(sorted(members, key=lambda node: node.index))
    made = {name for node in nodes for name in node.outputs}
    (source,) = {name for node in nodes for name in dynamic(node)} - made
    work = _Evaluation(root.graph, source, any(node.op == "Conv" for node in nodes))
    for node in nodes:
        work.step(node)
    kernel = work.terms[root.outputs[0]]
    if not isinstance(kernel, Kernel):
        raise ObstacleError("there is no convolution or matrix product among the branches")
    return Found(root, nodes, source, kernel, work.cost, kernel_cost(kernel, work.extent))


@dataclass
class _Evaluation:
    """The terms of every tensor in a set of nodes, and what the nodes cost."""

    graph: Graph
    source: str
    windowed: bool
    """Whether channels are on axis 1; on the last one elsewhere."""
    terms: dict[str, Term] = field(default_factory=dict)
    sizes: tuple[Dim, ...] = ()
    cost: float = 0.0

    def __post_init__(self) -> None:
        shape = self.graph.shape(self.source)
        if shape is None or len(shape) < (3 if self.windowed else 2):
            raise ObstacleError(f"the rank of {self.source!r} is not known, or too small")
        channels, self.rank = shape[1 if self.windowed else -1], len(shape)
        if not isinstance(channels, int):
            raise ObstacleError(f"the number of channels of {self.source!r} is not known")
        self.sizes = shape[2:] if self.windowed else ()
        self.extent = Extent.of(shape[:1] if self.windowed else shape[:-1], self.sizes)
        self.terms[self.source] = Diagonal.identity(channels)

    def step(self, node: Node) -> None:
        """Note the term of a node's output."""
        operands = [self.terms[name] for name in dynamic(node)]
        self.terms[node.outputs[0]] = self._term(node, operands)

    def _term(self, node: Node, operands: Sequence[Term]) -> Term:
        if node.op in WEIGHTED:
            (inner,) = operands
            sizes = inner_sizes(inner, self.sizes) if isinstance(inner, Kernel) else self.sizes
            own = _convolution(node, sizes) if self.windowed else _product(node, self.rank)
            if own.inputs != _outputs(inner):
                raise ObstacleError(f"the channels of {node.label} do not fit its input")
            self.cost += kernel_cost(own, self._extent(inner))
            try:
                return chained(own, inner, self.sizes)
            except ObstacleError as obstacle:
                raise ObstacleError(str(obstacle), unrelated=not _could_pay(own, inner)) from None
        if node.op in SUMS and len(operands) == len(node.inputs):
            total = operands[0]
            self.cost += sum_cost(len(operands), _outputs(total), self._extent(total))
            for other in operands[1:]:
                total = added(total, _times(other, -1.0) if node.op == "Sub" else other, self.sizes)
            return _times(total, 1 / len(operands)) if node.op == "Mean" else total
        (operand,) = operands
        if node.op == "Identity":
            return operand
        if node.op == "Pad":
            return self._padded(node, operand)
        if node.op == "AveragePool":
            return self._pooled(node, operand)
        if node.op == "Neg":
            return _times(operand, -1.0)
        found = rules.as_source(node)
        assert isinstance(found, Source)
        channels = _outputs(operand)
        return scaled(operand, *(self._along(array, channels) for array in (found.affine.scale, found.affine.shift)))

    def _padded(self, node: Node, operand: Term) -> Term:
        pads, rank = _zeros_around(node), len(self.sizes)
        if not self.windowed or pads is None or len(pads) != rank:
            raise ObstacleError(f"{node.label} pads something else than the spatial axes")
        channels = _outputs(operand)
        axes = tuple(Axis(1, begin=begin, end=end) for begin, end in pads)
        ones = (1,) * (rank + 1)
        around = Kernel(channels, channels, channels, axes, lambda start, stop: np.ones((stop - start, *ones)))
        self.cost += kernel_cost(around, self._extent(operand))
        return chained(around, operand, self.sizes)

    def _pooled(self, node: Node, operand: Term) -> Term:
        taps, channels = node.get_ints("kernel_shape") or [], _outputs(operand)
        sizes = inner_sizes(operand, self.sizes) if isinstance(operand, Kernel) else self.sizes
        axes = _known_axes(node, taps, sizes)
        counted = node.get_int("count_include_pad", 0) or not any(
            axis.touches_padding(size) for axis, size in zip(axes, sizes, strict=True)
        )
        if not self.windowed or not counted:
            raise ObstacleError(f"{node.label} divides by another number at the border")
        mean = 1 / math.prod(taps)
        own = Kernel(channels, channels, channels, axes, lambda start, stop: np.full((stop - start, 1, *taps), mean))
        self.cost += kernel_cost(own, self._extent(operand))
        return chained(own, operand, self.sizes)

    def _extent(self, term: Term) -> Extent:
        return self.extent.behind(term) if isinstance(term, Kernel) else self.extent

    def _along(self, array: Array, channels: int) -> Array:
        """An affine's array along the channels."""
        axis = (1 if self.windowed else self.rank - 1) - (self.rank - array.ndim)
        if axis < 0 or array.size not in (1, channels) or (array.size > 1 and array.shape[axis] != array.size):
            raise ObstacleError("a scale or shift varies on another axis than the channels")
        return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)


def _zeros_around(node: Node) -> list[tuple[int, int]] | None:
    """How many zeros a Pad puts in front and behind along each spatial axis; None where it does something else."""
    given = node.constant(1) if node.get_ints("pads") is None else None
    value = node.constant(2)
    pads = node.get_ints("pads") or node.get_ints("paddings") or (None if given is None else given.ints())
    zero = node.get_float("value", 0.0) == 0 if value is None else not np.any(value.load())
    if pads is None or not zero or (node.input(2) and value is None) or node.input(3):
        return None
    if node.get_string("mode", "constant") != "constant" or min(pads) < 0:
        return None
    both = list(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True))
    return None if any(both[0] + both[1]) else both[2:]


def _could_pay(outer: Kernel, inner: Term) -> bool:
    """Whether one node would multiply no more than two."""
    if not isinstance(inner, Kernel):
        return True
    least = (
        outer.outputs
        * inner.inputs
        // math.gcd(outer.group, inner.group)
        * max(math.prod(outer.taps), math.prod(inner.taps))
    )
    return least <= outer.products + inner.products


def _outputs(term: Term) -> int:
    return term.outputs if isinstance(term, Kernel) else len(term.scale)


def _times(term: Term, factor: float) -> Term:
    channels = _outputs(term)
    return scaled(term, np.full(channels, factor), np.zeros(channels))


def _convolution(node: Node, sizes: Sequence[Dim]) -> Kernel:
    weight, group = node.constant(1), node.get_int("group", 1)
    if node.op != "Conv" or weight is None or len(weight.shape) != len(sizes) + 2 or weight.shape[0] % group:
        raise ObstacleError(f"{node.label} is not a convolution of its input's rank")
    outputs, each, *taps = weight.shape
    bias = node.constant(2)
    shift = None if bias is None else bias.float64
    return Kernel(each * group, outputs, group, _known_axes(node, taps, sizes), _rows_of(node), shift)


def _known_axes(node: Node, taps: Sequence[int], sizes: Sequence[Dim]) -> tuple[Axis, ...]:
    axes = axes_of(node, taps, sizes) if len(taps) == len(sizes) else [None]
    known = [axis for axis in axes if axis is not None and min(axis.begin, axis.end) >= 0]
    if len(known) < len(axes):
        raise ObstacleError(f"how {node.label} pads is not known")
    return tuple(known)


def _rows_of(node: Node) -> Callable[[int, int], Array]:
    weight = node.constant(1)
    assert weight is not None
    return lambda start, stop: np.asarray(weight.rows(start, stop), np.float64)


def _product(node: Node, rank: int) -> Kernel:
    weight = node.constant(1)
    if weight is None or len(weight.shape) != 2 or node.op == "Conv":
        raise ObstacleError(f"{node.label} multiplies by no single matrix")
    if node.op == "MatMul":
        return Kernel(*weight.shape, 1, (), lambda start, stop: weight.float64()[:, start:stop].T)
    if node.get_int("transA", 0) or rank != 2:
        raise ObstacleError(f"{node.label} transposes its input")
    turned, alpha = bool(node.get_int("transB", 0)), node.get_float("alpha", 1.0)
    outputs, inputs = weight.shape if turned else weight.shape[::-1]

    def rows(start: int, stop: int) -> Array:
        part = weight.rows(start, stop) if turned else weight.load()[:, start:stop].T
        return alpha * np.asarray(part, np.float64)

    addend, beta = node.constant(2), node.get_float("beta", 1.0)
    if addend is None or beta == 0:
        return Kernel(inputs, outputs, 1, (), rows)
    if addend.shape[-1:] not in ((1,), (outputs,), ()) or math.prod(addend.shape[:-1]) != 1:
        raise ObstacleError(f"{node.label} adds another bias to each row")
    return Kernel(
        inputs, outputs, 1, (), rows, lambda: np.broadcast_to(beta * addend.float64().reshape(-1), (outputs,))
    )


def branches(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[tuple[Node, Found | ObstacleError]]:
    """Every sum whose operands are linear maps of one tensor, from the last one on; or why they are not quite that."""

    def is_root(node: Node) -> bool:
        return node.op in SUMS and len(dynamic(node)) > 1

    def enough(members: set[Node], front: set[str]) -> bool:
        return len(front) == 1 and any(node.op in WEIGHTED for node in members)

    return _search(graph, allowed, is_root, enough)


def chains(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[tuple[Node, Found | ObstacleError]]:
    """Every convolution or matrix product behind another one, with nothing but scales and shifts between."""

    def enough(members: set[Node], front: set[str]) -> bool:
        weighted = sum(node.op in WEIGHTED for node in members)
        return len(front) == 1 and (weighted > 1 or any(node.op == "Pad" for node in members))

    return _search(graph, allowed, lambda node: node.op in WEIGHTED, enough)


def _search(
    graph: Graph,
    allowed: Callable[[Node], bool],
    is_root: Callable[[Node], bool],
    enough: Callable[[set[Node], set[str]], bool],
) -> Iterator[tuple[Node, Found | ObstacleError]]:
    for root in reversed(graph.nodes):
        if not is_root(root) or not is_linear(root) or not allowed(root):
            continue
        try:
            yield root, evaluated(root, members_of(root, allowed, enough))
        except ObstacleError as obstacle:
            yield root, obstacle
