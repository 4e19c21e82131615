"""What the figures share: one command line; many training runs, finished ones skipped; summaries over seeds; tables
and plots put into the docs.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from models.config import Config, command
from models.train import read_log

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "training.md"
RUNS = Path("models/runs")


@dataclass(frozen=True)
class Job:
    """One training run, of a row in a table."""

    row: str
    config: Config
    out: Path

    @property
    def done(self) -> bool:
        """Whether the run has reached its end."""
        return (self.out / "final.pt").exists()

    def curve(self) -> list[dict[str, Any]]:
        """Its evaluations in training, oldest first."""
        return [e for e in read_log(self.out) if not e.get("final")]

    def best(self) -> float:
        """The best test accuracy on the evaluation grid."""
        return max(e["test_accuracy"] for e in self.curve())

    def first(self, target: float) -> int | None:
        """The first evaluation that reaches a test accuracy."""
        return next((e["step"] for e in self.curve() if e["test_accuracy"] >= target), None)


def command_line(
    doc: str | None, scales: Collection[str], jobs: Callable[[str], list[Job]],
    report: Callable[[list[Job], str], None], grids: Mapping[str, list[Job]] | None = None,
    tuned: Callable[[list[Job]], str] = str,
) -> None:  # fmt: skip
    """A figure's command: train what is missing at a scale, then `report` it; or, with --tune, one grid of `grids`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=scales, default="quick")
    parser.add_argument("--jobs", type=int, default=1, help="training runs at a time, one thread each")
    parser.set_defaults(tune=None)
    if grids:
        parser.add_argument("--tune", choices=grids, help="only this net's grid, its table into docs/training.md")
    args = parser.parse_args()
    if grids and args.tune:
        run(grids[args.tune], args.jobs)
        publish(f"tuning-{args.tune}", tuned(grids[args.tune]), page=PAGE)
        return
    todo = jobs(args.scale)
    run(todo, args.jobs)
    report(todo, args.scale)


def run(jobs: Sequence[Job], parallel: int = 1) -> None:
    """Train what is not finished yet, `parallel` processes of one thread each; stopped runs resume."""
    waiting, running = [j for j in jobs if not j.done], list[tuple[Job, subprocess.Popen[bytes]]]()
    total, environment = len(waiting), {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                print(f"run {total - len(waiting)}/{total}: {job.out.name}", file=sys.stderr, flush=True)
                words = ["-m", "models.train", *command(job.config).split(), "--out", str(job.out.resolve())]
                job.out.mkdir(parents=True, exist_ok=True)
                with (job.out / "stderr.txt").open("wb") as log:
                    running.append(
                        (job, subprocess.Popen([sys.executable, *words], stderr=log, cwd=ROOT, env=environment))
                    )
            time.sleep(0.2)
            for job, process in [r for r in running if r[1].poll() is not None]:
                running.remove((job, process))
                if process.returncode:
                    raise RuntimeError(f"{job.out}: training failed, see {job.out / 'stderr.txt'}")
    finally:
        for _, process in running:
            process.terminate()


def spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Mean and sample standard deviation over seeds."""
    if not values:
        return "-"
    middle = form.format(mean(values))
    return f"{middle} ± {form.format(stdev(values))}" if len(values) > 1 else middle


def steps_reached(steps: Sequence[int | None]) -> str:
    """Mean and spread of the steps at which runs reached something; how many did, where not all."""
    there = [s for s in steps if s is not None]
    if not there:
        return "never"
    return spread(there, "{:.0f}") + (f" ({len(there)} of {len(steps)} seeds)" if len(there) < len(steps) else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """One line: processor, threads, versions."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else []
    name = names[0] if names else platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores, one thread a run; {versions}"


def publish(name: str, text: str, *, page: Path | None) -> None:
    """Print a figure's table; with `page`, also put it between that page's `<!-- name -->` and `<!-- /name -->`."""
    print(f"\n{text}\n")
    if page is None:
        return
    before = page.read_text()
    block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not block.search(before):
        raise ValueError(f"{page} has no <!-- {name} --> block")
    page.write_text(block.sub(lambda m: f"{m[1]}{text}\n{m[2]}", before))


def plot(panels: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure and its axes in one row."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels + 2, 3.6), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def finish(name: str, scale: str, text: str, figure: Any) -> None:
    """Save a figure's plot and publish its table, `machine` added: in docs/ at full scale, else below models/runs."""
    full = scale == "full"
    image = (DOCS / "images" if full else RUNS / f"{name}-{scale}") / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110, metadata={"Software": None})  # no date: the same runs give the same file
    print(f"wrote {image}", file=sys.stderr)
    publish(name, f"{text} {machine()}.", page=PAGE if full else None)


def shade(axis: Any, label: str, jobs: Sequence[Job], key: str = "test_accuracy", **style: Any) -> None:
    """Mean curve over seeds with the range between them."""
    curves = [j.curve() for j in jobs]
    steps = [e["step"] for e in curves[0]]
    values = [[c[i][key] * 100 for c in curves] for i in range(len(steps))]
    (line,) = axis.plot(steps, [mean(v) for v in values], label=label, **style)
    axis.fill_between(
        steps, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=line.get_color(), lw=0
    )
