"""Whether others take what bnfold writes: ONNX's checker, ONNX Runtime, and OpenVINO where it is installed.

python -m tests.accepted [--versions]
"""

from __future__ import annotations

import sys
from collections import Counter
from importlib import metadata
from typing import Any

import numpy as np
import onnx

import bnfold
from bnfold.runtime import CannotRun, Session
from tests.law import feeds
from tests.program import foldable, stubborn
from tests.test_bodies import CASES
from tests.test_functions import FOLDS
from tests.text import build as from_text

PACKAGES = ("numpy", "onnx", "onnxruntime", "protobuf", "openvino")

TOLERANCE = 1e-4
"""Of the largest magnitude."""

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO may choose bfloat16."""


def models() -> dict[str, onnx.ModelProto]:
    """Models whose fold changes something."""
    found = {"two convolutions": foldable(), "one that stays": stubborn()}
    found |= {name: from_text(graph) for name, (graph, _) in CASES.items() if name != "a Scan"}
    return found | {name: from_text(graph, *functions) for name, (graph, functions, _) in FOLDS.items()}


def openvino(model: onnx.ModelProto, values: dict[str, Any]) -> list[Any] | None:
    """What OpenVINO computes; None where it is not here, or cannot even read the original."""
    try:
        import openvino as ov
    except ImportError:
        return None
    core = ov.Core()
    try:
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", EXACT)
        return [np.asarray(value) for value in compiled(values).values()]
    except RuntimeError:
        return None


def main() -> int:
    """Fold every model and show it to all of them."""
    if "--versions" in sys.argv:
        present = {dist.metadata["Name"] for dist in metadata.distributions()}
        versions = [f"{name} {metadata.version(name)}" for name in PACKAGES if name in present]
        sys.stdout.write(", ".join([f"Python {sys.version.split()[0]}", *versions]) + "\n")
        return 0
    count: Counter[str] = Counter()
    for name, before in models().items():
        after = bnfold.optimize(before, verify=False).proto
        assert after is not None
        onnx.checker.check_model(after, full_check=True)
        count["checker"] += 1
        values = feeds(before)
        try:
            Session(before.SerializeToString()).run(values)
        except CannotRun:
            continue
        Session(after.SerializeToString()).run(values)
        count["ONNX Runtime"] += 1
        wanted = openvino(before, values)
        if wanted is None:
            continue
        found = openvino(after, values)
        assert found is not None, f"{name}: OpenVINO took the original, but not what bnfold made of it"
        for one, other in zip(wanted, found, strict=True):
            size = max(1.0, float(np.max(np.abs(one), initial=0.0)))
            assert one.shape == other.shape and np.max(np.abs(one - other), initial=0.0) <= TOLERANCE * size, name
        count["OpenVINO"] += 1
    sys.stdout.write("accepted by " + ", ".join(f"{who} {n}" for who, n in count.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
