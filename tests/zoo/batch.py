"""A model whose inputs have a fixed batch, with the batch left free where it computes the same, sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from bnfold import samples
from bnfold.runtime import CannotRun, Session

NAME = "batch"
ALLOWED = 1e-3
"""Relative distance of what samples give alone from what they give among others."""


def free(model: ModelProto) -> ModelProto:
    """A copy whose inputs and outputs have a first axis of any size.

    A Reshape to a batch of one keeps the batch that comes; shapes that are declared inside are left out.
    """
    freed = ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    del graph.value_info[:]
    given = {value.name for value in samples.real_inputs(model)}
    for value in [*(v for v in graph.input if v.name in given), *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = NAME
    constants: dict[str, TensorProto | NodeProto] = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type == "Unsqueeze" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    joined = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape":
            continue
        # The shape is one constant, or constants joined, the batch alone first.
        holder, slot = (joined[node.input[1]], 0) if node.input[1] in joined else (node, 1)
        shape = _shape(constants.get(holder.input[slot]))
        if shape[:1] == [1] and (len(shape) > 1 or holder is not node):
            holder.input[slot] = f"{holder.input[slot]}.{NAME}{index}"
            graph.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]]), holder.input[slot]))
            for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                node.attribute.remove(attribute)
    return freed


def _shape(constant: TensorProto | NodeProto | None) -> list[int]:
    """A constant's numbers; none where there is no such constant."""
    if isinstance(constant, NodeProto):
        value = onnx.helper.get_attribute_value(constant.attribute[0])
        found = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
    else:
        found = numpy_helper.to_array(constant) if constant is not None else np.zeros(0)
    return [int(size) for size in found.ravel()]


def is_fixed(model: ModelProto) -> bool:
    """Whether any input has a number for its first axis."""
    return any(_own(value) for value in samples.real_inputs(model))


def own(model: ModelProto) -> int:
    """The batch that is written into the inputs; 1 where there is none."""
    return max(map(_own, samples.real_inputs(model))) or 1


def _own(value: ValueInfoProto) -> int:
    dims = value.type.tensor_type.shape.dim
    return dims[0].dim_value if dims else 0


def trouble(freed: Path, original: Path, size: int) -> str:
    """Why a model with a free batch makes of `size` samples something else than the original of the first of them.

    "" where it makes the same.
    """
    model = onnx.load(original, load_external_data=False)
    specs, few = samples.input_specs(onnx.load(freed, load_external_data=False)), own(model)
    try:
        together, alone = (Session(path, optimize=False, threads=1) for path in (freed, original))
    except CannotRun:
        return "the batch is built in"
    for shapes in samples.candidates(specs, batches=(size,), planes=((224, 224), (48, 320), (32, 32))):
        feeds = samples.make(specs, shapes, 0, 0, (0, 2))
        if {len(array) for array in feeds.values()} != {size}:
            return "its inputs have no common batch"
        try:
            found = together.run(feeds)
            wanted = alone.run({name: array[:few] for name, array in feeds.items()})
        except CannotRun:
            continue
        return next(filter(None, (_differs(found[name], wanted[name], size, few) for name in wanted)), "")
    return "the batch is built in"


def _differs(found: NDArray[np.float32], wanted: NDArray[np.float32], size: int, few: int) -> str:
    if found.shape[1:] != wanted.shape[1:] or len(found) * few != len(wanted) * size:
        return "the batch is built in"
    first, exact = found[: len(wanted)].astype(np.float64), wanted.astype(np.float64)
    same = np.linalg.norm(first - exact) <= ALLOWED * np.linalg.norm(exact)
    return "" if same else "samples of one batch change each other"
