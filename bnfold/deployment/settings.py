"""What each target is told: which provider of ONNX Runtime, its options, those of a session, and where tensors lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnfold.deployment.interface import Interface, Tensor
from bnfold.errors import UsageError

CPU, CUDA, TENSORRT, OPENVINO, ORT = "cpu", "cuda", "tensorrt", "openvino", "ort"
TARGETS = (CPU, CUDA, TENSORRT, OPENVINO, ORT)

ON_GPU = (CUDA, TENSORRT)

LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
"""How far ONNX Runtime optimises a graph, and its own names for that."""

PROVIDERS = {
    CPU: "CPUExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    TENSORRT: "TensorrtExecutionProvider",
    OPENVINO: "OpenVINOExecutionProvider",
    ORT: "CPUExecutionProvider",
}

PACKAGES = {
    CPU: "onnxruntime",
    CUDA: "onnxruntime-gpu[cuda,cudnn]",
    TENSORRT: "onnxruntime-gpu[cuda,cudnn] and tensorrt-cu13>=10,<11",
    OPENVINO: "onnxruntime-openvino",
    ORT: "onnxruntime",
}
"""What to install where the model is served."""

FOLDER = "{folder}"
"""Stands for the folder that the settings lie in; `serve.py` puts it in place."""

Options = dict[str, str]


@dataclass(frozen=True)
class Wishes:
    """What the user asked for beside the target."""

    level: str | None = None
    threads: int = 0
    tf32: bool = False
    max_batch: int = 0
    """The largest batch to prepare for; 0 where the batch is not free."""
    extra: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Options of providers, which have the last word."""


@dataclass(frozen=True)
class Settings:
    """What ONNX Runtime is told: the providers in the order of preference, and the session."""

    target: str
    providers: tuple[tuple[str, Options], ...]
    level: str
    threads: int
    environment: Options
    """Variables that NVIDIA's libraries read when they load."""
    bound: bool
    """Whether inputs and outputs stay where the provider computes, at addresses that do not change."""

    def to_json(self, model: str = "model.onnx") -> dict[str, Any]:
        """What `settings.json` holds."""
        return {
            "model": model,
            "target": self.target,
            "install": PACKAGES[self.target],
            "providers": [[name, dict(options)] for name, options in self.providers],
            "session": {"graph_optimization_level": LEVELS[self.level], "intra_op_num_threads": self.threads},
            "environment": dict(self.environment),
            "io_binding": self.bound,
        }


def settings_of(target: str, interface: Interface, wishes: Wishes, sizes: Mapping[str, Sequence[int]]) -> Settings:
    """The settings of one target for one model.

    Args:
        target: one of :data:`TARGETS`.
        interface: of the model.
        wishes: what the user asked for.
        sizes: of inputs whose axes behind the first are free, where the user said them.

    Raises:
        UsageError: there are options for a provider that the target does not use.
    """
    static = interface.is_fixed
    cuda = {
        "prefer_nhwc": "1",  # tensor cores read channels last
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": str(int(wishes.tf32)),
    }
    own: dict[str, Options] = {
        CPU: {},
        CUDA: cuda | ({"enable_cuda_graph": "1"} if static else {}),
        TENSORRT: _tensorrt(interface, wishes.max_batch, sizes),
        OPENVINO: {"device_type": "CPU", "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}'},
        ORT: {},
    }
    chain = {TENSORRT: (TENSORRT, CUDA, CPU), ORT: (ORT,), CPU: (CPU,)}.get(target, (target, CPU))
    for provider, options in wishes.extra.items():
        if provider not in chain or provider in (CPU, ORT):
            names = ", ".join(each for each in chain if each not in (CPU, ORT)) or "none that has options"
            raise UsageError(f"there are options for '{provider}'; the target {target} uses {names}")
        if "use_tf32" in options:
            raise UsageError("TF32 has an option of its own: --tf32")
    if target == TENSORRT:
        own[CUDA] = cuda  # what it falls back to is not captured apart
    providers = tuple((PROVIDERS[each], own[each] | dict(wishes.extra.get(each, {}))) for each in chain)
    level = wishes.level or ("off" if target == OPENVINO else "all")  # OpenVINO has optimisations of its own
    environment = {"NVIDIA_TF32_OVERRIDE": "0"} if target == TENSORRT and not wishes.tf32 else {}
    return Settings(target, providers, level, wishes.threads, environment, target in ON_GPU)


def _tensorrt(interface: Interface, max_batch: int, sizes: Mapping[str, Sequence[int]]) -> Options:
    """Engines and timings are kept, and where the batch is free one engine is built for all of its sizes."""
    found = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": f"{FOLDER}/engines",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": f"{FOLDER}/engines",
    }
    if interface.is_fixed:
        return found | {"trt_cuda_graph_enable": "1"}
    shapes = {tensor.name: _row(tensor, sizes) for tensor in interface.inputs if not tensor.is_fixed}
    if max_batch and shapes and all(shape is not None for shape in shapes.values()):
        for key, batch in (("min", 1), ("opt", max_batch), ("max", max_batch)):
            found[f"trt_profile_{key}_shapes"] = ",".join(
                f"{name}:{'x'.join(map(str, (batch, *(shape or ()))))}" for name, shape in shapes.items()
            )
    return found


def _row(tensor: Tensor, sizes: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    """Sizes of the axes behind the first, None where one is not known."""
    dims = sizes.get(tensor.name) or tensor.dims or ()
    row = tuple(dim for dim in dims[1:] if isinstance(dim, int))
    return row if dims and len(row) == len(dims) - 1 else None
