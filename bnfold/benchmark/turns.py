"""Both models in turns on one provider, in blocks that each begin with sessions of their own.

Within a block the two alternate (original, optimized, optimized, original, ...), so that a machine that slows down
slows both. Each block has new sessions, because where a session's buffers and threads happen to lie makes it faster or
slower as long as it lives (T. Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", 2009):
a claim must outlast that. Where making a session costs more than measuring, later blocks keep the last ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from bnfold.benchmark.interval import ENOUGH
from bnfold.kernels.base import Array

BLOCKS = 12
"""One ratio each. Of twelve, the third smallest and third largest bound the median with 96% confidence."""

_MAX_PAIRS = 1000
"""In one block."""

_SILENCE = 5.0
"""Seconds between two words on how far it is."""


class Runner(Protocol):
    """A session with its tensors in place."""

    def timed(self) -> float:
        """Seconds of one run."""


class Racer(Protocol):
    """A session."""

    seconds_to_create: float

    def bound(self, feeds: Mapping[str, Array], /) -> Runner:
        """The session with these tensors in place."""


R = TypeVar("R", bound=Racer)


@dataclass
class Raced:
    """Seconds: of creations (original, optimized), and by case and block those of each pair, shape (pairs, 2)."""

    created: list[tuple[float, float]] = field(default_factory=list)
    blocks: list[list[Array]] = field(default_factory=list)


def race(
    make: Sequence[Callable[[], R]],
    pair: list[R],
    cases: Sequence[Mapping[str, Array]],
    *,
    seconds: float,
    runs: int | None = None,
    warmup: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> Raced:
    """Run both models on every case.

    Args:
        make: makes a session of the original, and one of the optimized model.
        pair: holds a session of the original that is there already, whose making bore the cost of loading libraries.
            It is taken over: emptied before new sessions are made, so that no memory is held twice.
        cases: inputs by name, one for every batch size.
        seconds: how long to measure each case; new sessions may take as long again, all together.
        runs: exactly so many pairs of each case, instead of `seconds`.
        warmup: runs of each session that are not counted.
        say: told what goes on.
    """
    raced = Raced(blocks=[[] for _ in cases])
    pair.append(make[1]())
    loaded = _created(pair)
    measured = renewing = 0.0
    said = float("-inf")
    blocks = BLOCKS if runs is None else min(BLOCKS, runs)
    for block in range(blocks):
        if runs is None and block >= ENOUGH and measured > seconds * len(cases):
            break
        start = time.perf_counter()
        if start - said > _SILENCE:
            say(f"measuring, block {block + 1} of {blocks}")
            said = start
        fresh = block == 0
        if block and renewing <= seconds:
            fresh = True
            pair.clear()
            pair += _pair(make, swapped=block % 2 == 1)
            raced.created.append(_created(pair))
        bound = [[session.bound(feeds) for session in pair] for feeds in cases]
        if fresh:
            for runners in bound:
                _warm(runners, warmup)
        renewing += time.perf_counter() - start
        for case, runners in enumerate(bound):
            start = time.perf_counter()
            count = None if runs is None else runs // blocks + (block < runs % blocks)
            raced.blocks[case].append(_block(runners, seconds / blocks, count, swapped=block % 2 == 1))
            measured += time.perf_counter() - start
        del bound, runners
    raced.created = raced.created or [loaded]
    return raced


def _pair(make: Sequence[Callable[[], R]], swapped: bool) -> list[R]:
    """New sessions, original and optimized; which is made first changes from block to block."""
    if not swapped:
        return [make[0](), make[1]()]
    optimized = make[1]()
    return [make[0](), optimized]


def _created(pair: Sequence[Racer]) -> tuple[float, float]:
    return pair[0].seconds_to_create, pair[1].seconds_to_create


def _warm(runners: Sequence[Runner], warmup: int) -> None:
    for _ in range(max(1, warmup)):
        for runner in runners:
            runner.timed()


def _block(runners: Sequence[Runner], seconds: float, runs: int | None, swapped: bool) -> Array:
    """Seconds of each pair of runs, shape (pairs, 2). The model that goes first changes from pair to pair."""
    original, optimized = runners
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < (runs or _MAX_PAIRS):
        if (len(pairs) % 2 == 1) != swapped:
            second = optimized.timed()
            pairs.append((original.timed(), second))
        else:
            first = original.timed()
            pairs.append((first, optimized.timed()))
        if runs is None and time.perf_counter() - start > seconds:
            break
    return np.array(pairs)
