"""One node as a linear map of what it reads: a convolution, a matrix product, zeros around a tensor, a pool.

Source: ONNX operators Conv, Gemm, MatMul, Pad, AveragePool, all versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bnfold import rules
from bnfold.affine import Array
from bnfold.constants import Constant
from bnfold.graph import Dim, Node
from bnfold.merges.terms import Kernel, ObstacleError
from bnfold.rules import Source
from bnfold.rules.composites import composite_of
from bnfold.rules.elementwise import drops_nothing
from bnfold.windows import Axis, axes_of, pads_of

SUMS = frozenset({"Add", "Sub", "Sum", "Mean"})
PRODUCTS = frozenset({"Gemm", "MatMul"})
WEIGHTED = PRODUCTS | {"Conv"}
SCALES = frozenset({"BatchNormalization", "Mul"})
"""Operators of a scale that can take other scales up."""

KERNELS = WEIGHTED | {"Pad", "AveragePool"}
"""Operators that see several places or channels of what they read."""


def dynamic(node: Node) -> list[str]:
    """The inputs that are known only at run time."""
    return [name for name in node.inputs if name and node.graph.constant(name) is None]


def is_linear(node: Node) -> bool:
    """Whether it may be part of a merge, by its operator and its constants."""
    if node.op in SUMS | {"Concat"} and len(dynamic(node)) == len(node.inputs) > 0:
        return True
    if node.op in ("Identity", "Neg"):
        return len(node.inputs) == 1
    if node.op == "Dropout":
        return drops_nothing(node)
    if node.op == "LeakyRelu":  # VanillaNet trains a slope up to one
        return node.get_float("alpha", 0.01) == 1
    if node.op in WEIGHTED:
        weights = weight_of(node)
        computed = node.input(2) and node.constant(2) is None
        return weights is not None and weights.is_float and not computed and len(dynamic(node)) == 1
    if node.op == "Pad":
        return zeros_around(node) is not None
    if node.op == "AveragePool":
        return not node.get_int("ceil_mode", 0)
    return isinstance(rules.as_source(node), Source) and composite_of(node) is None


def weight_of(node: Node) -> Constant | None:
    """The constant that a Conv, Gemm or MatMul multiplies by; a MatMul may have it on its left."""
    return node.constant(weight_slot(node))


def weight_slot(node: Node) -> int:
    """Where that is."""
    return 0 if node.op == "MatMul" and node.constant(1) is None else 1


def product_axis(node: Node, rank: int) -> int:
    """The axis of an input of this rank on which a Gemm or MatMul works."""
    return rank - 1 if weight_slot(node) else rank - 2


def kernel_of(node: Node, channels: int, sizes: Sequence[Dim]) -> Kernel:
    """A Conv, Pad or AveragePool.

    Args:
        node: one of these.
        channels: of its input.
        sizes: of its input along the spatial axes.

    Raises:
        ObstacleError: it is no kernel with zeros around.
    """
    if node.op == "Conv":
        return _convolution(node, sizes)
    return _padding(node, channels, sizes) if node.op == "Pad" else _pool(node, channels, sizes)


def _padding(node: Node, channels: int, sizes: Sequence[Dim]) -> Kernel:
    pads = zeros_around(node)
    assert pads is not None
    ends = (pads.get(axis, (0, 0)) for axis in range(2, len(sizes) + 2))
    axes = tuple(Axis(1, begin=begin, end=end) for begin, end in ends)
    ones = (1,) * (len(sizes) + 1)
    return Kernel(channels, channels, channels, axes, lambda start, stop: np.ones((stop - start, *ones)))


def _pool(node: Node, channels: int, sizes: Sequence[Dim]) -> Kernel:
    taps = node.get_ints("kernel_shape") or []
    axes = _known_axes(node, taps, sizes)
    pads = any(axis.touches_padding(size) for axis, size in zip(axes, sizes, strict=True))
    if pads and not node.get_int("count_include_pad", 0):
        raise ObstacleError(f"{node.label} divides by another number at the border")
    mean = 1 / math.prod(taps)
    return Kernel(channels, channels, channels, axes, lambda start, stop: np.full((stop - start, 1, *taps), mean))


def _convolution(node: Node, sizes: Sequence[Dim]) -> Kernel:
    weight, group = node.constant(1), node.get_int("group", 1)
    if weight is None or len(weight.shape) != len(sizes) + 2 or weight.shape[0] % group:
        raise ObstacleError(f"{node.label} is not a convolution of its input's rank")
    outputs, each, *taps = weight.shape
    bias = node.constant(2)
    shift = None if bias is None or not np.any(bias.load()) else bias.float64
    return Kernel(each * group, outputs, group, _known_axes(node, taps, sizes), _rows_of(node), shift)


def _known_axes(node: Node, taps: Sequence[int], sizes: Sequence[Dim]) -> tuple[Axis, ...]:
    axes = axes_of(node, taps, sizes) if len(taps) == len(sizes) else [None]
    known = [axis for axis in axes if axis is not None and min(axis.begin, axis.end) >= 0]
    if len(known) < len(axes):
        raise ObstacleError(f"how {node.label} pads is not known")
    return tuple(known)


def _rows_of(node: Node) -> Callable[[int, int], Array]:
    weight = weight_of(node)
    assert weight is not None
    return lambda start, stop: np.asarray(weight.rows(start, stop), np.float64)


def product(node: Node, rank: int) -> Kernel:
    """A Gemm or MatMul by one matrix, on the last axis of an input of this rank, or on the one before.

    Raises:
        ObstacleError: it is something else.
    """
    weight = weight_of(node)
    if weight is None or len(weight.shape) != 2:
        raise ObstacleError(f"{node.label} multiplies by no single matrix")
    if node.op == "MatMul" and weight_slot(node) == 0:
        return Kernel(*weight.shape[::-1], 1, (), _rows_of(node))
    if node.op == "MatMul":
        return Kernel(*weight.shape, 1, (), lambda start, stop: np.asarray(weight.load()[:, start:stop].T, np.float64))
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


def zeros_around(node: Node) -> dict[int, tuple[int, int]] | None:
    """How many zeros a Pad puts in front and behind, by axis; None where it does something else."""
    shape, value = node.graph.shape(node.inputs[0]), node.constant(2)
    zero = node.get_float("value", 0.0) == 0 if value is None else not np.any(value.load())
    if shape is None or not zero or (node.input(2) and value is None):
        return None
    pads = pads_of(node, len(shape))
    if pads is None or node.get_string("mode", "constant") != "constant":
        return None
    plain = all(axis > 1 and min(ends) >= 0 for axis, ends in pads.items())
    return pads if plain else None
