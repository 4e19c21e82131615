"""What ONNX Runtime's converter gets to see of a graph, and what is read from its answer.

Weights do not come along: tensors and nodes have short names of their own, initializers are empty, a node that stays in
float32 has no attributes, and what its bodies capture are inputs of it. From the answer only types are taken: of every
input and every output of every node, of attributes. Which casts that takes is worked out by `convert`, because the
converter casts there and back where two nodes that stay in float32 meet, and puts all casts behind the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, TensorProto, helper

from bnfold.graph import Node
from bnfold.precision.kept import FLOAT, Choice
from bnfold.runtime.half import to_half

HALF = int(TensorProto.FLOAT16)


@dataclass
class Answer:
    """What the converter would have in the smaller type."""

    reads: dict[tuple[int, str], bool] = field(default_factory=dict)
    """By node and tensor that it reads: whether in the smaller type."""
    makes: dict[str, bool] = field(default_factory=dict)
    """By tensor that a node makes."""
    attributes: dict[int, set[str]] = field(default_factory=dict)
    """By node: the attributes whose type changes."""


def ask(choice: Choice) -> Answer:
    """Let the converter decide."""
    graph = choice.graph
    floats = [name for name in dict.fromkeys(_names(choice)) if choice.is_float(name)]
    short = {name: f"t{i}" for i, name in enumerate(floats)}
    listed = set(graph.initializers) if graph.model.proto.ir_version < 4 else set()
    ends = [name for name in (*graph.inputs, *graph.outputs) if name in short and name not in listed]
    bare = onnx.GraphProto(name="graph")
    for name in graph.inputs:
        if name in short and name not in listed:
            bare.input.append(helper.make_tensor_value_info(short[name], FLOAT, None))
    for name in graph.outputs:
        if name in short and name in graph.producers:
            bare.output.append(helper.make_tensor_value_info(short[name], FLOAT, None))
    for name in floats:
        if name in graph.producers and name not in graph.output_set:
            bare.value_info.append(helper.make_tensor_value_info(short[name], FLOAT, None))
        elif name in graph.initializers:
            bare.initializer.append(TensorProto(name=short[name], data_type=FLOAT, dims=[0]))
    bare.node.extend(_bare(choice, node, short) for node in graph.nodes)
    model = onnx.ModelProto(graph=bare, ir_version=8)
    model.opset_import.add(domain="", version=graph.model.opset)
    made = to_half(model, [f"n{index}" for index in sorted(choice.kept)], [short[name] for name in ends])
    return _understood(choice, made, short)


def _names(choice: Choice) -> Iterator[str]:
    graph = choice.graph
    yield from (*graph.inputs, *graph.initializers, *graph.outputs)
    for node in graph.nodes:
        yield from choice.reads(node)
        yield from (name for name in node.outputs if name)


def _bare(choice: Choice, node: Node, short: dict[str, str]) -> onnx.NodeProto:
    kept = node.index in choice.kept
    # An operator of another domain could share its name with one that the converter treats in a way of its own.
    op = "Kept" if kept else node.proto.op_type
    bare = onnx.NodeProto(op_type=op, name=f"n{node.index}")
    bare.input.extend(short.get(name, "") for name in (choice.reads(node) if kept else node.inputs))
    bare.output.extend(short.get(name, "") for name in node.outputs)
    for attribute in node.proto.attribute if not kept else ():
        if attribute.type == AttributeProto.TENSOR:
            empty = TensorProto(data_type=attribute.t.data_type, dims=[0])
            bare.attribute.add(name=attribute.name, type=attribute.type, t=empty)
        elif attribute.type == AttributeProto.INT:
            bare.attribute.add(name=attribute.name, type=attribute.type, i=attribute.i)
    return bare


def _understood(choice: Choice, made: onnx.ModelProto, short: dict[str, str]) -> Answer:
    """The types in the converter's graph: a tensor's own, and those of the casts of it."""
    smaller: dict[str, bool] = {tensor.name: tensor.data_type == HALF for tensor in made.graph.initializer}
    nodes = {node.name: node for node in made.graph.node}
    own = {f"n{node.index}" for node in choice.graph.nodes}
    for node in made.graph.node:
        casts = next((a.i == HALF for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None
        if node.name not in own:
            smaller |= {name: bool(casts) for name in node.output}
    answer = Answer()
    for node in choice.graph.nodes:
        found, kept = nodes[f"n{node.index}"], node.index in choice.kept
        for name, new in zip(node.outputs, found.output, strict=True):
            if name in short:
                smaller[new] = answer.makes[name] = not kept
    for node in choice.graph.nodes:
        found, kept = nodes[f"n{node.index}"], node.index in choice.kept
        for name, new in zip(choice.reads(node) if kept else node.inputs, found.input, strict=True):
            if name in short:
                answer.reads[node.index, name] = smaller.get(new, False)
        answer.attributes[node.index] = set() if kept else _changed(node, found)
    return answer


def _changed(node: Node, found: onnx.NodeProto) -> set[str]:
    return {
        new.name
        for new in found.attribute
        for old in (node.attributes.get(new.name),)
        if old is not None
        and (
            (new.type == AttributeProto.INT and old.i == FLOAT and new.i == HALF)
            or (new.type == AttributeProto.TENSOR and old.t.data_type == FLOAT and new.t.data_type == HALF)
        )
    }
