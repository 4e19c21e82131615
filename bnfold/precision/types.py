"""The types that a model may be converted to, and what ONNX lets a node compute in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from bnfold.errors import UsageError
from bnfold.naming import FP32
from bnfold.source import FLOATS, limits_of

TYPES = {"fp16": int(TensorProto.FLOAT16), "bf16": int(TensorProto.BFLOAT16)}
"""ONNX element types by the name that `--precision` takes."""

NAMES = {number: name for name, number in TYPES.items()}

_SPELLED: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}

LONG: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
"""How messages name them."""


def type_of(precision: str, keep: Sequence[str] = ()) -> int:
    """The element type to convert to, 0 for none.

    Raises:
        UsageError: no such precision; nodes to keep in float32, of which nothing is asked.
    """
    if precision == FP32:
        if keep:
            raise UsageError("--keep-fp32 is for --precision fp16 and bf16")
        return 0
    if precision not in TYPES:
        raise UsageError(f"unknown precision {precision!r}; choose from {', '.join([FP32, *TYPES])}")
    return TYPES[precision]


def largest(type_: int) -> float:
    """The largest finite value of a float type."""
    return limits_of(FLOATS[type_]).max


def roundoff(type_: int) -> float:
    """Half a unit in the last place of 1."""
    return float(2.0 ** -(limits_of(FLOATS[type_]).nmant + 1))


def smallest(type_: int) -> float:
    """The smallest positive value, a subnormal one."""
    found = limits_of(FLOATS[type_])
    return float(np.ldexp(found.smallest_normal, -found.nmant))


@dataclass(frozen=True)
class Ports:
    """Which inputs and outputs of an operator may have the smaller type; the last stands for all behind it."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]

    def input(self, slot: int) -> bool:
        """Whether this input may."""
        return bool(self.inputs) and self.inputs[min(slot, len(self.inputs) - 1)]

    def output(self, slot: int) -> bool:
        """Whether this output may."""
        return bool(self.outputs) and self.outputs[min(slot, len(self.outputs) - 1)]


@functools.cache
def ports_of(op: str, domain: str, opset: int, type_: int) -> Ports | None:
    """What ONNX allows; None for an operator that it does not define."""
    try:
        schema = onnx.defs.get_schema(op, opset, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    spelled = _SPELLED[type_]
    allowed = {each.type_param_str: spelled in each.allowed_type_strs for each in schema.type_constraints}

    def may(type_str: str) -> bool:
        return allowed.get(type_str, type_str == spelled)

    return Ports(
        tuple(may(each.type_str) for each in schema.inputs), tuple(may(each.type_str) for each in schema.outputs)
    )


@functools.cache
def allowed_from(op: str, domain: str, opset: int, type_: int) -> int:
    """The first later opset in which the operator's first output may have the type; 0 where there is none."""
    for later in range(opset + 1, onnx.defs.onnx_opset_version() + 1):
        found = ports_of(op, domain, later, type_)
        if found is not None and found.output(0):
            return later
    return 0
