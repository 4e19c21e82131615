"""Small random tensors for one node: what the original sees, and what the output holds in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from bnfold.affine import Array, Storage
from bnfold.certificate.formulas import align
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.wiring import GraphPair
from bnfold.graph import Dim, Node, Shape
from bnfold.source import FLOATS

LIMIT = 1 << 25
"""Elements of a sample, at most."""

SMALL = 3
"""Size of an axis on which nothing varies."""

_CHANNELS_KEPT = frozenset(
    "Add Sub Mul Div Sum Mean Max Min Where Neg Abs Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Tanh Erf Elu "
    "Celu Selu Softplus Softsign Mish Gelu Identity Dropout Cast BatchNormalization GlobalAveragePool GlobalMaxPool "
    "GlobalLpPool Concat".split()
)
"""Operators that treat every index of an axis alike, so that an axis on which nothing varies may be cut short."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """One tensor of a sample."""

    old: Array
    """What the original sees."""
    new: Array
    """What the output holds."""
    old_size: Array
    """Magnitude of the terms that `old` was made of."""
    new_size: Array


def draw(storage: Storage | None, shape: tuple[int, ...], rng: np.random.Generator) -> Drawn:
    """A random pair that the storage allows: for every element either v is drawn and v' follows, or the reverse.

    Both ways, so that a kink is met at v = 0 and at v' = 0. A dead v' is arbitrary, and so is a lost v.
    """
    value = rng.standard_normal(shape)
    if storage is None:
        return Drawn(value, value, np.abs(value), np.abs(value))
    den, num, off = storage.den, storage.num, storage.off
    if storage.is_degenerate:
        raise NotCertifiedError("a channel is stored in a way that says nothing")
    forward = (rng.random(shape) < 0.5) & (den != 0) | (num == 0)
    with np.errstate(all="ignore"):
        old = np.where(forward, value, (den * value - off) / num)
        new = np.where(forward, (num * value + off) / den, value)
        old_size = np.where(forward, np.abs(value), (np.abs(den * value) + np.abs(off)) / np.abs(num))
        new_size = np.where(forward, (np.abs(num * value) + np.abs(off)) / np.abs(den), np.abs(value))
    return Drawn(old, new, old_size, new_size)


class Shapes:
    """The shapes of a node's dynamic inputs in a sample: the true ones, with small numbers where they are free."""

    def __init__(self, graph: GraphPair, node: Node, unknown: int) -> None:
        self.graph = graph
        self.node = node
        self.unknown = unknown
        """What a dimension of unknown size becomes on the first axis; on others it is twice that."""
        self.symbols: dict[object, int] = {}
        self.found: dict[int, tuple[int, ...]] = {}
        dynamic = [slot for slot, name in enumerate(node.inputs) if name and node.constant(slot) is None]
        raw = {slot: self._raw(slot) for slot in dynamic if self._is_data(slot)}
        if node.op in _CHANNELS_KEPT:
            self._cut_alike(raw)
        elif node.op in ("MatMul", "Gemm"):
            self._cut_rows(raw)
        for slot, shape in raw.items():
            self.found.setdefault(slot, tuple(self.size(dim, (slot, axis), axis) for axis, dim in enumerate(shape)))
        if sum(math.prod(shape) for shape in self.found.values()) > LIMIT:
            raise NotCertifiedError("its tensors are too large to be tested")

    def size(self, dim: Dim, key: object, axis: int) -> int:
        """A size for a dimension; the same one wherever the same name stands."""
        if isinstance(dim, int):
            return dim
        return self.symbols.setdefault(dim or key, self.unknown if axis == 0 else 2 * self.unknown)

    def _is_data(self, slot: int) -> bool:
        type_ = self.node.graph.type(self.node.inputs[slot])
        return not type_ or type_ in FLOATS or type_ == TensorProto.BOOL

    def _raw(self, slot: int) -> Shape:
        shape = self.node.graph.shape(self.node.inputs[slot])
        if shape is None:
            raise NotCertifiedError(f"the rank of {self.node.inputs[slot]!r} is not known")
        storage = self.graph.storage(self.node.inputs[slot])
        if storage is None:
            return shape
        varying = np.broadcast_shapes(storage.den.shape, storage.num.shape, storage.off.shape)
        if len(varying) != len(shape) or any(
            n != 1 and isinstance(dim, int) and n != dim for n, dim in zip(varying, shape, strict=True)
        ):
            raise NotCertifiedError(f"the storage of {self.node.inputs[slot]!r} has shape {varying}, the tensor {shape}")
        return tuple(dim if n == 1 else n for n, dim in zip(varying, shape, strict=True))

    def _varying(self, rank: int) -> set[int]:
        """Axes, counted from the last one, on which a storage or a constant of the node varies."""
        node, found = self.node, set()
        shapes: list[Sequence[int]] = []
        for name in [*node.inputs, *node.outputs]:
            storage = self.graph.storage(name) if name else None
            if storage is not None:
                shapes += [storage.den.shape, storage.num.shape, storage.off.shape]
        if node.op == "BatchNormalization":
            found.add(1 - rank)
        else:
            constants = [node.constant(slot) for slot in range(len(node.inputs))]
            shapes += [align(node, np.empty(c.shape, np.bool_), rank).shape for c in constants if c is not None]
        for shape in shapes:
            found |= {axis - len(shape) for axis, size in enumerate(shape) if size != 1}
        return found

    def _cut_alike(self, raw: dict[int, Shape]) -> None:
        """Elementwise operators: axes meet from the last one backwards."""
        rank = max((len(shape) for shape in raw.values()), default=0)
        varying, sizes = self._varying(rank), {}
        axis_kept = self.node.get_int("axis", 1) % rank - rank if self.node.op == "Concat" else None
        for axis in range(-rank, 0):
            met = [shape[axis] for shape in raw.values() if len(shape) >= -axis]
            known = [dim for dim in met if isinstance(dim, int) and dim != 1]
            whole = axis in varying and known
            sizes[axis] = max(known) if whole else 2 if axis == -rank else SMALL
            if known and not whole:
                sizes[axis] = min(sizes[axis], max(known))
        for slot, shape in raw.items():
            self.found[slot] = tuple(
                self.size(dim, (slot, at), 1) if at - len(shape) == axis_kept else 1 if dim == 1 else sizes[at - len(shape)]
                for at, dim in enumerate(shape)
            )

    def _cut_rows(self, raw: dict[int, Shape]) -> None:
        """MatMul and Gemm by a constant matrix: the axis that is not summed is cut short, and so are those before."""
        node = self.node
        weights = [slot for slot in (0, 1) if node.constant(slot) is not None]
        if len(weights) != 1 or 1 - weights[0] not in raw:
            return
        slot = 1 - weights[0]
        weight, shape = node.constant(weights[0]), raw[slot]
        assert weight is not None
        if len(weight.shape) != 2 or len(shape) < 2:
            return
        summed = -2 if (node.get_int("transA", 0) if node.op == "Gemm" else slot == 1) else -1
        storages = [self.graph.storage(name) for name in (node.inputs[slot], node.outputs[0])]
        bias = node.constant(2)
        grids = [s.den.shape for s in storages if s] + [s.num.shape for s in storages if s]
        grids += [s.off.shape for s in storages if s]
        rows_vary = any(size != 1 for grid in grids for axis, size in enumerate(grid[:-1])) and summed == -1
        rows_vary |= summed == -2 and node.op == "MatMul" and any(grid[-1] != 1 for grid in grids)
        if rows_vary or (bias is not None and len(bias.shape) == 2 and bias.shape[0] != 1) or node.input(2) and bias is None:
            return
        length = weight.shape[1 if (node.op == "Gemm" and node.get_int("transB", 0)) or slot == 1 else 0]
        cut = [2 if len(shape) == 2 else 1 if dim == 1 else 2 for dim in shape]
        cut[summed] = length
        self.found[slot] = tuple(cut)


