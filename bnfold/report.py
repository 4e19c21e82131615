"""The typed results as text for a person: the summary first, then a line for every affine that matters.

Every function gives lines; `show` prints them, wrapped and coloured on a terminal, one line each and plain elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bnfold import stays
from bnfold.api import Affine, Audit, Explained, Optimized
from bnfold.bench_text import benchmark, brief
from bnfold.certificate import Certificate
from bnfold.deploy_text import deployed
from bnfold.equivalence.result import Verification
from bnfold.lines import BAD, FAINT, GOOD, LOUD, Line, clean, console, fact, line, show, size
from bnfold.precision import Kept
from bnfold.reasons import plural
from bnfold.results import Precision
from bnfold.verify_text import algebra, apart, error_label, summary, verdict, verification

__all__ = [
    "Line",
    "audited",
    "benchmark",
    "clean",
    "console",
    "deployed",
    "explained",
    "optimized",
    "show",
    "size",
    "verdict",
    "verification",
]

BATCHNORM = "BatchNormalization"

LISTED = 12
"""Up to this many folded, and this many kept affines are listed one by one without being asked."""


# ------------------------------------------------------------------------------------------------ optimize and explain


def explained(result: Explained, verbose: bool = False) -> list[Line]:
    """What can be folded, and why the rest stays."""
    return [
        _title(result),
        *_counts(result),
        *_warnings(result.warnings),
        *_affines(result, "can be folded", verbose),
        *_merges(result, verbose),
    ]


def optimized(result: Optimized, verbose: bool = False) -> list[Line]:
    """What was folded, how it was proved, and why the rest stays."""
    lines = [_title(result), *_counts(result), *_precision(result), *_proof(result), _time(result.timing)]
    lines += [*_warnings(result.warnings), *_affines(result, "folded", verbose), *_merges(result, verbose)]
    return [*lines, *(_in_float32(result.precision.kept, verbose) if result.precision else ())]


def audited(result: Audit) -> list[Line]:
    """What a manifest says, and what still holds of it."""
    lines = [line(f"{result.optimized} against {result.original}, by {result.manifest}", "bold")]
    lines.append(fact("made by", ", ".join(f"{name} {found}" for name, found in result.made_by.items() if found)))
    if result.certificate is not None:
        lines += [fact("hashes", "hold", GOOD), _certified(result.certificate)]
    lines += [fact("problem", problem, BAD) for problem in result.problems[:LISTED]]
    lines.append(fact("time", f"{result.seconds:.1f} s"))
    said = f"different: {result.problems[0]}" if result.problems else "equivalent: every hash and the certificate hold"
    return [*lines, fact("verdict", said, BAD if result.problems else GOOD)]


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
        yield from summary(run)
        if run.algebra is not None:
            yield fact("algebra", algebra(run.algebra), GOOD if run.algebra.passed else BAD)
    else:
        yield fact("verified", "no, as asked (--no-verify)", LOUD)
    yield _certified(certificate)


def _certified(certificate: Certificate) -> Line:
    verdict = "holds" if certificate.ok else "FAILS"
    done = (
        f"{verdict}: {plural(certificate.checked, 'node')} re-proved, {plural(certificate.constants, 'constant')} exact"
    )
    return fact("certificate", done, GOOD if certificate.ok else BAD)


def _precision(result: Optimized) -> Iterator[Line]:
    found = result.precision
    if found is None:
        return
    yield fact("precision", f"{converted(found)}; {plural(len(found.kept), 'node')} in float32")
    if found.verification is not None:
        yield fact("the fold before", before(found.verification), GOOD)
    yield from speed(result, found)


def converted(found: Precision) -> str:
    """How much of a model is in the smaller type."""
    return f"{found.type}: {plural(found.nodes, 'node')}, {plural(found.casts, 'cast')}"


def before(run: Verification) -> str:
    """How the fold passed before it was converted."""
    wanted = (error_label(run), "verified")
    told = "; ".join(each.body.plain.strip() for each in summary(run) if each.head.strip() in wanted)
    return told + (f"; algebra {apart(run.algebra)}" if run.algebra is not None and run.algebra.worst else "")


def speed(result: Optimized, found: Precision) -> Iterator[Line]:
    """Whether the smaller type is quicker, on each provider; or how to find out."""
    for row in found.speed:
        yield brief(row)
        if row.provider == "cpu" and row.verdict.endswith("slower"):
            yield fact("", "made for GPUs: ONNX Runtime's CPU computes it in float32, with casts", FAINT)
    if not found.speed:
        command = f"bnfold bench {result.model.path or 'ORIGINAL'} {result.model.output or 'OUTPUT'}"
        yield fact("speed", f"not measured, for nothing ran here: {command}", FAINT)


def _in_float32(kept: Sequence[Kept], verbose: bool) -> Iterator[Line]:
    """What was not converted, and why: one by one where they are few, else by reason."""
    if not kept:
        return
    yield line()
    yield line(f"in float32: {len(kept)}", "bold")
    if verbose or len(kept) <= LISTED:
        for each in kept:
            yield line(f"{each.op}: {each.code}: {each.reason}", head=f"  {clean(each.node)}  ", hang=6)
        return
    for (op, code), count in Counter((each.op, each.code) for each in kept).most_common():
        first = next(each for each in kept if (each.op, each.code) == (op, code))
        yield line(f"{count} {op}: {code}, as {clean(first.node)}: {first.reason}", head="  ", hang=6)
    yield line("(-v lists every one)", FAINT, "  ")


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


def _merges(result: Explained, verbose: bool) -> Iterator[Line]:
    """What became one node, and what almost did: one by one where they are few."""
    merged = [merge for merge in result.merges if merge.status == "merged"]
    almost = [merge for merge in result.merges if merge.status == "kept"]
    if merged:
        nodes = sum(len(merge.nodes) for merge in merged)
        kinds = " + ".join(f"{count} {op}" for op, count in Counter(merge.op for merge in merged).most_common())
        yield line()
        yield line(f"merged: {nodes} nodes into {kinds}", "bold")
        for merge in merged if verbose or len(merged) <= LISTED else []:
            others = [node for node in merge.nodes if node != merge.into]
            yield line(f"{merge.op} with {', '.join(map(clean, others))}", head=f"  {clean(merge.into)}  ", hang=6)
        if not verbose and len(merged) > LISTED:
            yield line("(-v lists every one)", FAINT, "  ")
    swapped = [merge.root for merge in result.merges if merge.status == "swapped"]
    if swapped:
        yield line()
        yield line(f"swapped with the 1x1 convolution in front: {plural(len(swapped), 'pool')}", "bold")
        yield line(", ".join(map(clean, swapped if verbose else swapped[:LISTED])), head="  ", hang=2)
        if not verbose and len(swapped) > LISTED:
            yield line("(-v lists every one)", FAINT, "  ")
    if almost:
        yield line()
        yield line(f"almost merged: {len(almost)}", "bold")
        for merge in almost if verbose else almost[:LISTED]:
            yield line(f"{merge.root}  {merge.reason}", head="  ", hang=6)
        if not verbose and len(almost) > LISTED:
            yield line("(-v lists every one)", FAINT, "  ")


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
