"""Figure 4: single crop, many crops, and an ensemble whose class probabilities are averaged.

    python -m models.figure4 --scale quick|full [--jobs 2]

The paper's six nets are BN-x30 with some of: larger initial weights, dropout of 5 or 10%, BN per activation in the last
hidden layers. Here the rate is BN-x5's (x30 is too hot at this scale, see Figure 3). 18 crops stand in for 144: nine
shifts by -1, 0, 1 pixels, each mirrored or not.
"""

from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from models.config import RECIPES
from models.data import Arrays
from models.sweep import RUNS, Job, command_line, finish, plot, spread, table
from models.train import restore

MEMBERS = (
    {"init_scale": 1.5},
    {"dropout": 0.05},
    {"dropout": 0.1},
    {"per_activation": True},
    {"init_scale": 1.5, "dropout": 0.05},
    {"per_activation": True, "dropout": 0.1},
)
SCALES = {"quick": (3, 400), "full": (6, 1000)}  # members, steps


def jobs(scale: str, root: Path = RUNS) -> list[Job]:
    """One run a member."""
    count, steps = SCALES[scale]
    base = RECIPES["bn-x5"].with_(width=0.125, steps=steps, eval_every=steps, augment=True)
    return [
        Job(f"net {i}", base.with_(seed=i, **changes), root / f"figure4-{scale}" / f"net{i}")
        for i, changes in enumerate(MEMBERS[:count])
    ]


def crops(pixels: Tensor) -> list[Tensor]:
    """The 18 views (N, 1, S, S) of uint8 images, the central one first."""
    size = pixels.shape[-1]
    padded = nn.functional.pad(pixels, (1, 1, 1, 1))
    shifts = sorted(((y, x) for y in range(3) for x in range(3)), key=lambda s: s != (1, 1))
    views = [padded[:, :, y : y + size, x : x + size] for y, x in shifts]
    return [v for view in views for v in (view, view.flip(3))]


@torch.inference_mode()
def probabilities(model: nn.Module, test: Arrays, batch: int = 250) -> tuple[Tensor, Tensor]:
    """Class probabilities (N, classes) from the central crop, and averaged over all crops."""
    single, many = [], []
    for pixels in test.images.split(batch):
        views = [model(test.preprocessing(view)).softmax(1) for view in crops(pixels)]
        single.append(views[0])
        many.append(torch.stack(views).mean(0))
    return torch.cat(single), torch.cat(many)


def error(scores: Tensor, labels: Tensor, k: int) -> float:
    """The share, in %, of examples whose label is not among the k largest."""
    return 100 * (1 - (scores.topk(k).indices == labels[:, None]).any(1).double().mean().item())


def report(todo: list[Job], scale: str) -> None:
    """The table and the plot of finished runs."""
    torch.set_num_threads(1)
    both = []
    for job in todo:
        _, model, data = restore(job.out)
        assert isinstance(data.test, Arrays)
        both.append(probabilities(model, data.test))
        labels = data.test.labels
    rows, bars = [], []
    for kind, views in (("single crop", 0), ("18 crops", 1)):
        ones = [p[views] for p in both]
        averaged = torch.stack(ones).mean(0)
        rows.append([f"one net, {kind}", *(spread([error(p, labels, k) for p in ones], "{:.2f}") for k in (1, 2))])
        rows.append([f"{len(todo)} nets, {kind}", *(f"{error(averaged, labels, k):.2f}" for k in (1, 2))])
        bars += [mean(error(p, labels, 1) for p in ones), error(averaged, labels, 1)]
    text = table(["what", "top-1 error %", "top-2 error %"], rows)
    count, steps = SCALES[scale]
    text += (
        f"\n\nFashion-MNIST test set, {count} nets of width 0.125, {steps:,} steps each, shifts and mirroring in "
        f"training; one net: mean ± standard deviation over the {count}."
    )
    figure, (axis,) = plot()
    axis.bar([r[0] for r in rows], bars, color=["C0", "C1"])
    axis.set(ylabel="top-1 error, %", ylim=(0.8 * min(bars), 1.05 * max(bars)))
    axis.tick_params(axis="x", labelsize=8)
    finish("figure4", scale, text, figure)


if __name__ == "__main__":
    command_line(__doc__, SCALES, jobs, report)
