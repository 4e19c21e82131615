"""The benchmark's results as text for a person."""

from __future__ import annotations

from collections.abc import Mapping

from bnfold.benchmark import Bench, BenchRow, Compared, Memory, Timing
from bnfold.lines import BAD, FAINT, GOOD, LOUD, Line, fact, line, size
from bnfold.reasons import plural

_COLUMNS = ("p50", "p90", "p95", "p99", "items/s")


def benchmark(result: Bench, original: str, optimized: str) -> list[Line]:
    """A table of latencies for every row, the ratio with its interval and the verdict, sessions and memory."""
    lines = [line(f"{optimized} against {original}", "bold")]
    providers: set[str] = set()
    for row in result.rows:
        lines += _latency(row) + details(row, shared=row.provider not in providers)
        providers.add(row.provider)
    if result.size_original != result.size_optimized:
        lines.append(fact("size", f"{size(result.size_original)} -> {size(result.size_optimized)}"))
    threads = "ONNX Runtime's own choice of threads" if result.threads is None else plural(result.threads, "thread")
    lines.append(fact("measured", f"{result.seconds:.1f} s, {threads}"))
    return lines + [fact("note", note, LOUD) for note in result.notes]


def brief(row: BenchRow) -> Line:
    """One line: who is faster, and by how much."""
    times = f"{_number(row.original.median)} -> {_number(row.optimized.median)} ms"
    measured = f"{_interval(row.ratio, row.low, row.high)}; {times}"
    return _verdict("speed", f"{row.provider}, batch {row.batch}: {row.verdict}", measured)


def details(row: BenchRow, shared: bool = True) -> list[Line]:
    """Memory; and where `shared`, what is the same for every batch size of a provider: settings and sessions."""
    return (_sessions(row) if shared else []) + _memory(row.memory)


def _latency(row: BenchRow) -> list[Line]:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row.shapes.items())
    runs = f"{plural(row.pairs, 'pair')} of runs in turns, in {plural(row.blocks, 'block')}; {shapes}"
    return [
        fact(f"{row.provider}, batch {row.batch}", runs),
        fact("  milliseconds", "".join(f"{name:>9}" for name in _COLUMNS), FAINT),
        fact("  original", _timing(row.original)),
        fact("  optimized", _timing(row.optimized)),
        _verdict("  verdict", row.verdict, _interval(row.ratio, row.low, row.high)),
    ]


def _sessions(row: BenchRow) -> list[Line]:
    lines = [fact("  settings", settings(row.provider, row.settings))]
    if row.create is not None:
        lines.append(_verdict("  session made", row.create.verdict, _create(row.create)))
    return lines


def _timing(timing: Timing) -> str:
    times = (timing.median, timing.p90, timing.p95, timing.p99)
    return "".join(f"{_number(value):>9}" for value in times) + f"{_rate(timing.throughput):>9}"


def _number(milliseconds: float | None) -> str:
    """A dash where too few runs reach the percentile."""
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.2f}"


def _rate(items: float) -> str:
    return f"{items:.3g}" if items < 100 else f"{items:,.0f}"


def _verdict(label: str, words: str, measured: str) -> Line:
    style = {"faster": GOOD, "slower": BAD, "quicker": GOOD, "smaller": GOOD, "larger": BAD}
    return fact(label, f"{words}  ({measured})", style.get(words.rsplit(" ", 1)[-1], ""))


def _interval(ratio: float, low: float | None, high: float | None, name: str = "95%") -> str:
    return f"ratio {ratio:.3f}" + (f", {name} {low:.3f} to {high:.3f}" if low is not None else "")


def _create(create: Compared) -> str:
    times = f"{_number(create.original)} -> {_number(create.optimized)} ms, {plural(create.pairs, 'time')} each"
    return f"{times}; {_interval(create.ratio, create.low, create.high)}"


def _memory(memory: Memory | None) -> list[Line]:
    if memory is None:
        return []
    beyond = f"beyond {size(memory.base)} for Python and ONNX Runtime"
    lines = [_verdict("  peak memory", memory.process.verdict, f"{_bytes(memory.process)}, {beyond}")]
    if memory.device is not None:
        lines.append(_verdict("  on the GPU", memory.device.verdict, _bytes(memory.device)))
    return lines


def _bytes(taken: Compared) -> str:
    sizes = f"{size(int(taken.original))} -> {size(int(taken.optimized))}"
    return f"{sizes}; {_interval(taken.ratio, taken.low, taken.high, 'extremes')}"


def settings(provider: str, given: Mapping[str, str]) -> str:
    """What ONNX Runtime was told, TF32 and determinism in words, the rest as it was given."""
    words = [f"TF32 {state}"] if (state := tf32(provider, given)) else []
    words.append("deterministic" if given.get("use_deterministic_compute") == "1" else "not deterministic")
    spoken = {"use_tf32", "use_deterministic_compute", "NVIDIA_TF32_OVERRIDE"}
    return ", ".join(words + [f"{key}={value}" for key, value in given.items() if key not in spoken])


def tf32(provider: str, given: Mapping[str, str]) -> str:
    """`on`, `off`, or nothing where there is no such thing."""
    if provider == "cpu":
        return ""
    return "off" if "0" in (given.get("use_tf32"), given.get("NVIDIA_TF32_OVERRIDE")) else "on"
