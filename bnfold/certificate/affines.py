"""Nodes that are affine maps of one tensor by constants: what they compute, and whether one may have left."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage, TooLargeError, together
from bnfold.certificate.result import NotCertifiedError, require
from bnfold.certificate.rounding import EPS
from bnfold.certificate.wiring import GraphPair
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.source import FLOATS, limits_of

SLACK = 128
"""Roundings of float64 that a storage may carry: it is composed of many maps."""

LEFT = 1024
"""The same, between the ends of a node that left: how a tensor between two of these is stored may be the difference of
larger numbers, which a BatchNormalization of a tiny variance makes hundreds of times as large."""

BEHIND = 16
"""Nodes in a row that left, in front of one, whose shifts may have been rounded in how its input is stored."""


_PARAMETERS = "certificate's parameters"


def storage_of(graph: GraphPair, node: Node, name: str) -> Storage:
    """How the output stores a tensor of the original: the identity where nothing is said."""
    found = graph.storage(name)
    if found is not None:
        return found
    rank = node.graph.rank(name)
    if rank is None:
        raise NotCertifiedError(f"the rank of {name!r} is not known")
    return Storage.identity(rank)


def affine_of(node: Node) -> tuple[int, Array, Array, Array]:
    """The map ``y = s*x + t`` of a BatchNormalization, or of a Mul, Div, Add or Sub by a constant.

    Returns:
        The input slot of x, s, t, and the magnitude of the terms of t; all broadcast against x.
    """
    if node.op == "BatchNormalization":
        rank = node.graph.rank(node.input(0)) or node.graph.rank(node.outputs[0])
        if rank is None:
            raise NotCertifiedError("the rank of its input is not known")
        scale, bias, mean, sigma = batchnorm_parameters(node)
        s = scale / sigma
        along = (1, -1) + (1,) * (rank - 2)
        parts = (s, bias - s * mean, np.abs(bias) + np.abs(s * mean))
        s, t, magnitude = (part.reshape(along) for part in parts)
        return 0, s, t, magnitude
    slot = next((slot for slot in range(len(node.inputs)) if node.constant(slot) is None), None)
    constant = None if slot is None or len(node.inputs) != 2 else node.constant(1 - slot)
    if slot is None or constant is None or node.op not in ("Mul", "Div", "Add", "Sub"):
        raise NotCertifiedError(f"{node.op} is no affine map of one tensor by constants")
    shape = node.graph.shape(node.inputs[slot])
    if shape is None:
        raise NotCertifiedError("the rank of its input is not known")
    c = aligned(node, constant, len(shape))
    if any(size not in (1, dim) for size, dim in zip(c.shape, shape, strict=True)):
        raise NotCertifiedError(f"its constant of shape {c.shape} may enlarge its input {shape}")
    one, zero = np.ones((1,) * c.ndim), np.zeros((1,) * c.ndim)
    if node.op == "Mul":
        return slot, c, zero, zero
    if node.op == "Div":
        if slot == 1:
            raise NotCertifiedError("a constant divided by a tensor is not affine")
        return slot, 1.0 / c, zero, zero
    sign = -1.0 if node.op == "Sub" and slot == 0 else 1.0
    return slot, -one if node.op == "Sub" and slot == 1 else one, sign * c, np.abs(c)


def changes_nothing(node: Node) -> bool:
    """Whether a node hands its input on: Identity, Dropout at inference, LeakyRelu with a slope of one."""
    if node.op == "Dropout":
        mode = node.constant(2)
        runs = mode is not None and not mode.load().any() if node.input(2) else True
        return runs if node.version >= 7 else bool(node.get_int("is_test", 0))
    return node.op == "Identity" or (node.op == "LeakyRelu" and node.get_float("alpha", 0.01) == 1)


def batchnorm_parameters(node: Node) -> tuple[Array, Array, Array, Array]:
    """Scale, bias, mean and the square root of variance + epsilon, one for each channel."""
    found: tuple[Array, Array, Array, Array] | None = node.memo.get(_PARAMETERS)  # type: ignore[assignment]
    if found is None:
        found = node.memo[_PARAMETERS] = _batchnorm_parameters(node)
    return found


def _batchnorm_parameters(node: Node) -> tuple[Array, Array, Array, Array]:
    version = node.version
    used = [
        name for name in node.outputs[1:] if name and (node.graph.consumers.get(name) or name in node.graph.output_set)
    ]
    trains = (
        node.get_int("training_mode", 0) if version >= 14 else not node.get_int("is_test", 0) if version < 7 else False
    )
    if trains or used or (version < 9 and not node.get_int("spatial", 1)):
        raise NotCertifiedError("this BatchNormalization does not use one stored statistic for each channel")
    found = [node.constant(slot) for slot in range(1, 5)]
    scale, bias, mean, variance = (np.zeros(0) if c is None else c.float64() for c in found)
    if scale.ndim != 1 or not scale.size or any(p.shape != scale.shape for p in (bias, mean, variance)):
        raise NotCertifiedError("its parameters are not constants with one value for each channel")
    # Every opset's default is 1e-5, as a float32 holds it.
    with np.errstate(invalid="ignore"):
        sigma = np.sqrt(variance + node.get_float("epsilon", float(np.float32(1e-5))))
    if not np.all(np.isfinite(sigma)) or not (sigma > 0).all():
        raise NotCertifiedError("its variance is negative or not finite")
    return scale, bias, mean, sigma


def immaterial(node: Node, shift: Array) -> NDArray[np.bool_]:
    """Where a BatchNormalization's shift changes no result within its statistics, and may be left out.

    Its last addition gives ``bias + gamma*z``, and within eight standard deviations abs(z) <= 8: a shift below half a
    unit in the last place of the smallest of these rounds away.
    """
    if node.op != "BatchNormalization":
        return np.zeros(shift.shape, np.bool_)
    gamma, bias, *_ = batchnorm_parameters(node)
    smallest = (np.abs(bias) - 8 * np.abs(gamma)).reshape(shift.shape)
    if not (smallest > 0).any():
        return np.zeros(shift.shape, np.bool_)
    bits = limits_of(FLOATS.get(node.graph.type(node.outputs[0]), np.dtype(np.float64))).nmant
    _, exponent = np.frexp(np.maximum(smallest, 0.0))
    return np.asarray((smallest > 0) & (np.abs(shift) < np.ldexp(1.0, exponent - 1 - bits - 1)))


def aligned(node: Node, constant: Constant, rank: int) -> Array:
    """A constant operand, with as many axes as the other one."""
    return align(node, constant.float64(), rank)


def align(node: Node, value: Array, rank: int) -> Array:
    """An operand, with as many axes as the other one: below opset 7 `axis` says where its own begin."""
    if node.version < 7 and node.get_int("broadcast", 0) and "axis" in node.attributes:
        axis = node.get_int("axis", 0) % rank
        value = value.reshape(value.shape + (1,) * max(0, rank - axis - value.ndim))
    if value.ndim > rank:
        raise NotCertifiedError(f"its constant has more axes than the tensor it meets: {value.shape}")
    return value.reshape((1,) * (rank - value.ndim) + value.shape)


def check_removed(graph: GraphPair, node: Node) -> None:
    """Its input and its output are one tensor in the output: den' v' = num' (s v + t) + off' wherever v is.

    How its input is stored was rounded where nodes in front left too, as large as the terms of their shifts are.
    """
    s, t, t_size, x, y = _removed(graph, node)
    before = terms_behind(graph, node, graph.witness.removed[node.index][0])
    check_left(node, s, t, t_size if before is None else t_size + np.abs(s) * before[0], x, y)


def check_left(node: Node, s: Array, t: Array, t_size: Array, x: Storage, y: Storage) -> None:
    """The same for a scale and shift of one tensor, where t is made of terms of magnitude `t_size`."""
    with np.errstate(all="ignore"):
        gap = _gap(x, y, s, t, t_size)
        small = immaterial(node, t)
        if small.any():
            gap = np.where(small, np.minimum(gap, _gap(x, y, s, 0.0 * t, t_size)), gap)
    require(gap, LEFT * EPS, "it left, but its two ends are not the same values")


def plainly_removed(graph: GraphPair, nodes: Iterable[Node]) -> set[int]:
    """Indices of those of the nodes that left which `check_removed` lets pass: many alike are looked at together."""
    alike: dict[tuple[tuple[int, ...], ...], list[tuple[int, tuple[Array, ...]]]] = {}
    for node in nodes:
        try:
            s, t, t_size, x, y = _removed(graph, node)
        except (NotCertifiedError, ValueError, IndexError, MemoryError):
            continue  # `check_removed` says so
        arrays = (s, t, t_size, x.den, x.num, x.off, y.den, y.num, y.off)
        if sum(array.size for array in arrays) <= LARGE and len({array.ndim for array in arrays}) == 1:
            alike.setdefault(tuple([array.shape for array in arrays]), []).append((node.index, arrays))
    found = set[int]()
    for shapes, group in alike.items():
        try:
            step = max(1, LARGE // max(1, math.prod(np.broadcast_shapes(*shapes))))
        except ValueError:
            continue
        for start in range(0, len(group), step):
            part = group[start : start + step]
            s, t, t_size, *ends = (np.stack(arrays) for arrays in zip(*(arrays for _, arrays in part), strict=True))
            with np.errstate(all="ignore"):
                gap = _gap(Storage(*ends[:3]), Storage(*ends[3:]), s, t, t_size)
            worst = np.max(gap.reshape(len(part), -1), axis=1, initial=0.0).tolist()
            found |= {index for (index, _), most in zip(part, worst, strict=True) if most <= LEFT * EPS}
    return found


LARGE = 1 << 16
"""Numbers that are looked at together: few enough for a processor's cache."""


