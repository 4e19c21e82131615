"""Algorithm 2 measured: batch statistics, moving averages and population statistics of one trained network.

    python -m models.population models/runs/fashion [--docs]

Only the last two are inference: with batch statistics an answer depends on its neighbours in the mini-batch, and there
is nothing to fold.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from models.bn import affine, batchnorms, only_batchnorm_training, population_statistics
from models.data import batches, inputs
from models.sweep import PAGE, machine, publish, table
from models.train import accuracy, logits, restore


def with_batch_statistics(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    """Outputs when every BN normalises by the test mini-batch itself; the buffers are put back."""
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad(), only_batchnorm_training(model):
        outputs = torch.cat([model(x) for x in images.split(batch)])
    model.load_state_dict(saved)
    return outputs


def drift(model: nn.Module, reference: list[tuple[Tensor, Tensor]]) -> float:
    """The largest change of any scale s or shift t, relative to the largest of its layer."""
    pairs = zip([affine(b) for b in batchnorms(model)], reference, strict=True)
    return max(
        ((a - b).abs().max() / b.abs().max()).item()
        for ours, theirs in pairs
        for a, b in zip(ours, theirs, strict=True)
    )


def measure(run: Path) -> str:
    """The table for a finished run."""
    config, model, data = restore(run)
    targets = data.test.labels
    checkpoint = torch.load(next(iter(run.glob("checkpoint-0-*.pt"))), map_location="cpu", weights_only=True)

    def population(count: int) -> None:
        again = config.with_(steps=count)
        population_statistics(model, (x for x, _ in batches(data.train, again, 0)))

    population(1000)
    reference = [affine(b) for b in batchnorms(model)]
    rows = []

    def add(name: str, outputs: Tensor, apart: str) -> None:
        top1, loss = accuracy(outputs, targets)
        rows.append([name, f"{100 * top1:.2f}", f"{loss:.4f}", apart])

    images = torch.cat(list(inputs(data.test)))
    for size in (8, config.batch, 250):
        add(f"batch statistics, test batches of {size}", with_batch_statistics(model, images, size), "-")
    model.load_state_dict(checkpoint["model"])
    add(
        f"moving average, rate {batchnorms(model)[0].momentum:g}",
        logits(model, data.test),
        f"{drift(model, reference):.3f}",
    )
    for count in (1, 10, 100, 1000):
        population(count)
        add(
            f"population, {count} x {config.batch} examples", logits(model, data.test), f"{drift(model, reference):.3f}"
        )
    text = table(["statistics", "test accuracy %", "cross-entropy", "largest change of s, t"], rows)
    return f"{text}\n\n{data.source}; {config.name}, seed {config.seed}; changes against 1,000 batches. {machine()}."


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", action="store_true", help="put the table into docs/training.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    publish("statistics", measure(args.run), page=PAGE if args.docs else None)


if __name__ == "__main__":
    main()
