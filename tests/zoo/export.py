"""PyTorch networks as ONNX models: seeded weights, statistics as trained networks have them, nothing folded."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from tests.zoo.networks import Network

NEGATIVE = 0.02
"""The share of negative gammas."""


def batchnorms(module: nn.Module) -> list[Any]:
    """Every BatchNormalization that has statistics."""
    found = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [m for m in found if m.running_mean is not None]


def randomise(module: nn.Module, seed: int, negative: float = NEGATIVE) -> None:
    """Draw what training would leave: gammas around one, 3% of them a hundred times smaller, a few negative."""
    rng = np.random.default_rng(seed)
    for bn in batchnorms(module):
        channels = bn.num_features
        gamma = rng.lognormal(0.0, 0.3, channels)
        gamma[rng.random(channels) < 0.03] *= 1e-2
        gamma[rng.random(channels) < negative] *= -1
        values = {"weight": gamma, "bias": rng.normal(0, 0.3, channels)} if bn.affine else {}
        values |= {"running_mean": rng.normal(0, 0.5, channels), "running_var": rng.lognormal(0, 0.5, channels)}
        for name, value in values.items():
            getattr(bn, name).data = torch.tensor(value, dtype=bn.running_mean.dtype)


def calibrate(module: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    """One run that sets each BN's statistics to those of its input, give or take a tenth, so that nothing explodes."""
    generator = torch.Generator().manual_seed(seed)

    def measure(bn: Any, arguments: tuple[torch.Tensor]) -> None:
        x = arguments[0].detach()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean, variance = x.mean(axes), x.var(axes, unbiased=False)
        variance = torch.clamp(variance, min=1e-3 * float(variance.mean()) + 1e-6)
        bn.running_mean.data = mean + 0.1 * torch.randn(mean.shape, generator=generator) * variance.sqrt()
        bn.running_var.data = variance * torch.exp(0.1 * torch.randn(variance.shape, generator=generator))

    hooks = [bn.register_forward_pre_hook(measure) for bn in batchnorms(module)]
    with torch.no_grad():
        module(torch.randn((4, *shape[1:]), generator=generator))
    for hook in hooks:
        hook.remove()


def export(module: nn.Module, x: torch.Tensor, path: Path, *, dynamo: bool = False) -> None:
    """Write the module as it stands, by one of PyTorch's two exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, verbose=False)
            onnx.save(program.model_proto, path)
            return
        # The older exporter folds BN into Conv by itself, unless it is told to preserve the mode.
        torch.onnx.export(
            module,
            (x,),
            str(path),
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=["input0"],
        )


Change = Callable[[nn.Module], nn.Module]


def write(name: str, network: Network, path: Path, *, negative: float = NEGATIVE, change: Change | None = None) -> None:
    """Build, fill, `change` and export a network; `NAME__dynamo` is NAME by the newer exporter."""
    make, shape = network
    architecture, _, exporter = name.partition("__")
    seed = zlib.crc32(architecture.encode()) % 10000
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    module = make().eval()
    x = torch.randn(shape)
    randomise(module, seed, negative)
    calibrate(module, shape, seed)
    module = change(module) if change else module
    export(module, x, path, dynamo=exporter == "dynamo")
