"""The typed results as text for a person: the summary first, then a line for every affine that matters.

Every function gives lines; `show` prints them, wrapped and coloured on a terminal, one line each and plain elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bnfold import stays
from bnfold.api import Affine, Explained, Optimized
from bnfold.bench_text import benchmark, settings, tf32
from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.noise import K, OutputCheck
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT, RuntimeCheck, Verification, badness
from bnfold.lines import BAD, FAINT, GOOD, LOUD, Line, clean, console, fact, line, show, size
from bnfold.reasons import plural

__all__ = ["Line", "benchmark", "clean", "console", "explained", "optimized", "show", "size", "verdict", "verification"]

BATCHNORM = "BatchNormalization"

LISTED = 12
"""Up to this many folded, and this many kept affines are listed one by one without being asked."""


# ------------------------------------------------------------------------------------------------ optimize and explain


def explained(result: Explained, verbose: bool = False) -> list[Line]:
    """What can be folded, and why the rest stays."""
    return [_title(result), *_counts(result), *_warnings(result.warnings), *_affines(result, "can be folded", verbose)]


def optimized(result: Optimized, verbose: bool = False) -> list[Line]:
    """What was folded, how it was proved, and why the rest stays."""
    lines = [_title(result), *_counts(result), *_proof(result), _time(result.timing)]
    return [*lines, *_warnings(result.warnings), *_affines(result, "folded", verbose)]


def _title(result: Explained) -> Line:
    model = result.model
    names = f"{model.path or 'the model'}" + (f" -> {model.output}" if model.output else "")
    made_by = f", by {model.producer}" if model.producer else ""
    title = line(f"{names}  (opset {model.opset}, IR {model.ir_version}{made_by})")
    title.body.stylize("bold", 0, len(names))
    return title


def _counts(result: Explained) -> list[Line]:
    model, left = result.model, result.batchnorm.after
    style = GOOD if left < result.batchnorm.before and not left else ""
    lines = [fact(BATCHNORM, f"{result.batchnorm.before} -> {left}", style)]
    others = [affine for affine in result.affines if affine.op != BATCHNORM]
    if others:
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(affine.op for affine in others).most_common())
        lines.append(fact("scale and shift", f"{len(others)} -> {_kept_count(others)}  ({kinds})"))
    lines.append(fact("nodes", f"{model.nodes.before} -> {model.nodes.after}"))
    if model.bytes.before != model.bytes.after:
        lines.append(fact("size", f"{size(model.bytes.before)} -> {size(model.bytes.after)}"))
    return lines


def _kept_count(affines: Iterable[Affine]) -> int:
    return sum(affine.status == "kept" for affine in affines)


def _proof(result: Optimized) -> Iterator[Line]:
    certificate, run = result.certificate, result.verification
    if certificate is None:
        yield fact("proof", "nothing was folded: the output is the input, byte for byte")
        return
    if run is not None:
        yield from _verified(run)
        if run.algebra is not None:
            yield fact("algebra", _algebra(run.algebra), GOOD if run.algebra.passed else BAD)
    else:
        yield fact("verified", "no, as asked (--no-verify)", LOUD)
    verdict = "holds" if certificate.ok else "FAILS"
    done = (
        f"{verdict}: {plural(certificate.checked, 'node')} re-proved, {plural(certificate.constants, 'constant')} exact"
    )
    yield fact("certificate", done, GOOD if certificate.ok else BAD)


def _algebra(found: Algebra) -> str:
    if not found.worst:
        return found.status
    far = f"{found.worst[0].error:.1e} apart at most, {found.tolerance:.0e} allowed"
    return f"{plural(found.compared, 'tensor')} in float64 and with unrounded constants, {far}"


def _verified(run: Verification) -> Iterator[Line]:
    worst = max(run.noise.outputs or run.noise.stored, key=badness, default=None)
    if worst is not None and worst.before is not None and worst.after is not None:
        yield fact(_error_label(run), _error(worst))
    if run.status == CERTIFIED_ONLY:
        yield fact("verified", f"CERTIFIED ONLY: {'; '.join(run.notes)}", LOUD)
        return
    for check in run.runtime:
        words = f"{check.provider}, optimisations {' and '.join(check.outputs)}{_tf32(check)}: {_placed(check)}"
        yield fact("verified", words, GOOD if check.passed else BAD)
    yield from _answers(run)
    for note in run.notes:
        yield fact("note", note, LOUD)


def _answers(run: Verification) -> Iterator[Line]:
    found = run.answers
    if found is None:
        return
    shares = [("top-1", found.top1), ("top-5", found.top5)]
    accuracy = ", ".join(f"{name} {share.before:.2%} -> {share.after:.2%}" for name, share in shares if share)
    yield fact(
        "accuracy",
        f"{accuracy} of {found.samples:,} ({found.provider}, optimisations on); {found.changed} answers changed, "
        f"largest difference of a score {found.difference:.1e} of {found.largest:.3g}",
        LOUD if found.changed else "",
    )


def _error_label(run: Verification) -> str:
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


def _time(timing: Mapping[str, float]) -> Line:
    steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in timing.items() if seconds >= 0.05)
    return fact("time", f"{sum(timing.values()):.1f} s" + (f"  ({steps})" if steps else ""))


def _warnings(warnings: Iterable[str]) -> list[Line]:
    return [line(f"warning: {warning}", LOUD, "  ", 11) for warning in warnings]


def _affines(result: Explained, done: str, verbose: bool) -> Iterator[Line]:
    """One by one where they are few, or all are asked for; else folded ones by kind, kept ones by reason."""
    if not result.affines:
        yield line("no BatchNormalization, and no scale or shift by constants")
        return
    folded = [affine for affine in result.affines if affine.status == "folded"]
    kept = [affine for affine in result.affines if affine.status == "kept"]
    yield line()
    if verbose or len(folded) <= LISTED:
        width = max((len(affine.node) for affine in folded), default=0)
        for affine in folded:
            yield line(
                f"{affine.op}: {affine.way} into {_targets(affine)}",
                head=f"  {clean(affine.node):<{min(width, 48)}}  ",
                hang=6,
            )
    else:
        yield from _groups(result.affines, done)
    for affine in folded:
        if affine.note:
            yield line(f"{affine.node}: {affine.note}", head="  note: ", hang=6)
    if kept:
        yield line()
        yield line(f"kept: {len(kept)}", "bold")
        yield from _kept(kept, verbose)


def _targets(affine: Affine) -> str:
    return ", ".join(affine.into) or "nothing (its effect vanishes)"


def _groups(affines: Sequence[Affine], done: str) -> Iterator[Line]:
    for op, total in Counter(affine.op for affine in affines).most_common():
        folded = [affine for affine in affines if affine.op == op and affine.status == "folded"]
        if not folded:
            continue
        targets = {name: kind for affine in folded for name, kind in zip(affine.into, affine.into_ops, strict=True)}
        kinds = " + ".join(f"{count} {kind}" for kind, count in Counter(targets.values()).most_common())
        yield line(f"{len(folded)} of {total} {op} {done}" + (f" into {kinds}" if kinds else ""), head="  ")
    yield line("(-v lists every one)", FAINT, "  ")


def _kept(kept: Sequence[Affine], verbose: bool) -> Iterator[Line]:
    if not verbose and len(kept) > LISTED:
        yield from (line(stays.group(group), head="  ", hang=6) for group in stays.groups(kept))
        yield line("(-v lists every one)", FAINT, "  ")
        return
    for affine in kept:
        told = line(f"{affine.node}  {stays.one(affine)}", head="  ", hang=6)
        told.body.stylize(LOUD, 0, len(clean(affine.node)))
        yield told
        if verbose:
            yield from (line(text, head="      ", hang=8) for text in stays.others(affine))


# --------------------------------------------------------------------------------------------------------------- verify


def verification(run: Verification, original: str, optimized: str) -> list[Line]:
    """What was compared, how far the two are apart, and the verdict."""
    fed = ", ".join(
        f"{entry['name']} {'x'.join(map(str, entry['shape'])) or 'scalar'} {entry['type']}" for entry in run.inputs
    )
    lines = [line(f"{optimized} against {original}", "bold")]
    if fed:
        lines.append(fact("inputs", f"{plural(run.samples, 'sample')} of {fed}, seed {run.seed}"))
    for check in run.runtime:
        for level, outputs in check.outputs.items():
            lines += [fact(f"{check.provider}, optim. {level}", _compared(output)) for output in outputs]
        lines.append(fact(f"{check.provider}, placement", _placed(check)))
        lines.append(fact(f"{check.provider}, settings", settings(check.provider, check.settings)))
        lines += [fact("", where, FAINT) for where in (check.placement.elsewhere if check.placement else ())]
    lines += [fact("float64, as stored", _compared(output)) for output in run.noise.stored]
    lines += _answers(run)
    lines += [fact("note", note, LOUD) for note in run.notes]
    lines += [fact("problem", problem, BAD) for problem in run.problems]
    if run.parting is not None:
        lines.append(fact("they part at" if run.parting.tensor else "they part", str(run.parting), BAD))
    lines += _sensitivity(run)
    lines.append(fact("time", f"{run.seconds:.1f} s"))
    return [*lines, fact("verdict", verdict(run), _verdict_style(run))]


def _sensitivity(run: Verification) -> Iterator[Line]:
    if not run.sensitivity:
        return
    yield fact("self-test", "the smallest corruption of one channel that this verification sees")
    width = max(len(row.kind) for row in run.sensitivity)
    for row in run.sensitivity:
        where = f"channel {row.channel} of {row.tensor}, {row.node} (1 of {plural(row.constants, 'constant')})"
        if row.smallest is None:
            yield fact("", f"{row.kind:<{width}}  not seen: {row.largest:.0e}, {where}", LOUD)
        else:
            yield fact("", f"{row.kind:<{width}}  {row.smallest:.1e}, {row.ulps:,.0f} ULP, by {row.seen_by}: {where}")


def _compared(check: OutputCheck) -> str:
    word = "same" if check.passed else "DIFFERENT"
    name = f"{check.output} {'x'.join(map(str, check.shape)) or 'scalar'} {check.dtype}"
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
