"""What a rule sees and what it answers.

A rule is one pure function per operator. It sees how the tensors at the node's ports are stored, which of them are
*fixed* (already decided in this attempt), and answers with the ways to complete the picture: every way gives the
storage of the ports that are still free and the edits to the node's own constants. Or it refuses, with a reason.

Ports are numbered like Python indices: inputs 0, 1, ...; outputs -1, -2, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import SMALL, Array, Storage, together
from bnfold.constants import Constant
from bnfold.graph import Node, Shape
from bnfold.plan import Edit, NewConstant
from bnfold.reasons import Reason, plural
from bnfold.rules.unlocks import NOT_ZERO, ONE_EACH, POSITIVE, UNIFORM

Mask = NDArray[np.bool_]

MOST_VALUES = 1 << 22
"""Numbers in a demand that is spread over the places of a tensor."""

OUT = -1
"""The port of a node's first output."""


class Refused(Exception):
    """Ends a rule: the demand cannot be met here."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


class Port(NamedTuple):
    """One tensor at a node, as the rule sees it."""

    name: str
    shape: Shape
    storage: Storage
    fixed: bool
    constant: Constant | None = None
    near: int = 0
    """How far the next absorber is behind this port: 0 is right there."""
    pinned: str = ""
    """The code of the reason why the tensor's meaning must stay; '' where it need not."""

    @property
    def rank(self) -> int:
        """Rank of the tensor."""
        return len(self.shape)


class Accept(NamedTuple):
    """One way to meet the demands at a node."""

    assign: Mapping[int, Storage] = MappingProxyType({})
    """Storage for ports that were free."""
    edits: tuple[Edit, ...] = ()
    """What happens to the node's own constants, once every port is as it is."""


class View(NamedTuple):
    """A node with its ports."""

    node: Node
    ports: Mapping[int, Port]
    bias_behind: bool = False
    """Whether everything that reads the first output only adds a constant to it."""
    only_moves: bool = False
    """Whether an Add put behind this node would only replace the Add that is to leave."""

    def refuse(
        self, code: str, text: str, unlock: str, channels: tuple[int, ...] = (), values: tuple[float, ...] = ()
    ) -> Refused:
        """A refusal at this node."""
        return Refused(Reason(code, text, self.node.label, unlock, channels, values))

    def port(self, key: int) -> Port:
        """The port of this number; refuses where its rank is unknown."""
        port = self.ports.get(key)
        if port is None:
            where = f"input {key}" if key >= 0 else f"output {-key - 1}"
            text = f"the rank of {where} of {self.node.op} is not known"
            raise self.refuse("unknown-shape", text, "export with shapes")
        return port

    def _refuse_pinned(self) -> None:
        """Refuse with the pin of a port, where one has any: it is what the others cannot agree with."""
        for port in self.ports.values():
            if port.pinned:
                raise Refused(pinned_reason(port.pinned, port.name))

    def settle(self, wants: Mapping[int, Storage], edits: tuple[Edit, ...] = ()) -> Accept:
        """Accept with these storages: agree with what is fixed, assign what is free, refuse a contradiction."""
        assign: dict[int, Storage] = {}
        for key, want in wants.items():
            port = self.port(key)
            if want.is_degenerate:
                raise self.refuse("zero-scale", "a channel would be constant before and after", NOT_ZERO)
            if port.storage.agrees(want):
                continue
            if port.pinned:
                raise Refused(pinned_reason(port.pinned, port.name))
            if port.fixed:
                self._refuse_pinned()
                text = f"tensor {port.name!r} would have to be stored in two different ways at {self.node.op}"
                raise self.refuse("conflict", text, ONE_EACH)
            assign[key] = want
        return Accept(assign, edits)


Rule = Callable[[View], list[Accept]]


def pinned_reason(code: str, name: str) -> Reason:
    """Why a tensor whose meaning must stay refuses every demand."""
    texts = {
        "graph-output": ("the values of graph output {!r} must stay", "do not make {!r} an output of the graph"),
        "graph-input": (
            "the demand reaches {!r}, which this graph does not compute",
            "put a layer with weights behind {!r}, or apply the node to the data outside",
        ),
        "captured": ("tensor {!r} is also read inside a subgraph", "compute {!r} once more for the subgraph"),
        "annotated": ("an annotation of quantization, devices or training names {!r}", "fold before annotating"),
    }
    text, unlock = texts[code]
    return Reason(code, text.format(name), name, unlock.format(name))


def refuse_signs(view: View, storage: Storage, blocked: Mask | None = None) -> None:
    """Refuse where the scale is negative, or where it is `blocked` for its sign."""
    mask = storage.num * storage.den < 0 if blocked is None else blocked
    if np.any(mask):
        text = f"{view.node.op} passes only positive scales, and that of {channel_count(mask)} is not"
        raise view.refuse("negative-scale", text, POSITIVE, *faults(mask, arriving(view, storage)[0]))


