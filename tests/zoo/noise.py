"""Why 8: how much noise right folds need to be allowed, from what `make zoo` measured.

    python -m tests.zoo.noise [RESULTS] [--write]

Prints a table, and puts it into docs/proof.md with --write.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bnfold.equivalence.noise import K
from tests.zoo import results, tables
from tests.zoo.results import Row

ROOT = Path(__file__).resolve().parents[2]
MAKER = "python -m tests.zoo.noise"
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)
LARGEST = 5
"""Models that are named."""


def table(rows: Sequence[Row]) -> str:
    """Quantiles of what right folds need, and of their error over the original's; then who needs most."""
    reports = {row.name: row.report for row in rows if row.report is not None and row.report.noise is not None}
    needed = {name: report.noise for name, report in reports.items() if report.noise}
    ratios = {
        name: report.deviation[1] / report.deviation[0]
        for name, report in reports.items()
        if report.deviation and report.deviation[0]
    }
    lines = [_line(f"times the noise, where more than a few ULP ({len(needed)} models)", list(needed.values()))]
    lines.append(_line(f"error after / error before ({len(ratios)} models)", list(ratios.values())))
    head = ("right folds", *(f"{at:.0%}" for at in QUANTILES), "largest")
    most = sorted(needed, key=lambda name: -needed[name])[:LARGEST]
    told = (
        f"{len(reports)} folded models were compared on a runtime. {len(reports) - len(needed)} of them are within a "
        f"few ULP of the output, whatever the noise. K = {K:g} is {K / max(needed.values()):.1f} times what the worst "
        "of the others needs."
    )
    named = ", ".join(f"{name} ({needed[name]:.2f})" for name in most)
    return f"{told}\n\n{tables.table(head, lines)}\n\nMost is needed by {named}."


def _line(name: str, values: Sequence[float]) -> list[str]:
    return [name, *(f"{np.quantile(values, at):.2f}" for at in QUANTILES), f"{max(values):.2f}"]


def main() -> int:
    """Print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "build" / "zoo" / "results.json")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = table(list(results.load(options.results).values()))
    print(found)
    if options.write:
        tables.replace(ROOT / "docs" / "proof.md", found, MAKER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
