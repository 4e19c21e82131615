"""The typed results as text for a person: the summary first, then a line for every affine that matters.

Every function gives lines; `show` prints them, wrapped and coloured on a terminal, one line each and plain elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from rich.console import Console
from rich.text import Text

from bnfold import stays
from bnfold.algebra import Algebra
from bnfold.api import Affine, Explained, Optimized
from bnfold.benchmark import Bench, BenchRow, Timing
from bnfold.noise import K, OutputCheck
from bnfold.reasons import plural
from bnfold.verification import CERTIFIED_ONLY, DIFFERENT, RuntimeCheck, Verification, badness

BATCHNORM = "BatchNormalization"

LISTED = 12
"""Up to this many folded, and this many kept affines are listed one by one without being asked."""

_LABEL = 20
_GOOD, _BAD, _LOUD, _FAINT = "green", "bold red", "bold yellow", "dim"


@dataclass(frozen=True)
class Line:
    """`head` is never wrapped; `body` is, under column `hang`."""

    body: Text
    head: str = ""
    hang: int = 0


def _line(text: str = "", style: str = "", head: str = "", hang: int | None = None) -> Line:
    return Line(Text(clean(text), style), head, len(head) if hang is None else hang)


def clean(text: str) -> str:
    """Text that cannot steer a terminal: names in a model may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def console(file: IO[str]) -> Console:
    """A console that wraps and colours only where `file` is a terminal, whatever the environment says."""
    terminal = file.isatty()
    return Console(file=file, force_terminal=terminal, highlight=False, markup=False, emoji=False)


def show(lines: Iterable[Line], screen: Console) -> None:
    """Print the lines."""
    for line in lines:
        if not screen.is_terminal:
            print(f"{line.head}{line.body.plain}".rstrip(), file=screen.file)
            continue
        first, *rest = line.body.wrap(screen, max(24, screen.width - max(line.hang, len(line.head)))) or [Text()]
        for part in (Text(line.head).append_text(first), *(Text(" " * line.hang).append_text(each) for each in rest)):
            part.rstrip()
            screen.print(part, soft_wrap=True)
    screen.file.flush()


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
    title = _line(f"{names}  (opset {model.opset}, IR {model.ir_version}{made_by})")
    title.body.stylize("bold", 0, len(names))
    return title


def _fact(label: str, text: str, style: str = "") -> Line:
    return _line(text, style, f"  {label:<{_LABEL}}")


def _counts(result: Explained) -> list[Line]:
    model, left = result.model, result.batchnorm.after
    style = _GOOD if left < result.batchnorm.before and not left else ""
    lines = [_fact(BATCHNORM, f"{result.batchnorm.before} -> {left}", style)]
    others = [affine for affine in result.affines if affine.op != BATCHNORM]
    if others:
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(affine.op for affine in others).most_common())
        lines.append(_fact("scale and shift", f"{len(others)} -> {_kept_count(others)}  ({kinds})"))
    lines.append(_fact("nodes", f"{model.nodes.before} -> {model.nodes.after}"))
    if model.bytes.before != model.bytes.after:
        lines.append(_fact("size", f"{size(model.bytes.before)} -> {size(model.bytes.after)}"))
    return lines


def _kept_count(affines: Iterable[Affine]) -> int:
    return sum(affine.status == "kept" for affine in affines)


def _proof(result: Optimized) -> Iterator[Line]:
    certificate, run = result.certificate, result.verification
    if certificate is None:
        yield _fact("proof", "nothing was folded: the output is the input, byte for byte")
        return
    if run is not None:
        yield from _verified(run)
        if run.algebra is not None:
            yield _fact("algebra", _algebra(run.algebra), _GOOD if run.algebra.passed else _BAD)
    else:
        yield _fact("verified", "no, as asked (--no-verify)", _LOUD)
    verdict = "holds" if certificate.ok else "FAILS"
    done = (
        f"{verdict}: {plural(certificate.checked, 'node')} re-proved, {plural(certificate.constants, 'constant')} exact"
    )
    yield _fact("certificate", done, _GOOD if certificate.ok else _BAD)


def _algebra(found: Algebra) -> str:
    if not found.worst:
        return found.status
    far = f"{found.worst[0].error:.1e} apart at most, {found.tolerance:.0e} allowed"
    return f"{plural(found.compared, 'tensor')} in float64 and with unrounded constants, {far}"


def _verified(run: Verification) -> Iterator[Line]:
    worst = max(run.noise.outputs or run.noise.stored, key=badness, default=None)
    if worst is not None and worst.before is not None and worst.after is not None:
        yield _fact(_error_label(run), _error(worst))
    if run.status == CERTIFIED_ONLY:
        yield _fact("verified", f"CERTIFIED ONLY: {'; '.join(run.notes)}", _LOUD)
        return
    for check in run.runtime:
        words = f"{check.provider}, optimisations {' and '.join(check.outputs)}: {_placed(check)}"
        yield _fact("verified", words, _GOOD if check.passed else _BAD)
    for note in run.notes:
        yield _fact("note", note, _LOUD)


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


def _time(timing: Mapping[str, float]) -> Line:
    steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in timing.items() if seconds >= 0.05)
    return _fact("time", f"{sum(timing.values()):.1f} s" + (f"  ({steps})" if steps else ""))


