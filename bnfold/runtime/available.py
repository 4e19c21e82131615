"""Which providers can run a model on this machine."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx

from bnfold.errors import ProviderError, UsageError
from bnfold.runtime.loading import CPU, CUDA, INSTALL, ORT_NAMES, import_onnxruntime
from bnfold.runtime.options import Options, check_options
from bnfold.runtime.session import CannotRun, Session


def resolve_providers(requested: Sequence[str] | None = None, options: Options | None = None) -> list[str]:
    """The providers to use, by short name: those asked for, in order, or the best one that works here.

    Raises `UsageError` for a name that is not a provider, and for `options` of a provider that is not used;
    `ProviderError` for one that cannot run on this machine.
    """
    if not requested:
        best = [CUDA if unavailable(CUDA) is None else CPU]
        check_options(options, best)
        return best
    for name in requested:
        if name not in ORT_NAMES:
            raise UsageError(f"unknown provider '{name}'; choose from {', '.join(sorted(ORT_NAMES))}")
    chosen = list(dict.fromkeys(requested))
    check_options(options, chosen)
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
