"""Is the optimized model faster? Both run in turns, and the answer is a ratio with its confidence interval.

`turns` measures, `interval` says what may be claimed, `memory` asks child processes. Where the interval holds 1, or the
ratio is closer to 1 than two sessions of one model are, the answer is "no difference".
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bnfold import samples, source
from bnfold.benchmark.interval import Compared, compared, order_interval, verdict
from bnfold.benchmark.memory import CannotMeasure, peak_memory
from bnfold.benchmark.results import Bench, BenchRow, Memory, Timing, timing
from bnfold.benchmark.turns import Raced, race
from bnfold.errors import BnfoldError, ModelError, UsageError
from bnfold.kernels.base import Array
from bnfold.malformed import deadly
from bnfold.runtime import CannotRun, Session, resolve_providers

__all__ = ["Bench", "BenchRow", "Compared", "Memory", "Timing", "bench", "order_interval", "verdict"]

# A deployment's usual picture first.
_PLANES = ((224, 224), (299, 299), (320, 320), (48, 320), (640, 640), (512, 512), (96, 128), (32, 32))

_CREATED = ("quicker", "slower")

_UNOPTIMISED = {"graph_optimization_level": "ORT_DISABLE_ALL"}


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
    optimisations: bool = True,
    memory: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Bench:
    """Time both models in turns, on tensors that lie where the provider computes.

    Args:
        original: path, bytes or ModelProto.
        optimized: the same.
        providers: as for `verify`.
        provider_options: options by provider name.
        batches: the sizes of the first axis, where the model leaves it free.
        shapes: whole input shapes by name, instead of `batches`.
        seconds: how long to measure each provider and batch size, sessions and memory apart.
        runs: exactly so many pairs, instead of `seconds`; fewer than six claim nothing.
        warmup: runs of each session that are not counted.
        threads: of ONNX Runtime; its own choice by default.
        seed: of the inputs.
        tf32: let NVIDIA's TF32 round float32 products to 10 bits.
        optimisations: let ONNX Runtime optimise both models when it loads them, as a deployment does.
        memory: measure the peak memory too, in processes of its own.
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
    before, after = source.read_sparing(original), source.read_sparing(optimized)
    for model in (before, after):
        if trouble := deadly(model.proto):
            raise ModelError(f"{model.label}: {trouble}")
    specs = samples.input_specs(before.proto)
    rows, notes = [], []
    for provider in resolve_providers(providers, provider_options):
        told = functools.partial(_told, say, provider)
        asked: dict[str, Any] = {
            "provider": provider,
            "optimize": optimisations,
            "options": dict((provider_options or {}).get(provider, {})),
            "tf32": tf32,
            "threads": threads,
            "deterministic": False,
        }
        make = [functools.partial(Session, model.runnable, **asked) for model in (before, after)]
        told("making two sessions")
        pair = [make[0]()]
        settings = pair[0].settings | ({} if optimisations else _UNOPTIMISED)
        cases, fixed = _cases(pair[0], specs, shapes, batches, seed)
        notes += fixed
        raced = race(make, pair, [feeds for _, feeds in cases], seconds=seconds, runs=runs, warmup=warmup, say=told)
        for index, (batch, feeds) in enumerate(cases):
            taken = None
            if memory:
                told(f"memory, batch {batch}")
                models = [before.runnable, after.runnable]
                taken, trouble = _memory(models, feeds, seconds, asked)
                notes += [f"{provider}, batch {batch}: {trouble}"] if trouble else []
            rows.append(_row(provider, batch, feeds, raced, index, taken, settings))
    return Bench(tuple(rows), _size(before), _size(after), threads, tuple(notes), time.perf_counter() - start)


def _told(say: Callable[[str], None], provider: str, text: str) -> None:
    say(f"{provider}: {text}")


def _cases(
    session: Session,
    specs: Sequence[samples.InputSpec],
    shapes: Mapping[str, Sequence[int]] | None,
    batches: Sequence[int],
    seed: int,
) -> tuple[list[tuple[int, dict[str, Array]]], list[str]]:
    """Batch sizes with their inputs, sizes that come again left out with a note."""
    cases: list[tuple[int, dict[str, Array]]] = []
    notes = []
    for batch in batches:
        feeds = _feeds(session, specs, shapes, batch, seed)
        sizes = [array.shape for array in feeds.values()]
        if any(sizes == [array.shape for array in known.values()] for _, known in cases):
            notes.append(f"batch {batch}: the input shapes are fixed, so it was not measured again")
            continue
        cases.append((next((shape[0] for shape in sizes if shape), batch), feeds))
    return cases, notes


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


def _memory(
    models: Sequence[bytes | Path], feeds: Mapping[str, Array], seconds: float, session: Mapping[str, Any]
) -> tuple[Memory | None, str]:
    """What was measured, and a note on what was not."""
    try:
        taken, trouble = peak_memory(models, feeds, seconds=seconds, session=session)
    except CannotMeasure as error:
        return None, f"the peak memory was not measured: {error}"
    return taken, f"the memory on the GPU was not measured: {trouble}" if trouble else ""


def _row(
    provider: str,
    batch: int,
    feeds: Mapping[str, Array],
    raced: Raced,
    case: int,
    memory: Memory | None,
    settings: Mapping[str, str],
) -> BenchRow:
    blocks = raced.blocks[case]
    latency = compared([(float(one), float(two)) for one, two in (np.median(block, axis=0) for block in blocks)])
    create = compared([(one * 1e3, two * 1e3) for one, two in raced.created], _CREATED)
    runs = np.concatenate(blocks)
    return BenchRow(
        provider,
        batch,
        {name: array.shape for name, array in feeds.items()},
        len(runs),
        timing(runs[:, 0], batch, median(one for one, _ in raced.created)),
        timing(runs[:, 1], batch, median(two for _, two in raced.created)),
        latency.ratio,
        latency.low,
        latency.high,
        latency.verdict,
        len(blocks),
        create,
        memory,
        settings,
    )


def _size(read: source.Source) -> int:
    """Bytes on disk: the model, and the parts of its sidecars that it names."""
    external = [tensor for tensor in read.proto.graph.initializer if source.is_beside(tensor)]
    own = Path(read.path).stat().st_size if read.path is not None else read.proto.ByteSize()
    try:
        return own + sum(source.external_range(tensor, read.base_dir).length for tensor in external)
    except BnfoldError:
        return own
