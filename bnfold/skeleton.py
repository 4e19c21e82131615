"""Skeletons: the model without its weights, for onnx-graphsurgeon to navigate and for ONNX to infer shapes on.

Both are cheap however large the model is, and neither is ever written back.
"""

from __future__ import annotations

from functools import cache

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, ValueInfoProto

from bnfold.axes import OPAQUE, opaque
from bnfold.calls import Functions
from bnfold.inference import inferred
from bnfold.malformed import has_odd_equation
from bnfold.protos import every_graph, every_node
from bnfold.source import is_external, nbytes_or_none

MOST_AXIS = 1 << 16
"""Axes beyond this one are cut off to 32 bits, and looked up."""

SMALL = 4096
"""Constants up to this many bytes stay in the skeleton: shapes, axes, scales and the like steer shape inference."""


def topology(graph: onnx.GraphProto) -> gs.Graph:
    """One graph as a graphsurgeon graph: nodes in order with what they read and write, and nothing else.

    Inputs, and names captured from outer graphs, appear as tensors that nothing produces; initializers do not appear.
    """
    bare = onnx.GraphProto(name="graph")
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        bare.node.add(input=[name for name in node.input if name not in constants], output=node.output)
    model = onnx.ModelProto(graph=bare, ir_version=8)
    model.opset_import.add(domain="", version=17)
    return gs.import_onnx(model)


_WINDOWS = ("HannWindow", "HammingWindow", "BlackmanWindow")
"""What ONNX's inference works out value by value, however long it is."""


def infer_value_info(model: onnx.ModelProto, declared: bool = True) -> onnx.GraphProto:
    """The model's graph after shape inference, without weights; as declared where inference gives up.

    Args:
        model: the model.
        declared: whether what it declares of inner tensors counts. Of what others' operators make it always does.
    """
    bare = without_weights(model)
    for graph in () if declared else every_graph(bare.graph):
        foreign = {name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
        kept = [value for value in graph.value_info if value.name in foreign]
        del graph.value_info[:]
        graph.value_info.extend(kept)
    for entry in bare.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, 6)  # before opset 6 few operators have shape inference
    for value in bare.graph.input:
        _name_sizes(value)
    return inferred(bare)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with small constants only, on which ONNX's own code neither takes long nor ends the process."""
    bare = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    bare.opset_import.extend(model.opset_import)
    bare.opset_import.add(domain=OPAQUE, version=1)
    if safe_functions(model):
        bare.functions.extend(model.functions)
    bare.graph.CopyFrom(_without_weights(model.graph))
    return bare


def _without_weights(graph: onnx.GraphProto) -> onnx.GraphProto:
    bare = onnx.GraphProto(name="graph")
    bare.value_info.extend(graph.value_info)
    bare.output.extend(graph.output)
    listed = set()
    large = {tensor.name for tensor in graph.initializer if not _is_small(tensor)}
    for value in graph.input:
        listed.add(value.name)
        bare.input.append(value)
    for tensor in graph.initializer:
        if tensor.name not in large:
            bare.initializer.append(tensor)
        elif tensor.name not in listed:
            bare.input.append(_declared(tensor, tensor.name))
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is not None and not _is_small(value) and node.output:
            bare.input.append(_declared(value, node.output[0]))
        elif aborts(node):
            bare.node.append(opaque(node))
        elif any(a.type == AttributeProto.GRAPH for a in node.attribute):
            bare.node.append(_without_inner_weights(node))
        elif node.op_type == "Reshape" and len(node.input) == 1:
            bare.node.append(_reshape_by_input(node, bare))
        else:
            bare.node.append(node)
    return bare


def safe_functions(model: onnx.ModelProto) -> bool:
    """Whether ONNX's inference comes to an end on the model's functions."""
    nodes = (node for function in model.functions for node in every_node(function.node))
    return not Functions(model).too_large and not any(aborts(node) for node in nodes)


