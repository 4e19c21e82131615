"""What a float64 kernel is: a function of a call (op, version, attributes) and its input arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import BnfoldError

Array = npt.NDArray[Any]


class Unsupported(BnfoldError):
    """The float64 oracle has no kernel for an op, or not for this use of it. `op` and `domain` name it."""

    def __init__(self, op: str, domain: str, detail: str = "") -> None:
        self.op, self.domain, self.detail = op, domain, detail
        name = f"{domain}.{op}" if domain else op
        super().__init__(f"no float64 kernel for {name}" + (f": {detail}" if detail else ""))


@dataclass(frozen=True)
class Call:
    """One node as its kernel sees it. `version` is the operator's own (since) version, `outputs` which are wanted."""

    op: str
    domain: str
    version: int
    attributes: Mapping[str, Any]
    outputs: tuple[bool, ...] = (True,)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute, else its default in the operator's schema (a float32 there), else `default`."""
        if name in self.attributes:
            return self.attributes[name]
        return self.defaults.get(name, default)

    def wants(self, index: int) -> bool:
        """Whether output `index` is used."""
        return index < len(self.outputs) and self.outputs[index]

    def refuse(self, detail: str) -> Unsupported:
        """The exception to raise for a use that this kernel does not cover."""
        return Unsupported(self.op, self.domain, detail)


Kernel = Callable[..., Any]

KERNELS: dict[tuple[str, str], Kernel] = {}
"""By domain and op: ``kernel(call, *inputs)`` with None for an absent input; returns an array or a tuple of them."""


def kernel(*ops: str, domain: str = "") -> Callable[[Kernel], Kernel]:
    """Register a function as the kernel of these ops."""

    def register(function: Kernel) -> Kernel:
        for op in ops:
            KERNELS[domain, op] = function
        return function

    return register


def is_float(array: Any) -> bool:
    """Whether an array holds real floating-point numbers (ml_dtypes' small ones included)."""
    return isinstance(array, np.ndarray) and is_float_type(array.dtype)


def is_float_type(dtype: Any) -> bool:
    """As `is_float`, of a numpy type."""
    if np.issubdtype(dtype, np.floating):
        return True
    if np.issubdtype(dtype, np.complexfloating):  # ml_dtypes would answer for its parts
        return False
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def unit_roundoff(dtype: Any) -> float:
    """Half an ULP of 1: 2^-24 for float32."""
    return float(ml_dtypes.finfo(dtype).eps) / 2


def flat(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by name: of a sequence each element, of a map keys and values, of an empty optional nothing."""
    found: dict[str, Any] = {}
    for name, value in outputs.items():
        if isinstance(value, list | tuple):
            found |= flat({f"{name}[{at}]": each for at, each in enumerate(value)})
        elif isinstance(value, dict):
            values = np.asarray(list(value.values()))  # of which a runtime makes Python's numbers
            values = values.astype(np.float32) if is_float(values) else values
            found |= {f"{name} keys": np.asarray(list(value)), f"{name} values": values}
        elif value is not None:
            found[name] = np.asarray(value)
    return found


def to_float64(array: Any) -> Any:
    """Float arrays as float64; anything else as it is."""
    return array.astype(np.float64) if is_float(array) and array.dtype != np.float64 else array


def numpy_type(code: int) -> np.dtype[Any]:
    """The numpy type that holds ONNX element type `code` here: float64 for every float."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    return np.dtype(np.float64) if is_float_type(dtype) else dtype


def ints(values: Any) -> list[int]:
    """A list of Python ints from an attribute, an array or a scalar."""
    return [int(value) for value in np.asarray(values).ravel()]
