"""What the page says, section by section: the typed results as texts, rows and charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bnfold import report, stays
from bnfold.benchmark import Bench, BenchRow
from bnfold.documents import Failed, Pair
from bnfold.noise import K, OutputCheck
from bnfold.page import charts
from bnfold.reasons import Reason, plural
from bnfold.report import BATCHNORM
from bnfold.results import Affine, Explained, Optimized
from bnfold.verification import CERTIFIED_ONLY, DIFFERENT, RuntimeCheck, Verification, badness

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
class Folds:
    """Affines of one operator that leave in one way into the same kinds of nodes."""

    op: str
    way: str
    into: str
    affines: tuple[Affine, ...]


@dataclass(frozen=True)
class Stays:
    """Affines that stay for one reason."""

    op: str
    code: str
    affines: tuple[Affine, ...]


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


class _Evidence(NamedTuple):
    """The comparisons of a verification and their charts."""

    judged: tuple[Judged, ...]
    histograms: tuple[charts.Steps, ...]
    layers: charts.Profile | None
    placed: tuple[Placed, ...]


@dataclass(frozen=True)
class Raced:
    """One row of a bench."""

    row: BenchRow
    shapes: str
    tone: str
    times: charts.Boxes
    ratio: charts.Interval


@dataclass(frozen=True)
class Section:
    """The page's part about one model, or one pair."""

    command: str
    title: str
    subtitle: str = ""
    status: str = ""
    tone: str = PLAIN
    figures: tuple[Figure, ...] = ()
    alerts: tuple[tuple[str, str], ...] = ()
    """Tone and text."""
    facts: tuple[tuple[str, str], ...] = ()
    folds: tuple[Folds, ...] = ()
    done: str = "folded"
    stays: tuple[Stays, ...] = ()
    judged: tuple[Judged, ...] = ()
    histograms: tuple[charts.Steps, ...] = ()
    layers: charts.Profile | None = None
    placed: tuple[Placed, ...] = ()
    raced: tuple[Raced, ...] = ()


def section(result: Explained | Pair | Failed, command: str) -> Section:
    """The section of one result."""
    if isinstance(result, Failed):
        title = result.model or "bnfold"
        return Section(command, title, status="failed", tone=BAD, alerts=((BAD, " ".join(result.message.split("\n"))),))
    if isinstance(result, Pair):
        title, subtitle = result.optimized, f"against {result.original}"
        if isinstance(result.result, Bench):
            return _raced(result.result, command, title, subtitle)
        return _verified(result.result, command, title, subtitle)
    return _folded(result, command)


# ------------------------------------------------------------------------------------------------ optimize and explain


def _folded(result: Explained, command: str) -> Section:
    model, run = result.model, result.verification if isinstance(result, Optimized) else None
    status, tone = _status(result)
    warnings = tuple((LOUD, f"warning: {warning}") for warning in result.warnings)
    made_by = ((("made by", model.producer),) if model.producer else ()) + (
        ("model", f"opset {model.opset}, IR {model.ir_version}"),
    )
    steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in result.timing.items() if seconds >= 0.05)
    time = f"{sum(result.timing.values()):.1f} s" + (f" ({steps})" if steps else "")
    return Section(
        command,
        model.path or "the model",
        f"to {model.output}" if model.output else "",
        status,
        tone,
        tuple(_figures(result)),
        warnings + (_alerts(run) if run else ()),
        made_by + (_fed(run) if run else ()) + (("time", time),),
        _groups(result.affines),
        "folded" if isinstance(result, Optimized) else "can be folded",
        _reasons(result.affines),
        **(_evidence(run)._asdict() if run else {}),
    )


def _status(result: Explained) -> tuple[str, str]:
    if not isinstance(result, Optimized):
        return "explained", PLAIN
    return result.status, GOOD if result.status == "verified" else LOUD if result.status == "certified-only" else PLAIN


def _figures(result: Explained) -> Iterator[Figure]:
    model, norms = result.model, result.batchnorm
    yield Figure(BATCHNORM, f"{norms.after:,}", f"{norms.before:,}", tone=_fewer(norms.before, norms.after))
    others = [affine for affine in result.affines if affine.op != BATCHNORM]
    if others:
        left = sum(affine.status == "kept" for affine in others)
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(affine.op for affine in others).most_common())
        yield Figure("scale and shift", f"{left:,}", f"{len(others):,}", kinds, _fewer(len(others), left))
    yield Figure("nodes", f"{model.nodes.after:,}", f"{model.nodes.before:,}")
    before, after = report.size(model.bytes.before), report.size(model.bytes.after)
    yield Figure("size", after, before if before != after else "")
    if isinstance(result, Optimized):
        if result.certificate is not None:
            done = f"{plural(result.certificate.checked, 'node')}, {plural(result.certificate.constants, 'constant')}"
            ok = result.certificate.ok
            yield Figure("certificate", "holds" if ok else "FAILS", note=done, tone=GOOD if ok else BAD)
        if result.verification is not None:
            yield from _error_figure(result.verification)


def _fewer(before: int, after: int) -> str:
    return GOOD if after < before and not after else PLAIN


