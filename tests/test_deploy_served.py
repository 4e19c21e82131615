"""What goes with a model: the settings of each target, the program that reads them, and that of Triton's backend."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_array_equal
from onnx import parser

import bnfold
from bnfold import runtime
from bnfold.deployment import checking
from bnfold.deployment.settings import TARGETS
from bnfold.errors import ModelError, NotEquivalentError, OutputError, UsageError
from bnfold.kernels.base import Array
from bnfold.runtime import Session
from tests.program import foldable, listing, names, plain, saved

FREE = "(float[N,3,H,10] x) => (float[N,3,H,10] y) { y = Relu(x) }"


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')


def settings(folder: Path) -> Any:
    return json.loads((folder / "settings.json").read_text())


def ran(folder: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    """What the program in a folder makes of the inputs, in a process of its own."""
    given, made = folder.with_name("inputs.npz"), folder.with_name("outputs.npz")
    np.savez(given, **feeds)  # type: ignore[arg-type]
    command = [sys.executable, "serve.py", str(given), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(made) as file:
        assert done.stdout.splitlines() == [f"{name} {file[name].dtype} {list(file[name].shape)}" for name in file]
        return dict(file)


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_has_the_model_its_settings_and_a_program(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "net.onnx")
    result = bnfold.deploy(path, tmp_path / "out", threads=1)
    assert result.files == ("model.onnx", "serve.py", "settings.json")
    assert (result.check.status, result.check.settings) == ("equivalent", True)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()
    x = np.random.default_rng(0).standard_normal((3, 3, 10, 14)).astype(np.float32)
    for name, value in ran(tmp_path / "out", {"x": x}).items():
        assert_array_equal(value, Session(path, threads=1).run({"x": x})[name])
    assert names(tmp_path) == ["inputs.npz", "net.onnx", "out", "outputs.npz"]


SETTINGS: dict[str, tuple[list[Any], str, bool]] = {
    "cpu": ([["CPUExecutionProvider", {}]], "ORT_ENABLE_ALL", False),
    "ort": ([["CPUExecutionProvider", {}]], "ORT_ENABLE_ALL", False),
    "cuda": (
        [
            ["CUDAExecutionProvider",
             {"prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0", "enable_cuda_graph": "1"}],
            ["CPUExecutionProvider", {}],
        ],
        "ORT_ENABLE_ALL", True,
    ),
    "tensorrt": (
        [
            ["TensorrtExecutionProvider",
             {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "{folder}/engines",
              "trt_timing_cache_enable": "1", "trt_timing_cache_path": "{folder}/engines",
              "trt_cuda_graph_enable": "1"}],
            ["CUDAExecutionProvider",
             {"prefer_nhwc": "1", "cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "0"}],
            ["CPUExecutionProvider", {}],
        ],
        "ORT_ENABLE_ALL", True,
    ),
    "openvino": (
        [
            ["OpenVINOExecutionProvider",
             {"device_type": "CPU", "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'}],
            ["CPUExecutionProvider", {}],
        ],
        "ORT_DISABLE_ALL", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_settings_of_a_model_of_fixed_shapes(target: str, tmp_path: Path) -> None:
    bnfold.deploy(plain(), tmp_path / "out", target=target)
    found = settings(tmp_path / "out")
    providers, level, bound = SETTINGS[target]
    assert found["providers"] == providers
    assert found["session"] == {"graph_optimization_level": level, "intra_op_num_threads": 0}
    assert (found["io_binding"], found["target"]) == (bound, target)
    assert found["environment"] == ({"NVIDIA_TF32_OVERRIDE": "0"} if target == "tensorrt" else {})
    assert found["model"] == ("model.ort" if target == "ort" else "model.onnx")


def test_free_shapes_take_no_graph(tmp_path: Path) -> None:
    for target in ("cuda", "tensorrt"):
        bnfold.deploy(model(FREE), tmp_path / target, target=target)
        assert "graph" not in (tmp_path / target / "settings.json").read_text().replace("graph_optimization", "")


def test_tensorrt_profiles_need_every_size(tmp_path: Path) -> None:
    bnfold.deploy(model(FREE), tmp_path / "a", target="tensorrt")
    assert "profile" not in (tmp_path / "a" / "settings.json").read_text()
    bnfold.deploy(model(FREE), tmp_path / "b", target="tensorrt", shapes={"x": [2, 3, 7, 10]}, max_batch=4)
    options = settings(tmp_path / "b")["providers"][0][1]
    assert [options[f"trt_profile_{key}_shapes"] for key in ("min", "opt", "max")] == [
        "x:1x3x7x10", "x:4x3x7x10", "x:4x3x7x10",
    ]  # fmt: skip
    bnfold.deploy(model(FREE), tmp_path / "c", target="tensorrt", inputs={"x": np.ones((1, 3, 5, 10), np.float32)})
    assert settings(tmp_path / "c")["providers"][0][1]["trt_profile_max_shapes"] == "x:8x3x5x10"


def test_engines_of_a_server_are_not_in_its_repository(tmp_path: Path) -> None:
    result = bnfold.deploy(plain(), triton=tmp_path / "r", name="m", backend="python", target="tensorrt")
    options = settings(result.output)["providers"][0][1]
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == "/tmp/tensorrt-m"


def test_what_a_target_lacks_here_is_said(tmp_path: Path) -> None:
    if checking.not_here("cuda") is None:
        pytest.skip("CUDA is here")
    result = bnfold.deploy(plain(), tmp_path / "out", target="cuda")
    assert (result.check.status, result.check.settings) == ("equivalent", False)
    assert result.notes[0].startswith("the settings of cuda were not tried here: ")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3, 10, 14), np.float32))
    command = [sys.executable, str(tmp_path / "out" / "serve.py"), str(tmp_path / "x.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "CUDAExecutionProvider did not start; is onnxruntime-gpu[cuda,cudnn] installed?" in done.stderr


def test_openvino_computes_the_same(tmp_path: Path) -> None:
    if checking.not_here("openvino") is not None:
        pytest.skip("needs onnxruntime-openvino instead of onnxruntime")
    result = bnfold.deploy(foldable(), tmp_path / "out", target="openvino")
    assert (result.check.provider, result.check.settings) == ("OpenVINOExecutionProvider", True)


def test_a_folder_that_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists and is never overwritten"):
        bnfold.deploy(plain(), tmp_path / "out")
    with pytest.raises(OutputError, match="does not exist; make it first"):
        bnfold.deploy(plain(), tmp_path / "a" / "b")
    assert names(tmp_path) == ["out"]


def test_a_program_that_computes_something_else_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = checking._program

    def off(folder: Path, feeds: Any) -> Any:
        return {name: value + np.float32(0.01) for name, value in program(folder, feeds).items()}

    monkeypatch.setattr(checking, "_program", off)
    with pytest.raises(NotEquivalentError, match="as it would be served differs"):
        bnfold.deploy(plain(), tmp_path / "out")
    assert names(tmp_path) == []


def test_what_cannot_run_here_is_written_and_said(tmp_path: Path) -> None:
    proto = plain()
    proto.graph.node[0].domain = "of.my.own"
    proto.opset_import.append(onnx.helper.make_opsetid("of.my.own", 1))
    result = bnfold.deploy(proto, tmp_path / "out")
    assert result.check.status.startswith("not run: ONNX Runtime cannot load it")
    result = bnfold.deploy(plain(), tmp_path / "unasked", verify=False, inputs={"x": np.ones((2, 3, 10, 14), "f4")})
    assert result.check.status == "not run: as asked (--no-verify)"


# --------------------------------------------------------------------------------------------------------- ORT's format


@pytest.mark.parametrize("form", ["path", "external", "proto"])
def test_the_format_of_phones_and_browsers(form: str, tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "net.onnx", external=form == "external")
    before = listing(tmp_path)
    result = bnfold.deploy(foldable() if form == "proto" else path, tmp_path / "out", target="ort")
    assert result.files == ("model.ort", "required_operators.config", "serve.py", "settings.json")
    assert (result.check.status, result.check.settings) == ("equivalent", True)
    assert (tmp_path / "out" / "model.ort").read_bytes()[4:8] == b"ORTM"
    operators = (tmp_path / "out" / "required_operators.config").read_text()
    assert "com.microsoft;1;FusedConv" in operators and str(tmp_path) not in operators
    x = np.ones((2, 3, 10, 14), np.float32)
    expected = Session(path).run({"x": x})
    for name, value in ran(tmp_path / "out", {"x": x}).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    assert before.items() <= listing(tmp_path).items()


def test_it_has_no_layout_of_this_processor_alone(tmp_path: Path) -> None:
    bnfold.deploy(foldable(), tmp_path / "out", target="ort")
    assert "com.microsoft.nchwc" not in (tmp_path / "out" / "required_operators.config").read_text()


def test_what_onnx_runtime_does_not_load_has_no_such_format(tmp_path: Path) -> None:
    proto = plain()
    proto.graph.node[0].domain = "of.my.own"
    proto.opset_import.append(onnx.helper.make_opsetid("of.my.own", 1))
    with pytest.raises(ModelError, match="cannot save it in its own format"):
        bnfold.deploy(proto, tmp_path / "out", target="ort")
    assert names(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- the programs


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module from a folder, as a Python would that starts there."""

    def imported(folder: Path, name: str) -> Any:
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for each in ("serve", "model"):
            monkeypatch.delitem(sys.modules, each, raising=False)
        return importlib.import_module(name)

    return imported


