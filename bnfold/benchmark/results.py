"""What a benchmark found, as typed results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.benchmark.interval import Compared
from bnfold.kernels.base import Array


@dataclass(frozen=True)
class Timing:
    """One model's latencies, milliseconds: `low` and `high` are the quartiles, `create` the making of a session.

    A tail percentile is None where too few runs reach it: p99 takes a hundred. `throughput` is items (of the first
    axis) a second, one run after the other.
    """

    median: float
    low: float
    high: float
    create: float
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    throughput: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "median_ms": self.median,
            "low_ms": self.low,
            "high_ms": self.high,
            "p90_ms": self.p90,
            "p95_ms": self.p95,
            "p99_ms": self.p99,
            "items_per_s": self.throughput,
            "create_ms": self.create,
        }


def timing(seconds: Array, batch: int, create_seconds: float) -> Timing:
    """Of one model's runs at one batch size: the seconds of each."""
    low, median, high = (float(value) * 1e3 for value in np.percentile(seconds, [25, 50, 75]))
    p90, p95, p99 = (_tail(seconds, percent) for percent in (90, 95, 99))
    return Timing(median, low, high, create_seconds * 1e3, p90, p95, p99, batch / float(np.mean(seconds)))


def _tail(seconds: Array, percent: int) -> float | None:
    return float(np.percentile(seconds, percent)) * 1e3 if len(seconds) * (100 - percent) >= 100 else None


@dataclass(frozen=True)
class Memory:
    """What loading and running takes at its peak, bytes: the median over processes of their own.

    `process` is beyond `base`, which Python and ONNX Runtime take before the model is there; `device` is on the GPU.
    """

    base: int
    process: Compared
    device: Compared | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "base": self.base,
            "process": self.process.to_json(),
            "device": self.device and self.device.to_json(),
        }


@dataclass(frozen=True)
class BenchRow:
    """Both models on one provider at one batch size. `ratio` above 1 means that the optimized model is faster.

    `low` and `high` bound the ratio with 95% confidence (None: too few runs); `pairs` is how often both ran, `blocks`
    into how many ratios that went; `shapes` what they ran on; `settings` what ONNX Runtime was told. `create` compares
    the making of sessions, in milliseconds; `memory` is None where it was not measured, and a note says why.
    """

    provider: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    pairs: int
    original: Timing
    optimized: Timing
    ratio: float
    low: float | None
    high: float | None
    verdict: str
    blocks: int = 0
    create: Compared | None = None
    memory: Memory | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "provider": self.provider,
            "batch": self.batch,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "pairs": self.pairs,
            "blocks": self.blocks,
            "original": self.original.to_json(),
            "optimized": self.optimized.to_json(),
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "verdict": self.verdict,
            "create": self.create and self.create.to_json(),
            "memory": self.memory and self.memory.to_json(),
            "settings": dict(self.settings),
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
