"""What outputs are called that nobody named a place for, and how they are told from originals."""

from __future__ import annotations

from pathlib import Path

FP32 = "fp32"
"""The precision that leaves all types as they are."""

SMALLER = ("fp16", "bf16")
"""Those that convert."""


def default_output(model: Path, precision: str = FP32) -> Path:
    """Where the output of a model goes: beside it."""
    return model.with_name(model.name.removesuffix(".onnx") + _suffix(precision))


def is_output(path: Path) -> bool:
    """Whether a model is called as outputs are."""
    return path.name.endswith(tuple(map(_suffix, (FP32, *SMALLER))))


def _suffix(precision: str) -> str:
    return ".folded.onnx" if precision == FP32 else f".folded.{precision}.onnx"
