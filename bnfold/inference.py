"""ONNX's own shape inference, kept from what it never comes back from.

It follows the numbers that shapes are computed of, and for that lays out every vector that it meets, number by number,
whatever its type: a Cast of 2^31 numbers takes a hundred gigabytes. And an Expand by a vector of 2^31 numbers makes a
shape of as many sizes. So a first pass follows no numbers; where there are any that nodes compute, a next one follows
those in vectors that are known to be short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import onnx
from onnx import TensorProto, TypeProto, ValueInfoProto

from bnfold.axes import OPAQUE, limit_types, opaque
from bnfold.protos import every_graph, every_node, inner_graphs

SHORT = 128
"""Numbers of a vector that may be those of a shape."""

PASSES = 4
"""Passes that follow numbers: each knows more vectors to be short."""

_WHOLE = frozenset({TensorProto.INT32, TensorProto.INT64})

_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "DeformConv": 1, "QLinearConv": 3}
"""Convolutions, and which input is the kernel."""

Hazard = Callable[[onnx.NodeProto, Mapping[str, bool]], bool]
"""Whether a node may not be shown to inference, where it is known which tensors are short."""


def inferred(bare: onnx.ModelProto) -> onnx.GraphProto:
    """The graph of a model without weights, with the shapes and types that are found; some nodes may be opaque in it.

    Where inference gives up, what was declared. `bare` is changed: see `_prepare`.
    """
    _prepare(bare)
    model = _infer(_without_expands(bare), data_prop=False)
    if model is None:
        return bare.graph
    hazard = _propagates(bare)
    hidden: set[str] | None = None
    for _ in range(PASSES if _computes_numbers(model.graph) else 0):
        before, hidden = hidden, set()
        guarded = _guarded(bare, hazard, model, hidden)
        if hidden == before or (found := _infer(guarded, data_prop=True)) is None:
            break
        model = found
    return model.graph


def checked(bare: onnx.ModelProto) -> onnx.GraphProto:
    """The same for a model that must be right in every point, without following numbers. `bare` is changed too.

    Raises:
        Exception: what ONNX has against it.
    """
    _prepare(bare)
    model = _without_expands(bare)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph


def with_kernel(node: onnx.NodeProto, shape: Callable[[str], Sequence[object] | None]) -> onnx.NodeProto:
    """The node; of a convolution that leaves the sizes of its kernel to its weights, a copy that says them.

    ONNX before 1.22 takes them from the weights, and ends the process where these have more axes than what they are
    applied to.
    """
    slot = _WEIGHTS.get(node.op_type)
    if slot is None or slot >= len(node.input) or any(attribute.name == "kernel_shape" for attribute in node.attribute):
        return node
    sizes = list(shape(node.input[slot]) or ())[2:]
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        return node
    found = onnx.NodeProto()
    found.CopyFrom(node)
    found.attribute.append(onnx.helper.make_attribute("kernel_shape", sizes))
    return found


def _prepare(bare: onnx.ModelProto) -> None:
    """Give a model the limits of `bnfold.axes`, and its convolutions the sizes of their kernels."""
    limit_types(bare)
    dims: dict[str, list[int]] = {}
    for graph in every_graph(bare.graph):  # the main graph first
        for value in (*graph.value_info, *graph.input):
            dims[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dims |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        for node in graph.node:
            if (found := with_kernel(node, dims.get)) is not node:
                node.CopyFrom(found)


def _without_expands(bare: onnx.ModelProto) -> onnx.ModelProto:
    """The model without Expand by numbers that are not declared to be few."""
    nodes = (node for part in (bare.graph, *bare.functions) for node in every_node(part.node))
    if not any(node.op_type == "Expand" for node in nodes):
        return bare
    return _guarded(bare, lambda node, short: node.op_type == "Expand" and not _reads_only(node, short), bare, set())


def _infer(model: onnx.ModelProto, data_prop: bool) -> onnx.ModelProto | None:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=data_prop)
    except Exception:  # noqa: BLE001 - whatever C++ code chokes on
        return None


def _computes_numbers(graph: onnx.GraphProto) -> bool:
    """Whether there is a vector or a scalar of whole numbers that no constant, but a node makes."""
    for each in every_graph(graph):
        made = {name for node in each.node if node.op_type != "Constant" for name in node.output}
        for value in (*each.value_info, *each.output):
            tensor = value.type.tensor_type
            if tensor.elem_type in _WHOLE and len(tensor.shape.dim) < 2 and value.name in made:
                return True
    return False


def _propagates(model: onnx.ModelProto) -> Hazard:
    """Tells the nodes at which inference may lay out long vectors: functions are looked into with all that is known."""
    local = {(function.domain, function.name) for function in model.functions}

    def hazard(node: onnx.NodeProto, short: Mapping[str, bool]) -> bool:
        called = (node.domain, node.op_type) in local
        return called or (_lays_out(node.op_type, node.domain) and not _reads_only(node, short))

    return hazard


def _reads_only(node: onnx.NodeProto, short: Mapping[str, bool]) -> bool:
    return all(short.get(name) for name in node.input if name)


@cache
def _lays_out(op_type: str, domain: str) -> bool:
    if op_type == "Expand":
        return True
    try:
        schema = onnx.defs.get_schema(op_type, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return False
    followed = op_type != "Shape" and schema.has_data_propagation_function
    return followed or not schema.has_type_and_shape_inference_function  # then it looks into the body of its function


def _guarded(bare: onnx.ModelProto, hazard: Hazard, known: onnx.ModelProto, found: set[str]) -> onnx.ModelProto:
    """A copy whose hazardous nodes are opaque. What is `known` of their outputs stays; the names of these are `found`.

    Functions are left out where something has been found out already, for then their calls are opaque.
    """
    vectors = _Vectors(bare, known)
    made = onnx.ModelProto()
    made.CopyFrom(bare)
    if not any(entry.domain == OPAQUE for entry in made.opset_import):
        made.opset_import.add(domain=OPAQUE, version=1)
    if known is not bare:
        del made.functions[:]
    for function in made.functions:
        parts = [function, *inner_graphs(function.node)]
        short: dict[str, bool] = {}
        for part in parts:
            _add_constants(short, part.node)
        if [name for part in parts for name in _made_opaque(part.node, hazard, short)]:
            function.opset_import.add(domain=OPAQUE, version=1)
    for graph in every_graph(made.graph):
        listed = {value.name: value for value in (*graph.value_info, *graph.output)}
        for name in _made_opaque(graph.node, hazard, vectors.short):
            found.add(name)
            type_ = vectors.types.get(name)
            if type_ is not None:
                value = listed.get(name) or graph.value_info.add(name=name)
                value.type.CopyFrom(type_)
    return made


def _made_opaque(nodes: Iterable[onnx.NodeProto], hazard: Hazard, short: Mapping[str, bool]) -> list[str]:
    """The outputs of those that are opaque from now on."""
    names: list[str] = []
    for node in nodes:
        if hazard(node, short):
            names += [name for name in node.output if name]
            node.CopyFrom(opaque(node))
    return names


class _Vectors:
    """Which tensors of a model are known to be short, or to be no vectors; and the types that have been inferred.

    None for the type of what different scopes have of one name.
    """

    def __init__(self, bare: onnx.ModelProto, known: onnx.ModelProto) -> None:
        self.short: dict[str, bool] = {}
        self.types: dict[str, TypeProto | None] = {}
        self._free = {dim.dim_param for value in bare.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
        self._claimed = {v.name for graph in every_graph(bare.graph) for v in (*graph.value_info, *graph.output)}
        for graph in every_graph(known.graph):
            for value in (*graph.value_info, *graph.input, *graph.output):
                _add(self.short, value.name, self._is_short(value))
                if self.types.setdefault(value.name, value.type) != value.type:
                    self.types[value.name] = None
            for tensor in graph.initializer:
                _add(self.short, tensor.name, len(tensor.dims) != 1 or 0 <= tensor.dims[0] <= SHORT)
            _add_constants(self.short, graph.node)

    def _is_short(self, value: ValueInfoProto) -> bool:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            return False
        if len(tensor.shape.dim) != 1:
            return True
        (dim,) = tensor.shape.dim
        if dim.HasField("dim_value"):
            return bool(0 <= dim.dim_value <= SHORT)
        return str(dim.dim_param) in self._free and value.name not in self._claimed  # nobody will ever find out


def _add_constants(short: dict[str, bool], nodes: Iterable[onnx.NodeProto]) -> None:
    """Of Constant nodes, whose types need not have been inferred."""
    for node in nodes:
        if node.op_type == "Constant" and node.output:
            lists = max((len(a.ints) + len(a.floats) + len(a.strings) for a in node.attribute), default=0)
            dims = next((a.t.dims for a in node.attribute if a.HasField("t")), [lists])
            _add(short, node.output[0], len(dims) != 1 or 0 <= dims[0] <= SHORT)


def _add(short: dict[str, bool], name: str, is_short: bool) -> None:
    short[name] = short.get(name, True) and is_short  # bodies may use a name again
