"""The geometry of the page's charts, in the units of each drawing; the template only draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bnfold.benchmark import BenchRow, Timing
from bnfold.benchmark.interval import MARGIN
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.noise import K
from bnfold.equivalence.spread import PER_DECADE, SMALLEST, Layer
from bnfold.kernels.base import unit_roundoff

LEFT, RIGHT, TOP, BOTTOM = 40, 16, 18, 22
"""Margins around the drawing area; the axis' texts stand in them."""

ELSEWHERE = 1e-2
"""Where two models agree, a tensor that is so far off is stored in another scale, or used by nobody."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """Size of a drawing, and its ticks."""

    width: float
    height: float
    x: tuple[Tick, ...] = ()
    y: tuple[Tick, ...] = ()

    @property
    def floor(self) -> float:
        """Where the lower axis lies."""
        return self.height - BOTTOM


@dataclass(frozen=True)
class Steps:
    """A histogram of two runs: closed paths of the original's and the optimized model's counts."""

    where: str
    check: OutputCheck
    frame: Frame
    before: str
    after: str
    ulp: Tick
    zeros: tuple[int, int]


@dataclass(frozen=True)
class Dot:
    """One tensor of a profile."""

    x: float
    y: float
    layer: Layer
    beyond: bool
    """Whether its error is more than rounding explains."""


@dataclass(frozen=True)
class Profile:
    """Error of every inner tensor in order, over what rounding the weights alone does to it."""

    frame: Frame
    dots: tuple[Dot, ...]
    noise: str
    hidden: int
    """Tensors that cannot be compared, because they are stored in another scale."""
    parted: Layer | None
    """Where two different models part."""
    worst: Layer


@dataclass(frozen=True)
class Box:
    """Quartiles and median of one model's times."""

    label: str
    timing: Timing
    y: float
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Boxes:
    """The times of both models on one axis from zero."""

    frame: Frame
    original: Box
    optimized: Box


@dataclass(frozen=True)
class Interval:
    """The ratio with its confidence interval, over the band that is no difference."""

    frame: Frame
    low: float
    at: float
    high: float
    one: float
    band: tuple[float, float]


def steps(where: str, check: OutputCheck) -> Steps:
    """The histogram of one output's errors."""
    found = check.histogram
    assert found is not None
    ulp = math.log10(2 * unit_roundoff(check.dtype))
    low = math.floor(min(found.first, ulp))
    high = math.ceil(max(found.first + len(found.before) / PER_DECADE, ulp))
    frame = Frame(480, 150)
    across, tall = _scale(low, high, LEFT, 480 - RIGHT), max(*found.before, *found.after, 1)

    def path(counts: Sequence[int]) -> str:
        y = [frame.floor - count / tall * (frame.floor - TOP) for count in counts]
        x = [across(found.first + i / PER_DECADE) for i in range(len(counts) + 1)]
        corners = [(x[0], frame.floor)]
        for i, top in enumerate(y):
            corners += [(x[i], top), (x[i + 1], top)]
        return _path([*corners, (x[-1], frame.floor)]) if counts else ""

    every = 1 if high - low <= 8 else 2
    ticks = tuple(Tick(across(power), f"1e{power}") for power in range(low, high + 1, every))
    count = (Tick(TOP, f"{tall:,}"), Tick(frame.floor, "0"))
    frame = Frame(480, 150, ticks, count)
    return Steps(where, check, frame, path(found.before), path(found.after), Tick(across(ulp), "1 ULP"), found.zeros)


def profile(layers: Sequence[Layer], passed: bool) -> Profile | None:
    """The plot of the inner tensors; None where there are none."""
    shown = [layer for layer in layers if not (passed and layer.error > ELSEWHERE)]
    sizes = [value for layer in shown for value in (layer.error, layer.noise) if value > 10.0**SMALLEST]
    if not shown or not sizes:
        return None
    low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes)))
    frame = Frame(960, 230)
    up = _scale(low, max(high, low + 1), frame.floor, TOP)
    across = _scale(0, max(len(shown) - 1, 1), LEFT + 4, frame.width - RIGHT - 4)

    def y(value: float) -> float:
        return up(max(math.log10(max(value, 10.0**SMALLEST)), low))

    noise = _path([(across(i), y(layer.noise)) for i, layer in enumerate(shown)], closed=False)
    dots = tuple(
        Dot(across(i), y(layer.error), layer, layer.error > K * layer.noise and layer.error > 1e-15)
        for i, layer in enumerate(shown)
    )
    ticks = tuple(Tick(up(power), f"1e{power}") for power in range(low, max(high, low + 1) + 1))
    frame = Frame(960, 230, (Tick(across(0), "first"), Tick(across(max(len(shown) - 1, 1)), "last")), ticks)
    parted = None if passed else next((dot.layer for dot in dots if dot.beyond), None)
    worst = max(shown, key=lambda layer: layer.error)
    return Profile(frame, dots, noise, len(layers) - len(shown), parted, worst)


def boxes(row: BenchRow) -> Boxes:
    """The two models' times."""
    largest = max(row.original.high, row.optimized.high, 1e-9)
    step = _round_step(largest / 4)
    across = _scale(0, largest * 1.04, LEFT + 34, 480 - RIGHT)
    ticks = tuple(Tick(across(i * step), f"{i * step:g}") for i in range(int(largest / step) + 1))

    def box(label: str, timing: Timing, y: float) -> Box:
        return Box(label, timing, y, across(timing.low), across(timing.median), across(timing.high))

    frame = Frame(480, 92, ticks)
    return Boxes(frame, box("original", row.original, 14), box("optimized", row.optimized, 42))


def interval(row: BenchRow) -> Interval:
    """The ratio of the two; the interval is the ratio itself where too few runs make one."""
    low, high = row.ratio if row.low is None else row.low, row.ratio if row.high is None else row.high
    reach = 1.15 * max(abs(low - 1), abs(high - 1), abs(row.ratio - 1), 2 * MARGIN)
    step = _round_step(reach / 3)
    across = _scale(max(0.0, 1 - reach), 1 + reach, LEFT + 34, 480 - RIGHT)
    count, below = int(reach / step), int(min(reach, 1) / step)
    ticks = tuple(Tick(across(1 + i * step), f"{1 + i * step:g}") for i in range(-below, count + 1))
    band = across(1 - MARGIN), across(1 + MARGIN)
    return Interval(Frame(480, 62, ticks), across(low), across(row.ratio), across(high), across(1), band)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of one interval to another."""
    factor = (end - start) / (high - low)
    return lambda value: round(start + (value - low) * factor, 1)


def _path(points: Sequence[tuple[float, float]], closed: bool = True) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