def aborts(node: onnx.NodeProto) -> bool:
    """Whether ONNX's inference (1.19 to 1.23) ends the process on a node, or never ends; found by random models."""
    return node.op_type in _WINDOWS or breaks_a_rule(node)


def breaks_a_rule(node: onnx.NodeProto) -> bool:
    """Whether it `aborts` for something that its operator does not allow."""
    if has_odd_equation(node) or _leaves_out(node):
        return True
    for attribute in node.attribute:
        if attribute.name == "strides" and 0 in attribute.ints:
            return True
        if attribute.name == "axis" and abs(attribute.i) > MOST_AXIS:
            return True
        if (node.op_type, attribute.name) == ("GatherND", "batch_dims") and attribute.i < 0:
            return True
        if (node.op_type, attribute.name) == ("Split", "num_outputs") and attribute.i < len(node.output):
            return True
    return False


def _leaves_out(node: onnx.NodeProto) -> bool:
    """Whether an input is left out that no version lets go: inference looks at the type of some all the same."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if len(node.input) >= _fewest(node.op_type, domain) and all(node.input):
        return False
    versions = _history().get((node.op_type, domain), [])
    return all(_lacks(node, schema) for schema in versions) and bool(versions)


def _lacks(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> bool:
    """Whether an input that this version needs is not there."""
    if len(node.input) < schema.min_input:
        return True
    optional = [given.option == onnx.defs.OpSchema.FormalParameterOption.Optional for given in schema.inputs]
    return not all(name or slot >= len(optional) or optional[slot] for slot, name in enumerate(node.input))


@cache
def _fewest(op_type: str, domain: str) -> int:
    """Inputs that the newest version of an operator has at least; 0 where onnx does not know it."""
    try:
        return int(onnx.defs.get_schema(op_type, domain).min_input)
    except onnx.defs.SchemaError:
        return 0


@cache
def _history() -> dict[tuple[str, str], list[onnx.defs.OpSchema]]:
    """All versions of all operators."""
    found: dict[tuple[str, str], list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        found.setdefault((schema.name, schema.domain), []).append(schema)
    return found


def _name_sizes(value: ValueInfoProto) -> None:
    """Give the free sizes of an input names, so that they are known to be the same wherever they come along.

    Not in bodies: what inference carries out of a body could meet the same name from another one.
    """
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if not dim.dim_param and (not dim.HasField("dim_value") or dim.dim_value < 0):
            dim.dim_param = f"{value.name}:{axis}"


def _reshape_by_input(node: onnx.NodeProto, graph: onnx.GraphProto) -> onnx.NodeProto:
    """A Reshape of opset 1 as one of opset 5, whose shape is an input."""
    dims = next((list(a.ints) for a in node.attribute if a.name == "shape"), [])
    name = f"{node.output[0]}.shape"
    graph.initializer.append(onnx.helper.make_tensor(name, TensorProto.INT64, [len(dims)], dims))
    return onnx.NodeProto(op_type="Reshape", name=node.name, input=[node.input[0], name], output=node.output)


def _without_inner_weights(node: onnx.NodeProto) -> onnx.NodeProto:
    bare = onnx.NodeProto(op_type=node.op_type, name=node.name, domain=node.domain)
    bare.input.extend(node.input)
    bare.output.extend(node.output)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            bare.attribute.add(name=attribute.name, type=attribute.type, g=_body_without_weights(attribute.g))
        else:
            bare.attribute.append(attribute)
    return bare


def _body_without_weights(body: onnx.GraphProto) -> onnx.GraphProto:
    # A body's inputs are positional, so its large initializers cannot become inputs: they keep their dims only.
    bare = _without_weights(body)
    del bare.input[len(body.input) :]
    return bare


def _is_small(tensor: TensorProto) -> bool:
    if is_external(tensor):
        return False
    size = nbytes_or_none(tensor)
    return (tensor.ByteSize() if size is None else size) <= SMALL


def _declared(tensor: TensorProto, name: str) -> ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
