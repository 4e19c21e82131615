"""The runs that a verification judges: which samples, the float64 reference, and the original's own noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold import samples, source
from bnfold.errors import BnfoldError, ModelError
from bnfold.kernels.base import Array, is_float_type
from bnfold.kernels.rounding import WEIGHTED
from bnfold.oracle import MAX_BYTES, MAX_MACS, Oracle
from bnfold.placement import Placement
from bnfold.runtime import CannotRun, Session
from bnfold.spread import Sketch

Feeds = dict[str, Array]
Outputs = dict[str, Array]
Progress = Callable[[str], None]

# Monte Carlo roundings of a sample: where the float64 evaluation is quick, of every result too; where it is slow, only
# the first sample is rounded. The number makes up for outputs of few elements, whose noise one rounding may miss.
_QUICK_SECONDS, _SLOW_SECONDS = 0.3, 1.5
_ROUNDINGS, _FEW_ELEMENTS = 4, 32

NUDGES = 6
"""Runs of the original on inputs moved by up to an ULP: each draws the rounding errors anew. One draw alone may by luck
be several times smaller than the next, where a few outputs are far more sensitive than the others."""

OWN = 4
"""How many of the user's samples are judged at most; labels use all of them."""

# A size is preferred whose whole verification fits into the oracle's limit for one run.
_AFFORDABLE = MAX_MACS / 8


@dataclass
class Reference:
    """What the original should compute, sample by sample, and how far its own rounding moves it.

    `status` is "float64", or "weaker: ..." where a runtime's own result has to stand in for the truth. `noisy` has
    runs with everything rounded, `stored` runs in float64 with rounded weights; samples may have none. `inside` and
    `inside_stored` have inner tensors of the first sample, as they should be and with rounded weights.
    """

    status: str
    truth: list[Outputs] = field(default_factory=list)
    noisy: list[list[Outputs]] = field(default_factory=list)
    stored: list[list[Outputs]] = field(default_factory=list)
    inside: Sketch = field(default_factory=Sketch)
    inside_stored: Sketch = field(default_factory=Sketch)


def runnable(read: source.Source) -> bytes | Path:
    """The model as ONNX Runtime takes it: its path, or its bytes."""
    if read.path is not None:
        return read.path
    if read.raw is not None:
        return read.raw
    try:
        return bytes(read.proto.SerializeToString())
    except ValueError as error:
        raise ModelError("the model is larger than 2 GB: give the path of its file") from error


def choose_samples(
    session: Session | None,
    oracle: Oracle,
    specs: Sequence[samples.InputSpec],
    *,
    shapes: Mapping[str, Sequence[int]] | None,
    own: Sequence[Feeds],
    count: int,
    seed: int,
) -> list[Feeds]:
    """`count` samples of the first sizes that the original runs on, behind the user's own ones where there are some.

    Raises `ModelError` where no size that was tried runs: the user must say one.
    """
    if own:
        shapes = {**(shapes or {}), **{name: array.shape for name, array in own[0].items()}}
    first = list(own)
    ranges = samples.integer_ranges(specs)
    fallback: list[Feeds] | None = None
    trouble = ""
    for candidate in samples.candidates(specs, shapes):
        for integers in ranges:
            made = [samples.make(specs, candidate, sample, seed, integers) for sample in range(count)]
            try:
                # Indices may be in range in one sample and not in the next.
                for sample in made if len(ranges) > 1 else made[:1] or first[:1]:
                    _try(session, oracle, sample)
            except BnfoldError as error:
                trouble = str(error)
                continue
            cost = oracle.cost(candidate)
            if cost.macs <= _AFFORDABLE and cost.live_bytes <= MAX_BYTES:
                return first + made
            fallback = fallback or first + made
            break
    if fallback is not None:
        return fallback
    free = [spec for spec in specs if spec.is_free]
    name = free[0].name if free else (specs[0].name if specs else "NAME")
    raise ModelError(
        f"the original runs on none of the input sizes tried ({trouble}); say one with --shape {name}=1x3x224x224, "
        "or give values with --inputs FILE.npz"
    )


def affordable(oracle: Oracle, own: Iterable[Feeds]) -> list[Feeds]:
    """The first of the user's samples, as many as are quickly evaluated in float64, and at least one."""
    found: list[Feeds] = []
    macs = 0.0
    for sample in own:
        macs += oracle.cost({name: array.shape for name, array in sample.items()}).macs
        if found and macs > _AFFORDABLE:
            break
        found.append(sample)
        if len(found) == OWN:
            break
    return found


def any_sample(original: source.Source, oracle: Oracle, seed: int) -> Feeds:
    """A sample that the float64 evaluator runs on. Raises as `choose_samples` and `samples.input_specs` do."""
    specs = samples.input_specs(original.proto)
    return choose_samples(None, oracle, specs, shapes=None, own=[], count=1, seed=seed)[0]


def _try(session: Session | None, oracle: Oracle, feeds: Feeds) -> None:
    if session is not None:
        session.run(feeds)
    else:
        oracle.run(feeds)


