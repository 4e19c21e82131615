"""What the page says, section by section: the typed results as texts, rows and charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bnfold import report, stays
from bnfold.auditing import Audit
from bnfold.benchmark import Bench
from bnfold.certificate import Certificate
from bnfold.documents import Failed, Pair, UpToDate
from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.parting import Parting
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT, Verification
from bnfold.equivalence.sensitivity import Sensitivity
from bnfold.page import charts
from bnfold.page.evidence import (
    BAD,
    GOOD,
    LOUD,
    PLAIN,
    Figure,
    Judged,
    Placed,
    Raced,
    evidence,
    figures,
    race,
    race_figure,
)  # fmt: skip
from bnfold.page.pictures import Picture, pictures
from bnfold.precision import Kept
from bnfold.reasons import Reason, plural
from bnfold.report import BATCHNORM
from bnfold.results import Affine, Explained, Merged, Optimized
from bnfold.verify_text import fed


@dataclass(frozen=True)
class Folds:
    """Affines of one operator that leave in one way into the same kinds of nodes."""

    op: str
    way: str
    into: str
    affines: tuple[Affine, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Stays:
    """Affines that stay for one reason."""

    op: str
    code: str
    affines: tuple[Affine, ...]


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
    merges: tuple[Merged, ...] = ()
    stays: tuple[Stays, ...] = ()
    in_float32: tuple[tuple[str, str, tuple[Kept, ...]], ...] = ()
    """Operator, code, and the nodes that were not converted for that."""
    judged: tuple[Judged, ...] = ()
    histograms: tuple[charts.Steps, ...] = ()
    layers: charts.Profile | None = None
    placed: tuple[Placed, ...] = ()
    parting: Parting | None = None
    algebra: Algebra | None = None
    sensitivity: tuple[Sensitivity, ...] = ()
    raced: tuple[Raced, ...] = ()


def section(result: Explained | Pair | Audit | UpToDate | Failed, command: str) -> Section:
    """The section of one result."""
    if isinstance(result, UpToDate):
        norms = Figure(BATCHNORM, f"{result.after:,}", f"{result.before:,}", tone=_fewer(result.before, result.after))
        return Section(command, result.model, f"to {result.output}", "up to date", PLAIN, (norms,))
    if isinstance(result, Audit):
        return _audited(result, command)
    if isinstance(result, Failed):
        title = result.model or "bnfold"
        return Section(command, title, status="failed", tone=BAD, alerts=((BAD, " ".join(result.message.split("\n"))),))
    if isinstance(result, Pair):
        title, subtitle = result.optimized, f"against {result.original}"
        if isinstance(result.result, Bench):
            return _raced(result.result, command, title, subtitle)
        return _verified(result.result, command, title, subtitle)
    return _folded(result, command)


def _audited(result: Audit, command: str) -> Section:
    made_by = ", ".join(f"{name} {found}" for name, found in result.made_by.items() if found)
    facts = ("manifest", str(result.manifest)), ("made by", made_by), ("time", f"{result.seconds:.1f} s")
    alerts = tuple((BAD, problem) for problem in result.problems)
    shown = () if result.certificate is None else (_certified(result.certificate),)
    tone, subtitle = GOOD if result.passed else BAD, f"against {result.original}"
    return Section(command, str(result.optimized), subtitle, result.status, tone, shown, alerts, facts)


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
    if isinstance(result, Optimized) and result.precision is not None:
        if result.precision.verification is not None:
            made_by += (("the fold before", report.before(result.precision.verification)),)
        made_by += tuple(
            (each.head.strip() or "speed", each.body.plain) for each in report.speed(result, result.precision)
        )
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
        result.merges,
        _reasons(result.affines),
        _not_converted(result),
        **(evidence(run)._asdict() if run else {}),
    )


def _status(result: Explained) -> tuple[str, str]:
    if not isinstance(result, Optimized):
        return "", PLAIN
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
        if result.precision is not None:
            count = plural(len(result.precision.kept), "node")
            note = f"{report.converted(result.precision)}; {count} in float32"
            yield Figure("precision", result.precision.type, note=note)
        if result.certificate is not None:
            yield _certified(result.certificate)
        if result.verification is not None:
            yield from figures(result.verification)


def _certified(found: Certificate) -> Figure:
    done = f"{plural(found.checked, 'node')}, {plural(found.constants, 'constant')}"
    return Figure("certificate", "holds" if found.ok else "FAILS", note=done, tone=GOOD if found.ok else BAD)


def _fewer(before: int, after: int) -> str:
    return GOOD if after < before and not after else PLAIN


def _groups(affines: Iterable[Affine]) -> tuple[Folds, ...]:
    found: dict[tuple[str, str, str], list[Affine]] = {}
    for affine in affines:
        if affine.status == "folded":
            kinds = " + ".join(dict.fromkeys(affine.into_ops)) or "nothing: its effect vanishes"
            found.setdefault((affine.op, affine.way, kinds), []).append(affine)
    groups = [Folds(*key, tuple(group), pictures(group)) for key, group in found.items()]
    return tuple(sorted(groups, key=lambda group: -len(group.affines)))


def _reasons(affines: Iterable[Affine]) -> tuple[Stays, ...]:
    kept = [affine for affine in affines if affine.status == "kept"]
    return tuple(Stays(group[0].op, group[0].reasons[0].code, tuple(group)) for group in stays.groups(kept))


def _not_converted(result: Explained) -> tuple[tuple[str, str, tuple[Kept, ...]], ...]:
    found: dict[tuple[str, str], list[Kept]] = {}
    for kept in result.precision.kept if isinstance(result, Optimized) and result.precision else ():
        found.setdefault((kept.op, kept.code), []).append(kept)
    groups = [(*key, tuple(group)) for key, group in found.items()]
    return tuple(sorted(groups, key=lambda group: -len(group[2])))


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
    found = evidence(run)._asdict()
    return Section(command, title, subtitle, run.status, tone, tuple(figures(run)), _alerts(run), facts, **found)


def _alerts(run: Verification) -> tuple[tuple[str, str], ...]:
    return tuple((BAD, problem) for problem in run.problems) + tuple((LOUD, note) for note in run.notes)


def _fed(run: Verification) -> tuple[tuple[str, str], ...]:
    samples = f"{plural(run.samples, 'sample')} of {fed(run)}, seed {run.seed}" if run.inputs else "nothing was fed"
    return ("inputs", samples), ("reference", run.noise.status), ("TF32", "on" if run.tf32 else "off")


# --------------------------------------------------------------------------------------------------------------- bench


def _raced(result: Bench, command: str, title: str, subtitle: str) -> Section:
    threads = "ONNX Runtime's own choice" if result.threads is None else str(result.threads)
    before, after = report.size(result.size_original), report.size(result.size_optimized)
    verdicts = dict.fromkeys(row.verdict for row in result.rows)
    medians = tuple(race_figure(row) for row in result.rows)
    notes = tuple((LOUD, note) for note in result.notes)
    facts = ("size", f"{before} -> {after}"), ("threads", threads), ("time", f"{result.seconds:.1f} s")
    status = next(iter(verdicts)) if len(verdicts) == 1 else ""
    raced = tuple(map(race, result.rows))
    return Section(command, title, subtitle, status, PLAIN, medians, notes, facts, raced=raced)
