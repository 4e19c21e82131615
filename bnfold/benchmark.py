"""Is the optimized model faster? Both run in turns, and the answer is a ratio with its confidence interval.

The two models alternate (original, optimized, optimized, original, ...), so that a machine that slows down slows both.
The ratio is that of the medians; its interval comes from resampling the pairs (B. Efron's bootstrap). Where the
interval holds 1, or the ratio is closer to 1 than two equal models measure, the answer is "no difference".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold import samples, source
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.evidence import runnable
from bnfold.kernels.base import Array
from bnfold.runtime import CannotRun, Session, resolve_providers

MARGIN = 0.02
"""A ratio this close to 1 is no difference: a model measured against itself differs by as much from run to run."""

CONFIDENCE = 0.95

_RESAMPLES = 2000
_MIN_PAIRS = 5
_MAX_PAIRS = 1000
# A deployment's usual picture first.
_PLANES = ((224, 224), (299, 299), (320, 320), (48, 320), (640, 640), (512, 512), (96, 128), (32, 32))


@dataclass(frozen=True)
class Timing:
    """One model's times, milliseconds: `low` and `high` are the quartiles, `create` the session's creation."""

    median: float
    low: float
    high: float
    create: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"median_ms": self.median, "low_ms": self.low, "high_ms": self.high, "create_ms": self.create}


@dataclass(frozen=True)
class BenchRow:
    """Both models on one provider at one batch size. `ratio` above 1 means that the optimized model is faster.

    `low` and `high` bound the ratio with 95% confidence; `pairs` is how often both ran; `shapes` what they ran on.
    """

    provider: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    pairs: int
    original: Timing
    optimized: Timing
    ratio: float
    low: float
    high: float
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "provider": self.provider,
            "batch": self.batch,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "pairs": self.pairs,
            "original": self.original.to_json(),
            "optimized": self.optimized.to_json(),
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Bench:
    """What was measured: one row per provider and batch size, and both models' bytes on disk (external data too)."""

    rows: tuple[BenchRow, ...]
    size_original: int
    size_optimized: int
    threads: int | None
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "size_original": self.size_original,
            "size_optimized": self.size_optimized,
            "threads": self.threads,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }


