"""What follows from fixed sizes: how much a Pad pads, or where a Slice cuts, computed from the shapes of tensors.

Exporters write TensorFlow's SAME padding so, and PyTorch's chunk: Shape, Gather, Cast, Div, Ceil, Mul, Sub, Clip,
Concat on single numbers.

Only what must be so counts: sizes of graph inputs, which a runtime checks; initializers; and what operators make of
these. A shape that the model declares for an inner tensor or an output may be wrong, and is never read. Numbers are
computed in their own type, as a runtime does: a Ceil or a Cast behind would show the difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold.arithmetic import ARITHMETIC, are_sizes, computed
from bnfold.constants import Constant, Room, Value, evaluate
from bnfold.sizes import MAX_VALUES
from bnfold.skeleton import aborts

if TYPE_CHECKING:
    from bnfold.graph import Graph, Node

STEERED = frozenset({"Pad", "Slice", "Split", "Tile"})
"""Operators that say by inputs what they do along each axis: pads, bounds, sizes of parts, repeats."""

MAX_NODES = 10_000
"""Nodes that these may depend on; where there are more nothing is known."""

_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64})

_DTYPES = frozenset(helper.tensor_dtype_to_np_dtype(type_) for type_ in _TYPES)

_BODIES = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})

_PICKS = frozenset({"Identity", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Split", "Cast"})
"""Operators that pick entries of their first input, or give them another type."""

_MOVES = _PICKS | {"Concat", "ConstantOfShape", "Expand", "Tile", "Transpose"}
"""Operators that compute nothing."""


def static_values(graph: Graph) -> Mapping[str, Constant]:
    """The values, by name, of what Pads, Slices and the like are steered by, as far as sizes tell them.

    Nothing in a body, whose inputs no runtime checks.
    """
    wanted = [
        name
        for node in (graph.nodes if graph.parent is None else ())
        if node.op in STEERED
        for name in node.inputs[1:]
        if name in graph.producers and graph.stored(name) is None
    ]
    order = _before(graph, wanted)
    if not wanted or len(order) > MAX_NODES:
        return MappingProxyType({})
    found = _Values(graph)
    for node in order:
        found.visit(node)
    return {name: _constant(name, value) for name, value in found.values.items()}


def _before(graph: Graph, names: Iterable[str]) -> list[Node]:
    """The nodes that compute these, each behind those that it waits for."""
    stack = [graph.producers[name] for name in names]
    order: dict[Node, None] = {}
    seen: set[Node] = set()
    while stack:
        node = stack[-1]
        makers = [graph.producers[name] for name in node.inputs if name in graph.producers] if node not in seen else []
        seen.add(node)
        waiting = [maker for maker in makers if maker not in order]
        stack.extend(waiting)
        if not waiting:
            order.setdefault(stack.pop())
    return list(order)


def _constant(name: str, value: Value) -> Constant:
    return Constant(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, lambda: value)


class _Partial(NamedTuple):
    """A tensor of which some entries may be unknown: 0 where they are."""

    numbers: Value
    known: NDArray[np.bool_]


def _whole(value: Value | None) -> _Partial | None:
    return None if value is None else _Partial(value, np.ones(value.shape, np.bool_))


class _Values:
    """Types, shapes and values of tensors, each node behind those that it waits for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Value] = {}
        self.types: dict[str, onnx.TypeProto] = {}
        self.partial: dict[str, _Partial] = {}
        """Tensors of which some entries are unknown: shapes, what is picked of them and what is joined to them."""
        self.declared = {value.name: value.type for value in graph.proto.input}

    def visit(self, node: Node) -> None:
        """Find out what the outputs of a node are."""
        if node.op != node.proto.op_type or any(a.type in _BODIES for a in node.proto.attribute):
            return  # of another domain, malformed, or with bodies
        self._shape_of_outputs(node)
        if node.op in ("Shape", "Size"):
            self._measure(node)
        elif node.op in _PICKS | {"Concat"} and any(name in self.partial for name in node.inputs):
            self._carry(node)
        elif node.op in _MOVES | ARITHMETIC:
            for name, value in self._computed(node).items():
                self._keep(name, value)

    # ------------------------------------------------------------------------------------------------- shapes

    def _type(self, name: str) -> onnx.TypeProto | None:
        """The type of a tensor, with the sizes that it must have; those that are free have no name."""
        if name in self.types or name in self.graph.producers:
            return self.types.get(name)
        stored = self.graph.stored(name)
        if stored is not None:
            return helper.make_tensor_type_proto(stored.type, stored.shape)
        given = self.declared.get(name)
        if given is None or name in self.graph.initializers or not given.HasField("tensor_type"):
            return None
        tensor = given.tensor_type
        # Some exporters write 0 or -1 for a size that is free.
        sizes = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
        return helper.make_tensor_type_proto(tensor.elem_type, sizes if tensor.HasField("shape") else None)

    def _shape_of_outputs(self, node: Node) -> None:
        """What the operator's own inference says."""
        stored = [self.graph.stored(name) for name in node.outputs if name]
        if all(constant is not None for constant in stored):
            known = [constant for constant in stored if constant is not None]
            self.types |= {each.name: helper.make_tensor_type_proto(each.type, each.shape) for each in known}
            return
        types = {name: self._type(name) for name in node.inputs if name}
        given = {name: type_ for name, type_ in types.items() if type_ is not None}
        # How a window that rounds up ends is not told alike by ONNX and its runtimes.
        if len(given) < len(types) or aborts(node.proto) or node.get_int("ceil_mode", 0):
            return
        data = {
            name: numpy_helper.from_array(value, name)
            for name in given
            if (value := self._value(name)) is not None and value.dtype.kind == "i"
        }
        try:
            schema = onnx.defs.get_schema(node.op, node.version)
            self.types |= onnx.shape_inference.infer_node_outputs(schema, node.proto, given, data)
        except Exception:  # noqa: BLE001 - whatever C++ code chokes on: nothing is known
            return

    # ------------------------------------------------------------------------------------------------- values

    def _value(self, name: str) -> Value | None:
        """A few numbers, exactly as they are at run time."""
        maker = self.graph.producers.get(name)
        if name in self.values or (maker is not None and maker.op != "Constant"):
            return self.values.get(name)  # other computed constants are not rounded on the way
        stored = self.graph.stored(name)
        if stored is None or stored.type not in _TYPES or math.prod(stored.shape) > MAX_VALUES:
            return None
        return stored.load()

    def _keep(self, name: str, value: Value) -> None:
        if name and value.size <= MAX_VALUES and value.dtype in _DTYPES and np.all(np.isfinite(value)):
            self.values[name] = np.array(value)

    def _measure(self, node: Node) -> None:
        """Shape and Size."""
        type_ = self._type(node.input(0))
        if type_ is None or not type_.tensor_type.HasField("shape"):
            return
        sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in type_.tensor_type.shape.dim)
        if node.op == "Shape":
            end = node.get_int("end", len(sizes)) if "end" in node.attributes else None
            entries = sizes[node.get_int("start", 0) : end]
            numbers = np.array([entry or 0 for entry in entries], np.int64)
            self._learn(node.outputs[0], numbers, np.array([entry is not None for entry in entries]))
        elif all(size is not None for size in sizes):
            self._keep(node.outputs[0], np.array(math.prod(size or 0 for size in sizes), np.int64))

    def _carry(self, node: Node) -> None:
        """Where the entries of a shape go: they are known there where they are here, though others are free."""
        whole = [self._value(name) for name in node.inputs]
        carried = range(len(whole) if node.op == "Concat" else 1)  # what is behind says which entries are picked
        found = [self.partial.get(node.input(slot)) or _whole(whole[slot]) for slot in carried]
        given = [each for each in found if each is not None]
        if len(given) < len(found) or (node.op == "Cast" and not are_sizes(each.numbers for each in given)):
            return
        rest = whole[len(found) :]
        known = self._moved(node, [*(each.known.astype(np.int64) for each in given), *rest])
        for name, numbers in self._moved(node, [*(each.numbers for each in given), *rest]).items():
            if name in known:
                self._learn(name, numbers, known[name].astype(bool))

    def _learn(self, name: str, numbers: Value, known: NDArray[np.bool_]) -> None:
        if np.all(known):
            self._keep(name, numbers)
        elif numbers.size <= MAX_VALUES and numbers.dtype in _DTYPES:
            self.partial[name] = _Partial(numbers, known)

    def _computed(self, node: Node) -> Mapping[str, Value]:
        inputs = [self._value(name) for name in node.inputs]
        if any(value is None for value, name in zip(inputs, node.inputs, strict=True) if name):
            return {}
        if node.op in ARITHMETIC:
            made = computed(node, inputs)
            return {} if made is None else {node.outputs[0]: made}
        known = [value for value in inputs if value is not None]
        return self._moved(node, inputs) if node.op != "Cast" or are_sizes(known) else {}

    def _moved(self, node: Node, inputs: Sequence[Value | None]) -> Mapping[str, Value]:
        """What an operator that computes nothing makes of these."""
        room = Room()
        room.left = MAX_VALUES * 8
        given = [None if value is None else _constant("", value) for value in inputs]
        with np.errstate(all="ignore"):
            made = evaluate(node.proto, node.version, given, 0, None, room) or []
        # A Cast to another float type leaves them as they are, where a runtime rounds.
        return {each.name: each.load().astype(helper.tensor_dtype_to_np_dtype(each.type), copy=False) for each in made}
