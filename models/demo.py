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
        images = preprocessed(trained)
        np.save(OUT / "fashion_test_1000.npy", images)
        line = tell(trained, bench=True, inputs=OUT / "fashion_test_1000.npy")
        lines.append(f"{line}; {same_answers(trained, folded_of(trained), images)}")
    print(f"\nmake demo, {time.perf_counter() - started:.0f} s")
    print(*lines, sep="\n", flush=True)


def tell(model: Path, bench: bool, inputs: Path | None = None) -> str:
    """Run the commands on one model, verified on `inputs` where given, and say in one line what came of it."""
    folded, report = folded_of(model), OUT / f"{model.stem}.json"
    print(f"\n--- {model.name}", flush=True)
    bnfold("optimize", model, "-o", folded, "--force", "--json", report)
    bnfold("verify", model, folded, *(("--inputs", inputs) if inputs else ("--seed", 1)), "--samples", 1)
    if bench:
        bnfold("bench", model, folded, "--seconds", 4)
    found = json.loads(report.read_text())
    before, after = (batchnorms(path) for path in (model, folded))
    assert found["batchnorm"] == {"before": before, "after": after}, "the report miscounts"
    gone = sum(a["status"] == "folded" for a in found["affines"] if a["op"] == "BatchNormalization")
    if after or found["status"] != "verified":
        sys.exit(f"error: {model.name}: {after} BatchNormalization left, {found['status']}")
    return f"{model.stem}: {gone} of {before} BatchNormalization folded, {after} left, {found['status']}"


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


def preprocessed(model: Path) -> Floats:
    """The 1,000 test images that stand beside the trained model, as its card wants them: (1000, 1, 28, 28)."""
    card = json.loads(model.with_suffix(".json").read_text())["preprocessing"]
    with np.load(SAMPLES) as kept:
        mean, std = (np.asarray(card[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        return (kept["images"].astype(np.float32) * np.float32(card["scale"]) - mean) / std


def same_answers(original: Path, folded: Path, images: Floats) -> str:
    """Top-1 of both models on the test images, and how far their logits are apart."""
    with np.load(SAMPLES) as kept:
        labels = kept["labels"]
    before, after = (run(path, images)[0] for path in (original, folded))
    same = int((before.argmax(1) == after.argmax(1)).sum())
    right = [int((logits.argmax(1) == labels).sum()) for logits in (before, after)]
    if same != len(images):
        sys.exit(f"error: {original.name}: only {same} of {len(images)} answers are the same after folding")
    return (
        f"the same answer on all {same:,} test images, {right[1]:,} of them right (before: {right[0]:,}); "
        f"largest logit difference {np.abs(before - after).max():.1e} of {np.abs(before).max():.1f}"
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
