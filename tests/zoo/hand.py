"""The corner cases as files, and how many BatchNormalization a sound and complete folder leaves in each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import onnx

from tests.zoo import cases, cases_across

CASES = {f"hand_{name}": case for name, case in (cases.CASES | cases_across.CASES).items()}


def ideal(name: str) -> int | None:
    """How many are left at best; None for a model that is no hand case."""
    return CASES[name].left if name in CASES else None


def recipes() -> dict[str, Callable[[Path], None]]:
    """Every case by name, with what writes it."""
    return {name: functools.partial(_write, name) for name in CASES}


def _write(name: str, path: Path) -> None:
    model = CASES[name].model()
    if name == "hand_external_data":
        onnx.save(model, path, save_as_external_data=True, location=f"{name}.onnx.data", size_threshold=0)
    else:
        onnx.save(model, path)
