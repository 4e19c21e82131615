"""Both models on all of the user's inputs: how far outputs moved, and of a classifier how many answers are others.

With labels the accuracy of both, too.

Samples are counted one by one, and counts add up: memory does not grow with the samples, and it does not matter who
counted which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.cluster import stream
from bnfold.equivalence.check import finite
from bnfold.equivalence.settings import Settings
from bnfold.errors import UsageError
from bnfold.inputs import Own, rows_of
from bnfold.kernels.base import Array, is_float_type
from bnfold.runtime import Session
from bnfold.samples import input_specs
from bnfold.source import read

_TOP = 5


@dataclass(frozen=True)
class Share:
    """A share of the samples, 0 to 1, before and after."""

    before: float
    after: float

    def to_json(self) -> dict[str, float]:
        """A plain dict."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class Answers:
    """Both models on every sample, on `provider` with its optimisations on.

    `output` is the one with the scores; empty, and `classes` 0, where there is none, which labels do not allow. `top1`
    is None without labels, `top5` also for fewer than six classes. `changed` counts samples whose first answer is
    another, or without scores those with other integers; `difference` is the largest absolute difference of a score,
    or of any output, `largest` the largest absolute one of the original.
    """

    output: str
    provider: str
    samples: int
    classes: int
    top1: Share | None
    top5: Share | None
    changed: int
    difference: float
    largest: float

    @property
    def problem(self) -> str:
        """What speaks against the optimized model, if anything does."""
        if np.isfinite(self.difference):
            return ""
        what = f"output '{self.output}'" if self.output else "an output"
        return f"on all inputs: {what} has no number, or another shape, where the original's has one"

    @property
    def shares(self) -> tuple[tuple[str, Share], ...]:
        """The accuracies that there are, by name."""
        return tuple((name, share) for name, share in (("top-1", self.top1), ("top-5", self.top5)) if share)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "output": self.output,
            "provider": self.provider,
            "samples": self.samples,
            "classes": self.classes,
            "top1": self.top1 and self.top1.to_json(),
            "top5": self.top5 and self.top5.to_json(),
            "changed": self.changed,
            "difference": finite(self.difference),
            "largest": finite(self.largest),
        }


