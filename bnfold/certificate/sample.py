"""Small random tensors for one node: what the original sees, and what the output holds in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.certificate.kinks import around
from bnfold.certificate.result import NotCertifiedError
from bnfold.graph import Node

T = TypeVar("T")


class Sample(NamedTuple):
    """One tensor of a test; all are None where an optional input is left out."""

    old: Any
    """What the original sees; None for a constant that is new."""
    new: Any
    """What the output holds."""
    old_size: Any
    """Magnitude of the terms that `old` was made of; None for a constant that is its own magnitude."""
    new_size: Any

    @property
    def sized(self) -> Sample:
        """With magnitudes."""
        return self if self.old_size is not None or self.new_size is not None else Sample.of(self.old, self.new)

    @staticmethod
    def of(old: Array | None, new: Array | None) -> Sample:
        """Two values, each its own magnitude."""
        return Sample(old, new, None if old is None else np.abs(old), None if new is None else np.abs(new))

    @staticmethod
    def same(value: Any) -> Sample:
        """A value that is not re-stored."""
        return Sample(value, value, value, value)


NOTHING = Sample(None, None, None, None)

KEPT = 64
"""Samples that are kept, and how many numbers each may hold: `KEPT` << 10."""


class Draws:
    """Where random numbers come from. Nodes that are alike get the same ones: most are tested in less time than it
    takes to draw them.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._kept: dict[tuple[object, ...], Any] = {}

    def kept(self, size: int, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What was made for this key, where it is small; made anew where it is gone."""
        found: T | None = self._kept.pop(key, None)
        if found is None:
            found = make()
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
        if size <= KEPT << 10:
            self._kept[key] = found
        return found

    def numbers(
        self, shape: tuple[int, ...], place: object, centres: Sequence[Array] = ()
    ) -> tuple[Array, NDArray[np.bool_]]:
        """Normal numbers, around the centres where there are any, and a coin for each.

        Those for one place, the input slot of a node, have nothing to do with those for another.
        """

        def make() -> tuple[Array, NDArray[np.bool_]]:
            value = around(centres, shape, self.rng)
            value.flags.writeable = False
            return value, self.rng.random(shape) < 0.5

        return make() if centres else self.kept(math.prod(shape), ("numbers", shape, place), make)


def draw(
    storage: Storage | None, shape: tuple[int, ...], draws: Draws, place: object = 0, centres: Sequence[Array] = ()
) -> Sample:
    """A random pair that the storage allows: for every element either v is drawn and v' follows, or the reverse.

    Both ways, so that a kink is met at v = 0 and at v' = 0, and at the other centres. A dead v' is arbitrary, and so is
    a lost v.
    """
    value, coin = draws.numbers(shape, place, centres)
    if storage is None:
        return Sample.of(value, value)
    den, num, off = storage.den, storage.num, storage.off
    if storage.is_degenerate:
        raise NotCertifiedError("a channel is stored in a way that says nothing")
    forward = coin & (den != 0) | (num == 0)
    with np.errstate(all="ignore"):
        old = np.where(forward, value, (den * value - off) / num)
        new = np.where(forward, (num * value + off) / den, value)
        old_size = np.where(forward, np.abs(value), (np.abs(den * value) + np.abs(off)) / np.abs(num))
        new_size = np.where(forward, (np.abs(num * value) + np.abs(off)) / np.abs(den), np.abs(value))
    return Sample(old, new, old_size, new_size)


def misfit(
    den: Array, num: Array, off: Array, old: Array, new: Array, old_size: Array, new_size: Array
) -> NDArray[np.float64]:
    """How far v = `old` and v' = `new` are from den v' = num v + off, relative to all terms; infinite where v' is."""
    size = np.abs(den) * new_size + np.abs(num) * old_size + np.abs(off)
    error = np.abs(den * new - num * old - off) / np.where(size == 0, 1.0, size)
    return np.where(np.isfinite(new), error, np.inf)


def within_domain(node: Node, storage: Storage | None, sample: Sample) -> Sample:
    """For a function that is defined on some numbers only: v and v' moved there, with v' = a v as before.

    Left as it is where that would not hold: then the function is met where it is undefined, and nothing is certified.
    """
    exponent = node.constant(1) if node.op == "Pow" else None
    scale = np.ones(1) if storage is None else storage.a if storage.is_scale and storage.has_encode else np.zeros(1)
    if node.op == "Sqrt" or (exponent is not None and not np.all(exponent.float64() % 1 == 0)):
        return Sample(*(np.abs(side) for side in sample)) if np.all(scale > 0) else sample
    if node.op in ("Asin", "Atanh") and np.all(np.abs(scale) == 1):
        return Sample(*(side / (1 + np.abs(side)) for side in sample))
    return sample
