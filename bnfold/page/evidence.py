"""What the page says of comparisons and of a bench: figures, rows, charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bnfold import bench_text, verify_text
from bnfold.benchmark import BenchRow
from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.answers import Answers
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.noise import K
from bnfold.equivalence.parting import Parting
from bnfold.equivalence.result import RuntimeCheck, Verification, badness
from bnfold.equivalence.sensitivity import Sensitivity
from bnfold.page import charts
from bnfold.reasons import plural

DRAWN = 12
"""Histograms on the page, those nearest to failing first."""

GOOD, BAD, LOUD, PLAIN = "good", "bad", "loud", "plain"


@dataclass(frozen=True)
class Figure:
    """One number of the summary: what it was, and what it is."""

    label: str
    value: str
    before: str = ""
    note: str = ""
    tone: str = PLAIN


@dataclass(frozen=True)
class Judged:
    """One row of the table of comparisons."""

    where: str
    check: OutputCheck
    used: str
    """Share of the allowance that the error takes, in words."""
    fill: float
    """The same as a part of one, at most one."""


@dataclass(frozen=True)
class Placed:
    """Where one provider's run of the optimized model put its nodes."""

    asked: str
    rows: tuple[tuple[str, int, str], ...]
    """Provider, nodes, operators."""
    elsewhere: tuple[str, ...]


class Evidence(NamedTuple):
    """What a verification asked: the comparisons with their charts, and each thing more that was found."""

    judged: tuple[Judged, ...]
    histograms: tuple[charts.Steps, ...]
    layers: charts.Profile | None
    placed: tuple[Placed, ...]
    parting: Parting | None
    algebra: Algebra | None
    sensitivity: tuple[Sensitivity, ...]


@dataclass(frozen=True)
class Raced:
    """One row of a bench."""

    row: BenchRow
    shapes: str
    tone: str
    times: charts.Boxes
    ratio: charts.Interval
    details: tuple[tuple[str, str], ...]


def figures(run: Verification) -> Iterator[Figure]:
    """The worst error and how much of the allowance it takes; accuracy and algebra where they were asked for."""
    yield from _error_figures(run)
    if run.answers is not None:
        yield from _accuracy_figures(run.answers)
    if run.algebra is not None:
        yield _algebra_figure(run.algebra)


def _accuracy_figures(found: Answers) -> Iterator[Figure]:
    note, tone = verify_text.moved(found), LOUD if found.changed else PLAIN
    if not found.shares:
        yield Figure("answers changed", f"{found.changed:,}", note=f"of {found.samples:,} inputs; {note}", tone=tone)
    for name, share in found.shares:
        yield Figure(f"{name} of {found.samples:,}", f"{share.after:.2%}", f"{share.before:.2%}", note, tone)
        note = ""  # said once, of both


def _algebra_figure(found: Algebra) -> Figure:
    if found.broken:
        return Figure("algebra", "FAILS", note=found.status, tone=BAD)
    if not found.worst:
        return Figure("algebra", "not run", note=found.status.removeprefix("not run: "), tone=LOUD)
    note = f"{plural(found.compared, 'tensor')}, {verify_text.apart(found)}"
    return Figure("algebra", "holds" if found.passed else "FAILS", note=note, tone=GOOD if found.passed else BAD)


def _error_figures(run: Verification) -> Iterator[Figure]:
    worst = run.worst
    if worst is None or worst.before is None or worst.after is None:
        return
    before, after, statistic = verify_text.telling(worst)
    ratio = f"{after / before:.2f} times, " if before else ""
    tone = GOOD if worst.passed else BAD
    yield Figure(
        verify_text.error_label(run), f"{after:.1e}", f"{before:.1e}" if before else "0", f"{ratio}{statistic}", tone
    )
    yield Figure("noise used", _times(worst.k_needed), note=f"times the model's own, {K:g} allowed", tone=tone)


def evidence(run: Verification) -> Evidence:
    """Every comparison, with what is drawn of them."""
    rows = [("float64, as stored", check) for check in run.noise.stored]
    for runtime in run.runtime:
        for level, outputs in runtime.outputs.items():
            rows += [(f"{runtime.provider}, optimisations {level}", check) for check in outputs]
    rows += [("every tensor rounded", check) for check in run.noise.rounded]
    rounded = rows[len(run.noise.stored) :] or rows
    drawn = [charts.steps(*row) for row in rounded if row[1].histogram is not None]
    drawn.sort(key=lambda chart: badness(chart.check), reverse=True)
    return Evidence(
        tuple(_judged(*row) for row in rows),
        tuple(drawn[:DRAWN]),
        charts.profile(run.noise.layers, run.passed),
        tuple(_placed(check) for check in run.runtime if check.nodes),
        run.parting,
        run.algebra,
        run.sensitivity,
    )


def _judged(where: str, check: OutputCheck) -> Judged:
    if check.before is None:
        return Judged(where, check, "equal" if not check.mismatches else f"{check.mismatches} differ", 0.0)
    if not check.k_needed:
        return Judged(where, check, "a few ULP", 0.0)
    return Judged(where, check, f"{_times(check.k_needed)} of {K:g}", min(check.k_needed / K, 1.0))


def _times(value: float) -> str:
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.2g}"


def _placed(check: RuntimeCheck) -> Placed:
    by_provider: dict[str, Counter[str]] = {}
    for row in check.nodes:
        by_provider.setdefault(str(row["provider"]), Counter())[str(row["op"])] += int(row["nodes"])
    rows = tuple(
        (provider, ops.total(), ", ".join(f"{count} {op}" for op, count in ops.most_common()))
        for provider, ops in sorted(by_provider.items(), key=lambda entry: -entry[1].total())
    )
    return Placed(check.provider, rows, check.placement.elsewhere if check.placement else ())


def race_figure(row: BenchRow) -> Figure:
    """Both medians."""
    times = f"{row.optimized.median:.3g} ms", f"{row.original.median:.3g}"
    return Figure(f"{row.provider}, batch {row.batch}", *times, row.verdict, _race_tone(row))


def _race_tone(row: BenchRow) -> str:
    return {"faster": GOOD, "slower": BAD}.get(row.verdict.rsplit(" ", 1)[-1], PLAIN)


def race(row: BenchRow) -> Raced:
    """One row of a bench with its charts."""
    shapes = ", ".join(f"{name} {verify_text.shape_text(shape)}" for name, shape in row.shapes.items())
    details = tuple((line.head.strip(), line.body.plain) for line in bench_text.details(row))
    return Raced(row, shapes, _race_tone(row), charts.boxes(row), charts.interval(row), details)
