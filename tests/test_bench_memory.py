"""Peak memory: measured by child processes, never by the one that asks."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.benchmark import child
from bnfold.benchmark.child import Task, device_bytes
from bnfold.benchmark.memory import CannotMeasure, memory_compared, peak_memory
from bnfold.benchmark.results import Memory
from bnfold.runtime import Session

MB = 2**20


def dense(width: int, kind: int = TensorProto.FLOAT) -> bytes:
    """A MatMul whose weight takes width * 1 MB in float32."""
    weight = np.zeros((512, width * 512), helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ReduceMax", ["h"], ["y"], axes=[1])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 512])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def identity(kind: int, name: str = "x") -> bytes:
    node = helper.make_node("Identity", [name], ["y"])
    ends = [helper.make_tensor_value_info(end, kind, ["n", 512]) for end in (name, "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def taken(
    one: bytes | Path, two: bytes | Path, dtype: Any = np.float32, seconds: float = 60, name: str = "x"
) -> Memory:
    feeds = {name: np.ones((2, 512), dtype)}
    session = {"provider": "cpu", "options": {}, "threads": 1}
    memory, trouble = peak_memory([one, two], feeds, seconds=seconds, session=session)
    assert trouble == ""
    return memory


def test_a_larger_model_takes_more_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes(dense(8))
    memory = taken(dense(72), tmp_path / "small.onnx")
    assert memory.process.pairs == 3
    assert memory.process.original - memory.process.optimized > 0.9 * 64 * MB
    assert memory.process.verdict.endswith("x smaller")
    assert memory.process.original < 6 * 72 * MB, "what this process holds must not count"
    assert memory.base > 10 * MB
    assert memory.device is None


def test_the_parent_does_not_count() -> None:
    ballast = np.ones(400 * MB // 8)
    process = taken(dense(8), dense(8), seconds=0).process
    assert process.original < 0.5 * ballast.nbytes
    assert 0.8 < process.ratio < 1.25


def test_bits_of_types_that_numpy_lacks_arrive() -> None:
    assert taken(identity(TensorProto.BFLOAT16), identity(TensorProto.BFLOAT16), ml_dtypes.bfloat16, 0).base > 0


@pytest.mark.parametrize("name", ["file", "allow_pickle", "a/b", "../up", "0"])
def test_an_input_may_have_any_name(name: str) -> None:
    model = identity(TensorProto.FLOAT, name)
    assert taken(model, model, seconds=0, name=name).base > 0


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([(200, 100)] * 3, "2.00x smaller"),
        ([(100, 200)] * 3, "2.00x larger"),
        ([(104, 100)] * 3, "no difference"),
        ([(200, 100), (200, 100), (90, 110)], "no difference"),
        ([(200, 100)] * 2, "too few to tell"),
        ([(0, 0)] * 3, "no difference"),
    ],
)
def test_memory_claims(turns: list[tuple[int, int]], said: str) -> None:
    assert memory_compared(turns).verdict == said


def test_a_child_that_fails_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(CannotMeasure, match=r"optimized: .*ONNX Runtime cannot load it"):
        taken(dense(1), b"no model", seconds=0)
    with pytest.raises(CannotMeasure, match=r"original: .*nowhere\.onnx"):
        taken(tmp_path / "nowhere.onnx", dense(1), seconds=0)


# ------------------------------------------------------------------------------------------------- the GPU, without one


class FakeDriver:
    """The five functions of libcuda that are called; `failing` returns an error."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100
            if name == "cuDeviceGet":
                self.asked.append(arguments[1])
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 300, 1000
            return 0

        return call


def test_the_driver_says_what_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert device_bytes(2) == (700, "")
    assert driver.asked == [2]


def test_a_driver_that_fails_or_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver("cuDevicePrimaryCtxRetain"))
    assert device_bytes(0) == (None, "cuDevicePrimaryCtxRetain of the NVIDIA driver failed with code 100")

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    used, why = device_bytes(0)
    assert used is None
    assert why.startswith("the NVIDIA driver is not there: libcuda.so.1")


@pytest.mark.parametrize(
    ("seen", "device", "trouble"), [([(100, ""), (160, "")], 60, ""), ([(None, "no driver")], None, "no driver")]
)
def test_what_the_session_took_on_the_gpu_is_the_difference(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seen: list[tuple[int | None, str]],
    device: int | None,
    trouble: str,
) -> None:
    asked: list[Mapping[str, Any]] = []

    def session(model: Path, **settings: Any) -> Session:
        asked.append(settings)
        return Session(model, threads=settings["threads"])

    monkeypatch.setattr(child, "Session", session)
    monkeypatch.setattr(child, "device_bytes", lambda number: seen.pop(0))
    monkeypatch.setattr(child, "reset_peak", lambda: None)
    (tmp_path / "m.onnx").write_bytes(dense(1))
    np.savez(tmp_path / "feeds.npz", np.ones((1, 512), np.float32))
    told = {"provider": "cuda", "options": {"a": "b"}, "tf32": True, "threads": 1, "optimize": False}
    task = Task(str(tmp_path / "m.onnx"), str(tmp_path / "feeds.npz"), ["x"], told)
    report = child.measure(task)
    assert (report["device"], report["trouble"]) == (device, trouble)
    assert asked == [told]
