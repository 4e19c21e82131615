"""Figure 1: the MNIST MLP with and without BN; test accuracy, and how the input to a sigmoid moves.

    python -m models.figure1 --scale quick|full [--jobs 2]

(a) accuracy by step, (b, c) the {15, 50, 85}th percentiles of one input to a sigmoid of the last hidden layer, without
and with BN. The paper's setting (small Gaussian weights, one rate for both) shows the robustness; the plain net at the
best start and rate of a small grid shows what is left of the gap when somebody tunes it. Both are in the table.
"""

import argparse
from pathlib import Path
from typing import Any

from models.config import RECIPES
from models.sweep import DOCS, Job, machine, plot, publish, run, save, shade, spread, table

RUNS = Path("models/runs")
NETS: dict[str, dict[str, Any]] = {
    "plain": {"norm": "none"},
    "BN": {},
    "plain, tuned": {"norm": "none", "init_std": 0.1, "lr": 3.0},
    "BN, same start and rate": {"init_std": 0.1, "lr": 3.0},
}
SCALES = {"quick": (4_000, 200, 1), "full": (50_000, 250, 3)}  # steps, evaluation grid, seeds


def jobs(scale: str, root: Path = RUNS) -> list[Job]:
    """Every run of the figure."""
    steps, grid, seeds = SCALES[scale]
    base = RECIPES["mnist-mlp"].with_(
        steps=steps, eval_every=grid, eval_batches=20, checkpoint_every=10_000, population_batches=0
    )
    return [
        Job(name, base.with_(seed=seed, **changes), root / f"figure1-{scale}" / f"{i}-{seed}")
        for i, (name, changes) in enumerate(NETS.items())
        for seed in range(seeds)
    ]


def tuning(root: Path = RUNS) -> list[Job]:
    """The grid that the tuned plain net's start and rate come from."""
    base = RECIPES["mnist-mlp"].with_(norm="none", steps=5_000, eval_every=250)
    return [
        Job("plain", base.with_(init_std=std, lr=lr), root / "tune" / f"mlp-{std}-{lr}")
        for std in (0.01, 0.1)
        for lr in (0.3, 1.0, 3.0)
    ]


def to_90(job: Job) -> int | None:
    """The first evaluation at 90% test accuracy or more."""
    return next((e["step"] for e in job.curve() if e["test_accuracy"] >= 0.9), None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--tune", action="store_true", help="only the plain net's grid, into docs/training.md")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    if args.tune:
        tried = tuning()
        run(tried, args.jobs)
        found = [
            [f"{j.config.init_std:g}", f"{j.config.lr:g}", f"{100 * max(e['test_accuracy'] for e in j.curve()):.1f}",
             str(to_90(j) or "never")]
            for j in tried
        ]  # fmt: skip
        header = ["initial std", "rate", "best %", "steps to 90%"]
        publish("tuning1", table(header, found), page=DOCS / "training.md")
        return
    todo = jobs(args.scale)
    run(todo, args.jobs)
    full = args.scale == "full"

    rows = []
    for name in NETS:
        mine = [j for j in todo if j.row == name]
        curves = [j.curve() for j in mine]
        best = [max(e["test_accuracy"] for e in c) for c in curves]
        reached = [to_90(j) for j in mine]
        there = [s for s in reached if s is not None]
        config = mine[0].config
        rows.append([
            name, f"{config.init_std:g}", f"{config.lr:g}",
            spread(there, "{:.0f}") + (f" ({len(there)} of {len(reached)})" if 0 < len(there) < len(reached) else ""),
            spread([100 * b for b in best]), spread([100 * c[-1]["test_accuracy"] for c in curves]),
        ])  # fmt: skip
    header = ["net", "initial std", "rate", "steps to 90%", "best %", "last %"]
    text = table(header, rows)
    steps, grid, seeds = SCALES[args.scale]
    text += (
        f"\n\n{steps:,} steps of 60, evaluated every {grid}, {seeds} seed(s), mean ± standard deviation. {machine()}."
    )

    image = (DOCS / "images" if full else RUNS / "figure1-quick") / "figure1.png"
    figure, axes = plot(image, panels=3)
    for name in NETS:
        shade(axes[0], name, [j for j in todo if j.row == name])
    axes[0].set(xlabel="step", ylabel="test accuracy, %", title="(a)")
    axes[0].legend(fontsize=8)
    for axis, name, title in ((axes[1], "plain", "(b) without BN"), (axes[2], "BN", "(c) with BN")):
        curve = next(j for j in todo if j.row == name).curve()
        for k, label in enumerate(("15th", "50th", "85th")):
            axis.plot([e["step"] for e in curve], [e["percentiles"][k] for e in curve], label=label)
        axis.set(xlabel="step", title=title, ylim=(-3, 3))
        axis.legend(fontsize=8)
    save(figure, image)
    publish("figure1", text, page=DOCS / "training.md" if full else None)


if __name__ == "__main__":
    main()
