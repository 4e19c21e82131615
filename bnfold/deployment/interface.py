"""What goes into a model and what comes out, and whether its first axis is one that a server may fill with requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import TensorProto

from bnfold.errors import ModelError
from bnfold.samples import real_inputs

Dims = tuple[int | str | None, ...]
"""Sizes of the axes; a name or None where an axis is free."""

TYPES: dict[int, str] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "STRING",
}
"""The element types that Triton has, by its names for them."""


@dataclass(frozen=True)
class Tensor:
    """An input or an output. `dims` is None where not even the number of axes is known."""

    name: str
    type: str
    """As :data:`TYPES` has it; ONNX's own name for a type that Triton lacks."""
    dims: Dims | None

    @property
    def is_batched(self) -> bool:
        """Whether the first axis is free."""
        return bool(self.dims) and not isinstance((self.dims or (0,))[0], int)

    @property
    def is_fixed(self) -> bool:
        """Whether every size is known."""
        return self.dims is not None and all(isinstance(dim, int) for dim in self.dims)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"name": self.name, "type": self.type, "dims": None if self.dims is None else list(self.dims)}


@dataclass(frozen=True)
class Interface:
    """The inputs to feed and the outputs, in the model's order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.inputs + self.outputs

    @property
    def is_fixed(self) -> bool:
        """Whether every size is known."""
        return all(tensor.is_fixed for tensor in self.tensors)

    def cannot_batch(self) -> str | None:
        """Why requests cannot be put behind each other along the first axis; None where they can, as far as this says.

        The first axes of all inputs and outputs must be free, and of one name where they have one.
        """
        if not self.inputs:
            return "it has no inputs"
        for tensor in self.tensors:
            kind = "input" if tensor in self.inputs else "output"
            if tensor.dims is None or not tensor.dims:
                return f"{kind} '{tensor.name}' has no first axis"
            if not tensor.is_batched:
                return f"the first axis of {kind} '{tensor.name}' is fixed ({tensor.dims[0]})"
        names: dict[str, str] = {}
        for tensor in self.tensors:
            if tensor.dims and tensor.dims[0]:
                names.setdefault(str(tensor.dims[0]), tensor.name)
        if len(names) > 1:
            (one, its), (other, others) = list(names.items())[:2]
            return f"the first axes of '{its}' and '{others}' are two different ones ({one}, {other})"
        return None


def interface_of(model: onnx.ModelProto, told: Mapping[str, Sequence[int | str | None]]) -> Interface:
    """The interface as the model declares it.

    Args:
        model: the model.
        told: what the runtime says of the shapes of outputs, for those that the model says nothing of.

    Raises:
        ModelError: an input or output is no tensor (a sequence, a map, an optional).
    """
    inputs = tuple(_tensor(value, "input") for value in real_inputs(model))
    outputs = [_tensor(value, "output") for value in model.graph.output]
    return Interface(
        inputs,
        tuple(replace(each, dims=_dims(told, each.name)) if each.dims is None else each for each in outputs),
    )


def _dims(told: Mapping[str, Sequence[int | str | None]], name: str) -> Dims | None:
    return tuple(told[name]) or None if name in told else None


def _tensor(value: onnx.ValueInfoProto, kind: str) -> Tensor:
    if not value.type.HasField("tensor_type"):
        what = (value.type.WhichOneof("value") or "nothing").removesuffix("_type")
        raise ModelError(
            f"{kind} '{value.name}' is a {what}, which no server takes; export the model with tensors "
            "(scikit-learn: zipmap=False)"
        )
    tensor = value.type.tensor_type
    dims = None
    if tensor.HasField("shape"):
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
            for dim in tensor.shape.dim
        )
    names = {int(number): name for name, number in TensorProto.DataType.items()}
    return Tensor(value.name, TYPES.get(tensor.elem_type) or names.get(tensor.elem_type, "UNDEFINED"), dims)