def float64_reference(oracle: Oracle, feeds: Sequence[Feeds], seed: int, say: Progress) -> Reference:
    """The truth, and Monte Carlo roundings of it. Raises what the oracle raises."""
    reference = Reference("float64")
    slow = False
    for index, sample in enumerate(feeds):
        say(f"float64 reference, sample {index + 1} of {len(feeds)}")
        start = time.perf_counter()
        truth = oracle.run(sample, watch=None if index else reference.inside)
        seconds = time.perf_counter() - start
        few = min((value.size for value in truth.values()), default=0) < _FEW_ELEMENTS
        turns = range(0) if slow else range(seed + 1, seed + 1 + (_ROUNDINGS if few or seconds < _QUICK_SECONDS else 1))
        stored = [
            oracle.run(
                sample,
                rounding_seed=turn,
                weights_only=True,
                watch=reference.inside_stored if index == 0 and turn == seed + 1 else None,
            )
            for turn in turns
        ]
        noisy = [oracle.run(sample, rounding_seed=turn) for turn in turns] if seconds < _QUICK_SECONDS else stored
        reference.truth.append(truth)
        reference.stored.append(stored)
        reference.noisy.append(noisy)
        slow = slow or seconds > _SLOW_SECONDS
    return reference


def runtime_reference(
    original: source.Source,
    plain: Sequence[Outputs],
    tuned: Sequence[Outputs],
    feeds: Sequence[Feeds],
    seed: int,
    why: str,
) -> Reference:
    """A runtime's own results instead of the truth, and as noise: its optimisations, and weights moved by an ULP."""
    reference = Reference(f"weaker: {why}", list(plain), [[run] for run in tuned], [[] for _ in plain])
    moved = perturbed(original, seed)
    try:
        session = Session(runnable(original) if moved is None else moved, optimize=False)
        for index, sample in enumerate(feeds):
            reference.noisy[index].append(session.run(sample if moved is not None else _nudged(sample, seed)))
    except BnfoldError:
        # The noise is then what the optimisations make of it alone, and the check a stricter one.
        pass
    return reference


def _nudged(feeds: Feeds, seed: int) -> Feeds:
    """The inputs, each element moved by up to one ULP."""
    random = np.random.default_rng(seed)
    return {name: _moved(array, random) if is_float_type(array.dtype) else array for name, array in feeds.items()}


def _moved(array: Array, random: np.random.Generator) -> Array:
    import ml_dtypes

    unit = float(ml_dtypes.finfo(array.dtype).eps) / 2
    wide = array.astype(np.float64) * (1 + 2 * unit * random.uniform(-1, 1, array.shape))
    return np.asarray(wide).astype(array.dtype)  # without axes NumPy gives a number


def perturbed(original: source.Source, seed: int) -> bytes | None:
    """The model with every weight moved by up to one ULP, or None for one too large to copy."""
    weights = {name for node in original.proto.graph.node if node.op_type in WEIGHTED for name in node.input}
    if original.proto.ByteSize() > 2**29 or any(map(source.is_external, original.proto.graph.initializer)):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(original.proto)
    random = np.random.default_rng(seed)
    tensors = [tensor for tensor in copy.graph.initializer if tensor.name in weights]
    tensors += [
        attribute.t
        for node in copy.graph.node
        if node.op_type == "Constant" and node.output[0] in weights
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    for tensor in tensors:
        array = source.array_of(tensor, None)
        if is_float_type(array.dtype) and array.size > 1:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(_moved(np.asarray(array), random), name))
    return bytes(copy.SerializeToString())


@dataclass
class Runs:
    """What one provider computed: by level ("off", "on"), each model's outputs for every sample.

    `placements` has, by model and level ("original off"), where each node ran; `settings` what the sessions were told.
    `nudged` has, for every sample, the original's outputs for inputs that differ by rounding alone (optimisations off).
    """

    original: dict[str, list[Outputs]] = field(default_factory=dict)
    nudged: list[list[Outputs]] = field(default_factory=list)
    optimized: dict[str, list[Outputs]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    placements: dict[str, Placement] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


def run_both(
    original: bytes | Path,
    optimized: bytes | Path,
    feeds: Sequence[Feeds],
    provider: str,
    *,
    tf32: bool,
    options: Mapping[str, str] | None,
    say: Progress,
) -> Runs:
    """Both models on one provider, with its optimisations off and on.

    Raises:
        CannotRun: the original does not run there.
        ProviderError: the provider is not really there.
    """
    runs = Runs()
    for level in ("off", "on"):
        say(f"{provider}, optimisations {level}")
        settings: dict[str, Any] = {
            "provider": provider,
            "optimize": level == "on",
            "tf32": tf32,
            "options": options,
            "profile": True,
        }
        session = Session(original, **settings)
        runs.settings = session.settings
        runs.original[level] = [session.run(sample) for sample in feeds]
        if level == "off":
            runs.nudged = [[session.run(_nudged(sample, turn)) for turn in range(NUDGES)] for sample in feeds]
        runs.placements[f"original {level}"] = session.placement()
        try:
            session = Session(optimized, **settings)
            runs.optimized[level] = [session.run(sample) for sample in feeds]
        except CannotRun as error:
            runs.problems.append(f"{provider}, optimisations {level}: the optimized model fails: {error}")
            continue
        runs.placements[f"optimized {level}"] = session.placement()
    return runs
