"""What evaluating a model will take, from its shapes alone: multiply-adds and live bytes in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from bnfold.inference import inferred
from bnfold.kernels.graphs import prepare
from bnfold.protos import every_node
from bnfold.skeleton import aborts, safe_functions

# Values up to this many elements may be shapes, which shape inference needs to see.
_SMALL = 64


@dataclass(frozen=True)
class Cost:
    """What evaluating a model takes. `complete` is false where some shapes are unknown, and the truth is more."""

    macs: float
    live_bytes: float
    complete: bool


def multiply_adds(op: str, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> float:
    """The multiply-adds of the ops that dominate a model's cost; 0 for the others."""
    if op == "Conv":
        return float(math.prod(output) * math.prod(inputs[1][1:]))
    if op == "ConvTranspose":
        return float(math.prod(inputs[0]) * math.prod(inputs[1][1:]))
    if op in ("MatMul", "Gemm") and len(inputs[0]):
        return float(math.prod(output) * max(inputs[0][-1], 1))
    return 0.0


def estimate(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> Cost:
    """The cost of one run on inputs of these shapes (subgraphs and functions are not counted)."""
    known = _inferred(model, shapes)
    graph = prepare(model.graph)
    macs = live = peak = 0.0
    complete = True
    sizes: dict[str, float] = {}
    for step in graph.steps:
        ins = [known.get(name) for name in step.node.input]
        outs = [known.get(name) for name in step.node.output if name]
        complete = complete and all(shape is not None for shape in outs) and step.node.op_type not in ("Loop", "Scan")
        if outs and outs[0] is not None and all(shape is not None for shape in ins[:2]):
            macs += multiply_adds(step.node.op_type, [shape or () for shape in ins], outs[0])
        for name in step.node.output:
            sizes[name] = 8.0 * math.prod(known.get(name) or ())
            live += sizes[name]
        peak = max(peak, live)
        live -= sum(sizes.pop(name, 0.0) for name in step.frees)
    return Cost(macs, peak, complete)


def _inferred(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The static shapes that ONNX's own inference finds, on a copy of the model without its weights."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    skeleton.graph.node.extend(model.graph.node)
    skeleton.graph.output.extend(model.graph.output)
    known: dict[str, tuple[int, ...]] = {}
    for tensor in model.graph.initializer:
        known[tensor.name] = tuple(tensor.dims)
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            skeleton.graph.initializer.append(tensor)
        else:
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in model.graph.input:
        if value.name not in known:
            kind = value.type.tensor_type.elem_type
            shape = shapes.get(value.name)
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, shape))
    if any(aborts(node) for node in every_node(model.graph.node)) or not safe_functions(model):
        return known
    graph = inferred(skeleton)
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            known[value.name] = tuple(dim.dim_value for dim in dims)
    return known