def arriving(view: View, storage: Storage) -> tuple[Array, Array]:
    """Scale and shift as they come along: (a, b) from behind, (alpha, beta) from in front; what is lost counts as 0."""
    behind = storage is view.port(OUT).storage
    above, below = (storage.num, storage.den) if behind else (storage.den, storage.num)
    lost, sign = below == 0, 1.0 if behind else -1.0
    divisor = np.where(lost, 1.0, below)
    return np.where(lost, 0.0, above / divisor), np.where(lost, 0.0, sign * storage.off / divisor)


def channel_count(mask: Mask) -> str:
    """`1 channel`, `2 channels`: those at which a mask is true."""
    return plural(int(np.count_nonzero(mask)), "channel")


def channels_where(mask: Mask) -> tuple[int, ...]:
    """The first eight channels (flat positions) at which a mask is true."""
    return tuple(int(i) for i in np.flatnonzero(mask)[:8])


def faults(mask: Mask, values: Array) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The first eight channels at which a mask is true, and the value of each."""
    mask, values = np.broadcast_arrays(mask, values)
    channels, flat = channels_where(mask), values.reshape(-1)
    return channels, tuple(float(flat[channel]) for channel in channels)


def lift(array: Array, rank: int) -> Array:
    """The array with leading ones, to this rank."""
    return array if array.ndim == rank else array.reshape((1,) * (rank - array.ndim) + array.shape)


def compress(array: Array) -> Array:
    """The array with every axis along which it is constant reduced to size one."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            if array.shape[axis] == array.size and array.flat[0] != array.flat[-1]:
                return array
            first = array.take([0], axis)
            if (first == array).all():
                array = first
    return array


def varies_on(storage: Storage) -> set[int]:
    """The axes along which the storage is not constant."""
    shapes = {storage.den.shape, storage.num.shape, storage.off.shape}
    return {axis for shape in shapes for axis, size in enumerate(shape) if size != 1}


def affordable(view: View, sizes: Iterable[int]) -> None:
    """Refuses where an array of these sizes would be made: they come from the file, which can claim anything."""
    if math.prod(sizes) > MOST_VALUES:
        text = f"{view.node.op} would spread the demand over more than {MOST_VALUES:,} places"
        raise view.refuse("search-limit", text, "give the tensor the size that it has")


def only_axis(view: View, port: Port, axis: int, size: int) -> Storage:
    """The port's storage as vectors of length `size` along one axis; refuses where it varies on another."""
    others = varies_on(port.storage) - {axis % port.rank}
    if others:
        text = f"the demand on {port.name!r} varies on axis {min(others)}, where {view.node.op} has no weights"
        raise view.refuse("row-axis", text, UNIFORM)
    affordable(view, [size])
    if port.storage is Storage.identity(port.rank) and size <= SMALL:
        return _as_it_was(size)
    return port.storage.map(lambda array: array.reshape(-1) if array.size == size else np.full(size, array.reshape(())))


@lru_cache(maxsize=64)
def _as_it_was(size: int) -> Storage:
    """The identity, as vectors."""
    return Storage.identity(1).map(lambda array: np.full(size, array.reshape(())))


def need_encode(view: View, storage: Storage) -> tuple[Array, Array]:
    """(a, b) with v' = a*v + b; refuses where v' is dead."""
    if not storage.has_encode:
        text = f"a channel of scale zero reaches {view.node.op}, which cannot undo it"
        raise view.refuse("zero-scale", text, NOT_ZERO, channels_where(storage.den == 0))
    return storage.a, storage.b


def need_decode(view: View, storage: Storage) -> tuple[Array, Array]:
    """(alpha, beta) with v = alpha*v' + beta; refuses where v is lost."""
    if not storage.has_decode:
        text = f"a channel of scale zero was pulled out of a tensor that {view.node.op} also reads"
        raise view.refuse("zero-scale", text, NOT_ZERO, channels_where(storage.num == 0))
    return storage.alpha, storage.beta


def restored_constant(view: View, key: int, hint: str) -> tuple[Edit, ...]:
    """The edit that stores a constant operand as its port says."""
    port = view.port(key)
    assert port.constant is not None
    if port.storage.is_identity:
        return ()
    a, b = need_encode(view, port.storage)
    shapes = port.constant.shape, a.shape, b.shape
    together(*shapes)
    shape = np.broadcast_shapes(*shapes)
    since = 8 if view.node.op in ("Max", "Min", "Sum", "Mean") else 7
    if view.node.version < since and shape != port.constant.shape:
        text = f"the constant of {view.node.op} cannot grow before opset {since}"
        raise view.refuse("unsupported-form", text, f"convert the model to opset {since} or newer")
    return (NewConstant(key, hint, port.constant.type, shape, port.constant, (a,), lambda: b),)