@dataclass(frozen=True)
class Tally:
    """What was counted on some of the samples; `hits` before and after, of the first answer and of the first five."""

    output: str
    classes: int
    samples: int
    hits: tuple[int, int, int, int]
    changed: int
    difference: float
    largest: float
    wrong: int | None = None
    """A label that is no class."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.output,
            self.classes,
            self.samples + other.samples,
            tuple(map(sum, zip(self.hits, other.hits, strict=True))),  # type: ignore[arg-type]
            self.changed + other.changed,
            float(np.maximum(self.difference, other.difference)),  # NaN stays NaN
            float(np.maximum(self.largest, other.largest)),
            self.wrong if self.wrong is not None else other.wrong,
        )


@dataclass(frozen=True)
class Both:
    """Two models, and samples for them: all that another process needs to count some of them."""

    original: bytes | Path
    optimized: bytes | Path
    settings: Settings
    provider: str

    def counter(self) -> Counter:
        """What counts, on its own sessions.

        Raises:
            UsageError: inputs or labels that cannot be read.
            CannotRun: a model that does not load.
        """
        proto = read(self.original).proto
        own, labels = self.settings.own(input_specs(proto), proto)
        assert own is not None
        return Counter(self, own, labels)


class Counter:
    """Both models, and the samples."""

    def __init__(self, work: Both, own: Own, labels: Array | None) -> None:
        told = work.settings.session(work.provider)
        self._one, self._two = (Session(model, **told) for model in (work.original, work.optimized))
        self._own, self._labels = own, labels

    def __call__(self, index: int) -> Tally:
        """Run both models on one sample.

        Raises:
            UsageError: there are labels, and no output has a row of scores for each image.
            CannotRun: a model does not run.
        """
        sample, start = self._own.make(index), self._own.start(index)
        one, two = self._one.run(sample), self._two.run(sample)
        rows = rows_of(sample) or 1
        own = min(rows, self._own.rows - start)  # the last sample may be filled up
        output = _scores(one, rows)
        if output is None and self._labels is not None:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in one.items())
            raise UsageError(f"--labels: no output has one row of class scores for each of {rows} samples ({shapes})")
        if output is None or one[output].shape != two[output].shape:
            return _unscored(output or "", one, two, own)
        before, after = (_flat(scores[output], rows)[:own] for scores in (one, two))
        hits, wrong = (0, 0, 0, 0), None
        if self._labels is not None:
            labels = self._labels[start : start + own]
            beyond = labels[(labels < 0) | (labels >= before.shape[1])]
            if beyond.size:
                wrong = int(beyond[0])
            else:
                hits = tuple(_hits(each, labels, top) for top in (1, _TOP) for each in (before, after))  # type: ignore[assignment]
        changed = int(np.count_nonzero(before.argmax(1) != after.argmax(1)))
        return Tally(output, before.shape[1], own, hits, changed, *_apart(before, after), wrong)


def answers(work: Both, own: Own, labels: Array | None) -> Answers:
    """Run both models on every sample: here, or on the Ray cluster that the settings name.

    Raises:
        UsageError: labels for which no output has a row of scores for each image, or one that is no class.
        CannotRun: a model does not run.
        ClusterError: no cluster answers.
    """
    address = work.settings.ray
    counted: Iterable[Tally] = (
        map(Counter(work, own, labels), range(own.count))
        if address is None
        else stream(work.counter, own.count, address)
    )
    whole = reduce(Tally.__add__, counted)
    if whole.wrong is not None:
        raise UsageError(
            f"--labels has the class {whole.wrong}, and output '{whole.output}' has {whole.classes} classes, "
            f"0 to {whole.classes - 1}"
        )
    shares: list[Share | None] = [None, None]
    if labels is not None:
        shares = [Share(*(whole.hits[at + side] / whole.samples for side in (0, 1))) for at in (0, 2)]
    return Answers(
        whole.output,
        work.provider,
        whole.samples,
        whole.classes,
        shares[0],
        shares[1] if whole.classes > _TOP else None,
        whole.changed,
        whole.difference,
        whole.largest,
    )


def _scores(outputs: Mapping[str, Array], rows: int) -> str | None:
    """The first output that has at least two numbers for each row, and nothing else; None where there is none."""
    for name, value in outputs.items():
        if value.ndim < 2 or value.shape[0] != rows or not is_float_type(value.dtype):
            continue
        if 1 < max(value.shape[1:]) == value.size // rows:
            return name
    return None


def _unscored(output: str, one: Mapping[str, Array], two: Mapping[str, Array], rows: int) -> Tally:
    """Of a model without scores: how far apart its floats are, and in how many of its rows other outputs differ."""
    differs = np.zeros(rows, bool)
    difference = largest = 0.0
    for before, after in ((one[name], two[name]) for name in one):
        if before.shape != after.shape:
            difference = np.inf
        elif is_float_type(before.dtype):
            apart, size = _apart(before.astype(np.float64), after.astype(np.float64))
            difference, largest = float(np.maximum(difference, apart)), float(np.maximum(largest, size))
        elif before.ndim and len(before) >= rows:
            differs |= (before != after).reshape(len(before), -1)[:rows].any(1)
        else:
            differs |= bool(np.any(before != after))
    return Tally(output, 0, rows, (0, 0, 0, 0), int(differs.sum()), difference, largest)


def _apart(before: Array, after: Array) -> tuple[float, float]:
    """The largest absolute difference, and the largest absolute value before. NaN is NaN, and infinite is infinite."""
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(before - after))
    return float(np.max(apart, initial=0.0)), float(np.max(np.abs(before), initial=0.0))


def _flat(value: Array, rows: int) -> Array:
    return value.reshape(rows, -1).astype(np.float64)


def _hits(scores: Array, labels: Array, top: int) -> int:
    """Where fewer than `top` classes score higher than the right one; of equals the first comes first."""
    right = np.take_along_axis(scores, labels[:, None], 1)
    ahead = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < labels[:, None]))
    return int(np.count_nonzero(np.count_nonzero(ahead, axis=1) < top))