def _groups(affines: Iterable[Affine]) -> tuple[Folds, ...]:
    found: dict[tuple[str, str, str], list[Affine]] = {}
    for affine in affines:
        if affine.status == "folded":
            kinds = " + ".join(dict.fromkeys(affine.into_ops)) or "nothing: its effect vanishes"
            found.setdefault((affine.op, affine.way, kinds), []).append(affine)
    groups = [Folds(*key, tuple(group)) for key, group in found.items()]
    return tuple(sorted(groups, key=lambda group: -len(group.affines)))


def _reasons(affines: Iterable[Affine]) -> tuple[Stays, ...]:
    kept = [affine for affine in affines if affine.status == "kept"]
    return tuple(Stays(group[0].op, group[0].reasons[0].code, tuple(group)) for group in stays.groups(kept))


def channels(reason: Reason) -> str:
    """All channels that a reason names, with their values."""
    shown = [str(channel) for channel in reason.channels]
    if reason.values:
        shown = [f"{channel}: {value:.3g}" for channel, value in zip(shown, reason.values, strict=True)]
    return ", ".join(shown)


# ---------------------------------------------------------------------------------------------------------- comparisons


def _verified(run: Verification, command: str, title: str, subtitle: str) -> Section:
    tone = {DIFFERENT: BAD, CERTIFIED_ONLY: LOUD}.get(run.status, GOOD)
    facts = (*_fed(run), ("time", f"{run.seconds:.1f} s"))
    figures, alerts = tuple(_error_figure(run)), _alerts(run)
    return Section(command, title, subtitle, run.status, tone, figures, alerts, facts, **_evidence(run)._asdict())


def _alerts(run: Verification) -> tuple[tuple[str, str], ...]:
    return tuple((BAD, problem) for problem in run.problems) + tuple((LOUD, note) for note in run.notes)


def _fed(run: Verification) -> tuple[tuple[str, str], ...]:
    fed = ", ".join(f"{each['name']} {_shape(each['shape'])} {each['type']}" for each in run.inputs)
    samples = f"{plural(run.samples, 'sample')} of {fed}, seed {run.seed}" if fed else "nothing was fed"
    return ("inputs", samples), ("reference", run.noise.status), ("TF32", "on" if run.tf32 else "off")


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _error_figure(run: Verification) -> Iterator[Figure]:
    worst = run.worst
    if worst is None or worst.before is None or worst.after is None:
        return
    before, after, statistic = report.telling(worst)
    ratio = f"{after / before:.2f} times, " if before else ""
    label = "error to float64" if run.noise.status.startswith("float64") else "error to runtime"
    tone = GOOD if worst.passed else BAD
    yield Figure(label, f"{after:.1e}", f"{before:.1e}" if before else "0", f"{ratio}{statistic}", tone)
    yield Figure("noise used", _times(worst.k_needed), note=f"times the model's own, {K:g} allowed", tone=tone)


def _evidence(run: Verification) -> _Evidence:
    rows = [("float64, as stored", check) for check in run.noise.stored]
    for runtime in run.runtime:
        for level, outputs in runtime.outputs.items():
            rows += [(f"{runtime.provider}, optimisations {level}", check) for check in outputs]
    rounded = rows[len(run.noise.stored) :] or rows
    drawn = [charts.steps(*row) for row in rounded if row[1].histogram is not None]
    drawn.sort(key=lambda chart: badness(chart.check), reverse=True)
    return _Evidence(
        tuple(_judged(*row) for row in rows),
        tuple(drawn[:DRAWN]),
        charts.profile(run.noise.layers, run.passed),
        tuple(_placed(check) for check in run.runtime if check.nodes),
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


# --------------------------------------------------------------------------------------------------------------- bench


def _raced(result: Bench, command: str, title: str, subtitle: str) -> Section:
    threads = "ONNX Runtime's own choice" if result.threads is None else str(result.threads)
    before, after = report.size(result.size_original), report.size(result.size_optimized)
    verdicts = dict.fromkeys(row.verdict for row in result.rows)
    figures = tuple(_race_figure(row) for row in result.rows)
    notes = tuple((LOUD, note) for note in result.notes)
    facts = ("size", f"{before} -> {after}"), ("threads", threads), ("time", f"{result.seconds:.1f} s")
    status = next(iter(verdicts)) if len(verdicts) == 1 else ""
    raced = tuple(map(_race, result.rows))
    return Section(command, title, subtitle, status, PLAIN, figures, notes, facts, raced=raced)


def _race_figure(row: BenchRow) -> Figure:
    times = f"{row.optimized.median:.3g} ms", f"{row.original.median:.3g}"
    return Figure(f"{row.provider}, batch {row.batch}", *times, row.verdict, _race_tone(row))


def _race_tone(row: BenchRow) -> str:
    return {"faster": GOOD, "slower": BAD}.get(row.verdict.rsplit(" ", 1)[-1], PLAIN)


def _race(row: BenchRow) -> Raced:
    shapes = ", ".join(f"{name} {_shape(shape)}" for name, shape in row.shapes.items())
    return Raced(row, shapes, _race_tone(row), charts.boxes(row), charts.interval(row))
