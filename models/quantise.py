"""Quantise networks to int8 with ONNX Runtime, as they are and folded, and see which answer better: `make quantise`.

    python -m models.quantise [--seeds 3] [--only preact]

Three networks on Fashion-MNIST, some seeds each, trained where models/runs/quantise does not hold them. Each is taken
in three forms:

    exported   as PyTorch writes it with every BatchNormalization
    ort        after onnxruntime.quantization's own preprocessing, which folds what ONNX Runtime can fold
    bnfold     after `bnfold optimize`, then the same preprocessing

and quantised by `quantize_static`: QDQ, int8 activations and weights, calibrated by minimum and maximum on the same 512
training images, weights with one scale for each tensor or for each channel. To see where the noise comes from, weights
alone and activations alone too, the others in 16 bits. Measured on the whole test set: accuracy, answers that are not
those of float32, and the signal-to-noise ratio of the logits. Written to build/quantise/*.json and into
docs/quantisation.md.
"""

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import bnfold
from models.config import RECIPES, Config
from models.data import Split, fetch_fashion, inputs
from models.export import batchnorm_nodes, export
from models.quantise_page import FORMS, write
from models.train import restore, train

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "models" / "runs" / "quantise"
OUT = ROOT / "build" / "quantise"
PAGE = ROOT / "docs" / "quantisation.md"

NETWORKS: dict[str, Config] = {
    "bn-x5": RECIPES["bn-x5"].with_(augment=True, steps=3000, eval_every=1000),
    "preact": RECIPES["preact"],
    "repvgg": RECIPES["repvgg"],
}
FINE: dict[str, Any] = {"UseQDQContribOps": True}
"""16 bits before opset 21 need ONNX Runtime's own operators."""

VARIANTS: dict[str, dict[str, Any]] = {
    "tensor": {"per_channel": False},
    "channel": {"per_channel": True},
    "weights": {"per_channel": True, "activation_type": QuantType.QInt16, "extra_options": FINE},
    "activations": {"per_channel": True, "weight_type": QuantType.QInt16, "extra_options": FINE},
}
CALIBRATION = 512

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One network in one form, quantised one way; `variant` is "float32" where it is not quantised."""

    network: str
    seed: int
    form: str
    variant: str
    batchnorm: int
    accuracy: float
    changed: float
    """Share of the first answers that are not those of the exported float32 model."""
    snr: float
    """Of the logits, in dB, against the exported float32 model."""
    nodes: int
    bytes: int
    peak: float
    """Of the 3x3 kernels in float32: the largest weight of an output channel over their standard deviation, median."""


class Images(CalibrationDataReader):
    """The images that the ranges of activations are taken from."""

    def __init__(self, batches: Sequence[Floats]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Floats] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch}


def prepared(run: Path, folder: Path) -> dict[str, Path]:
    """The three forms of a finished run, in float32."""
    _, network, data = restore(run)
    paths = {form: folder / f"{run.name}.{form}.onnx" for form in FORMS}
    raw, folded = folder / f"{run.name}.onnx", folder / f"{run.name}.folded.onnx"
    export(network, data.test.fetch(np.arange(2), 0)[0], raw)
    result = bnfold.optimize(raw, folded, force=True)
    if result.status != "verified":
        raise SystemExit(f"error: {raw}: {result.status}")
    for form, source in (("exported", raw), ("ort", raw), ("bnfold", folded)):
        quant_pre_process(source, paths[form], skip_symbolic_shape=True, skip_optimization=form == "exported")
    return paths


def logits(model: Path, images: Sequence[Floats]) -> Floats:
    """(N, classes), on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": batch})[0] for batch in images])


def quantised(model: Path, calibration: Sequence[Floats], variant: str) -> Path:
    """NAME.int8-VARIANT.onnx beside the model."""
    out = model.with_suffix(f".int8-{variant}.onnx")
    quantize_static(model, out, Images(calibration), quant_format=QuantFormat.QDQ, **VARIANTS[variant])
    return out


def peak(model: onnx.ModelProto) -> float:
    """How far the largest weight of an output channel stands out in 3x3 kernels."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    found: list[float] = []
    for node in model.graph.node:
        kernel = numpy_helper.to_array(values[node.input[1]]) if node.op_type == "Conv" else np.zeros(0)
        if kernel.shape[2:] == (3, 3):
            rows = kernel.reshape(len(kernel), -1)
            found += [float(np.abs(row).max() / row.std()) for row in rows if row.std() > 0]
    return statistics.median(found)


def rows(network: str, seed: int, run: Path) -> Iterator[Row]:
    """All rows of one trained network."""
    data = restore(run)[2]
    images, labels = [x.numpy() for x in inputs(data.test)], data.test.labels.numpy()
    calibration = list(first(data.train, CALIBRATION))
    truth: Floats | None = None
    for form, path in prepared(run, OUT).items():
        models = {"float32": path, **{variant: quantised(path, calibration, variant) for variant in VARIANTS}}
        stands_out = peak(onnx.load(path))
        for variant, model in models.items():
            scores = logits(model, images)
            truth = scores if truth is None else truth
            proto = onnx.load(model)
            noise = float(np.mean((scores - truth) ** 2))
            yield Row(
                network, seed, form, variant, batchnorm_nodes(proto),
                float(np.mean(scores.argmax(1) == labels)), float(np.mean(scores.argmax(1) != truth.argmax(1))),
                10 * float(np.log10(np.mean(truth**2) / noise)) if noise else float("inf"),
                len(proto.graph.node), model.stat().st_size, stands_out,
            )  # fmt: skip


def first(split: Split, count: int, batch: int = 64) -> Iterator[Floats]:
    """The first images of a split, prepared."""
    for start in range(0, count, batch):
        yield split.fetch(np.arange(start, start + batch), 0)[0].numpy()


def speed(network: str, seed: int, seconds: float) -> dict[str, Any]:
    """How much faster the folded int8 model is than the other int8 models, by `bnfold bench`, one thread, batch 1."""
    found: dict[str, Any] = {"network": network, "seed": seed}
    after = OUT / f"{network}-{seed}.bnfold.int8-channel.onnx"
    for form in ("exported", "ort"):
        before = OUT / f"{network}-{seed}.{form}.int8-channel.onnx"
        (row,) = bnfold.bench(before, after, seconds=seconds, threads=1, memory=False).rows
        found[form] = {
            "ms": row.original.median,
            "verdict": row.verdict,
            "ratio": row.ratio,
            "low": row.low,
            "high": row.high,
        }
        found["bnfold"] = {"ms": row.optimized.median}
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--seconds", type=float, default=6.0, help="to time each pair")
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends what is done here
    warnings.simplefilter("ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    fetch_fashion()
    for network, config in NETWORKS.items():
        for seed in range(args.seeds) if args.only in network else ():
            run, out = RUNS / f"{network}-{seed}", OUT / f"{network}-{seed}.json"
            if not (run / "final.pt").exists():
                train(config.with_(seed=seed), run)
            found = [asdict(row) for row in rows(network, seed, run)]
            out.write_text(json.dumps({"rows": found, "speed": speed(network, seed, args.seconds)}, indent=1) + "\n")
            for row in found:
                numbers = f"accuracy {row['accuracy']:.4f} changed {row['changed']:.4f} {row['snr']:5.1f} dB"
                print(f"{network}-{seed} {row['form']:9} {row['variant']:11} {numbers}", flush=True)
    write(PAGE, [json.loads(path.read_text()) for path in sorted(OUT.glob("*.json"))])


if __name__ == "__main__":
    main()
