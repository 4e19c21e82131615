"""When may a measurement claim a difference? An interval that assumes nothing of how the noise is distributed.

Every block of a measurement gives one ratio, original over optimized. Where both models are equal, each ratio is above
the true one as likely as below; so the true one lies outside the k-th smallest and k-th largest of n only where fewer
than k fell on one side, with probability 2 * P(Binomial(n, 1/2) < k) (the confidence interval of a median by order
statistics: H. A. David, "Order Statistics", section 2.5). No normal distribution, no outlier to remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any

CONFIDENCE = 0.95

MARGIN = 0.02
"""A ratio this close to 1 is no difference: two sessions of one model may differ by as much as long as they live."""

ENOUGH = 6
"""Fewer ratios than this bound nothing with 95% confidence."""

TOO_FEW = "too few to tell"


@dataclass(frozen=True)
class Compared:
    """One quantity of both models, each the median of `pairs` measurements, and original over optimized.

    `low` and `high` bound the ratio; None where there were too few measurements.
    """

    original: float
    optimized: float
    pairs: int
    ratio: float
    low: float | None
    high: float | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "original": self.original,
            "optimized": self.optimized,
            "pairs": self.pairs,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "verdict": self.verdict,
        }


def order_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the median; None for fewer than six values."""
    count = len(values)
    miss, k = 0.0, 0
    while 2 * (miss + comb(count, k) / 2**count) <= 1 - CONFIDENCE:
        miss += comb(count, k) / 2**count
        k += 1
    ordered = sorted(values)
    return (ordered[k - 1], ordered[count - k]) if k else None


def verdict(ratio: float, low: float | None, high: float | None, words: tuple[str, str] = ("faster", "slower")) -> str:
    """The measurement in words: the first word for a ratio above 1, the second for one below."""
    if low is None or high is None:
        return TOO_FEW
    if low <= 1 <= high or abs(ratio - 1) < MARGIN:
        return "no difference"
    return f"{ratio:.2f}x {words[0]}" if ratio > 1 else f"{1 / ratio:.2f}x {words[1]}"


def compared(pairs: Sequence[tuple[float, float]], words: tuple[str, str] = ("faster", "slower")) -> Compared:
    """Of pairs (original, optimized) that were measured one after the other."""
    ratios = [one / two for one, two in pairs]
    low, high = order_interval(ratios) or (None, None)
    ratio = median(ratios)
    return Compared(
        median(one for one, _ in pairs),
        median(two for _, two in pairs),
        len(pairs),
        ratio,
        low,
        high,
        verdict(ratio, low, high, words),
    )