def test_bound_memory_is_used_again_and_changes_with_the_shapes(load: Any, tmp_path: Path) -> None:
    """On the CPU, where tensors lie by the same calls."""
    bnfold.deploy(model(FREE), tmp_path / "out")
    changed = settings(tmp_path / "out") | {"io_binding": True}
    (tmp_path / "out" / "settings.json").write_text(json.dumps(changed))
    served = load(tmp_path / "out", "serve").Served()
    rng = np.random.default_rng(0)
    for shape in [(2, 3, 4, 10), (2, 3, 4, 10), (1, 3, 6, 10), (2, 3, 4, 10)]:
        x = rng.standard_normal(shape).astype(np.float32)
        assert_array_equal(served({"x": x})["y"], np.maximum(x, 0))
    assert len(served.bindings) == 2
    for height in range(1, 20):
        served({"x": np.ones((1, 3, height, 10), np.float32)})
    assert len(served.bindings) <= 8


def test_outputs_whose_size_depends_on_values_are_bound_anew(load: Any, tmp_path: Path) -> None:
    bnfold.deploy(model("(float[4] x) => (int64[1,M] y) { y = NonZero(x) }"), tmp_path / "out")
    changed = settings(tmp_path / "out") | {"io_binding": True}
    (tmp_path / "out" / "settings.json").write_text(json.dumps(changed))
    served = load(tmp_path / "out", "serve").Served()
    for x in ([1, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]):
        assert_array_equal(served({"x": np.array(x, np.float32)})["y"], np.nonzero(np.array(x)))


