"""Figure 1: the MNIST MLP with and without BN; test accuracy, and how the input to a sigmoid moves.

    python -m models.figure1 --scale quick|full [--jobs 2]
    python -m models.figure1 --tune mlp

(a) accuracy by step, (b, c) the {15, 50, 85}th percentiles of one input to a sigmoid of the last hidden layer, without
and with BN. The paper's setting (small Gaussian weights, one rate for both) shows the robustness; the plain net at the
best start and rate of a small grid shows what is left of the gap when somebody tunes it. Both are in the table.
"""

from pathlib import Path
from typing import Any

from models.config import RECIPES
from models.sweep import RUNS, Job, command_line, finish, plot, shade, spread, steps_reached, table

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


def tuned(grid: list[Job]) -> str:
    """The table of that grid."""
    rows = [
        [f"{j.config.init_std:g}", f"{j.config.lr:g}", f"{100 * j.best():.1f}", steps_reached([j.first(0.9)])]
        for j in grid
    ]
    return table(["initial std", "rate", "best %", "steps to 90%"], rows)


def report(todo: list[Job], scale: str) -> None:
    """The table and the plot of finished runs."""
    rows = []
    for name in NETS:
        mine = [j for j in todo if j.row == name]
        config = mine[0].config
        rows.append([
            name, f"{config.init_std:g}", f"{config.lr:g}", steps_reached([j.first(0.9) for j in mine]),
            spread([100 * j.best() for j in mine]), spread([100 * j.curve()[-1]["test_accuracy"] for j in mine]),
        ])  # fmt: skip
    text = table(["net", "initial std", "rate", "steps to 90%", "best %", "last %"], rows)
    steps, grid, seeds = SCALES[scale]
    text += (
        f"\n\n{steps:,} steps of 60, evaluated every {grid} (BN: Algorithm 2 over the last 20 mini-batches), {seeds} "
        "seed(s), mean ± standard deviation."
    )

    figure, axes = plot(panels=3)
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
    finish("figure1", scale, text, figure)


if __name__ == "__main__":
    command_line(__doc__, SCALES, jobs, report, {"mlp": tuning()}, tuned)
