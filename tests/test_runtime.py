"""Providers, sessions, and where each node ran."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold import runtime
from bnfold.errors import ProviderError, UsageError
from bnfold.placement import PlacedNode, Placement, combined, judge_placement
from bnfold.runtime import CannotRun, Session, available, both_runtimes_installed, resolve_providers

CUDA, CPU, TENSORRT = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"


def has_cuda() -> bool:
    return runtime.unavailable("cuda") is None


needs_no_cuda = pytest.mark.skipif(has_cuda(), reason="a CUDA provider is here: this tests what is said without one")


def model(kind: int = TensorProto.FLOAT, *, op: str = "Abs", ir: int = 8, domain: str = "") -> bytes:
    """x -> y of one node, and the shape of x beside it."""
    nodes = [
        helper.make_node(op, ["x"], ["y"], name="first", domain=domain),
        helper.make_node("Shape", ["x"], ["s"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [
            helper.make_tensor_value_info("y", kind, ["n", 2]),
            helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString())


def test_importing_costs_no_runtime() -> None:
    code = (
        "import sys, bnfold.runtime, bnfold.equivalence, bnfold.benchmark; "
        "sys.exit(any(name in sys.modules for name in ('onnxruntime', 'onnx.reference', 'torch', 'click')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_default_provider_is_the_best_here() -> None:
    assert resolve_providers() == resolve_providers([]) == (["cuda"] if has_cuda() else ["cpu"])


def test_providers_keep_their_order_and_come_once() -> None:
    assert resolve_providers(["cpu", "cpu"]) == ["cpu"]


def test_an_unknown_provider_is_wrong_usage_and_lists_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'gpu'.*cpu, cuda, tensorrt"):
        resolve_providers(["cpu", "gpu"])


@needs_no_cuda
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_missing_provider_says_how_to_get_it(name: str) -> None:
    with pytest.raises(ProviderError) as caught:
        resolve_providers([name])
    assert "pip install" in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


@needs_no_cuda
def test_a_session_never_falls_back_in_silence() -> None:
    with pytest.raises(ProviderError):
        Session(model(), provider="cuda")


class FakeSession:
    """As ONNX Runtime's where the CUDA libraries are missing: it takes the provider and goes on without it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def disable_fallback(self) -> None: ...

    def get_providers(self) -> list[str]:
        return [CPU]


