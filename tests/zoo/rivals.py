"""Run one rival on one model, in the rivals' own environment (tests/zoo/rivals.txt): it imports nothing of ours.

python tests/zoo/rivals.py RIVAL MODEL.onnx OUTPUT.onnx
python -m tests.zoo.rivals --versions
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx

from tests.zoo.forks import serve

Rival = Callable[[Path, Path], None]


def by_onnxruntime(source: Path, target: Path) -> None:
    """What ONNX Runtime saves at the extended level: as far as it goes without a layout of one machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def by_onnxsim(source: Path, target: Path) -> None:
    """The simplifier, subgraphs too."""
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source), include_subgraph=True)
    onnx.save(model, target)


def by_onnxslim(source: Path, target: Path) -> None:
    """OnnxSlim with its defaults."""
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def by_onnxoptimizer(source: Path, target: Path) -> None:
    """All fusing and eliminating passes, until nothing changes."""
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source), fixed_point=True), target)


def by_onnxscript(source: Path, target: Path) -> None:
    """Constants folded, functions inlined, then the default rewrite rules, BatchNormalization's among them."""
    import onnxscript.optimizer
    import onnxscript.rewriter

    model = onnxscript.optimizer.optimize(onnx.load(source))
    onnx.save(onnxscript.rewriter.rewrite(model), target)


def by_aimet(source: Path, target: Path) -> None:
    """AIMET's fold into weights, forward and backward."""
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight

    model = onnx.load(source)
    fold_all_batch_norms_to_weight(model)
    onnx.save(model, target)


RIVALS: dict[str, tuple[str, str, Rival]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime", by_onnxruntime),
    "onnxsim": ("onnxsim", "onnxsim", by_onnxsim),
    "onnxslim": ("onnxslim", "onnxslim", by_onnxslim),
    "onnxoptimizer": ("onnxoptimizer", "onnxoptimizer", by_onnxoptimizer),
    "onnxscript": ("onnxscript", "onnxscript.rewriter", by_onnxscript),
    "aimet": ("aimet-onnx", "aimet_onnx.batch_norm_fold", by_aimet),
}
"""The package, the module and the function of each."""


def versions() -> dict[str, str]:
    """What is installed; a rival that is not is left out."""
    found = {}
    for name, (package, _, _) in RIVALS.items():
        try:
            found[name] = f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(versions()))
    else:
        _, module, rival = RIVALS[sys.argv[1]]
        importlib.import_module(module)
        serve(lambda paths: rival(Path(paths[0]), Path(paths[1])))
