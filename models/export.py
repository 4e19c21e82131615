"""Export a trained network to ONNX with every BatchNormalization intact, so that there is something to fold.

    python -m models.export models/runs/fashion models/trained/bn_inception_fashion.onnx

Exporters like to fold BN on the way and say nothing. `export` counts: as many BatchNormalization nodes as BN modules,
or it fails. The batch is dynamic; the metadata hold the preprocessing. Beside NAME.onnx it writes NAME.json, the card:
command, seed, data, versions, and the accuracy in PyTorch and in ONNX Runtime over the whole test set.
"""

import argparse
import json
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from models.bn import batchnorms
from models.config import Config, command
from models.data import Arrays, Data, Split, inputs
from models.train import accuracy, evaluate, read_log, restore

OPSET = 18
EXPORTERS = ("torchscript", "dynamo")


def export(model: nn.Module, example: Tensor, path: Path, *, exporter: str = "torchscript", **facts: str) -> None:
    """Write `model`, which takes (N, ...) like `example`, with input "input", output "logits" and dynamic N.

    `facts` become metadata_props. Raises ValueError where a BatchNormalization got lost.
    """
    model = model.cpu().eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "opset_version": OPSET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its own end
        if exporter == "dynamo":
            from onnxscript.optimizer import fold_constants, remove_unused_nodes

            # optimize=False: the optimiser fuses Conv and BN; of its steps these two alone leave BN as it is.
            program = torch.onnx.export(
                model, (example,), **names, dynamo=True, optimize=False, verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
            fold_constants(program.model)
            remove_unused_nodes(program.model)
            program.save(path, external_data=False)
        else:
            # PRESERVE on a network in eval mode: inference semantics, and the exporter's Conv+BN fusion stays off.
            torch.onnx.export(
                model, (example,), path, **names, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=True, dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            )  # fmt: skip
    proto = onnx.load(path)
    found, wanted = batchnorm_nodes(proto), len(batchnorms(model))
    if found != wanted:
        raise ValueError(f"{path}: {found} BatchNormalization nodes for {wanted} BN modules")
    onnx.helper.set_model_props(proto, facts)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def batchnorm_nodes(proto: onnx.ModelProto) -> int:
    """BatchNormalization nodes in the graph and in the functions that it calls."""
    nodes = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    return sum(n.op_type == "BatchNormalization" for n in nodes)


def onnx_accuracy(path: Path, split: Split, batch: int = 250) -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) of an ONNX file in ONNX Runtime over a whole split."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    outputs = [torch.from_numpy(session.run(None, {"input": x.numpy()})[0]) for x in inputs(split, batch)]
    return accuracy(torch.cat(outputs), split.labels)


def write_card(path: Path, config: Config, model: nn.Module, data: Data, log: list[dict[str, Any]]) -> dict[str, Any]:
    """NAME.json beside NAME.onnx. Raises ValueError where ONNX Runtime and PyTorch disagree on the accuracy."""
    ours, theirs = evaluate(model, data.test), onnx_accuracy(path, data.test)
    if ours[0] != theirs[0]:
        raise ValueError(f"{path}: accuracy {theirs[0]} in ONNX Runtime, {ours[0]} in PyTorch")
    card = {
        "model": path.name,
        "command": f"python -m models.train {command(config)}",
        "export": f"python -m models.export RUN {path.name}",
        "seed": config.seed,
        "steps": config.steps,
        "data": data.source,
        "train_examples": len(data.train),
        "test_examples": len(data.test),
        "test_accuracy": {"pytorch": ours[0], "onnxruntime": theirs[0]},
        "test_accuracy_with_moving_averages": next((e["test_accuracy"] for e in log[::-1] if not e.get("final")), None),
        "preprocessing": data.preprocessing.as_dict(),
        "classes": list(data.classes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "batchnorm_nodes": len(batchnorms(model)),
        "opset": OPSET,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
        },
        "config": config.as_dict(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def export_run(run: Path, path: Path, *, exporter: str = "torchscript") -> dict[str, Any]:
    """Export a finished run with its card; returns the card."""
    config, model, data = restore(run)
    example, _ = data.test.fetch(np.arange(2), 0)
    facts = {"preprocessing": json.dumps(data.preprocessing.as_dict()), "classes": json.dumps(data.classes),
             "data": data.source, "training": f"python -m models.train {command(config)}"}  # fmt: skip
    export(model, example, path, exporter=exporter, **facts)
    return write_card(path, config, model, data, read_log(run))


def write_samples(run: Path, path: Path, count: int = 1000) -> None:
    """The first `count` test images as they were before preprocessing (uint8 NCHW), their labels, and the recipe."""
    _, _, data = restore(run)
    assert isinstance(data.test, Arrays)
    images, targets = data.test.images[:count].numpy(), data.test.labels[:count].numpy().astype(np.uint8)
    how = json.dumps(data.preprocessing.as_dict())
    np.savez_compressed(path, images=images, labels=targets, preprocessing=how, classes=list(data.classes))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="--out of a finished models.train")
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--exporter", choices=EXPORTERS, default="torchscript")
    parser.add_argument("--samples", type=Path, help="also write 1,000 test images with labels to this .npz")
    args = parser.parse_args()
    if not (args.run / "final.pt").exists():
        sys.exit(f"error: {args.run} holds no finished run: train it with python -m models.train ... --out {args.run}")
    card = export_run(args.run, args.onnx, exporter=args.exporter)
    if args.samples:
        write_samples(args.run, args.samples)
    print(json.dumps({k: card[k] for k in ("model", "test_accuracy", "batchnorm_nodes", "parameters")}))


if __name__ == "__main__":
    main()
