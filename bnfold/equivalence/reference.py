"""What the original should compute, and its own noise: in float64 where that can be had, else a runtime's results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from bnfold import source
from bnfold.equivalence.check import deviation
from bnfold.equivalence.runs import Outputs, Runs, moved, nudged
from bnfold.equivalence.settings import Progress
from bnfold.equivalence.spread import Sketch
from bnfold.errors import BnfoldError
from bnfold.kernels.base import is_float_type
from bnfold.kernels.rounding import WEIGHTED
from bnfold.oracle import Oracle
from bnfold.runtime import Session
from bnfold.samples import Feeds

# Monte Carlo roundings of a sample: where the float64 evaluation is quick, of every result too; where it is slow, only
# the first sample is rounded. The number makes up for outputs of few elements, whose noise one rounding may miss.
_QUICK_SECONDS, _SLOW_SECONDS = 0.3, 1.5
_ROUNDINGS, _FEW_ELEMENTS = 4, 32

_MANY = 8
"""Roundings before anything is said to be beyond them: one network's were seen to differ from each other by ten."""

# Where a runtime is this many times further from float64 than rounding explains, and that far, its own approximations
# (or an oracle that is wrong) would make the rule toothless: the runtime's result is then the reference.
_UNEXPLAINED, _FAR = 100.0, 1e-3

_FLOAT64, _WEAKER = "float64", "weaker: "


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

    @property
    def is_float64(self) -> bool:
        """Whether it is the truth, and not what a runtime makes of it."""
        return self.status == _FLOAT64

    @property
    def weakness(self) -> str:
        """Why it is not the truth; '' where it is."""
        return self.status.removeprefix(_WEAKER) if not self.is_float64 else ""


def reference_of(
    original: source.Source,
    oracle: Oracle,
    feeds: Sequence[Feeds],
    runs: Runs,
    seed: int,
    say: Progress,
    rounds: Oracle | None = None,
) -> Reference:
    """Float64 where it can be had and the runtime agrees with it, else the runtime itself."""
    try:
        reference = float64_reference(oracle, feeds, seed, say, rounds)
        weakness = _unexplained(reference, runs)
    except BnfoldError as error:
        weakness = str(error)
    return _runtime_reference(original, runs, feeds, seed, weakness) if weakness else reference


def float64_reference(
    oracle: Oracle, feeds: Sequence[Feeds], seed: int, say: Progress, rounds: Oracle | None = None
) -> Reference:
    """The truth, and Monte Carlo roundings of it, or of a model that is as noisy as may be. Raises what they raise."""
    rounds = rounds or oracle
    reference = Reference(_FLOAT64)
    slow = False
    for index, sample in enumerate(feeds):
        say(f"float64 reference, sample {index + 1} of {len(feeds)}")
        start = time.perf_counter()
        truth = oracle.run(sample, watch=None if index else reference.inside)
        seconds = time.perf_counter() - start
        few = min((value.size for value in truth.values()), default=0) < _FEW_ELEMENTS
        turns = range(0) if slow else range(seed + 1, seed + 1 + (_ROUNDINGS if few or seconds < _QUICK_SECONDS else 1))
        stored = [
            rounds.run(
                sample,
                rounding_seed=turn,
                weights_only=True,
                watch=reference.inside_stored if index == 0 and turn == seed + 1 else None,
            )
            for turn in turns
        ]
        noisy = [rounds.run(sample, rounding_seed=turn) for turn in turns] if seconds < _QUICK_SECONDS else stored
        reference.truth.append(truth)
        reference.stored.append(stored)
        reference.noisy.append(noisy)
        slow = slow or seconds > _SLOW_SECONDS
    return reference


def drawn_again(reference: Reference, rounds: Oracle, feeds: Sequence[Feeds], seed: int, say: Progress) -> bool:
    """Round the samples that have been rounded some times more; whether there was anything left to do."""
    more = False
    for index, (sample, noisy, stored) in enumerate(zip(feeds, reference.noisy, reference.stored, strict=True)):
        for turn in range(len(stored), _MANY) if stored else ():
            say(f"float64 reference, sample {index + 1} of {len(feeds)}, rounded {turn + 1} times")
            stored.append(rounds.run(sample, rounding_seed=seed + 1 + turn, weights_only=True))
            if noisy is not stored:
                noisy.append(rounds.run(sample, rounding_seed=seed + 1 + turn))
            more = True
    return more


def _unexplained(reference: Reference, runs: Runs) -> str:
    """Where the runtime is further from float64 than rounding explains, in words; '' where it is not."""
    some: Sequence[Outputs] = ()  # where it is slow only the first sample was rounded; about as much in the others
    for truth, noisy, ran in zip(reference.truth, reference.noisy, runs.original["off"], strict=True):
        some, of = (noisy, truth) if noisy else (some, reference.truth[0])
        for name, expected in truth.items():
            if expected.shape != ran[name].shape:
                return f"the float64 evaluator disagrees with the runtime on the shape of '{name}'"
            if not is_float_type(ran[name].dtype) or not np.isfinite(expected).all():
                continue
            before = deviation(ran[name].astype(np.float64), expected, expected).norm
            rounded = max((deviation(run[name], of[name], of[name]).norm for run in some), default=0.0)
            if np.isfinite(before) and before > _FAR and before > _UNEXPLAINED * rounded:
                return f"the runtime's '{name}' is {before:.1e} from float64 and rounding explains {rounded:.1e}"
    return ""


def _runtime_reference(
    original: source.Source, runs: Runs, feeds: Sequence[Feeds], seed: int, weakness: str
) -> Reference:
    """A runtime's own results instead of the truth, and as noise: its optimisations, and weights moved by an ULP."""
    plain, tuned = runs.truth or runs.original["off"], runs.original["on"]
    reference = Reference(_WEAKER + weakness, list(plain), [[run] for run in tuned], [[] for _ in plain])
    if runs.truth:
        return reference  # the original that ran is noise itself
    perturbed = _perturbed(original, seed)
    try:
        session = Session(original.runnable if perturbed is None else perturbed, optimize=False)
        for index, sample in enumerate(feeds):
            reference.noisy[index].append(session.run(nudged(sample, seed) if perturbed is None else sample))
    except BnfoldError:
        # The noise is then what the optimisations make of it alone, and the check a stricter one.
        pass
    return reference


def _perturbed(original: source.Source, seed: int) -> bytes | None:
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
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved(np.asarray(array), random), name))
    return bytes(copy.SerializeToString())
