"""The model as read: graphs, nodes, values, and which values are constants. Nothing here changes anything.

onnx-graphsurgeon navigates (who produces a tensor, who reads it), on a skeleton without weights; names, shapes and
constants are looked up here. Every graph of the model (the main graph, If/Loop/Scan bodies) is one `Graph`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx
from onnx import AttributeProto

from bnfold import shapes, skeleton
from bnfold.constants import EVALUATED, Constant, Room, evaluate, from_initializer
from bnfold.errors import ModelError
from bnfold.lazy import lazy
from bnfold.malformed import check_names, is_malformed
from bnfold.protos import bodies, quantized, read_in_training, sharded, trained
from bnfold.sorting import check_acyclic
from bnfold.source import Source
from bnfold.static import static_values

Dim = int | str | None
Shape = tuple[Dim, ...]
Step = tuple[int, int, int]
"""One step into a body: node index, attribute index, position in a list of graphs or -1."""


@dataclass(eq=False)
class Node:
    """One node of a graph, in the graph's order."""

    graph: Graph
    index: int
    proto: onnx.NodeProto
    label: str
    """Unique within the model: the node's name where it is one, else its first output."""
    memo: dict[str, object] = field(default_factory=dict)
    """What others worked out about the node, so that it is worked out once."""

    @lazy
    def op(self) -> str:
        """Operator name; with its domain where that is not ONNX's own, or `malformed` where it breaks its rules."""
        op, domain = self.proto.op_type, self.proto.domain
        if domain not in ("", "ai.onnx"):
            return f"{domain}.{op}"
        return f"malformed.{op}" if is_malformed(self.proto, self.version) else op

    @property
    def version(self) -> int:
        """The ONNX opset that the model imports."""
        return self.graph.model.opset

    @lazy
    def inputs(self) -> tuple[str, ...]:
        """Input names; '' where an optional input is left out."""
        return tuple(self.proto.input)

    @lazy
    def outputs(self) -> tuple[str, ...]:
        """Output names; '' where an optional output is left out."""
        return tuple(self.proto.output)

    @lazy
    def attributes(self) -> dict[str, AttributeProto]:
        """Attributes by name."""
        return {attribute.name: attribute for attribute in self.proto.attribute}

    def input(self, slot: int) -> str:
        """Name at an input slot, '' where it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else ""

    def get_int(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.attributes.get(name)
        return default if found is None else found.i

    def get_float(self, name: str, default: float) -> float:
        """A float attribute: the float32 value that the file holds."""
        found = self.attributes.get(name)
        return default if found is None else found.f

    def get_ints(self, name: str) -> list[int] | None:
        """A list of integers, or None where it is absent."""
        found = self.attributes.get(name)
        return None if found is None else list(found.ints)

    def get_string(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.attributes.get(name)
        return default if found is None else found.s.decode("utf-8", "replace")

    def constant(self, slot: int) -> Constant | None:
        """The constant at an input slot, or None where there is none."""
        name = self.input(slot)
        return self.graph.constant(name) if name else None


class Graph:
    """One graph of the model, with its producers, consumers, shapes and constants."""

    def __init__(
        self, model: Model, proto: onnx.GraphProto, path: str, parent: Graph | None, trail: tuple[Step, ...]
    ) -> None:
        self.model = model
        self.trail = trail
        self.proto = proto
        self.path = path
        self.parent = parent
        self.inputs = tuple(value.name for value in proto.input)
        self.outputs = tuple(value.name for value in proto.output)
        self.captured: set[str] = set()
        self.memo: dict[str, object] = {}
        """What others have found out about it."""
        self._shapes: dict[str, Shape] = {}
        self._types: dict[str, int] = {}
        self._constants: dict[str, Constant | None] = {}
        given = model.given_labels.get(path)
        names = map(model.labels.unique, proto.node) if given is None else given
        self.nodes = [Node(self, i, *pair) for i, pair in enumerate(zip(proto.node, names, strict=True))]
        self.producers: dict[str, Node] = {}
        self.consumers: dict[str, list[tuple[Node, int]]] = {}
        self._navigate()
        self.overridable: set[str] = set()
        if parent is None and model.proto.ir_version >= 4:
            self.overridable = set(self.inputs) & set(self.initializers)
        if parent is None and model.proto.training_info:
            self.overridable |= set(trained(model.proto)) & set(self.initializers)

    def _navigate(self) -> None:
        """Find out who makes and who reads what."""
        if self.model.direct:
            self._walk()
            return
        navigator = skeleton.topology(self.proto)
        own = {id(raw): node for raw, node in zip(navigator.nodes, self.nodes, strict=True)}
        slots = {node: _slots(node) for node in self.nodes}
        for name, tensor in navigator.tensors(check_duplicates=False).items():
            if len(tensor.inputs) > 1:
                raise self._written_twice(name)
            if tensor.inputs:
                self._made(name, own[id(tensor.inputs[0])])
            readers = {id(raw): own[id(raw)] for raw in tensor.outputs}
            self.consumers[name] = [(node, slot) for node in readers.values() for slot in slots[node][name]]
        for node in self.nodes:
            for slot, name in enumerate(node.inputs):
                if name in self.initializers:
                    self.consumers.setdefault(name, []).append((node, slot))

    def _walk(self) -> None:
        """The same without onnx-graphsurgeon."""
        for node in self.nodes:
            for slot, name in enumerate(node.inputs):
                if name:
                    self.consumers.setdefault(name, []).append((node, slot))
            for name in filter(None, node.outputs):
                if name in self.producers:
                    raise self._written_twice(name)
                self._made(name, node)
                self.consumers.setdefault(name, [])

    def _made(self, name: str, node: Node) -> None:
        if name in self.initializers:
            what = f"{name!r} is an initializer and the output of a node"
            raise ModelError(f"{self.model.source.label}: {what}; export it again")
        self.producers[name] = node

    def _written_twice(self, name: str) -> ModelError:
        return ModelError(f"{self.model.source.label}: two nodes write the tensor {name!r}; export it again")

    @property
    def shapes(self) -> dict[str, Shape]:
        """Static shapes by name, as far as they are known; to be filled in while they are inferred."""
        self.model.infer()
        return self._shapes

    @property
    def types(self) -> dict[str, int]:
        """ONNX element types by name, as far as they are known; to be filled in while they are inferred."""
        self.model.infer()
        return self._types

    def learn(self, shapes: dict[str, Shape], types: dict[str, int]) -> None:
        """Take these for all that is known of shapes and types."""
        self._shapes, self._types = shapes, types

    def within(self, model: onnx.ModelProto) -> onnx.GraphProto:
        """The same graph in a copy of the model."""
        found = model.graph
        for index, attribute, position in self.trail:
            holder = found.node[index].attribute[attribute]
            found = holder.g if position < 0 else holder.graphs[position]
        return found

    def owner(self, name: str) -> Graph | None:
        """The graph, this one or an outer one, in which the name is defined."""
        graph: Graph | None = self
        while graph is not None:
            if name in graph.producers or name in graph.initializers or name in graph.input_set:
                return graph
            graph = graph.parent
        return None

    @lazy
    def input_set(self) -> frozenset[str]:
        """Names of the graph's inputs."""
        return frozenset(self.inputs)

    @lazy
    def output_set(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(self.outputs)

    @lazy
    def initializers(self) -> dict[str, onnx.TensorProto]:
        """The graph's own initializers by name."""
        return {tensor.name: tensor for tensor in self.proto.initializer}

    @lazy
    def annotated(self) -> frozenset[str]:
        """Tensors that an annotation names, of quantization or of devices, and what a training step reads of them."""
        found = {*quantized(self.proto), *(name for node in self.proto.node for name in sharded(node))}
        if self.parent is None:
            found.update(name for name in read_in_training(self.model.proto) if name in self.producers)
        return frozenset(found)

    def override_of(self, name: str) -> tuple[str, str]:
        """Who may give an overridable initializer another value, and what would put an end to that."""
        if name in self.input_set:
            return "is a graph input with a default value, which a caller may override", "graph's inputs"
        return "is updated by a training step of the model", "bindings of training_info"

    @lazy
    def static(self) -> Mapping[str, Constant]:
        """What is no constant, but follows from fixed sizes: of that what pads are computed from."""
        return static_values(self)

    def constant(self, name: str) -> Constant | None:
        """The constant of this name, here or in an outer graph; None where the value is known only at run time."""
        found = self.stored(name)
        if found is not None or not self.model.main.static:
            return found
        owner = self.owner(name)
        return None if owner is None else owner.static.get(name)

    def stored(self, name: str) -> Constant | None:
        """The constant of this name that follows from the values of initializers alone."""
        if name not in self._constants:
            owner = self.owner(name)
            if owner is None:
                found = None
            elif owner is not self:
                found = owner.stored(name)
            else:
                found = self._find_constant(name)
            self._constants[name] = found
        return self._constants[name]

    def _find_constant(self, name: str) -> Constant | None:
        # An explicit stack: constants may be computed by chains of any length.
        stack, depth = [name], 0
        while stack:
            current = stack[-1]
            if current in self._constants:
                stack.pop()
                continue
            node = self.producers.get(current)
            if node is None:
                tensor = self.initializers.get(current)
                if tensor is not None and current in self.model.pending:
                    self._constants[current] = self.model.pending[current]
                elif tensor is not None and current not in self.overridable:
                    self._constants[current] = from_initializer(tensor, self.model.source.base_dir)
                else:
                    self._constants[current] = None
                stack.pop()
                continue
            own = [name for name in _needed(node) if name in self.producers and name not in self._constants]
            if own and depth < len(self.nodes) + 1:
                depth += 1
                stack.extend(own)
                continue
            self._evaluate(node)
            self._constants.setdefault(current, None)
            stack.pop()
        return self._constants[name]

    def _evaluate(self, node: Node) -> None:
        names = _needed(node)
        inputs = [self._constants.get(name) if name in self.producers else self.stored(name) for name in names]
        if not names and node.proto.op_type != "Constant":
            return
        like = self.type(node.input(1)) if node.proto.op_type == "CastLike" else 0
        base_dir, room = self.model.source.base_dir, self.model.room
        for found in evaluate(node.proto, node.version, inputs, like, base_dir, room) or ():
            self._constants[found.name] = found

    def shape(self, name: str) -> Shape | None:
        """Static shape as far as it is known; None where not even the rank is."""
        found = self._shapes.get(name)
        if found is not None and self.model.inferred:
            return found
        self.model.infer()
        graph: Graph | None = self
        while graph is not None:
            if name in graph._shapes:
                return graph._shapes[name]
            graph = graph.parent
        return None

    def rank(self, name: str) -> int | None:
        """Rank of a value, None where it is unknown."""
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def type(self, name: str) -> int:
        """ONNX element type of a value, 0 where it is unknown."""
        self.model.infer()
        graph: Graph | None = self
        while graph is not None:
            if name in graph._types:
                return graph._types[name]
            graph = graph.parent
        return 0


class _Labels:
    """Gives every node of the model a label of its own."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def unique(self, node: onnx.NodeProto) -> str:
        first = next((name for name in node.output if name), "")
        base = node.name or first or node.op_type
        label = base
        if label in self._taken and first:
            label = base = f"{base}:{first}"
        while label in self._taken:
            self._last[base] = self._last.get(base, 1) + 1
            label = f"{base}:{self._last[base]}"
        self._taken.add(label)
        return label


class Model:
    """A whole model: every graph in it, main graph first."""

    def __init__(
        self,
        source: Source,
        pending: Mapping[str, Constant] = MappingProxyType({}),
        labels: Mapping[str, Sequence[str]] = MappingProxyType({}),
        *,
        direct: bool = False,
    ) -> None:
        """Read it.

        Args:
            source: the file.
            pending: initializers, by name, whose values are not in the proto yet.
            labels: of the nodes, by path of their graph, where they have some already.
            direct: go from node to node without onnx-graphsurgeon.
        """
        self.direct = direct
        self.source = source
        self.pending = pending
        self.given_labels = labels
        self.proto = source.proto
        self.labels = _Labels()
        self.opset = next((e.version for e in self.proto.opset_import if e.domain in ("", "ai.onnx")), 1)
        self.graphs: list[Graph] = []
        self.inferred = False
        self.room = Room()
        self.narrow = 0
        """A smaller float type that float32 constants and tensors will be stored in once all is folded; 0 for none."""
        stack: list[tuple[onnx.GraphProto, str, Graph | None, tuple[Step, ...]]] = [(self.proto.graph, "", None, ())]
        while stack:
            proto, path, parent, trail = stack.pop()
            graph = Graph(self, proto, path, parent, trail)
            self.graphs.append(graph)
            check_names(graph)
            for node in reversed(graph.nodes):
                for (attribute, position), body in bodies(node.proto):
                    name = f"{node.proto.attribute[attribute].name}{'' if position < 0 else position}"
                    step = (node.index, attribute, position)
                    stack.append((body, f"{path}{node.label}/{name}/", graph, (*trail, step)))
        for graph in self.graphs:
            _capture(graph)
        check_acyclic(self)

    def infer(self) -> None:
        """Find out shapes and types, when they are asked for the first time."""
        if self.inferred:
            return
        self.inferred = True
        if not self._infer(skeleton.infer_value_info(self.proto)):
            return
        # Some exporters declare shapes of inner tensors that are not theirs: runtimes go by what the operators say.
        before = [(dict(graph.shapes), dict(graph.types)) for graph in self.graphs]
        if self._infer(skeleton.infer_value_info(self.proto, declared=False)):
            for graph, known in zip(self.graphs, before, strict=True):
                graph.learn(*known)

    def _infer(self, main: onnx.GraphProto) -> bool:
        """Take over shapes and types from the main graph after inference; whether operators contradict these."""
        shaped = {self.main: main}
        contradicted = False
        inner: dict[Graph, dict[tuple[str, ...], dict[tuple[int, int], onnx.GraphProto]]] = {}
        for graph in self.graphs:
            if graph.parent is not None:
                index, *place = graph.trail[-1]
                around = inner[graph.parent].get(graph.parent.nodes[index].outputs, {})
                shaped[graph] = around.get((place[0], place[1]), graph.proto)
            if len(self.graphs) > 1:
                inner[graph] = {
                    tuple(node.output): dict(found) for node in shaped[graph].node if (found := bodies(node))
                }
            contradicted |= _declare(graph, shaped[graph])
        return contradicted

    @property
    def main(self) -> Graph:
        """The main graph."""
        return self.graphs[0]

    def nodes(self) -> Iterator[Node]:
        """Every node of every graph."""
        for graph in self.graphs:
            yield from graph.nodes


def _slots(node: Node) -> dict[str, list[int]]:
    """Where a node reads each of its inputs."""
    found: dict[str, list[int]] = {}
    for slot, name in enumerate(node.inputs):
        found.setdefault(name, []).append(slot)
    return found


def _needed(node: Node) -> tuple[str, ...]:
    """The inputs whose values an evaluation would read; none where the operator is not evaluated."""
    if node.proto.op_type not in EVALUATED or node.proto.domain not in ("", "ai.onnx"):
        return ()
    given = len(node.inputs)
    while given and not node.inputs[given - 1]:
        given -= 1
    return node.inputs[: 1 if node.proto.op_type == "CastLike" else given]


def _declare(graph: Graph, shaped: onnx.GraphProto) -> bool:
    """Take over what shape inference found, and complete it; whether that contradicts what operators tell."""
    graph.learn({}, {})
    for value in [*shaped.value_info, *shaped.input, *shaped.output]:
        tensor = value.type.tensor_type
        if tensor.elem_type:
            graph.types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            graph.shapes[value.name] = shapes.shape_of(value.type)
    for name, tensor in graph.initializers.items():
        graph.types[name] = tensor.data_type
        graph.shapes[name] = tuple(tensor.dims)
    return shapes.complete(graph)


def _capture(graph: Graph) -> None:
    """Tell the outer graphs which of their values this body reads or returns."""
    if graph.parent is None:
        return
    names = [name for node in graph.nodes for name in node.inputs if name]
    for name in [*names, *graph.outputs]:
        if name in graph.producers or name in graph.initializers or name in graph.input_set:
            continue
        owner = graph.parent.owner(name)
        if owner is not None:
            owner.captured.add(name)