class Request:
    """A request as Triton's Python backend hands it over."""

    def __init__(self, outputs: list[str] | None = None, **arrays: Any) -> None:
        self.arrays, self.outputs = arrays, outputs

    def requested_output_names(self) -> list[str]:
        return self.outputs if self.outputs is not None else ["y", "z"]


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        self.name, self.array = name, array


class Response:
    def __init__(self, output_tensors: Any = (), error: Any = None) -> None:
        self.arrays, self.error = {each.name: each.array for each in output_tensors}, error


@pytest.fixture
def backend(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Deploys a model and gives its `TritonPythonModel`, with stand-ins for what the server provides."""
    utils: Any = types.ModuleType("triton_python_backend_utils")
    kinds = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_STRING": np.object_}
    utils.triton_string_to_numpy = kinds.__getitem__
    utils.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(as_numpy=lambda: request.arrays[name])
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, str
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)

    def made(text: str, **options: Any) -> Any:
        result = bnfold.deploy(model(text), triton=tmp_path / "r", name="m", backend="python", **options)
        assert result.batching is not None
        served = load(result.output, "model").TritonPythonModel()
        outputs = [{"name": each.name, "data_type": f"TYPE_{each.type}"} for each in result.interface.outputs]
        config = {"max_batch_size": result.batching.max_batch, "output": outputs}
        served.initialize({"model_config": json.dumps(config), "model_instance_device_id": "0"})
        return served

    return made


def rows(count: int, start: int = 0) -> Array:
    return (np.arange(start, start + 3 * count, dtype=np.float32) - 4).reshape(count, 3)


def test_requests_that_wait_together_are_one_batch(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = backend("(float[N,3] x) => (float[N,3] y, float[N,1] z) { y = Relu(x) z = ReduceMax<axes = [1]>(x) }")
    sizes: list[int] = []
    real = served.model

    def counted(inputs: Any) -> Any:
        sizes.append(len(inputs["x"]))
        return real(inputs)

    served.model = counted
    given = [rows(1), rows(3, 5), rows(2, 1)]
    answers = served.execute([Request(x=each) for each in given])
    assert sizes == [6]
    for x, answer in zip(given, answers, strict=True):
        assert_array_equal(answer.arrays["y"], np.maximum(x, 0))
        assert_array_equal(answer.arrays["z"], x.max(1, keepdims=True))
    (one,) = served.execute([Request(["z"], x=rows(1))])
    assert set(one.arrays) == {"z"}


def test_rows_of_other_sizes_run_apart(backend: Any) -> None:
    served = backend("(float[N,W] x) => (float[N,W] y) { y = Relu(x) }")
    given = [np.ones((1, 3), np.float32), np.ones((2, 4), np.float32), -np.ones((1, 3), np.float32)]
    answers = served.execute([Request(x=each) for each in given])
    for x, answer in zip(given, answers, strict=True):
        assert_array_equal(answer.arrays["y"], np.maximum(x, 0))


def test_a_request_that_fails_does_not_take_others_with_it(backend: Any) -> None:
    served = backend(
        "(float[N,3] x, int64[N,1] i) => (float[N,1] y) { y = GatherElements<axis = 1>(x, i) }",
        inputs={"x": rows(2), "i": np.zeros((2, 1), np.int64)},
    )
    good, bad, other = served.execute([Request(x=rows(1), i=np.array([[i]])) for i in (1, 9, 2)])
    assert (good.arrays["y"], other.arrays["y"], good.error, other.error) == (-3, -2, None, None)
    assert "Out of range" in bad.error and not bad.arrays


def test_without_batches_requests_run_one_by_one(backend: Any) -> None:
    served = backend("(float x, float[2] w) => (float y) { p = Mul(x, w) y = ReduceSum<keepdims = 0>(p) }")
    w = np.array([1, 2], np.float32)
    answers = served.execute([Request(x=np.array([k], np.float32), w=w) for k in (1, 2)])  # a scalar has one axis here
    assert [answer.arrays["y"].tolist() for answer in answers] == [[3], [6]]


def test_text(backend: Any) -> None:
    served = backend("(string[N,2] x) => (string[N,2] y) { y = Identity(x) }")
    (answer,) = served.execute([Request(x=np.array([[b"a", "ü".encode()]], dtype=object))])
    assert answer.arrays["y"].tolist() == [["a", "ü"]]


# ------------------------------------------------------------------------------------------------------------- the rest


def test_inputs_that_do_not_fit_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shape names 'z'"):
        bnfold.deploy(plain(), tmp_path / "out", shapes={"z": [1]})
    with pytest.raises(UsageError, match="--inputs has no 'x'"):
        bnfold.deploy(plain(), tmp_path / "out", inputs={"z": np.ones(1)})


def test_onnxruntime_must_be_there_for_its_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.runtime.exporting.import_onnxruntime", lambda: None)
    with pytest.raises(bnfold.BnfoldError, match="onnxruntime is not installed"):
        runtime.save_ort_format(tmp_path / "a", tmp_path / "b")
