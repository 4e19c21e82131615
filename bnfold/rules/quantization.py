"""DequantizeLinear and QuantizeLinear: their scales take up a scale; the integers between them stay what they are.

Source: ONNX operators QuantizeLinear and DequantizeLinear -10/13/19/21/23.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bnfold.affine import Array
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.plan import Edit, NewConstant, SetAttribute
from bnfold.rules.base import OUT, Accept, Refused, View, channels_where, compress, need_decode, need_encode
from bnfold.rules.unlocks import CONSTANT, UNIFORM, VALID

RECIPE = "fold before quantising: run bnfold on the float model, then quantise"

_FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})


def dequantize(view: View) -> list[Accept]:
    """y = s (q - z).  s' = a s, no shift. Weights take it along an axis; activations where it is uniform, a > 0."""
    node = view.node
    a, b = need_encode(view, view.port(OUT).storage)
    if np.any(b != 0):
        raise quantized(view, "a quantized tensor takes a scale, and no shift")
    a = compress(a)
    if np.all(a == 1):
        return [Accept()]
    scale = _scale(view)
    if a.size == 1 and (_of_constant(node) or np.all(a > 0)):
        return [Accept({}, (_scaled(scale, scale.shape, a.reshape((1,) * len(scale.shape))),))]
    if not _of_constant(node):
        raise quantized(view, "a quantized activation takes one positive scale for all its channels")
    return [Accept({}, _along_an_axis(view, scale, a))]


def _along_an_axis(view: View, scale: Constant, a: Array) -> tuple[Edit, ...]:
    node, axis = view.node, view.node.get_int("axis", 1) % a.ndim
    varying = [number for number, size in enumerate(a.shape) if size > 1]
    blocked, by_tensor = len(scale.shape) > 1, int(np.prod(scale.shape)) == 1
    if len(varying) > 1 or (blocked == (varying[0] == axis) and not (by_tensor and not blocked)):
        text = f"the demand varies on axis {varying[0]}, where {node.op} has no scales of its own"
        raise view.refuse("row-axis", text, UNIFORM)
    size = a.shape[varying[0]]
    if not by_tensor and scale.shape[varying[0] if blocked else 0] != size:
        raise view.refuse("unsupported-form", f"the scales of {node.op} have shape {scale.shape}", VALID)
    if blocked:
        return (_scaled(scale, scale.shape, a),)
    edits: tuple[Edit, ...] = (_scaled(scale, (size,), a.reshape(-1)),)
    if not by_tensor:
        return edits
    if node.version < 13:
        raise view.refuse(
            "unsupported-form", f"{node.op} has one scale before opset 13", "convert to opset 13 or later"
        )
    if node.get_int("axis", 1) not in (varying[0], varying[0] - a.ndim):  # the default does not fit a vector
        edits += (SetAttribute("axis", varying[0]),)
    if node.input(2):
        zero = node.constant(2)
        if zero is None or zero.type in _FOUR_BITS:
            raise view.refuse(
                "unsupported-form",
                f"the zero point of {node.op} cannot become one for each channel",
                "quantize by channel, or fold before quantizing",
            )
        edits += (NewConstant(2, "zero_point", zero.type, (size,), zero),)
    return edits


def quantize(view: View) -> list[Accept]:
    """q = round(x / s) + z.  s' = s / alpha for a uniform alpha > 0, or one along the axis of s; no shift."""
    node, port = view.node, view.port(0)
    alpha, beta = need_decode(view, port.storage)
    if np.any(beta != 0):
        raise quantized(view, "a shift does not pass the rounding of a quantization")
    alpha, scale = compress(alpha), _scale(view)
    if np.any(alpha <= 0):
        raise quantized(view, "only positive scales pass a quantization", channels_where(alpha <= 0))
    if alpha.size == 1:
        return [Accept({}, (_scaled(scale, scale.shape, 1 / alpha.reshape((1,) * len(scale.shape))),))]
    axis = node.get_int("axis", 1) % port.rank
    if scale.shape != (alpha.size,) or alpha.shape[axis] != alpha.size:
        raise quantized(view, "the channels of a quantized activation share one scale")
    return [Accept({}, (_scaled(scale, scale.shape, 1 / alpha.reshape(-1)),))]


def quantized(view: View, text: str, channels: tuple[int, ...] = ()) -> Refused:
    """The refusal of what is quantized, with the way out."""
    return view.refuse("quantized", text, RECIPE, channels)


def _scale(view: View) -> Constant:
    found = view.node.constant(1)
    if found is None or not found.is_float:
        raise view.refuse("dynamic-parameters", f"the scale of {view.node.op} is computed at run time", CONSTANT)
    return found


def _scaled(scale: Constant, shape: tuple[int, ...], factor: Array) -> NewConstant:
    return NewConstant(1, "scale", scale.type, shape, scale, (factor,))


def _of_constant(node: Node) -> bool:
    """Whether what is dequantized is a constant, or the quantization of one."""
    if node.constant(0) is not None:
        return True
    producer = node.graph.producers.get(node.inputs[0])
    return producer is not None and producer.op == "QuantizeLinear" and producer.constant(0) is not None
