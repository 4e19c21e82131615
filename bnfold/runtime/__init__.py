"""ONNX Runtime: which providers can run here, one session, and where each node ran.

Everything that knows onnxruntime lives here, and it is imported only when something runs: ``import bnfold.runtime``
costs nothing. A provider is asked for by a short name (``cuda``, ``tensorrt``, ``cpu``) and is either the one that
runs the model or an error: ONNX Runtime's habit of falling back to the CPU in silence is turned into a
`ProviderError`.
"""

from bnfold.runtime.available import resolve_providers, unavailable
from bnfold.runtime.binding import Bound, placed_on
from bnfold.runtime.exporting import save_operators, save_ort_format
from bnfold.runtime.loading import (
    CPU,
    CUDA,
    INSTALL,
    ORT_NAMES,
    TENSORRT,
    both_runtimes_installed,
    import_onnxruntime,
)
from bnfold.runtime.options import provider_list, provider_options
from bnfold.runtime.session import CannotRun, Session

__all__ = [
    "CPU",
    "CUDA",
    "INSTALL",
    "ORT_NAMES",
    "TENSORRT",
    "Bound",
    "CannotRun",
    "Session",
    "both_runtimes_installed",
    "import_onnxruntime",
    "placed_on",
    "provider_list",
    "provider_options",
    "resolve_providers",
    "save_operators",
    "save_ort_format",
    "unavailable",
]