def _removed(graph: GraphPair, node: Node) -> tuple[Array, Array, Array, Storage, Storage]:
    """s, t, and the size of t's terms, of a node that left; how its input and its output are stored."""
    x_name, y_name = graph.witness.removed[node.index]
    slot, s, t, t_size = affine_of(node)
    if (node.inputs[slot], node.outputs[0]) != (x_name, y_name):
        raise NotCertifiedError(f"it left between {x_name!r} and {y_name!r}, which are not its ends")
    return s, t, t_size, *ends_of(graph, (x_name, y_name), s.ndim)


def terms_behind(graph: GraphPair, node: Node, name: str) -> tuple[Array, Array] | None:
    """How large the terms are that a tensor and what is stored of it were made of; None where no node in front left.

    How it is stored may have lost as much: 314 - 313.5 was to be 0.5, where a BatchNormalization of variance 1e-5 left.
    """
    chain: list[tuple[Array, Array]] = []
    stored: Storage | None = None
    for _ in range(BEHIND):
        made = node.graph.producers.get(name)
        if made is None or made.index not in graph.witness.removed:
            break
        s, _, size, _, y = _removed(graph, made)
        chain.append((np.abs(s), size))
        stored = y if stored is None else stored
        name = graph.witness.removed[made.index][0]
    if stored is None:
        return None
    total = chain[-1][1]
    with np.errstate(all="ignore"):
        for scale, size in reversed(chain[:-1]):
            try:
                together(total.shape, scale.shape, size.shape)
            except TooLargeError:
                total = size  # of the nodes further in front nothing is allowed for
            else:
                total = scale * total + size
        return total, np.where(stored.den == 0, 0.0, np.abs(stored.num) * total / np.abs(stored.den))


