"""When the benchmark may claim a difference, and how it runs two models in turns."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest

from bnfold.benchmark.interval import compared, order_interval, verdict
from bnfold.benchmark.turns import BLOCKS, Raced, race


@pytest.mark.parametrize(("count", "bounds"), [(6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (12, (3, 10)), (20, (6, 15))])
def test_the_interval_is_that_of_the_binomial_distribution(count: int, bounds: tuple[int, int]) -> None:
    """As in the tables of the sign test at 5%."""
    shuffled = np.random.default_rng(count).permutation(np.arange(1, count + 1)).tolist()
    assert order_interval(shuffled) == bounds


def test_fewer_than_six_bound_nothing() -> None:
    assert order_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert compared([(2.0, 1.0)] * 5).verdict == "too few to tell"
    assert compared([(2.0, 1.0)] * 6).verdict == "2.00x faster"


@pytest.mark.parametrize("count", [6, 12])
def test_equal_models_under_skewed_noise_are_claimed_to_differ_at_most_once_in_twenty(count: int) -> None:
    random = np.random.default_rng(1)
    noise = np.exp(random.standard_cauchy((4000, count, 2)).clip(-50, 50))
    claims = [compared([(one, two) for one, two in pairs]).verdict != "no difference" for pairs in noise]
    assert np.mean(claims) < 0.05


def test_a_steady_difference_is_seen_under_noise_larger_than_it() -> None:
    random = np.random.default_rng(2)
    drift = 1 + random.uniform(0, 3, (12, 1))
    found = compared([(one, two) for one, two in drift * (1 + 0.01 * random.uniform(0, 1, (12, 2))) * [1.2, 1.0]])
    assert found.low is not None and found.high is not None
    assert 1.18 < found.low <= found.ratio <= found.high < 1.22


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((1.32, 1.2, 1.4), "1.32x faster"),
        ((0.5, 0.4, 0.6), "2.00x slower"),
        ((1.3, 0.9, 1.6), "no difference"),
        ((1.3, 1.0, 1.6), "no difference"),
        ((1.01, 1.005, 1.015), "no difference"),
        ((1.3, None, None), "too few to tell"),
    ],
)
def test_verdict(interval: tuple[float, float | None, float | None], text: str) -> None:
    assert verdict(*interval) == text


class FakeSession:
    """Takes no time, and writes down what happens to it."""

    alive: ClassVar[weakref.WeakSet[FakeSession]] = weakref.WeakSet()

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.seconds_to_create = name, log, {"A": 2.0, "B": 1.0}[name]
        self.alive.add(self)
        log.append(f"make {name}, {len(self.alive)} alive")

    def bound(self, feeds: Mapping[str, Any], /) -> FakeRunner:
        return FakeRunner(self, feeds)


class FakeRunner:
    def __init__(self, session: FakeSession, feeds: Mapping[str, Any]) -> None:
        self.session, self.label = session, "".join(feeds)

    def timed(self) -> float:
        self.session.log.append(self.session.name + self.label)
        return {"A": 0.02, "B": 0.01}[self.session.name]


def raced(log: list[str], cases: Sequence[str] = ("",), **options: Any) -> Raced:
    make: list[Callable[[], FakeSession]] = [partial(FakeSession, name, log) for name in "AB"]
    feeds: list[dict[str, Any]] = [{case: 0} if case else {} for case in cases]
    return race(make, [make[0]()], feeds, **options)


def test_the_first_changes_from_pair_to_pair_and_sessions_from_block_to_block() -> None:
    log: list[str] = []
    found = raced(log, seconds=60, runs=2 * BLOCKS, warmup=1)
    block = ["A", "B", "A", "B", "B", "A"], ["A", "B", "B", "A", "A", "B"]
    made = ["make A, 1 alive", "make B, 2 alive"], ["make B, 1 alive", "make A, 2 alive"]
    assert log == [event for turn in range(BLOCKS) for event in made[turn % 2] + block[turn % 2]]
    assert found.created == [(2.0, 1.0)] * (BLOCKS - 1)
    assert [pairs.tolist() for pairs in found.blocks[0]] == [[[0.02, 0.01]] * 2] * BLOCKS


def test_runs_are_spread_over_the_blocks() -> None:
    assert [len(pairs) for pairs in raced([], seconds=60, runs=15).blocks[0]] == [2] * 3 + [1] * 9
    assert [len(pairs) for pairs in raced([], seconds=60, runs=2).blocks[0]] == [1, 1]


def test_every_block_has_every_case() -> None:
    log: list[str] = []
    found = raced(log, ("x", "y"), seconds=60, runs=1, warmup=1)
    assert log[2:] == ["Ax", "Bx", "Ay", "By", "Ax", "Bx", "Ay", "By"]
    assert [len(blocks) for blocks in found.blocks] == [1, 1]


def test_where_sessions_cost_too_much_they_are_kept() -> None:
    log: list[str] = []
    found = raced(log, seconds=0)
    assert [event for event in log if "make" in event] == ["make A, 1 alive", "make B, 2 alive"]
    assert found.created == [(2.0, 1.0)]
    assert len(found.blocks[0]) == 6
