"""The whole way: train, export, optimize, verify, deploy, query; by the commands, then by the library.

    python -m models.end_to_end                                       from training on: three minutes, needs torch
    python -m models.end_to_end --model NET.onnx --images TEST.npz    from a trained model on, no torch

What each step writes is in build/end-to-end. The two ways must give the same answers to the same images, and the
answers of the folded model must be those of the original.
"""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import bnfold
from models.demo import bnfold as command

OUT = Path(__file__).resolve().parent.parent / "build" / "end-to-end"

Floats = NDArray[np.float32]


def trained(out: Path, steps: int, data: str = "") -> tuple[Path, Path]:
    """A network that is trained and exported here, and 1,000 of its test images."""
    from models.config import RECIPES
    from models.data import DataError, fetch_fashion
    from models.export import export_run, write_samples
    from models.train import train

    try:
        data = data or ("fashion" if fetch_fashion() else "")
    except DataError as problem:
        print(f"{problem}\ngoing on with MNIST", file=sys.stderr)
        data = "mnist"
    config = RECIPES["bn-x5"].with_(data=data, steps=steps, eval_every=200, checkpoint_every=200)
    print(f"1. train: {steps} steps on {data}", flush=True)
    train(config, out / "run")
    model, images = out / "net.onnx", out / "test.npz"
    card = export_run(out / "run", model)
    write_samples(out / "run", images)
    print(f"2. export: {model.name}, {card['batchnorm_nodes']} BatchNormalization", flush=True)
    return model, images


def prepared(samples: Path) -> tuple[Floats, NDArray[np.int64]]:
    """What the network reads, and the labels: pixels become inputs as the file says."""
    with np.load(samples) as file:
        pixels, labels, how = file["images"], file["labels"].astype(np.int64), json.loads(str(file["preprocessing"]))
    if how["threshold"] is not None:
        return (pixels > how["threshold"]).astype(np.float32), labels
    mean, std = (np.array(how[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return ((pixels.astype(np.float32) * np.float32(how["scale"]) - mean) / std).astype(np.float32), labels


def by_commands(model: Path, images: Path, out: Path) -> Floats:
    """Optimize, verify, deploy and query as a user types it. Returns the logits of the images."""
    folded, served = out / "net.folded.onnx", out / "served"
    command("optimize", model, "-o", folded, "--force")
    command("verify", model, folded, "--inputs", images, "--labels", images)
    command("deploy", folded, "-o", served)
    command("deploy", folded, "--triton", out / "repository", "--name", "net", "--backend", "python")
    np.savez(out / "query.npz", input=prepared(images)[0])
    print(f"\n$ python {served.name}/serve.py query.npz answers.npz", flush=True)
    words = [str(served / "serve.py"), str(out / "query.npz"), str(out / "answers.npz")]
    subprocess.run([sys.executable, *words], check=True)
    with np.load(out / "answers.npz") as answers:
        return np.asarray(answers["logits"], np.float32)


def by_library(model: Path, images: Path, out: Path) -> Floats:
    """The same in Python."""
    optimized = bnfold.optimize(model, out / "net.library.onnx", force=True)
    assert (optimized.status, optimized.batchnorm.after, optimized.output is not None) == ("verified", 0, True)
    verified = bnfold.verify(model, out / "net.library.onnx", inputs=images, labels=images)
    assert verified.passed and verified.answers is not None and verified.answers.changed == 0
    deployed = bnfold.deploy(out / "net.library.onnx", out / "served-library")
    serve = runpy.run_path(str(deployed.output / "serve.py"))["Served"]()
    return np.asarray(serve({"input": prepared(images)[0]})["logits"], np.float32)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a trained model; none: one is trained")
    parser.add_argument("--images", type=Path, help="its test images, as models.export writes them")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if (args.model is None) != (args.images is None):
        parser.error("--model and --images belong together")
    args.out.mkdir(parents=True, exist_ok=True)
    for deployed in ("served", "served-library", "repository"):
        shutil.rmtree(args.out / deployed, ignore_errors=True)
    model, images = (args.model, args.images) if args.model else trained(args.out, args.steps)
    go(model, images, args.out)


def go(model: Path, images: Path, out: Path) -> None:
    """Both ways from a trained model to answers; exits where these are not the same everywhere."""
    print("3. by the commands: optimize, verify, deploy, query", flush=True)
    commands = by_commands(model, images, out)
    print("\n4. the same by the library", flush=True)
    library = by_library(model, images, out)
    inputs, labels = prepared(images)
    before = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": inputs})[0]
    right = [int((logits.argmax(1) == labels).sum()) for logits in (before, commands, library)]
    same = all(np.array_equal(before.argmax(1), logits.argmax(1)) for logits in (commands, library))
    print(f"right of {len(labels)}: original {right[0]}, served {right[1]}, by the library {right[2]}")
    if not same or not np.array_equal(commands, library):
        sys.exit("error: the answers differ")
    print("the same answers everywhere")


if __name__ == "__main__":
    main()
