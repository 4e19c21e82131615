"""Two threads for what is large: numpy lets go of the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_two(function: Callable[[S], T], given: Iterable[S]) -> Iterator[T]:
    """What a function makes of each, in order; two at a time."""
    every = list(given)
    with ThreadPoolExecutor(1) as worker:
        later = worker.submit(lambda: [function(each) for each in every[len(every) // 2 :]])
        yield from map(function, every[: len(every) // 2])
        yield from later.result()
