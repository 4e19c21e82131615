"""ONNX Runtime: which providers can run here, one session, and where each node ran.

Everything that knows onnxruntime lives here, and it is imported only when something runs: ``import bnfold.runtime``
costs nothing. A provider is asked for by a short name (``cuda``, ``tensorrt``, ``cpu``) and is either the one that
runs the model or an error: ONNX Runtime's habit of falling back to the CPU in silence is turned into a
`ProviderError`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import shutil
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import BnfoldError, ProviderError, UsageError
from bnfold.placement import Placement, read_profile

Array = npt.NDArray[Any]

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
ORT_NAMES = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}

_GPU_BUILD = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"

INSTALL = {
    CPU: "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime",
    CUDA: f"on a machine with an NVIDIA driver: {_GPU_BUILD}",
    TENSORRT: f"on a machine with an NVIDIA driver: {_GPU_BUILD} 'tensorrt-cu13>=10,<11'",
}

# Types that numpy does not have: their bits travel as integers of the same width.
_BIT_TYPES: dict[str, tuple[int, type[Any], Any]] = {
    "tensor(bfloat16)": (onnx.TensorProto.BFLOAT16, np.uint16, ml_dtypes.bfloat16),
}


class CannotRun(BnfoldError):
    """No runtime here can run this model (an op, a type or an IR version that it does not know); says which."""


def both_runtimes_installed() -> str | None:
    """One line with the fix where onnxruntime and onnxruntime-gpu are both installed (they overwrite each other)."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) < 2:
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; fix: "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def resolve_providers(requested: Sequence[str] | None = None) -> list[str]:
    """The providers to use, by short name: those asked for, in order, or the best one that works here.

    Raises `UsageError` for a name that is not a provider, `ProviderError` for one that cannot run on this machine.
    """
    if not requested:
        return [CUDA if unavailable(CUDA) is None else CPU]
    for name in requested:
        if name not in ORT_NAMES:
            raise UsageError(f"unknown provider '{name}'; choose from {', '.join(sorted(ORT_NAMES))}")
    chosen = list(dict.fromkeys(requested))
    for name in chosen:
        problem = unavailable(name)
        if problem is not None:
            raise ProviderError(f"provider '{name}' cannot be used here: {problem}")
    return chosen


@functools.cache
def unavailable(provider: str) -> str | None:
    """Why `provider` cannot run a model here, with the way out, or None where it can: a tiny session is tried."""
    runtime = import_onnxruntime()
    if runtime is None:
        return f"onnxruntime is not installed; {INSTALL[provider]}"
    if ORT_NAMES[provider] not in runtime.get_available_providers():
        return f"the installed onnxruntime was built without it; {INSTALL[provider]}"
    if provider == CPU:
        return None
    try:
        probe = Session(_probe_model(), provider=provider)
        probe.run({"x": np.ones((1, 1, 4, 4), np.float32)})
    except ProviderError as error:
        return str(error)
    except CannotRun as error:
        return f"{error}; {INSTALL[provider]}"
    return None


