"""Constant operands of a shape that their operator does not take, of which ONNX's checker says nothing.

ONNX's shape inference looks at the weights of a convolution, and not at its bias; runtimes see that when they run.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, numpy_helper

from bnfold.protos import bodies
from bnfold.source import is_external

Shape = tuple[int | None, ...]
"""Sizes as far as they are known."""

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class _Call:
    """One node, with what is known of its operands."""

    def __init__(
        self, node: onnx.NodeProto, shapes: Mapping[str, Shape], tensors: Mapping[str, onnx.TensorProto]
    ) -> None:
        self.node, self._shapes, self._tensors = node, shapes, tensors
        self.attributes: dict[str, AttributeProto] = {attribute.name: attribute for attribute in node.attribute}

    def _name(self, slot: int) -> str:
        return self.node.input[slot] if slot < len(self.node.input) else ""

    def shape(self, slot: int) -> Shape | None:
        """What is known of an operand's shape; None where there is none."""
        name = self._name(slot)
        return self._shapes.get(name) if name else None

    def size(self, slot: int, axis: int) -> int | None:
        """The size of an axis, where it is known."""
        shape = self.shape(slot)
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def numbers(self, slot: int) -> NDArray[Any] | None:
        """What is in the initializer there; None where there is none, or it is in another file."""
        tensor = self._tensors.get(self._name(slot))
        return None if tensor is None or is_external(tensor) else numpy_helper.to_array(tensor)

    def has(self, slot: int) -> bool:
        """Whether an optional operand is there."""
        return bool(self._name(slot))

    def int(self, name: str, default: int) -> int:
        """An integer attribute."""
        found = self.attributes.get(name)
        return default if found is None else found.i


Wanted = Iterator[tuple[int, bool]]
"""An input slot, and whether what is there can be."""


def odd_operand(graph: onnx.GraphProto) -> str:
    """The first operand that does not fit, in words; '' where all do.

    Args:
        graph: as shape inference has left it, bodies too.
    """
    found = [(graph, ChainMap[str, Shape](), ChainMap[str, onnx.TensorProto]())]
    while found:
        graph, shapes, tensors = found.pop()
        shapes = shapes.new_child(_shapes(graph))
        tensors = tensors.new_child({tensor.name: tensor for tensor in graph.initializer})
        for node in graph.node:
            rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            call = _Call(node, shapes, tensors)
            for slot, fits in rule(call) if rule is not None else ():
                if not fits:
                    shape = [size if size is not None else "?" for size in call.shape(slot) or ()]
                    what = f"input {slot} of {node.op_type} '{node.name or node.output[0]}'"
                    return f"{what}, '{node.input[slot]}' of shape {shape}, does not fit the others"
            found += [(body, shapes, tensors) for _, body in bodies(node)]
    return ""


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.HasField("shape"):
            dims = kind.shape.dim
            found[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return found | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _is(shape: Shape | None, *sizes: int | None) -> bool:
    """Whether a shape may be this one."""
    if shape is None:
        return True
    return len(shape) == len(sizes) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, sizes, strict=True)
    )


def _reaches(shape: Shape | None, target: Shape | None) -> bool:
    """Whether a shape may be broadcast to another."""
    if shape is None or target is None:
        return True
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (None, 1) or of is None or size == of for size, of in pairs)


def _convolution(call: _Call) -> Wanted:
    x, weight, group = call.shape(0), call.shape(1), call.int("group", 1)
    if x is not None and weight is not None:
        turned = call.node.op_type == "ConvTranspose"
        inside = weight[0] if turned else weight[1] and weight[1] * group
        yield 1, len(weight) == len(x) and (None in (x[1], inside) or x[1] == inside)
    outside = call.size(1, 0) if call.node.op_type == "Conv" else (call.size(1, 1) or 0) * group
    yield 2, _is(call.shape(2), outside or None)


def _gemm(call: _Call) -> Wanted:
    m = call.size(0, 1 if call.int("transA", 0) else 0)
    yield 2, _reaches(call.shape(2), (m, call.size(1, 0 if call.int("transB", 0) else 1)))


def _per_channel(call: _Call) -> Wanted:
    if call.int("spatial", 1):
        for slot in range(1, len(call.node.input)):
            yield slot, _is(call.shape(slot), call.size(0, 1))


