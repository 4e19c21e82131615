"""Tensors where the provider computes: what is timed is then the model, and no copy to or from the GPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from bnfold.runtime.loading import CPU

Array = npt.NDArray[Any]

# Types that numpy does not have: their bits travel as integers of the same width.
_BIT_TYPES: dict[str, tuple[int, type[Any], Any]] = {
    "tensor(bfloat16)": (onnx.TensorProto.BFLOAT16, np.uint16, ml_dtypes.bfloat16),
}


class Bound:
    """A session with inputs and outputs bound to a device; the CPU goes the same way, on memory of its own.

    Args:
        runtime: the onnxruntime module.
        session: an `InferenceSession`.
        feeds: arrays by input name; copied to the device here, once.
        inputs: ONNX Runtime's type by input name.
        outputs: the same of the outputs; they stay on the device, in memory that ONNX Runtime allocates.
        provider: short name.
        device: which GPU.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        feeds: Mapping[str, Array],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        provider: str,
        device: int = 0,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        for name, array in feeds.items():
            place, number = placed_on(inputs[name], provider, device)
            self._binding.bind_ortvalue_input(name, to_value(runtime, array, inputs[name], place, number))
        for name, kind in outputs.items():
            self._binding.bind_output(name, *placed_on(kind, provider, device))

    def timed(self) -> float:
        """Seconds of one run: all inputs have arrived before it, all outputs are there after it."""
        self._binding.synchronize_inputs()
        start = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return time.perf_counter() - start


def placed_on(kind: str, provider: str, device: int) -> tuple[str, int]:
    """The device for a value of that type: the GPU that computes, but the CPU for what no GPU holds (text, lists)."""
    if provider == CPU or not kind.startswith("tensor(") or kind == "tensor(string)":
        return "cpu", 0
    return "cuda", device


def has_bits(kinds: Iterable[str]) -> bool:
    """Whether any of ONNX Runtime's types is one that numpy lacks."""
    return any(kind in _BIT_TYPES for kind in kinds)


def to_value(runtime: Any, array: Array, kind: str, place: str = "cpu", number: int = 0) -> Any:
    """An `OrtValue` of the array, on the device."""
    array = np.ascontiguousarray(array)
    if kind not in _BIT_TYPES:
        return runtime.OrtValue.ortvalue_from_numpy(array, place, number)
    code, bits, _ = _BIT_TYPES[kind]
    value = runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(bits), code)
    if place == "cpu":
        return value
    there = runtime.OrtValue.ortvalue_from_shape_and_type(array.shape, code, place, number)
    there.update_inplace(array.view(bits))
    return there


def to_numpy(value: Any) -> Array:
    """The array of an `OrtValue` on the CPU."""
    kind = value.data_type()
    if kind not in _BIT_TYPES:
        array: Array = value.numpy()
        return array
    _, bits, dtype = _BIT_TYPES[kind]
    shape = tuple(value.shape())
    size = int(np.prod(shape)) * np.dtype(bits).itemsize
    copied = ctypes.string_at(value._ortvalue.data_ptr(), size)
    return np.frombuffer(copied, bits).reshape(shape).view(dtype)
