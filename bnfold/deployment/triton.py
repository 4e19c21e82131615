"""The configuration of one model in a repository of Triton Inference Server, as text.

The fields are those of Triton's `model_config.proto`; what its backends read of them is told in docs/deploy.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bnfold.deployment.interface import TYPES, Interface, Tensor
from bnfold.deployment.pbtxt import Message, Name, Value, mapped, render
from bnfold.deployment.settings import CUDA, FOLDER, ON_GPU, OPENVINO, PROVIDERS, TENSORRT, Settings
from bnfold.deployment.warmup import Request
from bnfold.errors import ModelError, UsageError

ONNXRUNTIME, PYTHON = "onnxruntime", "python"
BACKENDS = (ONNXRUNTIME, PYTHON)

ENGINES = "/tmp/tensorrt-"
"""Where a server keeps engines, with the model's name behind: ONNX Runtime makes this folder, and none above it."""

_LEVELS = {"all": 0, "extended": 1, "basic": -1, "off": 2}

# ONNX Runtime's backend reads these from the model's parameters, as numbers, and overwrites what an accelerator says.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "gpu_mem_limit": (),
    "do_copy_in_default_stream": (),
}

# The backend fills a batch into memory of its own, at another address each time: a captured graph would read the old.
_NOT_SERVED = ("enable_cuda_graph", "trt_cuda_graph_enable")

_PRECISIONS = {"trt_fp16_enable": "FP16", "trt_bf16_enable": "BF16", "trt_int8_enable": "INT8"}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class Service:
    """How the server runs the model."""

    name: str
    backend: str = ONNXRUNTIME
    max_batch: int = 0
    """0: the server does not batch, and dims have all axes."""
    dynamic_batching: bool = True
    queue_delay: int = 0
    """Microseconds that a request may wait for others."""
    instances: int = 1
    versions: int = 1
    """How many of the newest versions are served."""


def checked_name(name: str) -> str:
    """The name of a model, which is a folder and a part of an address.

    Raises:
        UsageError: it cannot be either.
    """
    if not _NAME.fullmatch(name) or len(name) > 200:
        raise UsageError(
            f"{name!r} cannot be a model's name in Triton; give one of letters, digits, '_', '-' and '.' with --name"
        )
    return name


def placed(settings: Settings, name: str) -> Settings:
    """The settings with engines where a server may write: it may not into its repository, or would load it anew."""
    providers = (
        (provider, {key: value.replace(f"{FOLDER}/engines", ENGINES + name) for key, value in options.items()})
        for provider, options in settings.providers
    )
    return replace(settings, providers=tuple(providers))


def config_of(
    service: Service, interface: Interface, settings: Settings, warmup: Sequence[Request], labels: dict[str, str]
) -> str:
    """The text of config.pbtxt.

    Args:
        service: how the server runs it.
        interface: of the model.
        settings: what ONNX Runtime is told.
        warmup: requests that an instance runs before it is ready.
        labels: file of class names by output.

    Raises:
        ModelError: a type or a shape that Triton cannot describe.
    """
    message: Message = {"name": service.name}
    if service.backend == ONNXRUNTIME:
        message |= {"platform": "onnxruntime_onnx", "backend": ONNXRUNTIME, "default_model_filename": "model.onnx"}
    else:
        message |= {"backend": PYTHON, "default_model_filename": "model.py"}
    message["max_batch_size"] = service.max_batch
    message["version_policy"] = {"latest": {"num_versions": service.versions}}
    message["input"] = [_tensor(tensor, "input", service) for tensor in interface.inputs]
    message["output"] = [_tensor(tensor, "output", service) | _label(tensor, labels) for tensor in interface.outputs]
    kind = Name("KIND_GPU" if settings.target in ON_GPU else "KIND_CPU")
    message["instance_group"] = [{"count": service.instances, "kind": kind}]
    if service.max_batch and service.dynamic_batching:
        delay = service.queue_delay
        message["dynamic_batching"] = {"max_queue_delay_microseconds": delay} if delay else {}
    if service.backend == ONNXRUNTIME:
        message |= _onnxruntime(settings)
    if warmup:
        message["model_warmup"] = [_request(request, service) for request in warmup]
    return render(message)


