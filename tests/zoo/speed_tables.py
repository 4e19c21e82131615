"""The Markdown tables of docs/speed.md, and the first table of README.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.zoo import tables
from tests.zoo.speed_results import NAMED, Race, Row, Speed, Timed

MAKER = "make zoo-bench"
OURS = "bnfold"
FIRST, SECOND = BATCHES = (1, 8)


def write(root: Path, rows: Sequence[Row], versions: Mapping[str, str], threads: int) -> None:
    """Put the tables into their pages."""
    runs = f"{tables.machine()}; ONNX Runtime on {threads} thread{'s' if threads > 1 else ''}"
    parts = [
        f"Measured on {runs}.",
        summary(rows, versions),
        "## All optimisations of ONNX Runtime on\n\n" + times(rows, versions, "all"),
        "## Its optimisations off\n\n" + times(rows, versions, "none"),
        "## Beside timm's own re-parameterisation\n\n" + opposed(rows),
        "## Making a session, and file size\n\n" + sessions(rows),
    ]
    tables.replace(root / "docs" / "speed.md", "\n\n".join(parts), MAKER)
    tables.replace(root / "README.md", f"{first(rows, versions)}\n\n({runs}.)", MAKER)


def summary(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """Geometric means over all models, and how many got faster and slower."""
    lines = []
    for level, words in (("all", "on"), ("none", "off")):
        for batch in BATCHES:
            measured = [row for row in rows if OURS in row.tools and row.tools[OURS].race.at(level, batch)]
            if not measured:
                continue
            verdicts = [found.verdict for row in measured if (found := row.tools[OURS].race.at(level, batch))]
            faster, slower = (sum(verdict.endswith(word) for verdict in verdicts) for word in ("faster", "slower"))
            means = {tool: mean(measured, tool, level, batch) for tool in (OURS, *versions)}
            others = ", ".join(f"{versions[tool]} {means[tool]:.2f}" for tool in versions)
            lines.append(
                f"- Optimisations {words}, batch {batch}: bnfold {means[OURS]:.2f} times as fast as the original, the "
                f"geometric mean over {len(measured)} models: {faster} faster, {slower} slower, "
                f"{len(measured) - faster - slower} no difference{f' ({others})' if others else ''}."
            )
    return "\n".join(lines)


def mean(rows: Sequence[Row], tool: str, level: str, batch: int) -> float:
    """The geometric mean of a tool's ratios; where it gave no right model, one keeps the original."""
    ratios = [row.tools[tool].ratio(level, batch) if tool in row.tools else 1.0 for row in rows]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0


def times(rows: Sequence[Row], versions: Mapping[str, str], level: str) -> str:
    """Every model and batch size: the original's time, and how much faster what each tool made of it is."""
    head = ("model", "batch", "original, ms", OURS, *versions.values())
    lines = []
    for row in rows:
        for batch in row.batches:
            ours = row.tools[OURS].race.at(level, batch) if OURS in row.tools else None
            others = [cell(row.tools.get(tool), level, batch) for tool in versions]
            time = f"{ours.original:.3g}" if ours else ""
            lines.append([row.name, str(batch), time, cell(row.tools.get(OURS), level, batch, spread=True), *others])
    fixed = [f"{row.name} ({row.fixed})" for row in rows if row.fixed]
    note = f"\n\nOnly with the batch that it has: {'; '.join(fixed)}." if fixed else ""
    return tables.table(head, lines) + note


def cell(speed: Speed | None, level: str, batch: int, spread: bool = False) -> str:
    """The ratio; or what went wrong instead."""
    if speed is None:
        return ""
    if not speed.is_model:
        return speed.verdict
    found = speed.race.at(level, batch)
    return "" if found is None else told(found, spread)


def told(found: Timed, spread: bool) -> str:
    """The ratio with its interval, or that there is no difference."""
    if not found.differs:
        return found.verdict + (found.interval if spread else "")
    return f"{found.ratio:.2f}" + (found.interval if spread else "")


def opposed(rows: Sequence[Row]) -> str:
    """timm's form and bnfold's result against the training form, and against each other, optimisations on."""
    head = ("model", "batch", "training form, ms", "timm", OURS, f"{OURS} against timm", "nodes", "timm", OURS)
    lines = [list(_opposed(row, found)) for row in rows if row.against for found in row.against[1].timed]
    return tables.table(head, [line for line in lines if line])


def _opposed(row: Row, found: Timed) -> Iterator[str]:
    if found.level != "all" or OURS not in row.tools:
        return
    theirs, ours = row.tools[NAMED], row.tools[OURS]
    before = ours.race.at(found.level, found.batch)
    yield from (row.name, str(found.batch), f"{before.original:.3g}" if before else "")
    yield from (cell(speed, found.level, found.batch) for speed in (theirs, ours))
    yield told(found, spread=True)
    yield from (str(nodes) for nodes in (row.nodes, theirs.nodes, ours.nodes))


def sessions(rows: Sequence[Row]) -> str:
    """How long a session takes to make, and the bytes on disk, before and after bnfold."""
    head = ("model", "BN", "nodes", "MB", "session, ms, on", "", "session, ms, off", "")
    lines = []
    for row in rows:
        ours = row.tools.get(OURS)
        if ours is None or not ours.is_model:
            continue
        sizes = f"{row.size / 1e6:.1f} → {ours.size / 1e6:.1f}"
        counts = (f"{row.bn} → {ours.bn}", f"{row.nodes} → {ours.nodes}", sizes)
        lines.append([row.name, *counts, *_created(ours.race)])
    return tables.table(head, lines)


def _created(race: Race) -> Iterator[str]:
    for one in race.created:
        yield from (f"{one.original:.1f} → {one.changed:.1f}", one.verdict)


def first(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """README's: optimisations on, both batch sizes, and the best of the others."""
    head = ("model", "BatchNormalization", "original, ms", OURS, f"batch {SECOND}", "the best other tool")
    lines = []
    for row in rows:
        ours = row.tools.get(OURS)
        found = ours.race.at("all", row.batches[0]) if ours else None
        if ours is None or found is None:
            continue
        larger = cell(ours, "all", SECOND) if SECOND in row.batches else "its batch is fixed"
        counts = f"{row.bn} → {ours.bn}"
        best = best_of(row, versions, row.batches[0])
        lines.append([row.name, counts, f"{found.original:.3g}", cell(ours, "all", row.batches[0]), larger, best])
    return tables.table(head, lines)


def best_of(row: Row, versions: Mapping[str, str], batch: int) -> str:
    """The fastest right model of another tool, optimisations on."""
    right = {tool: row.tools[tool] for tool in versions if tool in row.tools and row.tools[tool].is_model}
    if not right:
        return ""
    tool = max(right, key=lambda name: right[name].ratio("all", batch))
    found = cell(right[tool], "all", batch)
    return found if found == "no difference" else f"{found} ({tool})"


def line(row: Row) -> str:
    """One model, for the terminal."""
    found = []
    for tool, speed in row.tools.items():
        ratios = [f"{one.level} {one.batch}: {told(one, spread=tool == OURS)}" for one in speed.race.timed]
        found.append(f"{tool} {', '.join(ratios) or speed.verdict}")
    if row.against:
        found.append("bnfold against timm " + ", ".join(told(one, spread=True) for one in row.against[1].timed))
    return f"{row.name}: " + "; ".join(found)
