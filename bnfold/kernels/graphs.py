"""A graph made ready to run: nodes in order, attributes read, and when each tensor can be forgotten."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnfold.errors import ModelError
from bnfold.kernels.base import to_float64


@dataclass(frozen=True)
class Schema:
    """What ONNX says about an operator at an opset: its own version, attribute defaults, and its body if it has one."""

    version: int
    defaults: Mapping[str, Any]
    body: onnx.FunctionProto | None


@functools.cache
def schema_of(op: str, domain: str, opset: int) -> Schema | None:
    """The operator's schema, or None for one that ONNX does not define."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    defaults = {
        name: attribute_value(entry.default_value)
        for name, entry in schema.attributes.items()
        if entry.default_value.type != onnx.AttributeProto.UNDEFINED
    }
    has_body = schema.has_function  # type: ignore[attr-defined]
    return Schema(schema.since_version, defaults, schema.function_body if has_body else None)


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """An attribute as Python has it: text as str, float tensors as float64 arrays, graphs as they are."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        return to_float64(onnx.numpy_helper.to_array(value))
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode(errors="replace") for text in value]
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value


@dataclass(frozen=True)
class Step:
    """One node. `frees` are the tensors that nothing reads after it; `references` maps attributes to a function's."""

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    references: Mapping[str, str]
    reads: tuple[str, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A graph or a function body, in an order that can be run."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: Mapping[str, onnx.TensorProto | onnx.SparseTensorProto]
    steps: tuple[Step, ...]


def prepare(graph: onnx.GraphProto | onnx.FunctionProto, kept: Iterable[str] = ()) -> Prepared:
    """Order the nodes and find each tensor's last reader; `kept` and the outputs are never freed."""
    if isinstance(graph, onnx.FunctionProto):
        inputs, outputs = tuple(graph.input), tuple(graph.output)
        initializers: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {}
    else:
        inputs = tuple(value.name for value in graph.input)
        outputs = tuple(value.name for value in graph.output)
        initializers = {tensor.name: tensor for tensor in graph.initializer}
        initializers |= {sparse.values.name: sparse for sparse in graph.sparse_initializer}
    nodes = in_order(graph.node, {*inputs, *initializers})
    reads = [tuple(dict.fromkeys(_reads(node))) for node in nodes]
    last: dict[str, int] = {}
    for index, names in enumerate(reads):
        last.update(dict.fromkeys(names, index))
    for index, node in enumerate(nodes):
        for name in node.output:
            last.setdefault(name, index)
    staying = {*outputs, *kept, ""}
    frees: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        if name not in staying:
            frees[index].append(name)
    steps = tuple(
        Step(node, *_attributes(node), names, tuple(dead))
        for node, names, dead in zip(nodes, reads, frees, strict=True)
    )
    return Prepared(inputs, outputs, initializers, steps)


def _attributes(node: onnx.NodeProto) -> tuple[dict[str, Any], dict[str, str]]:
    values, references = {}, {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            references[attribute.name] = attribute.ref_attr_name
        else:
            values[attribute.name] = attribute_value(attribute)
    return values, references


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The node's inputs and everything its subgraphs capture."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from captured(graph)


def captured(graph: onnx.GraphProto) -> set[str]:
    """The names that a subgraph takes from around it."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {name for node in graph.node for name in node.output}
    wanted = {name for node in graph.node for name in _reads(node)} | {value.name for value in graph.output}
    return wanted - made


def in_order(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes so that each comes after its producers; an order that is right already stays.

    Raises `ModelError` for a cycle.
    """
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waits = [{producer[name] for name in _reads(node) if name in producer and name not in known} for node in nodes]
    if all(max(before, default=-1) < index for index, before in enumerate(waits)):
        return list(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for index, before in enumerate(waits):
        for earlier in before:
            readers[earlier].append(index)
    ready = [index for index, before in enumerate(waits) if not before]
    ordered = []
    while ready:
        index = ready.pop()
        ordered.append(nodes[index])
        for reader in readers[index]:
            waits[reader].discard(index)
            if not waits[reader]:
                ready.append(reader)
    if len(ordered) != len(nodes):
        raise ModelError("the model's nodes form a cycle; export it again")
    return ordered


def constant_value(attributes: Mapping[str, Any]) -> Any:
    """The value of a Constant node, of every kind (opset 1 to the newest)."""
    if "value" in attributes:
        return attributes["value"]
    if "value_float" in attributes:
        return np.array(attributes["value_float"], np.float64)
    if "value_floats" in attributes:
        return np.array(attributes["value_floats"], np.float64)
    if "value_int" in attributes:
        return np.array(attributes["value_int"], np.int64)
    if "value_ints" in attributes:
        return np.array(attributes["value_ints"], np.int64)
    if "sparse_value" in attributes:
        return dense(attributes["sparse_value"])
    text = attributes.get("value_string", attributes.get("value_strings"))
    return np.array(text, dtype=object)


def dense(sparse: onnx.SparseTensorProto) -> Any:
    """A sparse tensor written out in full."""
    values = to_float64(onnx.numpy_helper.to_array(sparse.values))
    places = onnx.numpy_helper.to_array(sparse.indices)
    full = np.zeros(tuple(sparse.dims), values.dtype)
    if places.ndim == 1:
        full.ravel()[places] = values
    else:
        full[tuple(places.T)] = values
    return full
