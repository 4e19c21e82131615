"""Whether others take what bnfold writes: ONNX's checker, ONNX Runtime; OpenVINO and ncnn where they are installed.

python -m tests.accepted [--versions]
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
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

PACKAGES = ("numpy", "onnx", "onnxruntime", "protobuf", "openvino", "ncnn", "pnnx")

TRAINED = Path(__file__).parent.parent / "models" / "trained"

TOLERANCE = 1e-4
"""Of the largest magnitude."""

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO may choose bfloat16."""


def models() -> dict[str, onnx.ModelProto]:
    """Models whose fold changes something."""
    found = {"two convolutions": foldable(), "one that stays": stubborn()}
    found |= {path.stem: onnx.load(path) for path in sorted(TRAINED.glob("*.onnx"))}
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


def ncnn(model: onnx.ModelProto, values: dict[str, Any]) -> list[Any] | None:
    """What ncnn computes of one image, through pnnx; None where they are not here, or cannot even read the original."""
    package = importlib.util.find_spec("pnnx")  # itself it wants PyTorch, its converter does not
    images, *others = values.values()
    if package is None or package.origin is None or others or images.ndim != 4 or images.dtype != np.float32:
        return None
    import ncnn as runtime

    converter = Path(package.origin).with_name("pnnx")
    image = images[:1]
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "m.onnx")
        shape = ",".join(map(str, image.shape))
        subprocess.run(
            [converter, "m.onnx", f"inputshape=[{shape}]", "fp16=0"], cwd=folder, capture_output=True, check=False
        )
        net = runtime.Net()
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "winograd_convolution"):
            setattr(net.opt, f"use_{option}", False)
        files = [Path(folder) / f"m.ncnn.{kind}" for kind in ("param", "bin")]
        if not all(path.exists() for path in files) or net.load_param(str(files[0])) or net.load_model(str(files[1])):
            return None
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], runtime.Mat(image[0]).clone())
        found = [extractor.extract(output) for output in net.output_names()]
        return None if any(code for code, _ in found) else [np.array(value) for _, value in found]


def alike(ones: list[Any], others: list[Any]) -> bool:
    """Whether outputs agree; one image may stand for several."""

    def near(one: Any, other: Any) -> bool:
        one = one[:1].reshape(other.shape) if one.size > other.size else one
        size = max(1.0, float(np.max(np.abs(one), initial=0.0)))
        return one.size == other.size and bool(np.max(np.abs(one - other), initial=0.0) <= TOLERANCE * size)

    return len(ones) == len(others) and all(map(near, ones, others))


OTHERS: dict[str, Callable[[onnx.ModelProto, dict[str, Any]], list[Any] | None]] = {"OpenVINO": openvino, "ncnn": ncnn}


KILLS = "an output is left out"
"""A function's output that its call leaves out: ONNX Runtime 1.24 aborts when it loads that."""


def main() -> int:
    """Fold every model and show it to all of them."""
    if "--versions" in sys.argv:
        present = {dist.metadata["Name"] for dist in metadata.distributions()}
        versions = [f"{name} {metadata.version(name)}" for name in PACKAGES if name in present]
        sys.stdout.write(", ".join([f"Python {sys.version.split()[0]}", *versions]) + "\n")
        return 0
    count: Counter[str] = Counter()
    for name, before in models().items():
        if name == KILLS and metadata.version("onnxruntime").startswith("1.24."):
            continue
        after = bnfold.optimize(before, verify=False).proto
        assert after is not None
        onnx.checker.check_model(after, full_check=True)
        count["checker"] += 1
        values = feeds(before)
        try:
            right = list(Session(before.SerializeToString()).run(values).values())
        except CannotRun:
            continue
        Session(after.SerializeToString()).run(values)
        count["ONNX Runtime"] += 1
        for other, run in OTHERS.items():
            wanted = run(before, values)
            if wanted is None or not alike(right, wanted):  # ncnn reads defaults of a function's attributes wrong
                continue
            found = run(after, values)
            assert found is not None, f"{name}: {other} took the original, but not what bnfold made of it"
            assert alike(wanted, found), f"{name}: {other} does not compute the same"
            count[other] += 1
    sys.stdout.write("accepted by " + ", ".join(f"{who} {n}" for who, n in count.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
