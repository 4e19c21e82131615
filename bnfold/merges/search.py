"""Finding nodes that together are one linear map of one tensor: a sum, or one behind another.

From a node upwards: of the tensors that are read, the one that is made last is looked through, until one is left. That
one is what all branches have in common; no other tensor before it could be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bnfold.graph import Graph, Node
from bnfold.merges.cost import MARGIN, kernel_cost
from bnfold.merges.evaluation import Evaluation
from bnfold.merges.nodes import KERNELS, SCALES, SUMS, WEIGHTED, dynamic, is_linear, weight_slot
from bnfold.merges.terms import Diagonal, Kernel, ObstacleError
from bnfold.solver import is_matmul_bias

LIMIT = 256
"""Nodes that one merge may take."""

STEPS, STEPS_EACH = 50_000, 16


def steps_in(graph: Graph) -> Iterator[int]:
    """As many as one search of a graph may look through nodes."""
    return iter(range(STEPS + STEPS_EACH * len(graph.nodes)))


@dataclass(frozen=True, eq=False)
class Found:
    """Nodes that are one linear map, and that map."""

    root: Node
    members: tuple[Node, ...]
    source: str
    map: Kernel | Diagonal
    cost: float
    """Of the members, one by one."""
    merged_cost: float
    products: int
    """Multiplications for one output position, of the members."""
    along: tuple[int, ...]
    """The shape of one number for each channel of the source."""

    @property
    def kept(self) -> Node:
        """The member that becomes the merged node: the one whose constants are the most like the new ones."""
        ops = WEIGHTED if isinstance(self.map, Kernel) else SCALES
        return max((node for node in self.members if node.op in ops), key=_likeness)

    @property
    def pays(self) -> bool:
        """Whether one node is cheaper; branches that take no more multiplications as one always are.

        Nothing else was measured where branches are put side by side.
        """
        if isinstance(self.map, Diagonal):
            return True
        lighter = self.map.products <= self.products
        if self.root.op == "Concat":
            return lighter
        return (lighter and self.root.op in SUMS) or self.merged_cost <= MARGIN * self.cost


def _likeness(node: Node) -> tuple[bool, int, int]:
    constants = [constant for slot in (0, 1) if (constant := node.constant(slot)) is not None]
    size = max(math.prod(constant.shape) for constant in constants)
    return node.op not in ("MatMul", "Mul"), size, -node.index


def members_of(
    root: Node,
    allowed: Callable[[Node], bool],
    enough: Callable[[set[Node], set[str]], bool],
    terms: Mapping[tuple[int, int], str] = MappingProxyType({}),
    steps: Iterator[int] | None = None,
) -> set[Node]:
    """The root, and what is looked through until it is enough.

    Args:
        root: the last node.
        allowed: whether a node may be among them.
        enough: whether nodes, and the tensors that they read, are what is looked for.
        terms: what is looked through instead of what the root reads: tensors, by the node's index and the slot where
            each is read.
        steps: where these end, so does the search.

    Raises:
        ObstacleError: a node in between cannot go.
    """
    graph, members, front = root.graph, {root}, set(terms.values() or dynamic(root))
    while not enough(members, front):
        if steps is not None and next(steps, None) is None:
            raise ObstacleError("too many nodes were looked through", unrelated=True)
        latest = max(front, key=lambda name: _place(graph, name))
        node = graph.producers.get(latest)
        if node is None or not is_linear(node):
            raise ObstacleError("its operands are no linear maps of one tensor", unrelated=True)
        if any(reader.index <= node.index for reader, _ in graph.consumers[latest]):
            raise ObstacleError(f"{node.label} stands behind what reads it", unrelated=True)
        if len(members) == LIMIT:
            raise ObstacleError(f"it would take more than {LIMIT} nodes at once")
        if not allowed(node):
            raise ObstacleError(f"{node.label} is to stay", unrelated=True)
        readers = [(reader, slot) for reader, slot in graph.consumers[latest] if (reader.index, slot) not in terms]
        if _is_pinned(graph, latest) or any(reader not in members for reader, _ in readers):
            expected = root.op in SUMS and enough(members | {node}, {latest})
            raise ObstacleError(f"{latest!r} is used elsewhere too", unrelated=not expected)
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
    return joined(root, members, [(root.outputs[0], 1)])


def joined(root: Node, members: set[Node], terms: Sequence[tuple[str, int]]) -> Found:
    """The map that tensors among the nodes add up to, each with its sign.

    Raises:
        ObstacleError: it is none that one node can make.
    """
    nodes = tuple(sorted(members, key=lambda node: node.index))
    made = {name for node in nodes for name in node.outputs}
    (source,) = {name for node in nodes for name in dynamic(node)} - made
    windowed, kernels = (any(node.op in ops for node in nodes) for ops in (["Conv"], WEIGHTED))
    obstacle: ObstacleError | None = None
    left = any(node.op == "MatMul" and weight_slot(node) == 0 for node in nodes)
    for axis in [1] if windowed else [-2] if left else [-1] if kernels else [1, -1]:
        work = Evaluation(root.graph, source, windowed, axis)
        try:
            for node in nodes:
                work.step(node)
            total = work.total(terms)
        except ObstacleError as error:
            obstacle = obstacle or error
            continue
        if not any(node.op in (WEIGHTED if isinstance(total, Kernel) else SCALES) for node in nodes):
            raise ObstacleError("there is no node among the branches that could take the others up", unrelated=True)
        cost = kernel_cost(total, work.extent) if isinstance(total, Kernel) else 0.0
        return Found(root, nodes, source, total, work.cost, cost, work.products, work.along)
    assert obstacle is not None
    raise obstacle


def branches(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[tuple[Node, Found | ObstacleError]]:
    """Every sum whose operands are linear maps of one tensor, from the last one on; or why they are not quite that."""

    def is_root(node: Node) -> bool:
        return node.op in SUMS and len(dynamic(node)) > 1

    return _search(graph, allowed, is_root, weighted)


def siblings(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[tuple[Node, Found | ObstacleError]]:
    """Every Concat of linear maps of one tensor, along their output channels."""
    return _search(graph, allowed, lambda node: node.op == "Concat" and len(dynamic(node)) > 1, weighted)


def weighted(members: set[Node], front: set[str]) -> bool:
    """Whether what the nodes read is one tensor, and they hold a convolution or a matrix product."""
    return len(front) == 1 and any(node.op in WEIGHTED for node in members)


def scales(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[tuple[Node, Found | ObstacleError]]:
    """Every sum whose operands are scales and shifts of one tensor, with no convolution or matrix product."""

    def is_root(node: Node) -> bool:
        return node.op in SUMS and len(dynamic(node)) > 1

    return _search(graph, without_kernels(allowed), is_root, only_scales)


def without_kernels(allowed: Callable[[Node], bool]) -> Callable[[Node], bool]:
    """Whether a node may be among scales and shifts that become one."""
    return lambda node: node.op not in KERNELS and allowed(node)


def only_scales(members: set[Node], front: set[str]) -> bool:
    """Whether what the nodes read is one tensor, and they hold something that can take the others up."""
    return len(front) == 1 and any(node.op in SCALES for node in members)


def chains(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[tuple[Node, Found | ObstacleError]]:
    """Every convolution or matrix product behind another one, with nothing but scales and shifts between."""

    def enough(members: set[Node], front: set[str]) -> bool:
        if len(front) != 1:
            return False
        weighted = sum(node.op in WEIGHTED for node in members)
        return weighted > 1 or any(node.op == "Pad" for node in members)

    def is_root(node: Node) -> bool:
        return is_matmul_bias(node) or (node.op in WEIGHTED and not _has_bias_behind(node))

    return _search(graph, allowed, is_root, enough)


def _has_bias_behind(node: Node) -> bool:
    """Whether a MatMul and the Add behind it belong together."""
    readers = node.graph.consumers.get(node.outputs[0], [])
    return node.op == "MatMul" and len(readers) == 1 and is_matmul_bias(readers[0][0])


def _search(
    graph: Graph,
    allowed: Callable[[Node], bool],
    is_root: Callable[[Node], bool],
    enough: Callable[[set[Node], set[str]], bool],
) -> Iterator[tuple[Node, Found | ObstacleError]]:
    steps = steps_in(graph)
    for root in reversed(graph.nodes):
        if not is_root(root) or not is_linear(root) or not allowed(root):
            continue
        try:
            yield root, evaluated(root, members_of(root, allowed, enough, steps=steps))
        except ObstacleError as obstacle:
            yield root, obstacle