def _warnings(warnings: Iterable[str]) -> list[Line]:
    return [_line(f"warning: {warning}", _LOUD, "  ", 11) for warning in warnings]


def _affines(result: Explained, done: str, verbose: bool) -> Iterator[Line]:
    """One by one where they are few, or all are asked for; else folded ones by kind, kept ones by reason."""
    if not result.affines:
        yield _line("no BatchNormalization, and no scale or shift by constants")
        return
    folded = [affine for affine in result.affines if affine.status == "folded"]
    kept = [affine for affine in result.affines if affine.status == "kept"]
    yield _line()
    if verbose or len(folded) <= LISTED:
        width = max((len(affine.node) for affine in folded), default=0)
        for affine in folded:
            yield _line(
                f"{affine.op}: {affine.way} into {_targets(affine)}",
                head=f"  {clean(affine.node):<{min(width, 48)}}  ",
                hang=6,
            )
    else:
        yield from _groups(result.affines, done)
    for affine in folded:
        if affine.note:
            yield _line(f"{affine.node}: {affine.note}", head="  note: ", hang=6)
    if kept:
        yield _line()
        yield _line(f"kept: {len(kept)}", "bold")
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
        yield _line(f"{len(folded)} of {total} {op} {done}" + (f" into {kinds}" if kinds else ""), head="  ")
    yield _line("(-v lists every one)", _FAINT, "  ")


def _kept(kept: Sequence[Affine], verbose: bool) -> Iterator[Line]:
    if not verbose and len(kept) > LISTED:
        yield from (_line(stays.group(group), head="  ", hang=6) for group in stays.groups(kept))
        yield _line("(-v lists every one)", _FAINT, "  ")
        return
    for affine in kept:
        line = _line(f"{affine.node}  {stays.one(affine)}", head="  ", hang=6)
        line.body.stylize(_LOUD, 0, len(clean(affine.node)))
        yield line
        if verbose:
            yield from (_line(text, head="      ", hang=8) for text in stays.others(affine))


# ---------------------------------------------------------------------------------------------------- verify and bench


def verification(run: Verification, original: str, optimized: str) -> list[Line]:
    """What was compared, how far the two are apart, and the verdict."""
    fed = ", ".join(
        f"{entry['name']} {'x'.join(map(str, entry['shape'])) or 'scalar'} {entry['type']}" for entry in run.inputs
    )
    lines = [_line(f"{optimized} against {original}", "bold")]
    if fed:
        lines.append(_fact("inputs", f"{plural(run.samples, 'sample')} of {fed}, seed {run.seed}"))
    for check in run.runtime:
        for level, outputs in check.outputs.items():
            lines += [_fact(f"{check.provider}, optim. {level}", _compared(output)) for output in outputs]
        lines.append(_fact(f"{check.provider}, placement", _placed(check)))
        lines += [_fact("", where, _FAINT) for where in (check.placement.elsewhere if check.placement else ())]
    lines += [_fact("float64, as stored", _compared(output)) for output in run.noise.stored]
    lines += [_fact("note", note, _LOUD) for note in run.notes]
    lines += [_fact("problem", problem, _BAD) for problem in run.problems]
    lines.append(_fact("time", f"{run.seconds:.1f} s"))
    return [*lines, _fact("verdict", verdict(run), _verdict_style(run))]


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
    return {DIFFERENT: _BAD, CERTIFIED_ONLY: _LOUD}.get(run.status, _GOOD)


def benchmark(result: Bench, original: str, optimized: str) -> list[Line]:
    """Median, quartiles, ratio with its interval, and the verdict."""
    lines = [_line(f"{optimized} against {original}", "bold")]
    for row in result.rows:
        lines += _bench_row(row)
    if result.size_original != result.size_optimized:
        lines.append(_fact("size", f"{size(result.size_original)} -> {size(result.size_optimized)}"))
    threads = "ONNX Runtime's own choice of threads" if result.threads is None else plural(result.threads, "thread")
    lines.append(_fact("measured", f"{result.seconds:.1f} s, {threads}"))
    return lines + [_fact("note", note, _LOUD) for note in result.notes]


def _bench_row(row: BenchRow) -> list[Line]:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row.shapes.items())
    style = {"faster": _GOOD, "slower": _BAD}.get(row.verdict.rsplit(" ", 1)[-1], "")
    return [
        _fact(f"{row.provider}, batch {row.batch}", f"{plural(row.pairs, 'pair')} of runs in turns, {shapes}"),
        _fact("  original", _timing(row.original)),
        _fact("  optimized", _timing(row.optimized)),
        _fact("  verdict", f"{row.verdict}  (ratio {row.ratio:.3f}, 95% {row.low:.3f} to {row.high:.3f})", style),
    ]


def _timing(timing: Timing) -> str:
    return (
        f"{timing.median:.2f} ms median, {timing.low:.2f} to {timing.high:.2f} quartiles, "
        f"session made in {timing.create:.0f} ms"
    )


# ------------------------------------------------------------------------------------------------------------- numbers


def size(count: int) -> str:
    """Bytes for a person, in powers of 1000."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
