"""ONNX Runtime's own format of a model, for phones and browsers, and the list of operators that it needs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from bnfold.errors import ProviderError
from bnfold.runtime.loading import CPU, INSTALL, import_onnxruntime, muted
from bnfold.runtime.session import CannotRun, first_line

# Blocked layouts of x86-64, which other processors do not run.
_ONLY_HERE = ["NchwcTransformer"]


def save_ort_format(model: Path, output: Path, level: str = "ORT_ENABLE_ALL") -> None:
    """Optimise a model for any CPU and save it in ONNX Runtime's format.

    Args:
        model: an ONNX file; its external data becomes part of the output.
        output: the file to write.
        level: how far to optimise, by ONNX Runtime's name for it.

    Raises:
        CannotRun: ONNX Runtime cannot load or save it.
        ProviderError: ONNX Runtime is not installed.
    """
    runtime = import_onnxruntime()
    if runtime is None:
        raise ProviderError(f"onnxruntime is not installed; {INSTALL[CPU]}")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(output)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        providers = ["CPUExecutionProvider"]
        runtime.InferenceSession(str(model), options, providers=providers, disabled_optimizers=_ONLY_HERE)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise CannotRun(f"ONNX Runtime cannot save it in its own format: {first_line(error)}") from error


def save_operators(model: Path, output: Path) -> None:
    """List the operators of a model in ONNX Runtime's format, as a build of the runtime with no others takes them."""
    with muted():
        from onnxruntime.tools import ort_format_model
    noisy = logging.getLogger("ort_format_model.utils")
    before, noisy.disabled = noisy.disabled, True
    try:
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # it leaves a file to the collector
            ort_format_model.create_config_from_models([model], output, enable_type_reduction=False)
    finally:
        noisy.disabled = before
    said = output.read_text(encoding="utf-8").splitlines()
    output.write_text("".join(f"{line}\n" for line in said if line and not line.startswith("#")), encoding="utf-8")
