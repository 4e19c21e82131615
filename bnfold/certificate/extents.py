"""The shapes of the tensors in a test of one node, and integers for those that say what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto

from bnfold.affine import Storage
from bnfold.certificate import shrinking
from bnfold.certificate.affines import align
from bnfold.certificate.evaluate import MOST_ELEMENTS
from bnfold.certificate.groups import Group, groups, reshaped
from bnfold.certificate.least import even, least, settled
from bnfold.certificate.letters import letters
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.wiring import GraphPair
from bnfold.graph import Dim, Node, Shape
from bnfold.sizes import factors
from bnfold.source import FLOATS, MOST_AXES

LARGE = 1 << 22
"""Elements above which a weight is tested on some of its outputs only. (Each of its elements is compared anyhow.)"""

MODEST = 1 << 16
"""Elements of a tensor up to which axes keep their true sizes."""

ROWS = 64
"""Rows of a table that a Gather is tested on. (Each of its elements is compared anyhow.)"""

SMALL = 3
"""Size of an axis on which nothing varies."""

_COMBINE = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Where", "PRelu", "Concat"})
_UNARY = frozenset(
    {"Neg", "Abs", "Relu", "LeakyRelu", "Clip", "Elu", "Celu", "Selu", "Softplus", "Softsign", "Mish", "Gelu"}
    | {"Sign", "Round", "Floor", "Ceil", "Shrink", "ThresholdedRelu", "Swish", "Pow", "Sqrt", "Reciprocal"}
    | {"Sin", "Cos", "Tan", "Asin", "Atan", "Sinh", "Cosh", "Asinh", "Atanh"}
)
_SIGMOID = frozenset({"Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Identity", "Dropout", "Cast"})
_BY_CHANNEL = frozenset({"BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
_STATISTICS = frozenset({"InstanceNormalization", "GroupNormalization"})
_NORMALISE = frozenset({"LayerNormalization", "RMSNormalization", "LpNormalization", "Softmax", "LogSoftmax"})

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

EVEN: frozenset[str] = _COMBINE | _UNARY | _SIGMOID | _BY_CHANNEL | _STATISTICS | _NORMALISE
"""Operators that treat every index of an axis alike, so that an axis on which nothing varies may be cut short."""


def _least_number(shape: Shape) -> int:
    """Of the elements that a tensor has."""
    return math.prod(dim for dim in shape if isinstance(dim, int))


def _is_few(dim: Dim) -> bool:
    return isinstance(dim, int) and dim <= shrinking.FEW


def grid(storage: Storage | None) -> tuple[int, ...]:
    """The shape of a storage: its size on the axes on which it varies, 1 on the others; () where there is none."""
    return () if storage is None else np.broadcast_shapes(storage.den.shape, storage.num.shape, storage.off.shape)


class Shapes:
    """The shapes of a node's dynamic inputs in a sample: the true ones, with small numbers where they are free."""

    def __init__(self, graph: GraphPair, node: Node, unknown: int) -> None:
        self.graph = graph
        self.node = node
        self.unknown = unknown
        """What a dimension of unknown size becomes on the first axis; on others it is twice that."""
        self.symbols: dict[object, int] = {}
        self.found: dict[int, tuple[int, ...]] = {}
        self.instead: dict[int, NDArray[Any]] = {}
        """By input slot, what stands in a test for integers and scales of the node that belong to its true sizes."""
        dynamic = [slot for slot, name in enumerate(node.inputs) if name and node.constant(slot) is None]
        raw = {slot: self._raw(slot) for slot in dynamic if self._is_data(slot)}
        if node.op in EVEN:
            self._cut_alike(raw)
        elif node.op in ("MatMul", "Gemm"):
            self._cut_rows(raw)
        elif node.op in RECURRENT:
            self._cut_sequence(raw)
        if node.op in ("MatMul", "Gemm", "Einsum"):
            self._meet(raw)
        before = raw.get(0, ())
        cut = self._cut_short(raw) if 0 in raw.keys() - self.found.keys() else []
        if 0 in raw:
            self._suit(raw[0])
        for slot, shape in raw.items():
            self.found.setdefault(slot, tuple(self.size(dim, (slot, axis), axis) for axis, dim in enumerate(shape)))
        if cut:
            self.instead |= shrinking.constants(node, cut, before, self.found[0])
        if sum(math.prod(shape) for shape in self.found.values()) > MOST_ELEMENTS:
            raise NotCertifiedError("its tensors are too large to be tested")

    def size(self, dim: Dim, key: object, axis: int) -> int:
        """A size for a dimension; the same one wherever the same name stands."""
        if isinstance(dim, int):
            return dim
        number, names = factors(dim) if dim else (1, ())
        if number != 1 or len(names) > 1:  # a product of sizes
            return number * math.prod(self.size(name, name, axis) for name in names)
        return self.symbols.setdefault(dim or key, self.unknown if axis == 0 else 2 * self.unknown)

    def _is_data(self, slot: int) -> bool:
        type_ = self.node.graph.type(self.node.inputs[slot])
        return not type_ or type_ in FLOATS or type_ == TensorProto.BOOL

    def _raw(self, slot: int) -> Shape:
        shape = self.node.graph.shape(self.node.inputs[slot])
        if shape is None:
            raise NotCertifiedError(f"the rank of {self.node.inputs[slot]!r} is not known")
        storage = self.graph.storage(self.node.inputs[slot])
        # Some exporters write a dimension that they do not know as -1.
        shape = tuple(None if isinstance(dim, int) and dim < 0 else dim for dim in shape)
        varying = grid(storage)
        if not varying:
            return shape
        fits = len(varying) == len(shape) and all(
            n in (1, dim) or not isinstance(dim, int) for n, dim in zip(varying, shape, strict=True)
        )
        if not fits:
            raise NotCertifiedError(f"{self.node.inputs[slot]!r} has shape {shape}, and its storage {varying}")
        return tuple(dim if n == 1 else n for n, dim in zip(varying, shape, strict=True))

    def _varying(self, rank: int) -> dict[int, int]:
        """Axes, counted from the last one, on which a storage or a constant of the node varies, and their sizes."""
        node = self.node
        shapes: list[Sequence[int]] = []
        shapes += [grid(self.graph.storage(name)) for name in [*node.inputs, *node.outputs] if name]
        constants = [c for slot in range(len(node.inputs)) if (c := node.constant(slot)) is not None]
        if node.op in _STATISTICS:
            shapes.append((self._channels(), *(1,) * (rank - 2)))
        elif node.op == "BatchNormalization" or (node.op == "PRelu" and node.version < 7):
            shapes += [(*c.shape, *(1,) * (rank - 2)) for c in constants]
        else:
            shapes += [align(node, np.empty(c.shape, np.bool_), max(rank, len(c.shape))).shape for c in constants]
        return {axis - len(shape): size for shape in shapes for axis, size in enumerate(shape) if size != 1}

    def _channels(self) -> int:
        shape = self.node.graph.shape(self.node.inputs[0])
        if shape is None or not isinstance(shape[1], int):
            raise NotCertifiedError("the number of its channels is not known")
        return shape[1]

    def _cut_alike(self, raw: dict[int, Shape]) -> None:
        """Elementwise operators: axes meet from the last one backwards."""
        node = self.node
        rank = max((len(shape) for shape in raw.values()), default=0)
        fixed, sizes = self._varying(rank), dict[int, int]()
        if node.op == "Concat":  # does not broadcast: what stands beside a constant has its sizes
            constants = [c for slot in range(len(node.inputs)) if (c := node.constant(slot)) is not None]
            fixed |= {axis - rank: size for c in constants for axis, size in enumerate(c.shape)}
        for axis in range(-rank, 0):
            known = [dim for shape in raw.values() if len(shape) >= -axis and isinstance(dim := shape[axis], int)]
            sizes[axis] = fixed.get(axis, min([2 if axis == -rank else SMALL, *(dim for dim in known if dim != 1)]))
        if math.prod(sizes.values()) > MOST_ELEMENTS:
            sizes = dict.fromkeys(sizes, 1) | fixed
        for slot, shape in raw.items():
            if slot and node.op in _STATISTICS:
                continue  # a scale or a bias: of its own size
            cut = [1 if dim == 1 else sizes[axis - len(shape)] for axis, dim in enumerate(shape)]
            if node.op == "Concat":  # on the axis that it joins, each input keeps its own size
                axis = node.get_int("axis", 1) % rank
                cut[axis] = self.size(shape[axis], (slot, axis), 1)
            self.found[slot] = tuple(cut)

    def _cut_rows(self, raw: dict[int, Shape]) -> None:
        """MatMul and Gemm by one matrix: axes that it does not meet, and on which nothing varies."""
        node = self.node
        matrices = {slot: c.shape for slot in (0, 1) if (c := node.constant(slot)) is not None and len(c.shape) == 2}
        slot = 0 if 1 in matrices else 1
        if len(matrices) != 1 or slot not in raw or len(raw[slot]) < 2 or (node.op == "Gemm" and slot == 1):
            return
        bias = node.constant(2)
        if node.input(2) and (bias is None or (len(bias.shape) == 2 and bias.shape[0] != 1)):
            return
        x, y = (grid(self.graph.storage(name)) for name in (node.inputs[slot], node.outputs[0]))
        if node.op == "Gemm" and y and y[0] != 1:
            return
        varying = {axis for one in (x, y) for axis, size in enumerate(one) if size != 1}
        cut = [dim if axis in varying or dim == 1 else 2 for axis, dim in enumerate(raw[slot])]
        # The summed axis: the last one of x, or its last but one where x is transposed, or stands on the right.
        summed = -2 if slot == 1 or (node.op == "Gemm" and node.get_int("transA", 0)) else -1
        across = slot == 1 or (node.op == "Gemm" and node.get_int("transB", 0))
        cut[summed] = matrices[1 - slot][1 if across else 0]
        self.found[slot] = tuple(self.size(dim, (slot, axis), axis) for axis, dim in enumerate(cut))

    def _meet(self, raw: dict[int, Shape]) -> None:
        """MatMul, Gemm and Einsum: axes of unknown size have that of the axis that they meet in the other operand."""
        node = self.node
        *operands, out = letters(node)
        constants = {slot: constant.shape for slot in (0, 1) if (constant := node.constant(slot)) is not None}
        names = [*operands, out[len(out) - len(raw.get(2, ())) :]]
        pairs = [pair for slot, shape in (raw | constants).items() for pair in zip(names[slot], shape, strict=False)]
        known = {name: dim for name, dim in pairs if dim == 1 and name not in out}
        known |= {name: dim for name, dim in pairs if isinstance(dim, int) and dim != 1}
        for slot, shape in raw.items():
            sizes = (
                dim if isinstance(dim, int) else known.get(name) or self.size(None, name, axis)
                for axis, (name, dim) in enumerate(zip(names[slot], shape, strict=False))
            )
            self.found.setdefault(slot, tuple(sizes))
        lengths: dict[str, int] = {}
        for slot, shape in (constants | self.found).items():
            lengths |= {name: size for name, size in zip(names[slot], shape, strict=False) if size != 1}
        few = any(math.prod(shape) > LARGE for shape in constants.values())  # of a large matrix some outputs are tested
        if not few and math.prod(lengths.get(name, 1) for name in out) > MOST_ELEMENTS // 2:
            raise NotCertifiedError("what it makes is too large to be tested")

    def _cut_short(self, raw: dict[int, Shape]) -> list[Group]:
        """Large tensors elsewhere: groups of axes along which nothing varies; those of the input become free."""
        node, before = self.node, raw[0]
        after = node.graph.shape(node.outputs[0])
        if after is None or max(_least_number(before), _least_number(after)) <= MODEST:
            return []
        storages = [self.graph.storage(name) for name in (node.inputs[0], *filter(None, node.outputs))]
        if node.op == "ReduceSum" and any(storage is not None and np.any(storage.off) for storage in storages):
            return []  # as large as there are terms
        first, *behind = ({axis for axis, size in enumerate(grid(each)) if size != 1} for each in storages)

        def even(found: list[Group]) -> list[Group]:
            return [each for each in found if first.isdisjoint(each[0]) and set().union(*behind).isdisjoint(each[1])]

        if node.op != "Reshape":
            cut = even(groups(node, len(before), len(after)))
            free = {axis for axes, _ in cut for axis in axes if not _is_few(before[axis])}
            raw[0] = tuple(shrinking.short(node, axis) if axis in free else dim for axis, dim in enumerate(before))
            return cut
        made, target = shrinking.in_place(even(reshaped(before, after)), before, after)
        if None not in (*made, *target):
            self.found[0] = tuple(self.size(dim, dim, axis) for axis, dim in enumerate(made))
            goal = [self.size(dim, dim, axis) for axis, dim in enumerate(target)]
            self.instead |= {1: np.array(goal, np.int64)} if node.input(1) else {}
        return []

    def _suit(self, first: Shape) -> None:
        """Axes of unknown size are as long as the node's constants presuppose."""
        node = self.node
        if node.op == "Reshape":
            self.symbols |= settled(first, node.graph.shape(node.outputs[0]) or (None,))
        elif node.op == "Expand":
            target = node.graph.shape(node.outputs[0]) or ()
            pairs = list(zip(reversed(first), reversed(target), strict=False))
            fixed = {
                axis for axis, (dim, made) in enumerate(pairs, 1) if not isinstance(dim, int) and isinstance(made, int)
            }
            self.symbols |= {first[-axis] or (0, len(first) - axis): 1 for axis in fixed}
        smallest, multiples = least(node), even(node)
        for axis, dim in enumerate(first):
            if isinstance(dim, int) or axis not in smallest.keys() | multiples.keys():
                continue
            number, names = factors(dim) if dim else (1, ())
            multiple = multiples.get(axis, 1)
            size = max(-(-smallest.get(axis, 1) // number), self.size(names[0] if names else None, (0, axis), axis))
            self.symbols[names[0] if names else (0, axis)] = -(-size // multiple) * multiple

    def _cut_sequence(self, raw: dict[int, Shape]) -> None:
        """Recurrent operators: a short sequence, and a small batch where no constant has the batch's size."""
        node = self.node
        time, batch = (1, 0) if node.get_int("layout", 0) else (0, 1)
        states = {slot for slot in (5, 6) if node.input(slot)}
        small = not any(node.constant(slot) is not None for slot in (*states, 4))
        for slot, shape in raw.items():
            if slot == 0:
                sizes = {time: SMALL + 1, batch: 2} if small else {}
            else:
                sizes = {batch: 2} if small and slot in states else {}
            cut = [sizes.get(axis, dim) for axis, dim in enumerate(shape)]
            self.found[slot] = tuple(
                self.size(dim, "batch" if axis == batch else (slot, axis), axis) for axis, dim in enumerate(cut)
            )


def integers(shapes: Shapes, slot: int) -> NDArray[Any]:
    """A value for an input that is an integer tensor known only at run time: a target shape, or indices.

    Raises:
        NotCertifiedError: nothing says what it may be.
    """
    node = shapes.node
    first = shapes.found.get(0) or _table(node)
    makers: dict[tuple[str, int], Callable[[], ArrayLike]] = {
        ("Reshape", 1): lambda: _target(shapes),
        ("Expand", 1): lambda: _expanded(shapes),
        ("Resize", 3): lambda: [*first[:2], *(2 * size for size in first[2:])],
        ("Gather", 1): lambda: shrinking.indices(_sizes(shapes, 1), first[node.get_int("axis", 0)]),
        ("Tile", 1): lambda: _repeats(shapes),
        ("Compress", 1): lambda: shrinking.condition(first[node.get_int("axis", 0)]),
        ("Slice", 1): lambda: [shrinking.span(step)[0] for step in _steps(shapes, 1)],
        ("Slice", 2): lambda: [shrinking.span(step)[1] for step in _steps(shapes, 2)],
    }
    maker = makers.get((node.op, slot))
    if node.op == "DequantizeLinear" and slot == 0:
        return _whole_numbers(shapes)
    if node.op in RECURRENT and slot == 4:
        time, batch = first[:2] if not node.get_int("layout", 0) else first[1::-1]
        return np.array([1 + i % time for i in range(batch)], np.int64)
    if maker is None:
        raise NotCertifiedError(f"its input {slot}, {node.inputs[slot]!r}, is known only at run time")
    return np.asarray(maker(), np.int64)


def picks_rows(node: Node) -> bool:
    """Whether a node is a Gather of rows of a constant, which are tested by a few of them."""
    constant = node.constant(0) if node.op == "Gather" else None
    return constant is not None and len(constant.shape) > 0 and node.get_int("axis", 0) % len(constant.shape) == 0


def _table(node: Node) -> tuple[int, ...]:
    """The shape of a constant that a node moves, in a test."""
    constant = node.constant(0)
    shape = () if constant is None else constant.shape
    return (min(shape[0], ROWS), *shape[1:]) if picks_rows(node) else shape


def _repeats(shapes: Shapes) -> list[int]:
    """Once along axes that stay, twice along others."""
    node = shapes.node
    before, after = (node.graph.shape(name) for name in (node.inputs[0], node.outputs[0]))
    if before is None or after is None:
        raise NotCertifiedError("the rank of its output is not known")
    return [1 if n == m and n is not None else 2 for n, m in zip(before, after, strict=True)]


def _sizes(shapes: Shapes, slot: int) -> tuple[int, ...]:
    """The shape of a tensor of whole numbers that is laid out for a test, with small sizes where they are free."""
    shape = shapes.node.graph.shape(shapes.node.inputs[slot])
    if shape is None:
        raise NotCertifiedError(f"the rank of its input {slot} is not known")
    sizes = tuple(shapes.size(dim, (slot, axis), axis) for axis, dim in enumerate(shape))
    if math.prod(sizes) > MOST_ELEMENTS:
        raise NotCertifiedError("its tensors are too large to be tested")
    return sizes


def _steps(shapes: Shapes, slot: int) -> list[int]:
    """The steps of a Slice, for as many axes as this input of it is a list for."""
    constant, count = shapes.node.constant(4), math.prod(_sizes(shapes, slot))
    if count > MOST_AXES:
        raise NotCertifiedError(f"its input {slot} is longer than any tensor has axes")
    return [1] * count if constant is None else constant.ints()


def _whole_numbers(shapes: Shapes) -> NDArray[Any]:
    """Small ones of either sign, in the shape of what is dequantized."""
    sizes = _sizes(shapes, 0)
    return (np.arange(math.prod(sizes), dtype=np.int64) % 101 - 50).reshape(sizes)


def _target(shapes: Shapes) -> list[int]:
    shape = shapes.node.graph.shape(shapes.node.outputs[0])
    if shape is None:
        raise NotCertifiedError("the rank of its output is not known")
    known = [_known(shapes, dim) for dim in shape]
    total = math.prod(shapes.found[0])
    if 0 not in known and math.prod(known) != total:  # sizes that only agree at run time: one gives way
        named = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
        known = [0 if axis in named[-1:] else size for axis, size in enumerate(known)]
    last = max((axis for axis, size in enumerate(known) if not size), default=-1)
    if total % math.prod(size for size in known if size):
        raise NotCertifiedError("the shape of its output is not known")
    # Of several that nothing has set, one takes what is left.
    return [size or (-1 if axis == last else 1) for axis, size in enumerate(known)]


def _expanded(shapes: Shapes) -> list[int]:
    """A size that nothing has set may be any: Expand knows no -1."""
    shape = shapes.node.graph.shape(shapes.node.outputs[0])
    if shape is None:
        raise NotCertifiedError("the rank of its output is not known")
    return [shapes.size(dim, (-1, axis), axis) for axis, dim in enumerate(shape)]


def _known(shapes: Shapes, dim: Dim) -> int:
    """A size of the sample, 0 where nothing has set it."""
    if dim is None:
        return 0
    number, names = factors(dim)
    return number * math.prod(shapes.symbols.get(name, 0) for name in names)
