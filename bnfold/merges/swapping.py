"""A pool behind a 1x1 convolution changes places with it where there are fewer places left to convolve then.

An average of what one matrix makes of each place is what the matrix makes of the average, bias included, as long as
every average is of the same number of places of the tensor alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from bnfold.graph import Dim, Graph, Node
from bnfold.merges.cost import MARGIN, SPARSE, Extent, kernel_cost
from bnfold.merges.nodes import SUMS, WEIGHTED, is_linear, kernel_of
from bnfold.merges.terms import ObstacleError
from bnfold.protos import Names
from bnfold.windows import Axis, axes_of
from bnfold.witness import Regrouped, Sum

_NEVER = (0.0, math.inf)

POOLS = frozenset({"AveragePool", "GlobalAveragePool"})


def may_swap(node: Node) -> bool:
    """Whether it is a pool that could go to the front, by its operator."""
    return node.op in POOLS


def swaps(graph: Graph, allowed: Callable[[Node], bool], names: Names) -> Iterator[Regrouped]:
    """Every pair that pays."""
    for pool in graph.nodes:
        conv = _convolution(pool, allowed)
        behind, before = costs(conv, pool) if conv is not None else _NEVER
        if conv is not None and before <= MARGIN * behind:
            new = names.fresh(f"{conv.inputs[0]}.pooled")
            first = Sum(pool.index, pool.op, (conv.inputs[0],), new)
            second = Sum(conv.index, conv.op, (new, *conv.inputs[1:]), pool.outputs[0])
            yield Regrouped((conv.index, pool.index), (first, second))


def _convolution(pool: Node, allowed: Callable[[Node], bool]) -> Node | None:
    """The convolution in front of a pool that may change places with it."""
    graph = pool.graph
    conv = graph.producers.get(pool.input(0)) if pool.op in POOLS and len(pool.outputs) == 1 else None
    if conv is None or conv.op != "Conv" or conv.index > pool.index or not is_linear(conv):
        return None
    name = conv.outputs[0]
    alone = len(graph.consumers[name]) == 1 and name not in graph.output_set | graph.captured | graph.annotated
    before = graph.producers.get(conv.inputs[0])
    chained = before is not None and before.op in WEIGHTED | SUMS  # which may become one with the convolution
    return conv if alone and not chained and allowed(conv) and allowed(pool) else None


def costs(conv: Node, pool: Node) -> tuple[float, float]:
    """Of both, the pool behind and in front; infinite where that is something else."""
    shape = conv.graph.shape(conv.inputs[0])
    if shape is None or len(shape) < 3:
        return _NEVER
    try:
        kernel = kernel_of(conv, 0, shape[2:])
    except ObstacleError:
        return _NEVER
    windows = _windows(pool, shape[2:])
    if any(axis != Axis(1) for axis in kernel.axes) or not windows:
        return _NEVER
    x = Extent.of(shape[:1], shape[2:])
    y = Extent(x.batch, tuple(max(1, axis.outputs(n)) for axis, n in zip(windows, x.sizes, strict=True)))
    taps = math.prod(axis.taps for axis in windows)

    def pooling(channels: int) -> float:
        return channels * (x.positions + y.positions * (1 + taps * SPARSE))

    return kernel_cost(kernel, x) + pooling(kernel.outputs), pooling(kernel.inputs) + kernel_cost(kernel, y)


def _windows(pool: Node, sizes: Sequence[Dim]) -> list[Axis]:
    """What an average is made of along each axis; none where not every average is of as many places of the tensor."""
    if pool.op == "GlobalAveragePool":
        whole = [Axis(size) for size in sizes if isinstance(size, int)]
        return whole if len(whole) == len(sizes) else []
    if pool.get_int("ceil_mode", 0) or pool.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return []
    taps = pool.get_ints("kernel_shape") or []
    axes = axes_of(pool, taps, sizes) if len(taps) == len(sizes) else []
    plain = [axis for axis in axes if axis is not None and axis.begin == axis.end == 0]
    return plain if len(plain) == len(axes) else []