def _probe_model() -> bytes:
    """A convolution, so that a missing cuDNN shows too."""
    helper, tensor = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", tensor.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", tensor.FLOAT, [1, 1, 2, 2])],
        [onnx.numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return bytes(model.SerializeToString())


@functools.cache
def import_onnxruntime() -> Any | None:
    """The onnxruntime module, quietly, or None where it is not installed."""
    try:
        with muted():
            import onnxruntime
    except ImportError:
        return None
    if not hasattr(onnxruntime, "InferenceSession"):
        return None  # a folder that is left where only one of two builds was removed
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing reaches stdout or stderr meanwhile, not even from C++: GPU libraries print what ONNX Runtime also raises.

    The whole process is silent then, other threads too: keep it short.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = [(stream, os.dup(stream)) for stream in (1, 2)]
        try:
            for stream, _ in saved:
                os.dup2(nowhere.fileno(), stream)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            for stream, copy in saved:
                os.dup2(copy, stream)
                os.close(copy)


@functools.cache
def _preload_dlls() -> None:
    """Finds the CUDA and cuDNN libraries that pip installed; onnxruntime before 1.21 has no such function."""
    preload = getattr(import_onnxruntime(), "preload_dlls", None)
    if preload is not None:
        with muted():
            preload()


def provider_options(provider: str, *, tf32: bool = False, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The options bnfold gives a provider, then the user's own on top.

    TF32 keeps 10 bits of a float32's mantissa and would drown every other error, so it is off unless asked. The
    convolution algorithm is cuDNN's own default, not the fastest of a race, so that two runs agree.
    """
    options: dict[str, str] = {}
    if provider == CUDA:
        options = {"use_tf32": str(int(tf32)), "cudnn_conv_algo_search": "DEFAULT"}
    elif provider == TENSORRT:
        options = {
            "trt_fp16_enable": "0",
            "trt_int8_enable": "0",
            "trt_engine_cache_enable": "0",
            "trt_timing_cache_enable": "0",
            "trt_builder_optimization_level": "3",
        }
    return options | dict(extra or {})


def provider_list(
    provider: str, *, tf32: bool = False, extra: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """What `InferenceSession` takes: the provider, and behind it those that run what it cannot."""
    chosen = [(ORT_NAMES[provider], provider_options(provider, tf32=tf32, extra=extra))]
    if provider == TENSORRT:
        chosen.append((ORT_NAMES[CUDA], provider_options(CUDA, tf32=tf32)))
    if provider != CPU:
        chosen.append((ORT_NAMES[CPU], {}))
    return chosen


class Session:
    """One model on one provider. Raises `CannotRun` for a model it cannot load, `ProviderError` for a fall-back."""

    def __init__(
        self,
        model: bytes | Path,
        *,
        provider: str = CPU,
        optimize: bool = True,
        tf32: bool = False,
        options: Mapping[str, str] | None = None,
        profile: bool = False,
        threads: int | None = None,
    ) -> None:
        runtime = import_onnxruntime()
        if runtime is None:
            raise ProviderError(f"onnxruntime is not installed; {INSTALL[provider]}")
        self.provider = provider
        self._runtime = runtime
        self._folder: Path | None = None
        if profile:
            self._folder = Path(tempfile.mkdtemp(prefix="bnfold-profile-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        settings.use_deterministic_compute = True
        levels = runtime.GraphOptimizationLevel
        settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        if threads is not None:
            settings.intra_op_num_threads = threads
        if self._folder is not None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(self._folder / "profile")
        if provider != CPU:
            _preload_dlls()
            if provider == TENSORRT and not tf32:
                # ONNX Runtime has no such option for TensorRT; its libraries read this once, when they load.
                os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        start = time.perf_counter()
        self._session = self._create(model, settings, provider_list(provider, tf32=tf32, extra=options))
        self.seconds_to_create = time.perf_counter() - start
        self.inputs: dict[str, str] = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        self.outputs: dict[str, str] = {tensor.name: tensor.type for tensor in self._session.get_outputs()}

    def _create(self, model: bytes | Path, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
        known = self._runtime.get_available_providers()
        if ORT_NAMES[self.provider] not in known:
            raise ProviderError(f"the installed onnxruntime was built without it; {INSTALL[self.provider]}")
        source = str(model) if isinstance(model, Path) else model
        try:
            with contextlib.nullcontext() if self.provider == CPU else muted():
                session = self._runtime.InferenceSession(
                    source, settings, providers=[entry for entry in providers if entry[0] in known], enable_fallback=0
                )
                session.disable_fallback()
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            if self.provider != CPU and _is_provider_trouble(str(error)):
                raise ProviderError(f"{_first_line(error)}; {INSTALL[self.provider]}") from error
            raise CannotRun(f"ONNX Runtime cannot load it: {_first_line(error)}") from error
        if ORT_NAMES[self.provider] not in session.get_providers():
            raise ProviderError(
                f"ONNX Runtime could not start it (no NVIDIA GPU, driver or library) and fell back to "
                f"{', '.join(session.get_providers())}; {INSTALL[self.provider]}"
            )
        return session

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs by name. Raises `CannotRun` with ONNX Runtime's own first line."""
        names = list(outputs) if outputs is not None else list(self.outputs)
        types = list(self.inputs.values()) + list(self.outputs.values())
        try:
            if any(kind in _BIT_TYPES for kind in types):
                return self._run_bits(feeds, names)
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            raise CannotRun(f"ONNX Runtime cannot run it: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def timed(self, feeds: Mapping[str, Array]) -> float:
        """Seconds that one run takes, with nothing around it. Run it once by `run` first, which reports errors well."""
        start = time.perf_counter()
        self._session.run(None, feeds)
        return time.perf_counter() - start

    def _run_bits(self, feeds: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
        """As `run`, for types that numpy lacks: bits in, bits out."""
        make = self._runtime.OrtValue
        values = {}
        for name, array in feeds.items():
            if self.inputs[name] in _BIT_TYPES:
                code, bits, _ = _BIT_TYPES[self.inputs[name]]
                values[name] = make.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array).view(bits), code)
            else:
                values[name] = make.ortvalue_from_numpy(np.ascontiguousarray(array))
        results = self._session.run_with_ort_values(names, values)
        return {name: _to_numpy(value) for name, value in zip(names, results, strict=True)}

    def placement(self) -> Placement:
        """Which provider ran each node, from the profile; ends the profiling, so call it once, after a run."""
        assert self._folder is not None, "the session was made without profile=True"
        found = read_profile(Path(self._session.end_profiling()))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        return found


def _to_numpy(value: Any) -> Array:
    kind = value.data_type()
    if kind not in _BIT_TYPES:
        array: Array = value.numpy()
        return array
    _, bits, dtype = _BIT_TYPES[kind]
    shape = tuple(value.shape())
    size = int(np.prod(shape)) * np.dtype(bits).itemsize
    copied = ctypes.string_at(value._ortvalue.data_ptr(), size)
    return np.frombuffer(copied, bits).reshape(shape).view(dtype)


def _is_provider_trouble(message: str) -> bool:
    words = ("CUDA failure", "CUDA error", "cudnn", "LoadLibrary", "libcu", "libnv", "no CUDA")
    return any(word in message for word in words)


def _first_line(error: BaseException) -> str:
    """The message without ONNX Runtime's prefix and source path."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    if text.startswith("/"):
        text = text.rsplit(") ", 1)[-1]
    return text[:300]
