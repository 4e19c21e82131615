"""Figures 2 and 3: how many steps each network needs for the plain Inception's best accuracy.

    python -m models.figure3 --scale quick|full [--jobs 2]
    python -m models.figure3 --tune inception|bn-x5

Every BN net is evaluated as the paper says, by Algorithm 2. Per seed: the target is the plain net's best test accuracy
on the evaluation grid, and a net's steps are the first evaluation that reaches it, the plain net's own included.
ratio = plain steps / net's steps. Against four plain nets: tuned for itself (He start, rate and decay of the grid in
docs/training.md), the recipe (whose decay is a sixth of BN-x5's, as in the paper), the recipe at the paper's own rate,
and PyTorch's default start.
"""

from collections.abc import Sequence
from pathlib import Path

from models.config import RECIPES
from models.sweep import RUNS, Job, command_line, finish, plot, shade, spread, steps_reached, table

NETS = (
    "inception-tuned", "inception", "inception-paper-rate", "inception-default-init", "bn-baseline", "bn-x5",
    "bn-tuned", "bn-x30", "bn-x5-sigmoid", "inception-x5", "inception-sigmoid",
)  # fmt: skip
PLAIN = ("inception-tuned", "inception", "inception-paper-rate", "inception-default-init")
QUICK = ("inception-tuned", "bn-baseline", "bn-x5")
SCALES = {"quick": (QUICK, 600, 50, 1), "full": (NETS, 3000, 100, 3)}  # nets, steps, evaluation grid, seeds
WIDTH = 0.125
EVAL_BATCHES = 20
CHANCE = 0.15
# Rates and decay exponents; bn-x5 itself has 0.05 and 3.
GRIDS = {
    "inception": ((0.003, 0.5), (0.01, 0.5), (0.03, 0.5), (0.003, 3.0), (0.01, 3.0), (0.03, 3.0)),
    "bn-x5": ((0.015, 0.5), (0.05, 0.5), (0.15, 0.5), (0.015, 3.0)),
}


def jobs(scale: str, root: Path = RUNS) -> list[Job]:
    """Every run of the figure, seed by seed, so that a stopped sweep has whole comparisons."""
    nets, steps, grid, seeds = SCALES[scale]
    changes = {"width": WIDTH, "steps": steps, "eval_every": grid, "eval_batches": EVAL_BATCHES,
               "checkpoint_every": 250, "population_batches": 0}  # fmt: skip
    return [
        Job(net, RECIPES[net].with_(seed=seed, **changes), root / f"figure3-{scale}" / f"{net}-{seed}")
        for seed in range(seeds)
        for net in nets
    ]


def tuning(net: str, root: Path = RUNS) -> list[Job]:
    """The grid that a tuned net's rate and decay come from."""
    base = RECIPES[net].with_(width=WIDTH, steps=1500, eval_every=60, checkpoint_every=300, population_batches=0)
    return [Job(net, base.with_(lr=lr, decay=decay), root / "tune" / f"{net}-{lr}-{decay}") for lr, decay in GRIDS[net]]


def tuned(grid: list[Job]) -> str:
    """The table of such a grid."""
    rows = [[f"{j.config.lr:g}", f"{j.config.decay:g}", f"{100 * j.best():.1f}"] for j in grid]
    return table(["rate", "decay exponent", "best %"], rows)


def compare(todo: Sequence[Job], net: str, plain: str) -> tuple[str, str]:
    """(steps to the plain net's best, ratio), over the seeds at which `net` reaches it."""
    pairs = [(n, p) for n in todo for p in todo if n.row == net and p.row == plain and n.config.seed == p.config.seed]
    steps = [ours.first(theirs.best()) for ours, theirs in pairs]
    ratios = [
        reference / reached
        for reached, (_, theirs) in zip(steps, pairs, strict=True)
        if reached and (reference := theirs.first(theirs.best()))
    ]
    return steps_reached(steps), spread(ratios)


def report(todo: list[Job], scale: str) -> None:
    """The table and the plot of finished runs."""
    nets, steps, grid, _ = SCALES[scale]
    # A plain net that never leaves chance is no reference: every net passes it at once.
    plain = [p for p in PLAIN if p in nets and max(j.best() for j in todo if j.row == p) > CHANCE]
    rows = []
    for net in nets:
        mine = [j for j in todo if j.row == net]
        row = [net, f"{mine[0].config.lr:g}", f"{len(mine)}", spread([100 * j.best() for j in mine])]
        rows.append(row + [text for p in plain for text in compare(todo, net, p)])
    header = ["net", "rate", "seeds", "best %"]
    header += [text for p in plain for text in (f"steps to {p}'s best", "ratio")]
    text = table(header, rows)
    text += (
        f"\n\nFashion-MNIST, all 10 modules, width {WIDTH:g}, 28 px, stem stride 4, batch 32, {steps:,} steps, "
        f"evaluated every {grid} on the full test set (BN: Algorithm 2 over the last {EVAL_BATCHES} mini-batches), "
        "mean ± standard deviation."
    )
    figure, (axis,) = plot()
    for net in nets:
        shade(axis, net, [j for j in todo if j.row == net], ls="--" if net.startswith("inception") else "-")
    axis.set(xlabel="step", ylabel="test accuracy, %")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    finish("figure3", scale, text, figure)


if __name__ == "__main__":
    command_line(__doc__, SCALES, jobs, report, {net: tuning(net) for net in GRIDS}, tuned)