class BrokenSession(FakeSession):
    """As where a library is found and does not load."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : libcudnn.so.9: cannot open shared object file")


@pytest.mark.parametrize("fake", [FakeSession, BrokenSession])
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_missing_libraries_are_a_provider_error(
    monkeypatch: pytest.MonkeyPatch, fake: type[FakeSession], provider: str
) -> None:
    ort = runtime.import_onnxruntime()
    assert ort is not None
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(runtime.ORT_NAMES.values()))
    monkeypatch.setattr(ort, "InferenceSession", fake)
    with pytest.raises(ProviderError, match="pip install"):
        Session(model(), provider=provider)


@pytest.mark.parametrize("installed", [{"onnxruntime"}, {"onnxruntime-gpu"}, {"onnxruntime", "onnxruntime-gpu"}])
def test_both_runtimes_are_noticed(monkeypatch: pytest.MonkeyPatch, installed: set[str]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    warning = both_runtimes_installed()
    assert (warning is not None) == (len(installed) == 2)
    assert warning is None or ("pip uninstall" in warning and "\n" not in warning)


@pytest.mark.parametrize(
    "broken",
    [model(op="NoSuchOp"), model(ir=99), model(op="Abs", domain="nowhere"), b"", b"not a model"],
    ids=["op", "ir", "domain", "empty", "garbage"],
)
def test_what_cannot_be_loaded_says_so_in_one_line(broken: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotRun) as caught:
        Session(broken)
    assert "\n" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_wrong_feed_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CannotRun):
        Session(model()).run({"x": np.ones((1, 3), np.float32)})
    assert capfd.readouterr() == ("", "")


def test_bfloat16_goes_in_and_out() -> None:
    x = np.array([[1.5, -2.25]]).astype(ml_dtypes.bfloat16)
    result = Session(model(TensorProto.BFLOAT16, op="Identity")).run({"x": x})
    assert result["y"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(result["y"], x)
    np.testing.assert_array_equal(result["s"], [1, 2])


def test_placement_lists_each_node_once_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(model(), optimize=False, profile=True)
    for _ in range(3):
        session.run({"x": np.ones((1, 2), np.float32)})
    nodes = session.placement().nodes
    assert {(node.name, node.op, node.provider, node.is_float) for node in nodes} == {
        ("first", "Abs", CPU, True),
        ("second", "Shape", CPU, False),
    }
    assert len(nodes) == 2
    assert list(tmp_path.iterdir()) == []


def placed(*nodes: tuple[str, str, str, bool]) -> Placement:
    return Placement(tuple(PlacedNode(*node) for node in nodes))


ORIGINAL = placed(("c", "Conv", CUDA, True), ("n", "NonMaxSuppression", CPU, True), ("s", "Shape", CPU, False))


@pytest.mark.parametrize(
    ("optimized", "passed"),
    [
        (placed(("c", "Conv", CUDA, True), ("s", "Shape", CPU, False)), True),
        (placed(("c", "Conv", CUDA, True), ("n", "NonMaxSuppression", CPU, True)), True),
        (placed(("c", "Conv", CUDA, True), ("new", "Conv", CPU, True)), False),
        (placed(("c", "Conv", CPU, True), ("d", "Conv", CUDA, True)), False),
        (placed(("c", "Conv", CUDA, True), ("new", "Gather", CPU, False)), True),
        (placed(("n", "NonMaxSuppression", CPU, True)), False),
        (placed(), True),
    ],
    ids=["stayed", "never-there", "new-node-left", "same-node-left", "integers", "none-there", "nothing-ran"],
)
def test_a_float_node_that_left_the_provider_fails(optimized: Placement, passed: bool) -> None:
    verdict = judge_placement(ORIGINAL, optimized, CUDA)
    assert verdict.passed is passed
    assert bool(verdict.problems) is not passed
    assert len(verdict.elsewhere) == sum(node.provider == CPU for node in optimized.nodes)
    assert verdict.to_json()["passed"] is passed


@pytest.mark.parametrize(
    ("optimized", "passed"),
    [
        (placed(("k", "TRTKernel_graph_g_1", TENSORRT, True)), True),
        (placed(("k", "TRTKernel_graph_g_1", TENSORRT, True), ("c", "Conv", CUDA, True)), False),
        (placed(("k", "TRTKernel_graph_g_1", TENSORRT, True), ("m", "NonZero", CUDA, True)), True),
        (placed(("k", "TRTKernel_graph_g_1", TENSORRT, True), ("new", "NonZero", CUDA, True)), True),
        (placed(("k", "TRTKernel_graph_g_1", TENSORRT, True), ("s", "Shape", CPU, False)), True),
        (placed(("c", "Conv", CUDA, True)), False),
    ],
    ids=["stayed", "left-the-kernel", "never-there", "op-never-there", "integers", "none-there"],
)
def test_a_node_that_left_a_kernel_of_tensorrt_fails(optimized: Placement, passed: bool) -> None:
    original = placed(("k", "TRTKernel_graph_g_0", TENSORRT, True), ("m", "NonZero", CUDA, True))
    assert judge_placement(original, optimized, TENSORRT).passed is passed


def test_several_runs_are_judged_together() -> None:
    good = judge_placement(ORIGINAL, placed(("c", "Conv", CUDA, True), ("s", "Shape", CPU, False)), CUDA)
    bad = judge_placement(ORIGINAL, placed(("c", "Conv", CPU, True), ("s", "Shape", CPU, False)), CUDA)
    both = combined([good, bad])
    assert both is not None and not both.passed
    assert both.problems == bad.problems
    assert both.elsewhere == ("Shape 's' ran on CPUExecutionProvider", "Conv 'c' ran on CPUExecutionProvider")
    assert combined([good, good]) == good
    assert combined([]) is None


def test_placement_table_counts() -> None:
    table = placed(("a", "Conv", CUDA, True), ("b", "Conv", CUDA, True), ("s", "Shape", CPU, False)).table()
    assert table[0] == {"op": "Conv", "provider": CUDA, "nodes": 2}


def test_the_probe_is_a_valid_model() -> None:
    onnx.checker.check_model(onnx.load_from_string(available._probe_model()))
