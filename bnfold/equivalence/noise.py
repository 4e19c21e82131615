"""The rule that decides whether a difference is rounding noise: error(after) <= K * noise + a few ULP.

The reference is the original model evaluated in float64. The noise is the model's own: how far the *original* is from
that reference in its own precision, on this runtime, also for inputs moved by up to an ULP, and how far one Monte Carlo
rounding of every constant and every tensor moves it (D. S. Parker, "Monte Carlo Arithmetic", 1997). One run alone is
one draw of the rounding errors, and may by luck be much smaller than the next; the last covers models so small that the
original happens to be exact. Nothing here is a tolerance that somebody picked for a model.

Two statistics are asked, and both must pass: the largest element error, relative to the largest element of the
reference, and the norm of the error, relative to the norm of the reference. Where an output has channels with enough
elements each, they are asked of every channel too, so that a large channel does not hide a wrong small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.equivalence.check import Deviation, OutputCheck, deviation
from bnfold.equivalence.spread import histogram
from bnfold.kernels.base import Array, is_float_type, unit_roundoff

K = 8.0
"""How much larger than the noise an error may be. Correct folds measured 0.5 to 4 times (design.md, section 6)."""

FLOOR_ULPS = 4.0
"""Errors below this many ULP of the output's own magnitude are the last operations' rounding, whatever the noise."""

CHANNEL_ELEMENTS = 64
"""Channels are judged one by one where each has this many elements: fewer make the statistic itself noisy."""


@dataclass(frozen=True)
class Evidence:
    """What is known about one output of one sample.

    `reference` is the truth; `before` one run of the original and `after` the run that is judged. `noisy` are further
    runs of the original that differ from it by rounding alone. `floor` is the original with optimisations switched.
    `unit` is the unit roundoff of the type that the model stores the output in, where the arrays do not have that type.
    """

    output: str
    sample: int
    reference: Array
    before: Array
    after: Array
    noisy: Sequence[Array] = ()
    floor: Array | None = None
    unit: float | None = None


def judge(evidence: Evidence) -> OutputCheck:
    """Apply the rule to one output."""
    before, after = evidence.before, evidence.after
    if after.dtype != before.dtype:
        return _failed(evidence, f"its type is {after.dtype}, the original's {before.dtype}")
    if not is_float_type(before.dtype):
        return _judge_exact(evidence)
    if after.shape != before.shape:
        return _failed(evidence, f"its shape is {list(after.shape)}, the original's {list(before.shape)}")
    return _judge_float(evidence)


def _failed(evidence: Evidence, problem: str) -> OutputCheck:
    after = evidence.after
    return OutputCheck(
        evidence.output, str(after.dtype), after.shape, evidence.sample, False, problem, k_needed=float("inf")
    )


def _judge_exact(evidence: Evidence) -> OutputCheck:
    """Integers, booleans and strings must be equal, except where rounding alone moves the original too."""
    others = [evidence.reference, evidence.before, *evidence.noisy]
    if evidence.floor is not None:
        others.append(evidence.floor)
    shaky_shape = any(other.shape != evidence.before.shape for other in others)
    if evidence.after.shape != evidence.before.shape:
        if not shaky_shape:
            return _failed(
                evidence, f"its shape is {list(evidence.after.shape)}, the original's {list(evidence.before.shape)}"
            )
        return _exact_check(evidence, True, 0, "the original's own shape changes with rounding: not compared")
    same_shape = [other for other in others if other.shape == evidence.after.shape]
    differs = evidence.after != evidence.before
    tied = np.zeros(evidence.after.shape, bool)
    for other in same_shape:
        tied |= other != evidence.before
    # A near tie can also fall elsewhere than in the runs seen: allow as many again, K times, as rounding moves.
    unexplained = int(np.count_nonzero(differs & ~tied))
    allowed = int(K * np.count_nonzero(tied))
    count = int(np.count_nonzero(differs))
    if unexplained > allowed:
        return OutputCheck(
            evidence.output,
            str(evidence.after.dtype),
            evidence.after.shape,
            evidence.sample,
            False,
            f"{count} of {evidence.after.size} elements differ, and rounding moves {np.count_nonzero(tied)} of them",
            k_needed=float("inf"),
            mismatches=count,
        )
    note = "differs only where rounding moves the original too" if count else ""
    return _exact_check(evidence, True, count, note)


def _exact_check(evidence: Evidence, passed: bool, mismatches: int, note: str) -> OutputCheck:
    after = evidence.after
    return OutputCheck(
        evidence.output, str(after.dtype), after.shape, evidence.sample, passed, note=note, mismatches=mismatches
    )


def _judge_float(evidence: Evidence) -> OutputCheck:
    dtype = str(evidence.after.dtype)
    reference = np.asarray(evidence.reference, np.float64)
    before, after = (np.asarray(array).astype(np.float64) for array in (evidence.before, evidence.after))
    if reference.shape != after.shape:
        return _failed(evidence, f"its shape is {list(after.shape)}, the float64 reference's {list(reference.shape)}")
    wrong = _non_finite_problem(reference, before, after)
    if wrong:
        return _failed(evidence, wrong)
    noisy = [np.asarray(array).astype(np.float64) for array in evidence.noisy]
    floor = None if evidence.floor is None else np.asarray(evidence.floor).astype(np.float64)
    usable = np.isfinite(reference) & np.isfinite(before) & np.isfinite(after)
    note = "" if usable.all() else f"{int((~usable).sum())} elements are NaN or infinite and were skipped"
    runs = [_masked(array, usable) for array in (reference, before, after, *noisy)]
    unit = evidence.unit or unit_roundoff(evidence.after.dtype)
    whole = _measure(runs[0], runs[1], runs[2], runs[3:], unit)
    k_needed, passed = whole.k_needed, whole.passed
    problem = "" if passed else _explain(whole, "")
    for channel, part in _channels(runs):
        measured = _measure(part[0], part[1], part[2], part[3:], unit)
        k_needed = max(k_needed, measured.k_needed)
        if passed and not measured.passed:
            passed, problem = False, _explain(measured, f" in channel {channel}")
    ratio = _ratio(whole.after, whole.before)
    floor_deviation = None if floor is None else deviation(_masked(floor, usable), runs[1], runs[0])
    return OutputCheck(
        evidence.output,
        dtype,
        after.shape,
        evidence.sample,
        passed,
        problem,
        note,
        whole.before,
        whole.after,
        whole.noise,
        floor_deviation,
        ratio,
        k_needed,
        histogram=histogram(runs[0], runs[1], runs[2]),
    )


@dataclass(frozen=True)
class _Measured:
    before: Deviation
    after: Deviation
    noise: Deviation
    k_needed: float

    @property
    def passed(self) -> bool:
        return self.k_needed <= K


def _measure(reference: Array, before: Array, after: Array, noisy: Sequence[Array], unit: float) -> _Measured:
    measured = deviation(before, reference, reference)
    seen = [measured] + [deviation(run, reference, reference) for run in noisy]
    noise = Deviation(max(each.max for each in seen), max(each.norm for each in seen))
    result = deviation(after, reference, reference)
    # An ULP is twice the unit roundoff.
    allowance = FLOOR_ULPS * 2 * unit
    k_needed = max(_needed(result.max, noise.max, allowance), _needed(result.norm, noise.norm, allowance))
    return _Measured(measured, result, noise, k_needed)


def _needed(error: float, noise: float, allowance: float) -> float:
    if error <= allowance:
        return 0.0
    return (error - allowance) / noise if noise > 0 else float("inf")


def _explain(measured: _Measured, where: str) -> str:
    after, noise = measured.after, measured.noise
    return (
        f"its error{where} is {after.max:.2e} (norm {after.norm:.2e}), the model's own noise {noise.max:.2e} "
        f"(norm {noise.norm:.2e}): {measured.k_needed:.3g} times it, {K:g} are allowed"
    )


def _ratio(after: Deviation, before: Deviation) -> float | None:
    """The larger of the two ratios that exist."""
    pairs = ((after.max, before.max), (after.norm, before.norm))
    ratios = [top / bottom for top, bottom in pairs if bottom > 0]
    return max(ratios) if ratios else None


def _non_finite_problem(reference: Array, before: Array, after: Array) -> str:
    """What is NaN or infinite in one model only; equal positions and signs are equal.

    Finite where the original overflowed only in its own precision is no fault.
    """
    broken = ~np.isfinite(after) & np.isfinite(before)
    if broken.any():
        return f"{int(broken.sum())} of {after.size} elements are NaN or infinite, and finite in the original"
    healed = np.isfinite(after) & ~np.isfinite(before) & ~np.isfinite(reference)
    if healed.any():
        return f"{int(healed.sum())} of {after.size} elements are finite, and NaN or infinite in the original"
    infinite = np.isinf(before) & np.isinf(after) & (np.sign(before) != np.sign(after))
    mixed = (np.isnan(before) & np.isinf(after)) | (np.isinf(before) & np.isnan(after))
    if infinite.any() or mixed.any():
        return f"{int((infinite | mixed).sum())} of {after.size} elements are another kind of NaN or infinity"
    return ""


def _masked(array: Array, usable: Array) -> Array:
    return array if usable.all() else np.where(usable, array, 0.0)


def _channels(runs: Sequence[Array]) -> list[tuple[int, list[Array]]]:
    """Each channel (axis 1) of every run, where there are enough elements in one."""
    shape = runs[0].shape
    if len(shape) < 3 or shape[1] < 2 or runs[0].size // max(1, shape[1]) < CHANNEL_ELEMENTS:
        return []
    return [(channel, [run[:, channel] for run in runs]) for channel in range(shape[1])]
