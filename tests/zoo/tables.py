"""The Markdown tables of docs/models.md and docs/rivals.md; the prose around them is written by hand."""

from __future__ import annotations

import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.zoo.results import Outcome, Row

PACKAGES = ("bnfold", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
BAD = ("wrong", "does not load", "crash", "timeout")

MARK, END = "<!-- made by {}: begin -->", "<!-- end -->"
BEGIN = MARK.format("make zoo")


def write(docs: Path, rows: Sequence[Row], versions: Mapping[str, str]) -> None:
    """Put both tables into their pages."""
    replace(docs / "models.md", f"Measured on {machine()}.\n\n{models(rows)}")
    replace(docs / "rivals.md", f"{summary(rows, versions)}\n\n{rivals(rows, versions)}")


def replace(page: Path, table: str, maker: str = "make zoo") -> None:
    """Put the table between the page's marks, which name the command that makes it."""
    page.write_text(replaced(page.read_text(encoding="utf-8"), table, maker), encoding="utf-8")


def replaced(page: str, table: str, maker: str) -> str:
    """The page with this table between its marks."""
    begin = MARK.format(maker)
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(END)
    assert found and ended, f"the page has no place for what {maker} makes"
    return f"{before}{begin}\n\n{table}\n\n{END}{after}"


def machine() -> str:
    """Processor, cores, and the versions of what ran."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES) + f", Python {platform.python_version()}"
    return f"one of {os.cpu_count()} cores of {names[0] if names else platform.machine()}, {found}"


def models(rows: Sequence[Row]) -> str:
    """What bnfold did, how exactly and how fast."""
    head = ("model", "BN", "scale-shift", "error before", "after", "ratio", "noise", "seconds", "solve", "result")
    return table(head, [model_cells(row) for row in rows])


def model_cells(row: Row) -> list[str]:
    """One line of `models`."""
    done, report = row.bnfold, row.report
    if done is None or report is None:
        return [row.name, str(row.before.bn), "", "", "", "", "", "", "", "not measured"]
    error = ["", "", "", ""]
    if report.deviation:
        before, after = report.deviation
        ratio = f"{after / before:.2f}" if before else ""
        error = [f"{before:.1e}", f"{after:.1e}", ratio, f"{report.noise:.2f}" if report.noise else "ULP"]
    status = report.status if done.is_model else f"{done.verdict}: {done.detail or report.message}"
    counts = f"{row.before.bn} → {'?' if done.bn is None else done.bn}"
    scale_shift = "{} → {}".format(*report.scale_shift)
    return [row.name, counts, scale_shift, *error, f"{done.seconds:.1f}", f"{report.solve:.2f}", status]


def rivals(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """What everyone leaves."""
    lines = [
        [
            row.name,
            str(row.before.bn),
            "" if row.ideal is None else str(row.ideal),
            cell(row.bnfold),
            *(cell(row.rivals.get(rival)) for rival in versions),
        ]
        for row in rows
    ]
    return table(("model", "BN", "possible", "bnfold", *versions.values()), lines)


def cell(outcome: Outcome | None) -> str:
    """How many are left, or what went wrong instead."""
    if outcome is None:
        return ""
    if outcome.is_model:
        return f"{outcome.left}" + ("" if outcome.verdict == "right" else " (unchecked)")
    return outcome.verdict


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in (head, rule, *lines))


def line(row: Row) -> str:
    """One model, for the terminal."""
    found = ", ".join(f"{name} {cell(outcome)}" for name, outcome in row.rivals.items())
    seconds = f"{row.bnfold.seconds:.0f} s" if row.bnfold else ""
    status = row.report.status if row.report else ""
    return f"{row.name}: {row.before.bn} BN; bnfold {cell(row.bnfold)} ({status}, {seconds}); {found}"


def summary(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """The totals, as a paragraph."""
    ours = sum(row.left("bnfold") for row in rows)
    lines = [f"{len(rows)} models with {sum(row.before.bn for row in rows)} BatchNormalization: bnfold leaves {ours}."]
    if versions:
        lines += against(rows, versions)
    statuses = Counter(row.report.status for row in rows if row.report)
    right = sum(row.bnfold is not None and row.bnfold.is_model for row in rows)
    lines.append(
        f"Of bnfold's results {right} of {len(rows)} are right models: "
        + ", ".join(f"{count} {status}" for status, count in statuses.most_common())
        + "."
    )
    exact = [row.report.algebra for row in rows if row.report and row.report.algebra is not None]
    if exact:
        lines.append(
            f"With unrounded constants, in float64, no tensor of {len(exact)} is off by more than {max(exact):.0e}."
        )
    return "\n".join(lines)


def against(rows: Sequence[Row], versions: Mapping[str, str]) -> list[str]:
    """What the rivals leave, and what was wrong with their results."""
    totals = {rival: sum(row.left(rival) for row in rows) for rival in versions}
    first = min(totals, key=lambda rival: totals[rival])
    best = sum(row.best() for row in rows)
    more = [row.name for row in rows if row.left("bnfold") > row.best()]
    less = sum(row.left("bnfold") < row.best() for row in rows)
    wrong = []
    for rival, release in versions.items():
        found = Counter(row.rivals[rival].verdict for row in rows if rival in row.rivals)
        wrong += [f"{release} {found[verdict]} {verdict}" for verdict in BAD if found[verdict]]
    return [
        f"The best single rival ({versions[first]}) leaves {totals[first]}, the best rival for each model {best}.",
        f"bnfold leaves fewer than every rival on {less} models, more than one on {', '.join(more) or 'none'}.",
        f"Results that are no right model: {', '.join(wrong) or 'none'}.",
    ]