def bench(
    original: source.ModelLike,
    optimized: source.ModelLike,
    *,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    batches: Sequence[int] = (1,),
    shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 6.0,
    runs: int | None = None,
    warmup: int = 3,
    threads: int | None = None,
    seed: int = 0,
    tf32: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bench:
    """Time both models in turns, with ONNX Runtime's optimisations on.

    Args:
        original: path, bytes or ModelProto.
        optimized: the same.
        providers: as for `verify`.
        provider_options: options by provider name.
        batches: the sizes of the first axis, where the model leaves it free.
        shapes: whole input shapes by name, instead of `batches`.
        seconds: how long to measure each provider and batch size; at least 5 pairs are run.
        runs: exactly so many pairs, instead of `seconds`.
        warmup: runs of each model that are not counted.
        threads: of ONNX Runtime; its own choice by default.
        seed: of the inputs and of the resampling.
        tf32: let NVIDIA's TF32 round float32 products to 10 bits.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: no batches, or shapes that do not fit.
        ModelError: a model that cannot be read, or runs on no size that was tried.
        ProviderError: a provider that is not available here.
        CannotRun: a model that a provider cannot run.
    """
    if not batches or min(batches) < 1 or (runs is not None and runs < 1):
        raise UsageError("bench needs batch sizes and a number of runs of at least 1")
    start = time.perf_counter()
    say = progress or (lambda text: None)
    before, after = source.read(original), source.read(optimized)
    specs = samples.input_specs(before.proto)
    rows, notes = [], []
    for provider in resolve_providers(providers):
        options = (provider_options or {}).get(provider)
        say(f"{provider}: making two sessions")
        pair = [
            Session(runnable(model), provider=provider, options=options, tf32=tf32, threads=threads)
            for model in (before, after)
        ]
        done: list[Mapping[str, tuple[int, ...]]] = []
        for batch in batches:
            feeds = _feeds(pair[0], specs, shapes, batch, seed)
            sizes = {name: array.shape for name, array in feeds.items()}
            if sizes in done:
                notes.append(f"batch {batch}: the input shapes are fixed, so it was not measured again")
                continue
            done.append(sizes)
            say(f"{provider}, batch {batch}: measuring")
            times = measure(pair[0], pair[1], feeds, seconds=seconds, runs=runs, warmup=warmup)
            actual = next((shape[0] for shape in sizes.values() if shape), batch)
            rows.append(_row(provider, actual, sizes, times, pair, seed))
    return Bench(tuple(rows), _size(before), _size(after), threads, tuple(notes), time.perf_counter() - start)


def _feeds(
    session: Session,
    specs: Sequence[samples.InputSpec],
    shapes: Mapping[str, Sequence[int]] | None,
    batch: int,
    seed: int,
) -> dict[str, Array]:
    """Inputs of the first size that the original runs on."""
    trouble = ""
    for candidate in samples.candidates(specs, shapes, batches=(batch,), planes=_PLANES):
        for integers in samples.integer_ranges(specs):
            feeds = samples.make(specs, candidate, 0, seed, integers)
            try:
                session.run(feeds)
            except CannotRun as error:
                trouble = str(error)
            else:
                return feeds
    raise ModelError(
        f"the original runs at batch {batch} on none of the input sizes tried ({trouble}); say one with "
        f"--shape {specs[0].name if specs else 'NAME'}=1x3x224x224"
    )


def measure(
    original: Session,
    optimized: Session,
    feeds: Mapping[str, Array],
    *,
    seconds: float,
    runs: int | None = None,
    warmup: int = 3,
) -> Array:
    """Seconds of each pair of runs, shape (pairs, 2). The model that goes first changes from pair to pair."""
    optimized.run(feeds)
    for _ in range(warmup):
        original.timed(feeds)
        optimized.timed(feeds)
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < (runs or _MAX_PAIRS):
        if len(pairs) % 2:
            second = optimized.timed(feeds)
            pairs.append((original.timed(feeds), second))
        else:
            first = original.timed(feeds)
            pairs.append((first, optimized.timed(feeds)))
        if runs is None and len(pairs) >= _MIN_PAIRS and time.perf_counter() - start > seconds:
            break
    return np.array(pairs)


def ratio_interval(times: Array, seed: int = 0) -> tuple[float, float, float]:
    """Original over optimized: the ratio of the medians, and its 95% bootstrap interval."""
    ratio = float(np.median(times[:, 0]) / np.median(times[:, 1]))
    picks = np.random.default_rng(seed).integers(0, len(times), (_RESAMPLES, len(times)))
    medians = np.median(times[picks], axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [tail, 100 - tail])
    return ratio, float(low), float(high)


def verdict(ratio: float, low: float, high: float) -> str:
    """The measurement in words."""
    if low <= 1 <= high or abs(ratio - 1) < MARGIN:
        return "no difference"
    return f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower"


def _row(
    provider: str,
    batch: int,
    shapes: Mapping[str, tuple[int, ...]],
    times: Array,
    pair: Sequence[Session],
    seed: int,
) -> BenchRow:
    ratio, low, high = ratio_interval(times, seed)
    timings = [_timing(times[:, index], session) for index, session in enumerate(pair)]
    return BenchRow(
        provider, batch, shapes, len(times), timings[0], timings[1], ratio, low, high, verdict(ratio, low, high)
    )


def _timing(times: Array, session: Session) -> Timing:
    low, median, high = (float(value) * 1e3 for value in np.percentile(times, [25, 50, 75]))
    return Timing(median, low, high, session.seconds_to_create * 1e3)


def _size(read: source.Source) -> int:
    """Bytes on disk: the model, and the parts of its sidecars that it names."""
    external = [tensor for tensor in read.proto.graph.initializer if source.is_external(tensor)]
    own = Path(read.path).stat().st_size if read.path is not None else read.proto.ByteSize()
    try:
        return own + sum(source.external_range(tensor, read.base_dir).length for tensor in external)
    except BnfoldError:
        return own
