"""One output of one sample: how far it is from the reference, and whether it passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.equivalence.spread import Histogram
from bnfold.kernels.base import Array


@dataclass(frozen=True)
class Deviation:
    """How far an output is from the reference: the largest element and the norm, each relative to the reference's."""

    max: float
    norm: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"max": finite(self.max), "norm": finite(self.norm)}


@dataclass(frozen=True)
class OutputCheck:
    """One output of one sample under the rule: what was measured, and whether it passed.

    `before` and `after` are the original's and the optimized model's deviation from the reference, `noise` what the
    rule allows K times of, `floor` the original with optimisations on against off. `k_needed` is the smallest K that
    would pass, `ratio` is after over before. Integer outputs have counts of differing elements in `mismatches`.
    `histogram` has the sizes of the element errors behind `before` and `after`.
    """

    output: str
    dtype: str
    shape: tuple[int, ...]
    sample: int
    passed: bool
    problem: str = ""
    note: str = ""
    before: Deviation | None = None
    after: Deviation | None = None
    noise: Deviation | None = None
    floor: Deviation | None = None
    ratio: float | None = None
    k_needed: float = 0.0
    mismatches: int = 0
    histogram: Histogram | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict; a number that is not finite becomes None."""
        return {
            "output": self.output,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "sample": self.sample,
            "passed": self.passed,
            "problem": self.problem,
            "note": self.note,
            "before": self.before and self.before.to_json(),
            "after": self.after and self.after.to_json(),
            "noise": self.noise and self.noise.to_json(),
            "floor": self.floor and self.floor.to_json(),
            "ratio": finite(self.ratio),
            "k_needed": finite(self.k_needed),
            "mismatches": self.mismatches,
            "histogram": self.histogram and self.histogram.to_json(),
        }


def deviation(run: Array, truth: Array, reference: Array) -> Deviation:
    """How far `run` is from `truth`, relative to the size of `reference`; 0 for empty tensors."""
    if run.size == 0:
        return Deviation(0.0, 0.0)
    difference = np.abs(run - truth)
    largest, norm = float(np.max(np.abs(reference))), float(np.linalg.norm(reference))
    worst, total = float(np.max(difference)), float(np.linalg.norm(difference))
    return Deviation(_over(worst, largest), _over(total, norm))


def _over(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size > 0 else float("inf")


def finite(value: float | None) -> float | None:
    """`value`, or None where JSON has no number for it."""
    return None if value is None or not np.isfinite(value) else float(value)