def _per_channel_or_group(call: _Call) -> Wanted:
    for slot in (1, 2):
        either = (call.size(0, 1), call.int("num_groups", 1))
        yield slot, any(_is(call.shape(slot), size) for size in either)


def _from_an_axis_on(call: _Call) -> Wanted:
    x, axis = call.shape(0), call.int("axis", -1)
    for slot in (1, 2):
        yield slot, x is None or _reaches(call.shape(slot), x[axis:])


def _slope(call: _Call) -> Wanted:
    yield 1, _reaches(call.shape(1), call.shape(0)) or _is(call.shape(1), call.size(0, 1))  # as before opset 7


def _recurrent(call: _Call) -> Wanted:
    gates, hidden = _GATES[call.node.op_type], call.size(2, 2)
    ways = call.size(1, 0)
    rows = None if hidden is None else gates * hidden
    yield 1, _is(call.shape(1), ways, rows, call.size(0, 2))
    yield 2, _is(call.shape(2), ways, rows, hidden)
    yield 3, _is(call.shape(3), ways, None if rows is None else 2 * rows)


def _scales(call: _Call) -> Wanted:
    scale, axis = call.shape(1), call.int("axis", 1)
    if scale is not None and len(scale) == 1 and scale[0] != 1:
        yield 1, _is(scale, call.size(0, axis))


def _resize(call: _Call) -> Wanted:
    x, roi = call.shape(0), call.shape(1)
    yield 1, x is None or "axes" in call.attributes or roi is None or _is(roi, 2 * len(x)) or roi == (0,)


def _gather(call: _Call) -> Wanted:
    size, picked = call.size(0, call.int("axis", 0)), call.numbers(1)
    if size is not None and picked is not None:
        yield 1, bool(np.all((picked >= -size) & (picked < size)))


def _compress(call: _Call) -> Wanted:
    x, chosen = call.shape(0), call.size(1, 0)
    if x is not None and chosen is not None and None not in x:
        whole = math.prod(size or 0 for size in x)
        yield 1, chosen <= (x[call.int("axis", 0)] or 0 if "axis" in call.attributes else whole)


def _einsum(call: _Call) -> Wanted:
    equation = call.attributes.get("equation")
    terms = ("" if equation is None else equation.s.decode("utf-8", "replace")).replace(" ", "").split("->")[0]
    sizes: dict[str, int] = {}
    for slot, term in enumerate(terms.split(",")):
        shape = call.shape(slot)
        if shape is None or "." in term:
            continue
        yield slot, len(shape) == len(term)
        for label, size in zip(term, shape, strict=False):
            yield slot, size in (None, 1) or sizes.setdefault(label, size) == size


def _are_axes(call: _Call, slot: int) -> bool:
    """Whether the numbers of an operand may be axes of the first one."""
    x, axes = call.shape(0), call.numbers(slot)
    return x is None or axes is None or bool(np.all((axes >= -len(x)) & (axes < len(x))))


def _bounds(call: _Call) -> Wanted:
    steps = call.numbers(4)
    yield 3, _are_axes(call, 3)
    yield 4, steps is None or bool(np.all(steps))
    sizes = [size for slot in (1, 2, 3, 4) if (size := call.size(slot, 0)) is not None]
    for slot in (1, 2, 3, 4):
        yield slot, _is(call.shape(slot), sizes[0] if sizes else None)


def _pads(call: _Call) -> Wanted:
    yield 3, _are_axes(call, 3)
    x = call.shape(0)
    count = call.size(3, 0) if call.has(3) else None if x is None else len(x)
    yield 1, _is(call.shape(1), None if count is None else 2 * count)


def _repeats(call: _Call) -> Wanted:
    x = call.shape(0)
    yield 1, len(call.node.input) > 2 or x is None or _is(call.shape(1), len(x))  # before opset 6 for one axis


_RULES: dict[str, Callable[[_Call], Wanted]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _gemm,
    "BatchNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
    "GroupNormalization": _per_channel_or_group,
    "LayerNormalization": _from_an_axis_on,
    "RMSNormalization": _from_an_axis_on,
    "PRelu": _slope,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "DequantizeLinear": _scales,
    "QuantizeLinear": _scales,
    "Resize": _resize,
    "Einsum": _einsum,
    "Gather": _gather,
    "Compress": _compress,
    "Slice": _bounds,
    "Pad": _pads,
    "Tile": _repeats,
}