def integers(graph: GraphPair, shapes: Shapes, slot: int) -> Array:
    """A value for an input that is an integer tensor known only at run time: a target shape, or indices.

    Raises:
        NotCertifiedError: nothing says what it may be.
    """
    node = shapes.node
    first = shapes.found.get(0, ())
    makers: dict[tuple[str, int], Callable[[], list[int]]] = {
        ("Reshape", 1): lambda: _target(shapes),
        ("Expand", 1): lambda: _target(shapes),
        ("Resize", 3): lambda: [*first[:2], *(2 * size for size in first[2:])],
    }
    maker = makers.get((node.op, slot))
    if maker is None:
        raise NotCertifiedError(f"its input {slot}, {node.inputs[slot]!r}, is known only at run time")
    return np.array(maker(), np.int64)


def _target(shapes: Shapes) -> list[int]:
    shape = shapes.node.graph.shape(shapes.node.outputs[0])
    if shape is None:
        raise NotCertifiedError("the rank of its output is not known")
    known = [dim if isinstance(dim, int) else shapes.symbols.get(dim or "", 0) for dim in shape]
    free = [axis for axis, size in enumerate(known) if size == 0]
    if len(free) > 1:
        total = math.prod(shapes.found[0]) // max(1, math.prod(size for size in known if size))
        if total != 1:
            raise NotCertifiedError("the shape of its output is not known")
        return [size or 1 for size in known]
    return [size or -1 for size in known]
