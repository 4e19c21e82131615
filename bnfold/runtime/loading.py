"""The onnxruntime module, quietly: whether it is there, which build, and where its GPU libraries lie."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CPU, CUDA, TENSORRT = "cpu", "cuda", "tensorrt"
ORT_NAMES = {CPU: "CPUExecutionProvider", CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}

_GPU_BUILD = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"

INSTALL = {
    CPU: "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime",
    CUDA: f"on a machine with an NVIDIA driver: {_GPU_BUILD}",
    TENSORRT: f"on a machine with an NVIDIA driver: {_GPU_BUILD} 'tensorrt-cu13>=10,<11'",
}


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


def runtime_version() -> str | None:
    """The version of ONNX Runtime here, which is loaded for that; None where it is not installed."""
    return getattr(import_onnxruntime(), "__version__", None)


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
def preload_dlls() -> None:
    """Finds the CUDA and cuDNN libraries that pip installed; onnxruntime before 1.21 has no such function."""
    preload = getattr(import_onnxruntime(), "preload_dlls", None)
    if preload is not None:
        with muted():
            preload()
