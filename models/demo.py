"""Fold BN-Inception, prove it, time it: what `make demo` runs. No torch, nothing downloaded, about a minute.

    python -m models.demo

Three BN-Inceptions (Ioffe & Szegedy, 2015), 69 BatchNormalization each, into build/demo/:

    light      as it ships inside the onnx package: every weight is a constant filler
    random     the same graph with seeded random weights and calibrated statistics, so that a wrong index shows
    fashion    trained on Fashion-MNIST here (models/trained), judged on its first 1,000 test images too
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "demo"
TRAINED = ROOT / "models" / "trained"
SAMPLES = TRAINED / "fashion_test_1000.npz"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_inception_v2.onnx"

Floats = NDArray[np.float32]


def main() -> None:
    started = time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    light, random = OUT / "bn_inception_light.onnx", OUT / "bn_inception_random.onnx"
    shutil.copyfile(LIGHT, light)
    onnx.save(randomized(onnx.load(light), seed=0), random)
    lines = [tell(light, bench=False), tell(random, bench=True)]
    trained = TRAINED / "bn_inception_fashion.onnx"
    if trained.exists():
        lines.append(tell(trained, bench=True, images=SAMPLES))
    print(f"\nmake demo, {time.perf_counter() - started:.0f} s")
    print(*lines, sep="\n", flush=True)


def tell(model: Path, bench: bool, images: Path | None = None) -> str:
    """Run the commands on one model, verified on labelled `images` where given, and say in one line what came of it."""
    folded, report = folded_of(model), OUT / f"{model.stem}.json"
    print(f"\n--- {model.name}", flush=True)
    bnfold("optimize", model, "-o", folded, "--force", "--json", report)
    fed = ("--inputs", images, "--labels", images) if images else ("--seed", 1)
    compared = OUT / f"{model.stem}.verify.json"
    bnfold("verify", model, folded, *fed, "--samples", 1, "--json", compared)
    if bench:
        bnfold("bench", model, folded, "--seconds", 4)
    found = json.loads(report.read_text())
    before, after = (batchnorms(path) for path in (model, folded))
    assert found["batchnorm"] == {"before": before, "after": after}, "the report miscounts"
    gone = sum(a["status"] == "folded" for a in found["affines"] if a["op"] == "BatchNormalization")
    if after or found["status"] != "verified":
        sys.exit(f"error: {model.name}: {after} BatchNormalization left, {found['status']}")
    line = f"{model.stem}: {gone} of {before} BatchNormalization folded, {after} left, {found['status']}"
    return f"{line}; {same_answers(model, json.loads(compared.read_text())['answers'])}" if images else line


def bnfold(*arguments: object) -> None:
    """Run the program as a user would, in sight."""
    words = [str(a.relative_to(ROOT)) if isinstance(a, Path) and a.is_relative_to(ROOT) else str(a) for a in arguments]
    print(f"\n$ bnfold {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "bnfold", *words], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"error: that ended with exit code {done.returncode}")


def folded_of(model: Path) -> Path:
    return OUT / f"{model.stem}.folded.onnx"


def batchnorms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path, load_external_data=False).graph.node)


def same_answers(model: Path, answers: dict[str, Any]) -> str:
    """What the report says of the test images: they stand beside the trained model, which says how to prepare them."""
    samples = answers["samples"]
    if answers["changed"]:
        sys.exit(f"error: {model.name}: {answers['changed']} of {samples} answers changed by folding")
    right = {when: round(share * samples) for when, share in answers["top1"].items()}
    return (
        f"the same answer on all {samples:,} test images, {right['after']:,} of them right "
        f"(before: {right['before']:,}); "
        f"largest logit difference {answers['difference']:.1e} of {answers['largest']:.1f}"
    )


def run(model: Path | bytes, values: Floats) -> list[Floats]:
    """Outputs of a model with one input."""
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it warns about every statistic that `calibrate` leaves unused
    session = onnxruntime.InferenceSession(model, quiet, providers=["CPUExecutionProvider"])
    return [np.asarray(out) for out in session.run(None, {session.get_inputs()[0].name: values})]


def randomized(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph with random weights instead of fillers, and the statistics that its signals then have.

    Signals stay of order one through all 69 layers. A few scales are negative, as in trained networks.
    """
    rng = np.random.default_rng(seed)
    graph = model.graph
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    fillers = {node.output[0]: tuple(shapes[node.input[0]]) for node in graph.node if node.op_type == "ConstantOfShape"}
    values = {name: random_value(name, shape, rng) for name, shape in fillers.items()}
    values |= {name: random_value(name, array.shape, rng) for name, array in shapes.items() if array.dtype.kind == "f"}

    real = [value for value in graph.input if value.name not in shapes]
    used = {name for node in graph.node if node.op_type != "ConstantOfShape" for name in node.input}
    values |= {name: array for name, array in shapes.items() if name in used and name not in values}
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    del graph.node[:], graph.input[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.input.extend(real)
    for name, array in values.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
        # Below IR 4 every initializer is an input too.
        graph.input.append(helper.make_tensor_value_info(name, graph.initializer[-1].data_type, array.shape))
    calibrate(model, rng)
    onnx.checker.check_model(model)
    return model


def random_value(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """He's initialisation for what has inputs; vectors near 1 for scales, some negative, and near 0 for shifts."""
    if len(shape) > 1:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    if name.endswith(("bn_scale_0", "sc_w_0")):
        signs = np.where(rng.random(shape) < 0.03, -1, 1)
        return (signs * rng.uniform(0.6, 1.4, shape)).astype(np.float32)
    return rng.normal(0, 0.2, shape).astype(np.float32)


def calibrate(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Set every mean and variance to what one image has there, all in one run.

    For one image InstanceNormalization is BatchNormalization by batch statistics, so a copy with the one in place of
    the other shows every layer its input as it will be.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for node in copy.graph.node:
        if node.op_type == "BatchNormalization":
            x, scale, bias, *_ = node.input
            node.CopyFrom(helper.make_node("InstanceNormalization", [x, scale, bias], list(node.output), epsilon=1e-5))
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in norms)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    signals = run(copy.SerializeToString(), rng.normal(size=shape).astype(np.float32))
    tensors: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
    for node, signal in zip(norms, signals, strict=True):
        for name, statistic in zip(node.input[3:], (signal.mean((0, 2, 3)), signal.var((0, 2, 3))), strict=True):
            tensors[name].CopyFrom(numpy_helper.from_array(statistic.astype(np.float32), name))


if __name__ == "__main__":
    main()
