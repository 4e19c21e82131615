"""One model on one provider of ONNX Runtime: made, run, timed, profiled."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, ProviderError, UsageError
from bnfold.kernels.base import flat
from bnfold.placement import Placement, read_profile
from bnfold.runtime.binding import Array, Bound, has_bits, to_numpy, to_value
from bnfold.runtime.loading import CPU, INSTALL, ORT_NAMES, TENSORRT, import_onnxruntime, muted, preload_dlls
from bnfold.runtime.options import TF32_SWITCH, provider_list, settings

_most_threads: int | None = None


def limit_threads(count: int) -> None:
    """Let the sessions of this process compute with so many threads, where none is told otherwise."""
    global _most_threads  # noqa: PLW0603 - the share of a process that works beside others
    _most_threads = count


class CannotRun(BnfoldError):
    """No runtime here can run this model (an op, a type or an IR version that it does not know); says which."""


class Session:
    """One model on one provider.

    `options` are the provider's own, `settings` what a report says of them. With `deterministic` two runs agree.

    Raises:
        CannotRun: a model that it cannot load.
        ProviderError: the provider is not there, or fell back to another.
        UsageError: an option that the provider does not know.
    """

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
        deterministic: bool = True,
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
        wanted = runtime.SessionOptions()
        wanted.log_severity_level = 4
        wanted.use_deterministic_compute = deterministic
        levels = runtime.GraphOptimizationLevel
        wanted.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        threads = _most_threads if threads is None else threads
        if threads is not None:
            wanted.intra_op_num_threads = threads
        if self._folder is not None:
            wanted.enable_profiling = True
            wanted.profile_file_prefix = str(self._folder / "profile")
        if provider != CPU:
            preload_dlls()
            if provider == TENSORRT and not tf32:
                os.environ.setdefault(TF32_SWITCH, "0")
        chosen = provider_list(provider, tf32=tf32, extra=options, deterministic=deterministic)
        self.options = chosen[0][1]
        self.settings = settings(provider, self.options, deterministic)
        start = time.perf_counter()
        self._session = self._create(model, wanted, chosen)
        self.seconds_to_create = time.perf_counter() - start
        self.inputs: dict[str, str] = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        self.outputs: dict[str, str] = {tensor.name: tensor.type for tensor in self._session.get_outputs()}
        self.output_dims: dict[str, list[int | str | None]] = {t.name: t.shape for t in self._session.get_outputs()}

    def _create(self, model: bytes | Path, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
        known = self._runtime.get_available_providers()
        if ORT_NAMES[self.provider] not in known:
            raise ProviderError(f"the installed onnxruntime was built without it; {INSTALL[self.provider]}")
        source = str(model) if isinstance(model, Path) else model
        if isinstance(source, str) and not _is_utf8(source):
            raise CannotRun("ONNX Runtime takes no path that is not UTF-8; rename the file, or set a UTF-8 locale")
        try:
            with contextlib.nullcontext() if self.provider == CPU else muted():
                session = self._runtime.InferenceSession(
                    source, settings, providers=[entry for entry in providers if entry[0] in known], enable_fallback=0
                )
                session.disable_fallback()
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            if "provider option" in str(error):
                raise UsageError(f"{self.provider}: {first_line(error)}") from error
            if self.provider != CPU and _is_provider_trouble(str(error)):
                raise ProviderError(f"{first_line(error)}; {INSTALL[self.provider]}") from error
            raise CannotRun(f"ONNX Runtime cannot load it: {first_line(error)}") from error
        if ORT_NAMES[self.provider] not in session.get_providers():
            raise ProviderError(
                f"ONNX Runtime could not start it (no NVIDIA GPU, driver or library) and fell back to "
                f"{', '.join(session.get_providers())}; {INSTALL[self.provider]}"
            )
        return session

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs by name, as `flat` gives them. Raises `CannotRun` with ONNX Runtime's own first line."""
        names = list(outputs) if outputs is not None else list(self.outputs)
        types = list(self.inputs.values()) + list(self.outputs.values())
        try:
            if has_bits(types):
                return self._run_bits(feeds, names)
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            raise CannotRun(f"ONNX Runtime cannot run it: {first_line(error)}") from error
        return flat(dict(zip(names, values, strict=True)))

    def _run_bits(self, feeds: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
        """As `run`, for types that numpy lacks: bits in, bits out."""
        values = {name: to_value(self._runtime, array, self.inputs[name]) for name, array in feeds.items()}
        results = self._session.run_with_ort_values(names, values)
        return {name: to_numpy(value) for name, value in zip(names, results, strict=True)}

    def bound(self, feeds: Mapping[str, Array]) -> Bound:
        """The session with its inputs and outputs where the provider computes. Raises `CannotRun`."""
        device = int(self.options.get("device_id", 0))
        try:
            return Bound(self._runtime, self._session, feeds, self.inputs, self.outputs, self.provider, device)
        except Exception as error:
            raise CannotRun(f"ONNX Runtime cannot run it: {first_line(error)}") from error

    def placement(self) -> Placement:
        """Which provider ran each node, from the profile; ends the profiling, so call it once, after a run."""
        assert self._folder is not None, "the session was made without profile=True"
        found = read_profile(Path(self._session.end_profiling()))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_provider_trouble(message: str) -> bool:
    words = ("CUDA failure", "CUDA error", "cudnn", "LoadLibrary", "libcu", "libnv", "no CUDA")
    return any(word in message for word in words)


def first_line(error: BaseException) -> str:
    """The message without ONNX Runtime's prefix and source path."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    if text.startswith("/"):
        text = text.rsplit(") ", 1)[-1]
    return text[:300]