def terms_ahead(graph: GraphPair, node: Node, name: str) -> Array | None:
    """How large the terms are of which the shift in how a tensor is stored was made; None where no reader of it left.

    They may have cancelled: 0.50016 - 0.50034 in front of a BatchNormalization that left is as uncertain as 0.5 is.
    """
    total: Array | None = None
    for _ in range(BEHIND):
        readers = [reader for reader, _ in node.graph.consumers.get(name, []) if reader.index in graph.witness.removed]
        if not readers:
            break
        _, _, size, _, y = _removed(graph, readers[0])
        with np.errstate(all="ignore"):
            own = np.where(y.den == 0, 0.0, (np.abs(y.num) * size + np.abs(y.off)) / np.abs(y.den))
        try:
            together(own.shape, *(() if total is None else (total.shape,)))
        except TooLargeError:
            break  # of the nodes further behind nothing is allowed for
        total = own if total is None else total + own
        name = readers[0].outputs[0]
    return total


def ends_of(graph: GraphPair, names: tuple[str, str], rank: int) -> tuple[Storage, Storage]:
    """How the input and the output of what left are stored."""
    x, y = (graph.storage(name) or Storage.identity(rank) for name in names)
    if x.is_degenerate or y.is_degenerate:
        raise NotCertifiedError("a channel is stored in a way that says nothing")
    return x, y


def _gap(x: Storage, y: Storage, s: Array, t: Array, t_size: Array) -> Array:
    """How far both ends are from saying the same, relative to their terms."""
    slope = _relative(y.num * s * x.den, -y.den * x.num)
    return np.maximum(slope, _offset(x, y, s, t, t_size))


def _offset(x: Storage, y: Storage, s: Array, t: Array, t_size: Array) -> Array:
    """How far the shifts of both ends are from saying the same, relative to their terms."""
    through = (y.num * t * x.num, -y.num * s * x.off, y.off * x.num)
    offset = _relative(*through, size=np.abs(y.num * x.num) * t_size + np.abs(through[1]) + np.abs(through[2]))
    # Where v is lost, v' is the constant off/den, and y must be just that.
    held = (y.den * x.off, -x.den * y.num * t, -x.den * y.off)
    constant = _relative(*held, size=np.abs(held[0]) + np.abs(x.den * y.num) * t_size + np.abs(held[2]))
    return np.where(x.num == 0, constant, offset)


def _relative(*terms: Array, size: Array | None = None) -> Array:
    """A sum that should be zero, relative to the magnitude of its terms."""
    total = sum(terms[1:], terms[0])
    whole = np.asarray(sum(np.abs(term) for term in terms)) if size is None else size
    return np.where(total == 0, 0.0, np.abs(total) / np.where(whole == 0, 1.0, whole))
