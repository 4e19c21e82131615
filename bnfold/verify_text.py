"""The results of a verification as text for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bnfold.bench_text import settings, tf32
from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.answers import Answers
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.noise import K
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT, RuntimeCheck, Verification, badness
from bnfold.equivalence.sensitivity import Sensitivity
from bnfold.lines import BAD, FAINT, GOOD, LOUD, Line, fact, line
from bnfold.reasons import plural


def verification(run: Verification, original: str, optimized: str) -> list[Line]:
    """What was compared, how far the two are apart, and the verdict."""
    lines = [line(f"{optimized} against {original}", "bold")]
    if run.inputs:
        lines.append(fact("inputs", f"{plural(run.samples, 'sample')} of {fed(run)}, seed {run.seed}"))
    for check in run.runtime:
        for level, outputs in check.outputs.items():
            lines += [fact(f"{check.provider}, optim. {level}", _compared(output)) for output in outputs]
        lines.append(fact(f"{check.provider}, placement", _placed(check)))
        lines.append(fact(f"{check.provider}, settings", settings(check.provider, check.settings)))
        lines += [fact("", where, FAINT) for where in (check.placement.elsewhere if check.placement else ())]
    lines += [fact("float64, as stored", _compared(output)) for output in run.noise.stored]
    lines += [fact("tensors rounded", _compared(output)) for output in run.noise.rounded]
    lines += _answers(run.answers)
    lines += [fact("note", note, LOUD) for note in run.notes]
    lines += [fact("problem", problem, BAD) for problem in run.problems]
    if run.parting is not None:
        lines.append(fact("they part at" if run.parting.tensor else "they part", str(run.parting), BAD))
    lines += _sensitivity(run.sensitivity)
    lines.append(fact("time", f"{run.seconds:.1f} s"))
    return [*lines, fact("verdict", verdict(run), _verdict_style(run))]


def _sensitivity(rows: Sequence[Sensitivity]) -> Iterator[Line]:
    if not rows:
        return
    yield fact("self-test", "the smallest corruption of one channel that this verification sees")
    width = max(len(row.kind) for row in rows)
    for row in rows:
        where = f"channel {row.channel} of {row.tensor}, {row.node} (1 of {plural(row.constants, 'constant')})"
        yield fact("", f"{row.kind:<{width}}  {smallest(row)}: {where}", LOUD if row.smallest is None else "")


def smallest(row: Sensitivity) -> str:
    """The smallest corruption of one kind of constant that was seen, and by whom."""
    if row.smallest is None:
        return f"not seen, up to {row.largest:.0e}"
    return f"{row.smallest:.1e}, {row.ulps:,.0f} ULP, by {row.seen_by}"


def fed(run: Verification) -> str:
    """`x 3x3x8x9 float32` for every input; '' where nothing was fed."""
    return ", ".join(f"{each['name']} {shape_text(each['shape'])} {each['type']}" for each in run.inputs)


def shape_text(shape: Sequence[int]) -> str:
    """`1x3x8x9`."""
    return "x".join(map(str, shape)) or "scalar"


def _compared(check: OutputCheck) -> str:
    word = "same" if check.passed else "DIFFERENT"
    name = f"{check.output} {shape_text(check.shape)} {check.dtype}"
    if check.before is None or check.after is None:
        count = f", {check.mismatches} elements differ" if check.mismatches else ""
        return f"{name}: {word}{count}{_noted(check)}"
    return f"{name}: {word}, error {_error(check)}{_noted(check)}"


def _noted(check: OutputCheck) -> str:
    return f"; {check.note}" if check.note else ""


def verdict(run: Verification) -> str:
    """One line."""
    if run.status == DIFFERENT:
        return f"different: {run.problems[0]}" if run.problems else "different"
    if run.status == CERTIFIED_ONLY:
        compared = "compared in float64 only" if run.noise.stored else "nothing could be compared"
        return f"CERTIFIED ONLY, no runtime ran the original: {compared}"
    return "equivalent: as close to float64 as the original's own rounding noise allows"


def _verdict_style(run: Verification) -> str:
    return {DIFFERENT: BAD, CERTIFIED_ONLY: LOUD}.get(run.status, GOOD)


def summary(run: Verification) -> Iterator[Line]:
    """The worst error, and what ran where."""
    worst = max(run.noise.rounded or run.noise.outputs or run.noise.stored, key=badness, default=None)
    if worst is not None and worst.before is not None and worst.after is not None:
        yield fact(error_label(run), _error(worst))
    if run.status == CERTIFIED_ONLY:
        yield fact("verified", f"CERTIFIED ONLY: {'; '.join(run.notes)}", LOUD)
        return
    for check in run.runtime:
        words = f"{check.provider}, optimisations {' and '.join(check.outputs)}{_tf32(check)}: {_placed(check)}"
        yield fact("verified", words, GOOD if check.passed else BAD)
    yield from _answers(run.answers)
    for note in run.notes:
        yield fact("note", note, LOUD)


def _answers(found: Answers | None) -> Iterator[Line]:
    if found is None:
        return
    where, style = f"({found.provider}, optimisations on); {moved(found)}", LOUD if found.changed else ""
    if found.shares:
        accuracy = ", ".join(f"{name} {share.before:.2%} -> {share.after:.2%}" for name, share in found.shares)
        yield fact("accuracy", f"{accuracy} of {found.samples:,} {where}", style)
    else:
        yield fact("all inputs", f"{found.samples:,} {where}", style)


def moved(found: Answers) -> str:
    """How many first answers are others, and how far the scores moved."""
    what = "a score" if found.output else "an output"
    return (
        f"{found.changed} answers changed, largest difference of {what} {found.difference:.1e} of {found.largest:.3g}"
    )


def algebra(found: Algebra) -> str:
    """How far the fold is from the original before anything was rounded."""
    if not found.worst:
        return found.status
    return f"{plural(found.compared, 'tensor')} in float64 and with unrounded constants, {apart(found)}"


def apart(found: Algebra) -> str:
    """The distance of two tensors that takes most of what is allowed, and that."""
    return f"{found.worst[0].error:.1e} apart at most, {found.worst[0].allowed:.0e} allowed"


def error_label(run: Verification) -> str:
    """What the errors are distances to."""
    return "error to float64" if run.noise.status.startswith("float64") else "error to runtime"


def telling(check: OutputCheck) -> tuple[float, float, str]:
    """Error before, after, and of which statistic: the one that grew the more."""
    assert check.before is not None and check.after is not None
    pairs = [(check.before.norm, check.after.norm, "norm"), (check.before.max, check.after.max, "largest")]
    return max(pairs, key=lambda pair: pair[1] / pair[0] if pair[0] else 0.0)


def _error(check: OutputCheck) -> str:
    before, after, statistic = telling(check)
    ratio = f"{after / before:.2f}x, " if before else ""
    return f"{before:.2e} -> {after:.2e}  ({ratio}{statistic}; {_noise_used(check)})"


def _noise_used(check: OutputCheck) -> str:
    return (
        "within a few ULP"
        if check.k_needed == 0
        else f"{check.k_needed:.2g} times the model's own noise, {K:g} allowed"
    )


def _placed(check: RuntimeCheck) -> str:
    counts: Counter[str] = Counter()
    for row in check.nodes:
        counts[str(row["provider"])] += int(row["nodes"])
    return ", ".join(f"{plural(count, 'node')} on {provider}" for provider, count in counts.most_common()) or "not run"


def _tf32(check: RuntimeCheck) -> str:
    state = tf32(check.provider, check.settings)
    return f", TF32 {state}" if state else ""
