"""What ONNX Runtime is told: the settings that bnfold gives a provider, and the user's own on top."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from bnfold.errors import UsageError
from bnfold.runtime.loading import CPU, CUDA, ORT_NAMES, TENSORRT

Options = Mapping[str, Mapping[str, str]]
"""Values by key, by provider: `{"cuda": {"device_id": "1"}}`."""

TF32_SWITCH = "NVIDIA_TF32_OVERRIDE"
"""The variable that NVIDIA's libraries read once, when they load; ONNX Runtime has no such option for TensorRT."""


def provider_options(
    provider: str, *, tf32: bool = False, extra: Mapping[str, str] | None = None, deterministic: bool = True
) -> dict[str, str]:
    """The options bnfold gives a provider, then the user's own on top.

    TF32 keeps 10 bits of a float32's mantissa and would drown every other error, so it is off unless asked. With
    `deterministic` the convolution algorithm is cuDNN's own default, not the fastest of a race, so that two runs agree.
    """
    options: dict[str, str] = {}
    if provider == CUDA:
        options = {"use_tf32": str(int(tf32))}
        if deterministic:
            options["cudnn_conv_algo_search"] = "DEFAULT"
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
    provider: str, *, tf32: bool = False, extra: Mapping[str, str] | None = None, deterministic: bool = True
) -> list[tuple[str, dict[str, str]]]:
    """What `InferenceSession` takes: the provider, and behind it those that run what it cannot."""
    own = provider_options(provider, tf32=tf32, extra=extra, deterministic=deterministic)
    chosen = [(ORT_NAMES[provider], own)]
    if provider == TENSORRT:
        chosen.append((ORT_NAMES[CUDA], provider_options(CUDA, tf32=tf32, deterministic=deterministic)))
    if provider != CPU:
        chosen.append((ORT_NAMES[CPU], {}))
    return chosen


def settings(provider: str, options: Mapping[str, str], deterministic: bool) -> dict[str, str]:
    """What a report says of a session: the options in force, and the switches beside them."""
    found = dict(options) | {"use_deterministic_compute": str(int(deterministic))}
    if provider == TENSORRT:
        found[TF32_SWITCH] = os.environ.get(TF32_SWITCH, "not set")
    return found


def check_options(options: Options | None, providers: Sequence[str]) -> None:
    """Raise `UsageError` for options that nothing would read, or that contradict what a report says."""
    for provider, values in (options or {}).items():
        if provider not in ORT_NAMES:
            raise UsageError(f"unknown provider '{provider}'; choose from {', '.join(sorted(ORT_NAMES))}")
        if provider == CPU and values:
            raise UsageError("the cpu provider has no options: ONNX Runtime ignores them")
        if provider not in providers:
            raise UsageError(f"there are options for '{provider}', which is not used; add --provider {provider}")
        if "use_tf32" in values:
            raise UsageError("TF32 has an option of its own: --tf32")
