"""Where tensors lie while a model is timed: without a GPU, by watching what is called."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from bnfold.runtime import Bound, Session, binding, placed_on


def model(kind: int = TensorProto.FLOAT) -> bytes:
    """x -> y, and its shape."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], name="same"), helper.make_node("Shape", ["x"], ["s"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2]), helper.make_tensor_value_info("s", 7, [2])],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def test_on_the_cpu_the_same_binding_runs() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    bound = Session(model()).bound({"x": x})
    assert bound.timed() > 0
    y, s = (value.numpy() for value in bound._binding.get_outputs())
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(s, [3, 2])


def test_a_bfloat16_input_is_bound_as_bits() -> None:
    x = np.array([[1.5, -2.25]]).astype(ml_dtypes.bfloat16)
    bound = Session(model(TensorProto.BFLOAT16)).bound({"x": x})
    bound.timed()
    np.testing.assert_array_equal(binding.to_numpy(bound._binding.get_outputs()[0]), x)


@pytest.mark.parametrize(
    ("kind", "provider", "place"),
    [
        ("tensor(float)", "cuda", ("cuda", 2)),
        ("tensor(int64)", "tensorrt", ("cuda", 2)),
        ("tensor(string)", "cuda", ("cpu", 0)),
        ("seq(tensor(float))", "cuda", ("cpu", 0)),
        ("tensor(float)", "cpu", ("cpu", 0)),
    ],
)
def test_tensors_lie_where_the_provider_computes(kind: str, provider: str, place: tuple[str, int]) -> None:
    assert placed_on(kind, provider, 2) == place


class FakeGpu:
    """onnxruntime, a session and its binding in one: every call takes the seconds given, and is written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[Any, ...]] = []
        self.OrtValue = self

    def _took(self, seconds: float, *call: Any) -> None:
        self.now += seconds
        self.log.append(call)

    def io_binding(self) -> FakeGpu:
        return self

    def ortvalue_from_numpy(self, array: Any, place: str, number: int) -> FakeGpu:
        self._took(100, "copy", array.dtype.name, place, number)
        return self

    def ortvalue_from_numpy_with_onnx_type(self, array: Any, code: int) -> FakeGpu:
        return self

    def ortvalue_from_shape_and_type(self, shape: Any, code: int, place: str, number: int) -> FakeGpu:
        self._took(1, "make", shape, code, place, number)
        return self

    def update_inplace(self, array: Any) -> None:
        self._took(100, "copy", array.dtype.name)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self._took(1, "input", name)

    def bind_output(self, name: str, place: str, number: int) -> None:
        self._took(1, "output", name, place, number)

    def synchronize_inputs(self) -> None:
        self._took(50, "wait for inputs")

    def run_with_iobinding(self, bound: Any) -> None:
        self._took(5, "run")

    def synchronize_outputs(self) -> None:
        self._took(2, "wait for outputs")


def test_on_a_gpu_nothing_but_the_run_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr("time.perf_counter", lambda: gpu.now)
    feeds = {"x": np.zeros(3, np.float32)}
    bound = Bound(gpu, gpu, feeds, {"x": "tensor(float)"}, {"y": "tensor(float)"}, "cuda", 1)
    assert gpu.log == [("copy", "float32", "cuda", 1), ("input", "x"), ("output", "y", "cuda", 1)]
    gpu.log.clear()
    assert [bound.timed(), bound.timed()] == [7, 7]
    assert gpu.log == [("wait for inputs",), ("run",), ("wait for outputs",)] * 2


def test_on_a_gpu_bits_are_copied_into_a_tensor_of_their_type() -> None:
    gpu = FakeGpu()
    feeds = {"x": np.zeros((1, 2), ml_dtypes.bfloat16)}
    Bound(gpu, gpu, feeds, {"x": "tensor(bfloat16)"}, {}, "cuda")
    assert gpu.log[:2] == [("make", (1, 2), TensorProto.BFLOAT16, "cuda", 0), ("copy", "uint16")]