def _tensor(tensor: Tensor, kind: str, service: Service) -> Message:
    """A rank that Triton cannot have (no axes behind the batch, or none at all) is one axis of size 1, reshaped."""
    what = f"{kind} '{tensor.name}'"
    if tensor.type not in TYPES.values():
        raise ModelError(f"{what} is of type {tensor.type}, which Triton does not have")
    if tensor.type == "BF16" and service.backend == PYTHON:
        raise ModelError(f"{what} is bfloat16, which NumPy does not have; use --backend onnxruntime")
    if tensor.dims is None:
        raise ModelError(f"{what} does not say how many axes it has; export the model with shapes")
    if 0 in tensor.dims:
        raise ModelError(f"{what} has an axis of size 0, which Triton does not take")
    found: Message = {"name": tensor.name, "data_type": Name(f"TYPE_{tensor.type}")}
    dims = tensor.dims[1:] if service.max_batch else tensor.dims
    found["dims"] = [dim if isinstance(dim, int) else -1 for dim in dims] or [1]
    if not dims and service.max_batch:
        found["reshape"] = {"shape": []}
    return found


def _label(tensor: Tensor, labels: dict[str, str]) -> Message:
    return {"label_filename": labels[tensor.name]} if tensor.name in labels else {}


def classified(interface: Interface, classes: int, batched: bool) -> Tensor | None:
    """The output that holds a number for each of so many classes; None where there is none, or several."""
    found = []
    for tensor in interface.outputs:
        dims = (tensor.dims or ())[1 if batched else 0 :]
        sizes = [dim for dim in dims if isinstance(dim, int)]
        if len(sizes) == len(dims) and math.prod(sizes) == classes and dims:
            found.append(tensor)
    return found[0] if len(found) == 1 else None


def _request(request: Request, service: Service) -> Message:
    inputs: dict[str, Value] = {
        each.name: {"data_type": Name(f"TYPE_{each.type}"), "dims": list(each.dims), "input_data_file": each.file}
        for each in request.inputs
    }
    return {"name": request.name, "batch_size": request.batch, "inputs": mapped(inputs)}


def _onnxruntime(settings: Settings) -> Message:
    """What ONNX Runtime's backend is told: optimisation level, accelerators, parameters."""
    accelerators: Message = {}
    parameters: dict[str, str] = {}
    told = {name: dict(options) for name, options in settings.providers}
    cuda = told.get(PROVIDERS[CUDA], {})
    for key, values in _PARAMETERS.items():
        if (value := cuda.pop(key, None)) is not None:
            parameters[key] = str(values.index(value)) if value in values else value
    if settings.target == OPENVINO:
        accelerators["cpu_execution_accelerator"] = [{"name": "openvino"}]
    if settings.target in ON_GPU:
        listed: list[Value] = [_accelerator("cuda", cuda)]
        if settings.target == TENSORRT:
            listed.insert(0, _accelerator("tensorrt", _tensorrt(told[PROVIDERS[TENSORRT]])))
        accelerators["gpu_execution_accelerator"] = listed
    if settings.threads:
        parameters["intra_op_thread_count"] = str(settings.threads)
    optimization: Message = {"graph": {"level": _LEVELS[settings.level]}}
    if accelerators:
        optimization["execution_accelerators"] = accelerators
    found: Message = {"optimization": optimization}
    if parameters:
        found["parameters"] = mapped({key: {"string_value": value} for key, value in parameters.items()})
    return found


def _accelerator(name: str, options: dict[str, str]) -> Message:
    kept: dict[str, Value] = {key: value for key, value in options.items() if key not in _NOT_SERVED}
    return {"name": name, "parameters": mapped(kept)}


def _tensorrt(options: dict[str, str]) -> dict[str, str]:
    """The backend has a name of its own for the precision."""
    asked = [mode for key, mode in _PRECISIONS.items() if options.get(key) == "1"]
    kept = {key: value for key, value in options.items() if key not in _PRECISIONS}
    return {"precision_mode": asked[-1] if asked else "FP32"} | kept
