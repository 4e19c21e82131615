"""What ONNX Runtime is told, and where nodes ran: without a GPU, by watching what is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bnfold import runtime
from bnfold.equivalence import verify
from bnfold.errors import UsageError
from bnfold.placement import PlacedNode, Placement
from bnfold.runtime import Session, provider_list, resolve_providers
from bnfold.runtime.options import check_options, settings
from tests.program import bnfold, foldable, saved
from tests.test_binding import model

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


# ------------------------------------------------------------------------------------------------------------- options


def test_cuda_options_turn_tf32_off_unless_asked() -> None:
    (name, options), (last, _) = provider_list("cuda")
    assert (name, last) == (CUDA, CPU)
    assert options["use_tf32"] == "0"
    assert dict(provider_list("cuda", tf32=True))[CUDA]["use_tf32"] == "1"


def test_tensorrt_options_are_text_and_the_user_has_the_last_word() -> None:
    chosen = provider_list("tensorrt", extra={"trt_fp16_enable": "1", "trt_engine_cache_path": "/tmp/x"})
    assert [name for name, _ in chosen] == ["TensorrtExecutionProvider", CUDA, CPU]
    options = chosen[0][1]
    assert options["trt_fp16_enable"] == "1"
    assert options["trt_int8_enable"] == "0"
    assert all(isinstance(value, str) for value in options.values())


def test_the_convolution_algorithm_is_fixed_where_runs_must_agree() -> None:
    assert dict(provider_list("cuda"))[CUDA]["cudnn_conv_algo_search"] == "DEFAULT"
    assert "cudnn_conv_algo_search" not in dict(provider_list("cuda", deterministic=False))[CUDA]
    own = {"cudnn_conv_algo_search": "HEURISTIC"}
    assert dict(provider_list("cuda", extra=own))[CUDA]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert dict(provider_list("tensorrt"))[CUDA]["cudnn_conv_algo_search"] == "DEFAULT"


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_session_is_deterministic_unless_asked(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    ort = runtime.import_onnxruntime()
    assert ort is not None
    seen = []
    real = ort.InferenceSession

    def session(source: Any, options: Any, **arguments: Any) -> Any:
        seen.append(options.use_deterministic_compute)
        return real(source, options, **arguments)

    monkeypatch.setattr(ort, "InferenceSession", session)
    made = Session(model(), deterministic=deterministic) if not deterministic else Session(model())
    assert seen == [deterministic]
    assert made.settings == {"use_deterministic_compute": str(int(deterministic))}


def test_the_switch_of_tensorrt_is_reported_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert settings("tensorrt", {"a": "b"}, True) == {
        "a": "b", "use_deterministic_compute": "1", "NVIDIA_TF32_OVERRIDE": "0",
    }  # fmt: skip
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    assert settings("tensorrt", {}, False)["NVIDIA_TF32_OVERRIDE"] == "not set"
    assert "NVIDIA_TF32_OVERRIDE" not in settings("cuda", {}, True)


@pytest.mark.parametrize(
    ("options", "providers", "said"),
    [
        ({"gpu": {"a": "b"}}, ["cpu"], "unknown provider 'gpu'"),
        ({"cpu": {"a": "b"}}, ["cpu"], "cpu provider has no options"),
        ({"cuda": {"a": "b"}}, ["cpu"], "add --provider cuda"),
        ({"cuda": {"use_tf32": "1"}}, ["cuda"], "--tf32"),
    ],
)
def test_options_that_nothing_would_read_are_wrong_usage(
    options: Mapping[str, Mapping[str, str]], providers: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_options(options, providers)
    if providers == ["cpu"]:
        with pytest.raises(UsageError, match=said):
            resolve_providers(providers, options)


def test_good_options_pass() -> None:
    check_options(None, ["cpu"])
    check_options({"cpu": {}}, ["cpu"])
    check_options({"cuda": {"device_id": "1"}}, ["cpu", "cuda"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cuda:device_id=1"], "add --provider cuda"),
        (["gpu:device_id=1"], "unknown provider 'gpu'"),
        (["device_id=1"], "not of the form cuda:device_id=1"),
        (["cuda:device_id"], "not of the form cuda:device_id=1"),
        (["cuda:=1"], "not of the form cuda:device_id=1"),
    ],
)
@pytest.mark.parametrize("command", ["optimize", "verify", "bench"])
def test_the_command_line_says_what_is_wrong(tmp_path: Path, command: str, arguments: list[str], said: str) -> None:
    path = saved(foldable(), tmp_path / "m.onnx")
    given = [word for argument in arguments for word in ("--provider-option", argument)]
    done = bnfold(command, path, *([path] if command != "optimize" else []), "--provider", "cpu", *given)
    assert done.code == 2
    assert said in done.err


class Pretender:
    """A session that claims CUDA and computes on the CPU; it keeps the providers it was asked for."""

    asked: list[Any]
    refuses = ""

    def __init__(self, real: Any, source: Any, options: Any, *, providers: list[Any], enable_fallback: int) -> None:
        if self.refuses and providers[0][0] == CUDA:
            raise RuntimeError(self.refuses)
        self.asked.append(providers)
        self._session = real(source, options, providers=[CPU])
        self._claims = [name for name, _ in providers]

    def get_providers(self) -> list[str]:
        return self._claims

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pretender]]:
    """ONNX Runtime as where CUDA is there."""
    ort = runtime.import_onnxruntime()
    assert ort is not None
    real = ort.InferenceSession

    class Session(Pretender):
        asked: list[Any] = []  # noqa: RUF012

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(real, *arguments, **options)

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(runtime.ORT_NAMES.values()))
    monkeypatch.setattr(ort, "InferenceSession", Session)
    runtime.unavailable.cache_clear()
    yield Session
    runtime.unavailable.cache_clear()


def test_options_travel_from_the_command_line_to_both_sessions(tmp_path: Path, pretender: type[Pretender]) -> None:
    path = saved(foldable(), tmp_path / "m.onnx")
    options = ["--provider-option", "cuda:device_id=3", "--provider-option", "cuda:gpu_mem_limit=a=b"]
    done = bnfold("verify", path, path, "--provider", "cuda", "--samples", 1, *options)
    wanted = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT", "device_id": "3", "gpu_mem_limit": "a=b"}
    probe, *others = pretender.asked
    assert probe[0][1]["use_tf32"] == "0"
    assert [providers[0] for providers in others] == [(CUDA, wanted)] * 5
    assert "cuda, settings      TF32 off, deterministic, cudnn_conv_algo_search=DEFAULT, device_id=3" in done.err
    # It computed on the CPU, and the profile tells.
    assert done.code == 3
    assert f"no floating-point node ran on {CUDA}" in done.err


def test_tf32_is_on_only_where_asked(tmp_path: Path, pretender: type[Pretender]) -> None:
    path = saved(foldable(), tmp_path / "m.onnx")
    done = bnfold("verify", path, path, "--provider", "cuda", "--samples", 1, "--tf32")
    assert [providers[0][1]["use_tf32"] for providers in pretender.asked[1:]] == ["1"] * 5
    assert "TF32 on, deterministic" in done.err


def test_an_option_that_the_provider_does_not_know_is_wrong_usage(
    tmp_path: Path, pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(foldable(), tmp_path / "m.onnx")
    assert runtime.unavailable("cuda") is None
    monkeypatch.setattr(pretender, "refuses", 'Unknown provider option: "colour".')
    done = bnfold("verify", path, path, "--provider", "cuda", "--provider-option", "cuda:colour=red")
    assert done.code == 2
    assert 'cuda: Unknown provider option: "colour"' in done.err


def test_the_device_is_the_one_of_the_option(pretender: type[Pretender], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("bnfold.runtime.session.Bound", lambda *arguments: seen.append(arguments[-2:]))
    Session(model(), provider="cuda", options={"device_id": "3"}).bound({})
    Session(model(), provider="cuda").bound({})
    assert seen == [("cuda", 3), ("cuda", 0)]


# ----------------------------------------------------------------------------------------------------------- placement


@pytest.mark.parametrize("level", ["off", "on"])
def test_a_node_that_leaves_the_provider_is_seen_at_either_level(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    here = Placement((PlacedNode("conv", "Conv", CPU, True), PlacedNode("relu", "Relu", CPU, True)))
    gone = Placement((PlacedNode("conv", "Conv", CPU, True), PlacedNode("relu", "Relu", "Elsewhere", True)))
    turns = [here, gone if level == "off" else here, here, gone if level == "on" else here]
    monkeypatch.setattr(Session, "placement", lambda self: turns.pop(0))
    found = verify(foldable(), foldable(), providers=["cpu"], samples=1)
    assert found.status == "different"
    problem = f"Relu 'relu' ran on Elsewhere; the original ran it on {CPU}"
    assert found.problems == (f"cpu, optimisations {level}: {problem}",)
    assert found.runtime[0].placement is not None
    assert found.runtime[0].placement.elsewhere == ("Relu 'relu' ran on Elsewhere",)
    assert found.runtime[0].settings == {"use_deterministic_compute": "1"}
