"""The folded model in a smaller float type: what the converter decided, put into the model that the plan makes.

Names, documentation, metadata, order and every field that a type does not concern stay as they are. A tensor is cast
once for each type that its readers want, right behind the node that makes it; a graph's inputs and outputs keep names
and types. Constants are not touched here: they are given the new type, and whoever writes them rounds them once, from
float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from bnfold.constants import Constant
from bnfold.graph import Graph, Model, Node
from bnfold.kernels.graphs import captured
from bnfold.patch import Patched, rename_within, tensors
from bnfold.plan import NewConstant
from bnfold.precision.kept import FLOAT, Choice, warnings
from bnfold.precision.skeleton import Answer, ask
from bnfold.precision.types import NAMES
from bnfold.precision.wishes import Kept, Wanted
from bnfold.protos import Names, bodies
from bnfold.source import Source, array_of, is_beside
from bnfold.witness import Narrowed
from bnfold.write import rounded


@dataclass
class Converted:
    """The model in the smaller type, and what is still to be written into it."""

    patched: Patched
    witness: Narrowed
    kept: tuple[Kept, ...] = ()
    nodes: int = 0
    """Nodes that compute in the smaller type."""
    casts: int = 0
    warnings: tuple[str, ...] = ()


def model_of(patched: Patched, source: Source) -> Model:
    """What a plan made, to be looked at: its constants are those that nobody rounded."""
    pending = {
        tensor.name: Constant(tensor.name, edit.type, edit.shape, edit.value, tensor, edit.rows)
        for tensor, edit in patched.pending
    }
    return Model(replace(source, proto=patched.proto, raw=None), pending)


def converted(patched: Patched, source: Source, wanted: Wanted) -> Converted:
    """Convert what a plan made of a model. `patched` is not changed.

    Raises:
        ProviderError: onnxruntime is not installed, whose converter it takes.
    """
    model = model_of(patched, source)
    choice = Choice(model.main, wanted)
    answer = ask(choice)
    result = Patched(onnx.ModelProto(), [], patched.origin)
    result.proto.CopyFrom(patched.proto)
    copies = dict(zip(map(id, tensors(patched.proto)), tensors(result.proto), strict=True))
    result.pending = [(copies[id(tensor)], edit) for tensor, edit in patched.pending]
    made = _Conversion(choice, answer, result)
    made.run()
    graph = model.main
    return Converted(
        result,
        Narrowed(wanted.type, made.carries),
        choice.reasons,
        sum(node.index not in choice.kept and choice.has_floats(node) for node in graph.nodes),
        made.casts,
        warnings(choice),
    )


@dataclass
class _Conversion:
    choice: Choice
    answer: Answer
    result: Patched
    carries: dict[str, str] = field(default_factory=dict)
    """New tensors, by name: the tensor whose values they are."""
    casts: int = 0
    places: list[int] = field(default_factory=list)
    """Where each node stands among the casts."""

    def __post_init__(self) -> None:
        self.graph: Graph = self.choice.graph
        self.proto = self.result.proto.graph
        self.type = self.choice.wanted.type
        self.names = Names(self.result.proto)
        self.suffix = NAMES[self.type]
        self.small = {name: self._is_small(name) for name in self._floats()}
        """By float32 tensor: whether it is made in the smaller type."""
        self.wanted: dict[str, set[bool]] = {}
        """By tensor: the types that its readers want, smaller or not."""

    def run(self) -> None:
        """Nodes, then casts between them, then what is declared of tensors, and initializers."""
        self._collect()
        homes, copies = self._name()
        nodes = [self._cast(name, homes, copies) for name in self.graph.inputs if name in copies]
        for node in self.graph.nodes:
            proto = onnx.NodeProto()
            proto.CopyFrom(self.proto.node[node.index])
            self._retype(node, proto)
            self._reconnect(node, proto, homes, copies)
            self.places.append(len(nodes))
            nodes += [proto, *(self._cast(name, homes, copies) for name in node.outputs if name in copies)]
        del self.proto.node[:]
        self.proto.node.extend(nodes)
        self._initializers()
        for value in self.proto.value_info:
            if self.small.get(value.name) and value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = self.type

    def _floats(self) -> list[str]:
        graph = self.graph
        given = [name for name in graph.inputs if name not in graph.initializers or name in graph.overridable]
        made = [name for node in graph.nodes for name in node.outputs]
        return [name for name in dict.fromkeys([*given, *made]) if self.choice.is_float(name)]

    def _is_small(self, name: str) -> bool:
        node = self.graph.producers.get(name)
        if node is None or not self.answer.makes.get(name):
            return False
        ports = self.choice.ports(node)
        return ports is not None and ports.output(node.outputs.index(name))

    def wants_small(self, node: Node, slot: int) -> bool:
        """Whether an input is read in the smaller type."""
        name = node.inputs[slot]
        return self.answer.reads.get((node.index, name), False) and not self.choice.stays(node, slot)

    def _collect(self) -> None:
        for node in self.graph.nodes:
            for slot, name in enumerate(node.inputs):
                if self.choice.is_float(name):
                    self.wanted.setdefault(name, set()).add(self.wants_small(node, slot))
            for _, body in bodies(node.proto):
                for name in captured(body):
                    if self.choice.is_float(name):
                        self.wanted.setdefault(name, set()).add(False)
        for name in self.graph.outputs:
            if self.choice.is_float(name):
                self.wanted.setdefault(name, set()).add(False)
        for entry in self.proto.quantization_annotation:
            if self.choice.is_float(entry.tensor_name):
                self.wanted.setdefault(entry.tensor_name, set()).add(False)

    def _name(self) -> tuple[dict[str, str], dict[str, str]]:
        """The name that each tensor is made under, and the name of its cast where one is needed."""
        homes, copies = {}, {}
        for name, small in self.small.items():
            homes[name] = name
            if (not small) not in self.wanted.get(name, set()):
                continue
            if small and name in self.graph.output_set:
                homes[name] = new = self.names.fresh(f"{name}.{self.suffix}")
                copies[name] = name
            else:
                copies[name] = new = self.names.fresh(f"{name}.{'fp32' if small else self.suffix}")
            self.carries[new] = name
        return homes, copies

    def _cast(self, name: str, homes: Mapping[str, str], copies: Mapping[str, str]) -> onnx.NodeProto:
        self.casts += 1
        to = FLOAT if self.small[name] else self.type
        label = self.names.fresh(f"{name}.cast_to_{'fp32' if self.small[name] else self.suffix}")
        spelled = to if self.graph.model.opset >= 6 else TensorProto.DataType.Name(to)
        return onnx.helper.make_node("Cast", [homes[name]], [copies[name]], name=label, to=spelled)

    def _reconnect(
        self, node: Node, proto: onnx.NodeProto, homes: Mapping[str, str], copies: Mapping[str, str]
    ) -> None:
        for slot, name in enumerate(node.inputs):
            if name in self.small:
                proto.input[slot] = homes[name] if self.wants_small(node, slot) == self.small[name] else copies[name]
        for slot, name in enumerate(node.outputs):
            proto.output[slot] = homes.get(name, name)
        for _, body in bodies(proto):
            new = {name: copies[name] for name in captured(body) if self.small.get(name) and copies[name] != name}
            for value in body.output:
                value.name = new.get(value.name, value.name)
            rename_within(body, new)

    def _retype(self, node: Node, proto: onnx.NodeProto) -> None:
        for attribute in proto.attribute:
            if attribute.name not in self.answer.attributes.get(node.index, ()):
                continue
            if attribute.type == onnx.AttributeProto.INT:
                attribute.i = self.type
            else:
                values = np.asarray(array_of(attribute.t, self.graph.model.source.base_dir), np.float64)
                held = numpy_helper.from_array(rounded(values, self.type), attribute.t.name)
                held.doc_string = attribute.t.doc_string
                attribute.t.CopyFrom(held)

    # --------------------------------------------------------------------------------------------------- initializers

    def _initializers(self) -> None:
        """In the smaller type where only such readers are left; in both where both are."""
        listed = {value.name: value for value in self.proto.input} if self.result.proto.ir_version < 4 else {}
        edits = {id(tensor): edit for tensor, edit in self.result.pending}
        every = list(self.proto.initializer)
        ordered: list[tuple[TensorProto, NewConstant | None]] = []
        for tensor in every:
            edit = edits.get(id(tensor))
            types = self.wanted.get(tensor.name, set())
            if True not in types or tensor.data_type != FLOAT or tensor.name in self.graph.overridable:
                ordered.append((tensor, edit))
                continue
            small, change = self._narrowed(tensor, edit)
            if types == {True}:
                if tensor.name in listed:
                    listed[tensor.name].type.tensor_type.elem_type = self.type
            else:
                small.name = self.names.fresh(f"{tensor.name}.{self.suffix}")
                self._read_instead(tensor.name, small.name)
                ordered.append((tensor, edit))
                if listed:
                    value = onnx.helper.make_tensor_value_info(small.name, self.type, list(small.dims))
                    self.proto.input.append(value)
            ordered.append((small, change))
        inner = [(tensor, edit) for tensor, edit in self.result.pending if id(tensor) not in {id(t) for t in every}]
        protos = [TensorProto.FromString(tensor.SerializeToString()) for tensor, _ in ordered]
        del self.proto.initializer[:]
        self.proto.initializer.extend(protos)
        own = zip(self.proto.initializer, ordered, strict=True)
        self.result.pending = inner + [(held, edit) for held, (_, edit) in own if edit is not None]

    def _narrowed(self, tensor: TensorProto, edit: NewConstant | None) -> tuple[TensorProto, NewConstant]:
        """The tensor without its data in the smaller type, and what it is to hold."""
        found = TensorProto(name=tensor.name, data_type=self.type, dims=tensor.dims, doc_string=tensor.doc_string)
        if hasattr(tensor, "metadata_props"):
            found.metadata_props.extend(tensor.metadata_props)
        if is_beside(tensor):
            found.data_location = TensorProto.EXTERNAL
            found.external_data.extend(tensor.external_data)
        if edit is not None:
            return found, replace(edit, type=self.type)
        base = self.graph.constant(tensor.name)
        assert base is not None
        return found, NewConstant(0, "", self.type, tuple(tensor.dims), base)

    def _read_instead(self, name: str, new: str) -> None:
        """Readers in the smaller type read the new initializer."""
        for node, place in zip(self.graph.nodes, self.places, strict=True):
            for slot, used in enumerate(node.inputs):
                if used == name and self.wants_small(node, slot):
                    self.proto.node[place].input[slot] = new
