"""Shapes that the operators themselves tell, where shape inference gives up; forwards and backwards to a fixed point.

A convolution's weights say the rank of its input and output and how many channels these have; a BatchNormalization's
parameters likewise; element by element the shape stays; a Reshape says what it keeps. A size that nothing tells gets a
name (`?tensor:axis`), so that it is known to be the same wherever it comes along.

Each size only ever becomes better known (nothing, such a name or one that inference made up, a name of the model's,
a number), and a node is asked again when one at its ends did: the time is linear in the size of the graph.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.inference import with_kernel
from bnfold.sizes import MAX_VALUES, Values, evaluate, factors
from bnfold.skeleton import aborts
from bnfold.source import MOST_AXES
from bnfold.static import STEERED
from bnfold.telling import BACKWARD, FORWARD, TARGETS, output_shape, target_slot

if TYPE_CHECKING:
    from bnfold.graph import Dim, Graph, Node, Shape

_BODIES = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})

_COUNTING = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})

MAX_SIZE = 2**63 - 1
"""The largest size that the format can hold."""

INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32})


def complete(graph: Graph) -> bool:
    """Fill in what is missing in ``graph.shapes`` and ``graph.types``; whether something there contradicts a node."""
    completion = _Completion(graph)
    completion.run()
    return completion.contradicted


class _Completion:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Values] = {}
        self.waiting = deque(graph.nodes)
        self.queued = set(graph.nodes)
        self.woken: set[Node] = set()
        """Nodes around which something became known since onnx inferred shapes."""
        self.contradicted = False
        """Whether a node told another rank, or another number for a size, than was known."""
        self.given = frozenset(dim.dim_param for value in graph.proto.input for dim in value.type.tensor_type.shape.dim)
        """Names of sizes that the model gives its inputs, though they may look as if inference had made them up."""

    def run(self) -> None:
        while self.waiting:
            node = self.waiting.popleft()
            self.queued.discard(node)
            if node.outputs and node.proto.domain in ("", "ai.onnx"):
                self._visit(node, node in self.woken)

    def _visit(self, node: Node, again: bool) -> None:
        if not self.graph.type(node.outputs[0]):
            self._inferred(node)
        tell, back = FORWARD.get(node.op), BACKWARD.get(node.op)
        if tell is not None:
            self._learn(node.outputs[0], tell(node))
        elif (slot := target_slot(node)) is not None and (values := self._values(node.input(slot))) is not None:
            self._learn(node.outputs[0], TARGETS[node.op](node, values))
        if any(map(self._is_open, node.outputs)) or (tell is None and again) or self._is_steered(node):
            for name, shape in self._inferred(node).items():
                self._learn(name, shape)
        if self.graph.type(node.outputs[0]) in _COUNTING and self.graph.rank(node.outputs[0]) in (0, 1):
            found = evaluate(node, lambda slot: self._values(node.input(slot)))
            if found is not None:
                self._learn_values(node.outputs[0], found)
        if back is not None:
            self._learn(node.input(0), back(node))
        if node.op == "Concat" and (made := output_shape(node)) is not None:
            axis = node.get_int("axis", 1) % len(made)
            for name in node.inputs:
                self._learn(name, (*made[:axis], None, *made[axis + 1 :]))

    # -------------------------------------------------------------------------------------------- what is known

    def _is_open(self, name: str) -> bool:
        """Whether something of a tensor's shape is missing."""
        if not name:
            return False
        shape = self.graph.shape(name)
        if shape is None or None in shape:
            return True
        own = f"?{name}:"
        return any(isinstance(size, str) and size.startswith(own) for size in shape)

    def _is_steered(self, node: Node) -> bool:
        """Whether it is known by now what a node does along its axes, though it is computed."""
        if node.op not in STEERED:
            return False
        return any(self.graph.stored(name) is None and self.graph.constant(name) for name in node.inputs[1:] if name)

    def _learn(self, name: str, shape: Shape | None) -> None:
        """Take over what is better known than before; a size that no tensor can have says nothing."""
        if shape is None or not name or len(shape) > MOST_AXES:
            return
        old = self.graph.shapes.get(name)
        if old is not None and (len(old) != len(shape) or (old == shape and None not in old)):
            self.contradicted |= len(old) != len(shape)
            return
        if any(isinstance(size, int) and not 0 <= size <= MAX_SIZE for size in shape):
            return
        if self.graph.owner(name) is not self.graph or name in self.graph.initializers:
            return
        self.contradicted |= old is not None and any(map(_differ, old, shape))
        new = shape if old is None else tuple(map(self._better, old, shape))
        new = tuple(f"?{name}:{axis}" if size is None else size for axis, size in enumerate(new))
        if new != old:
            self.graph.shapes[name] = new
            self._wake(name)

    def _better(self, old: Dim, new: Dim) -> Dim:
        """Whichever of two sizes is known better; the old one where they are alike."""
        return old if isinstance(old, int) or new is None else max(old, new, key=self._rank)

    def _rank(self, size: Dim) -> int:
        """How well a size is known: as a number, by a name of the model's, made up here, made up by inference."""
        if size is None or isinstance(size, int):
            return 0 if size is None else 4
        return min(
            3 if name in self.given else 1 if name.startswith("unk__") else 2 if name.startswith("?") else 3
            for name in factors(size)[1]
        )

    def _learn_values(self, name: str, values: Values) -> None:
        if values != self.values.get(name):
            self.values[name] = values
            self._wake(name)

    def _wake(self, name: str) -> None:
        made = self.graph.producers.get(name)
        around = [node for node, _ in self.graph.consumers.get(name, [])] + ([] if made is None else [made])
        self.woken.update(around)
        for node in around:
            if node not in self.queued:
                self.queued.add(node)
                self.waiting.append(node)

    def _values(self, name: str) -> Values | None:
        """The sizes that an integer tensor of at most one axis holds."""
        if name in self.values or not name:
            return self.values.get(name)
        found = _integers(self.graph, name)
        return None if found is None else tuple(int(value) for value in numpy_helper.to_array(found).ravel())

    # ---------------------------------------------------------------------------------------- what onnx infers

    def _inferred(self, node: Node) -> dict[str, Shape]:
        """What the operator's own inference says of one node, given the constants that it reads; types are noted."""
        if aborts(node.proto) or self._expands_far(node) or any(a.type in _BODIES for a in node.proto.attribute):
            return {}
        version = max(node.version, 6)  # before opset 6 few operators have shape inference
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for name in filter(None, node.inputs):
            shape = self.graph.shape(name)
            types[name] = helper.make_tensor_type_proto(self.graph.type(name) or TensorProto.FLOAT, shape)
            if (constant := _integers(self.graph, name)) is not None:
                data[name] = constant
        try:
            schema = onnx.defs.get_schema(node.proto.op_type, version)
            found = onnx.shape_inference.infer_node_outputs(
                schema, with_kernel(node.proto, self.graph.shape), types, data
            )
        except Exception:  # noqa: BLE001 - whatever C++ code chokes on: nothing is known
            return {}
        for name, made in found.items():
            if made.tensor_type.elem_type and all(self.graph.type(given) for given in types):
                self.graph.types.setdefault(name, made.tensor_type.elem_type)
        return {name: shape_of(made) for name, made in found.items() if made.tensor_type.HasField("shape")}

    def _expands_far(self, node: Node) -> bool:
        """Whether it is an Expand to more axes than there can be: onnx 1.19 names each of them."""
        sizes = self.graph.shape(node.input(1)) if node.op == "Expand" and node.input(1) else None
        return any(isinstance(size, int) and size > MOST_AXES for size in sizes or ())


def shape_of(type_: onnx.TypeProto) -> Shape:
    """The sizes of a tensor's type. Some exporters write -1 for a size that is free."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else str(dim.dim_param) or None
        for dim in type_.tensor_type.shape.dim
    )


def _differ(one: Dim, other: Dim) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _integers(graph: Graph, name: str) -> TensorProto | None:
    constant = graph.constant(name) if graph.type(name) in INTEGERS else None
    small = constant is not None and len(constant.shape) <= 1 and sum(constant.shape) <= MAX_VALUES
    if constant is None or not small or constant.type not in INTEGERS:
        return None
    return numpy_helper.from_array(constant.load(), name)
