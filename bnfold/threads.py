"""Two threads for what is large: numpy and the operating system let go of the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

BATCH = 8
"""Pieces that are made in one go: handing one over takes as long as a tenth of one."""


def ahead(pieces: Iterator[T]) -> Iterator[T]:
    """The same pieces in the same order; some are made in another thread while those before them are used."""

    def more() -> list[T]:
        return list(islice(pieces, BATCH))

    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(more)
        while made := coming.result():
            coming = worker.submit(more)
            yield from made


def in_two(function: Callable[[S], T], given: Iterable[S]) -> Iterator[T]:
    """What a function makes of each, in order; two at a time."""
    every = list(given)
    with ThreadPoolExecutor(1) as worker:
        later = worker.submit(lambda: [function(each) for each in every[len(every) // 2 :]])
        yield from map(function, every[: len(every) // 2])
        yield from later.result()
