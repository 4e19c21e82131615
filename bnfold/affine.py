"""Per-channel affine maps, and how a tensor is stored after a fold.

Every array here is float64 and *broadcasts against its tensor*: it has the tensor's rank, with ones on the axes where
it is constant. A BatchNormalization on an NCHW tensor has arrays of shape ``(1, C, 1, 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.lazy import lazy

Array = NDArray[np.float64]

AGREE = 1e-12
"""Two demands on one tensor agree when they differ by less than this, relative to the largest over its channels."""

SMALL = 1 << 14
"""Ones of which there are no more than this are the same for all."""

MOST_TOGETHER = 1 << 20
"""Values that arrays may have together when each has far fewer, because they vary along different axes."""

ROUNDING = 2.0**-46
"""What is left of a difference of float64 numbers below this, relative to its terms, is their rounding: zero."""


class TooLargeError(MemoryError):
    """Few numbers would become many: a scale along one axis and a shift along another, for every pair of the two."""


@lru_cache(maxsize=1 << 12)
def together(*shapes: tuple[int, ...]) -> None:
    """Look at the shapes of arrays before they are broadcast: they come from the file.

    Raises:
        TooLargeError: they would have far more values together than any of them has.
        ValueError: they do not broadcast.
    """
    differing = {shape for shape in shapes if max(shape, default=1) > 1}
    if len(differing) > 1:
        full = math.prod(np.broadcast_shapes(*differing))
        if full > MOST_TOGETHER and full > 2 * max(map(math.prod, differing)):
            raise TooLargeError("a scale and a shift vary along different axes, and are too many numbers together")


@dataclass(frozen=True, eq=False)
class Affine:
    """``y = scale * x + shift``, elementwise; both arrays broadcast against x."""

    scale: Array
    shift: Array

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of both."""
        return self.scale.shape, self.shift.shape


@dataclass(frozen=True, eq=False)
class Storage:
    """How a tensor v is stored after the fold: ``den * v' = num * v + off``, per channel.

    One relation serves both directions, so that no zero is ever divided by:

    - *encode* ``v' = a*v + b`` with ``a = num/den``, what the producer must now produce. It exists where ``den != 0``;
    - *decode* ``v = alpha*v' + beta`` with ``alpha = den/num``, what a consumer must now assume. It exists where
      ``num != 0``.

    ``den = 0`` says that v is the constant ``-off/num`` whatever v' holds (a BN with gamma = 0, pushed); ``num = 0``
    says that v' is the constant ``off/den`` and v is lost (a BN with gamma = 0, pulled).
    """

    den: Array
    num: Array
    off: Array

    def __post_init__(self) -> None:
        if not self.den.shape == self.num.shape == self.off.shape:
            together(*self.shapes)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all three."""
        return self.den.shape, self.num.shape, self.off.shape

    @staticmethod
    def identity(rank: int) -> Storage:
        """v' = v; the same object for every tensor of this rank."""
        return _identity(rank)

    @staticmethod
    def encode(a: Array, b: Array) -> Storage:
        """v' = a*v + b."""
        found = Storage(_ones(a.shape), a, b)
        found.__dict__["has_encode"] = True
        return found

    @staticmethod
    def decode(alpha: Array, beta: Array) -> Storage:
        """v = alpha*v' + beta."""
        found = Storage(alpha, _ones(alpha.shape), -beta)
        found.__dict__["has_decode"] = True
        return found

    @lazy
    def has_encode(self) -> bool:
        """Whether v' is a function of v on every channel."""
        return bool(np.count_nonzero(self.den) == self.den.size)

    @lazy
    def has_decode(self) -> bool:
        """Whether v is a function of v' on every channel."""
        return bool(np.count_nonzero(self.num) == self.num.size)

    @lazy
    def a(self) -> Array:
        """Scale of the encode; only where :attr:`has_encode`."""
        return self.num / self.den

    @lazy
    def b(self) -> Array:
        """Shift of the encode; only where :attr:`has_encode`."""
        return self.off / self.den

    @lazy
    def alpha(self) -> Array:
        """Scale of the decode; only where :attr:`has_decode`."""
        return self.den / self.num

    @lazy
    def beta(self) -> Array:
        """Shift of the decode; only where :attr:`has_decode`."""
        return -self.off / self.num

    @lazy
    def is_identity(self) -> bool:
        """Whether the tensor is stored as it was."""
        return self.is_scale and bool((self.den == self.num).all()) and self.has_encode

    @lazy
    def is_scale(self) -> bool:
        """Whether there is no shift on any channel."""
        return not np.count_nonzero(self.off)

    def map(self, move: Callable[[Array], Array]) -> Storage:
        """The same relation on a tensor whose elements are those of this one, moved (transposed, sliced, ...)."""
        return Storage(move(self.den), move(self.num), move(self.off))

    def but(self, mask: NDArray[np.bool_], other: Storage) -> Storage:
        """This relation, and another's where the mask is true."""
        together(*self.shapes, *other.shapes)
        pairs = (self.den, other.den), (self.num, other.num), (self.off, other.off)
        return Storage(*(np.where(mask, theirs, own) for own, theirs in pairs))

    def then_encode(self, a: Array, b: Array) -> Storage:
        """Store once more: v'' = a*v' + b, a zero `a` included where v' is not dead."""
        together(*self.shapes, a.shape, b.shape)
        off, shift = a * self.off, b * self.den
        return Storage(self.den, a * self.num, snap(off + shift, off, shift))

    def then_decode(self, alpha: Array, beta: Array) -> Storage:
        """Store once more so that v' = alpha*v'' + beta, a zero `alpha` included where v is not lost."""
        together(*self.shapes, alpha.shape, beta.shape)
        shift = beta * self.den
        return Storage(alpha * self.den, self.num, snap(self.off - shift, self.off, shift))

    def before(self, source: Affine) -> Storage:
        """The storage of x when y = scale*x + shift is stored like this and shares its memory with x."""
        together(*self.shapes, *source.shapes)
        shift = self.num * source.shift
        return Storage(self.den, self.num * source.scale, snap(shift + self.off, shift, self.off))

    def after(self, source: Affine) -> Storage:
        """The storage of y = scale*x + shift when x is stored like this and shares its memory with y."""
        together(*self.shapes, *source.shapes)
        s, t = source.scale, source.shift
        off, shift = s * self.off, self.num * t
        return Storage(s * self.den, self.num, snap(off - shift, off, shift))

    @lazy
    def is_degenerate(self) -> bool:
        """Whether some channel relates nothing to nothing (both v and v' constant): never accepted."""
        return not (self.has_encode or self.has_decode) and bool(((self.den == 0) & (self.num == 0)).any())

    def agrees(self, other: Storage) -> bool:
        """Whether both say the same, up to the rounding of their float64 arithmetic.

        Where v is a constant under both, v' is dead and its scale does not matter.
        """
        if self is other or (self.den is other.den and self.num is other.num and self.off is other.off):
            return True
        try:
            together(*self.shapes, *other.shapes)
            regular = (self.has_encode or other.has_encode) and (self.has_decode or other.has_decode)
            if regular and (_apart(self, other) or (self.is_scale != other.is_scale and _shifted(self, other))):
                return False
            scales = _close(self.den * other.num, other.den * self.num)
            if regular:
                if not scales.all():
                    return False
                if self.is_scale and other.is_scale:
                    return True
            else:
                lost = (self.num == 0) & (other.num == 0)
                scales |= (self.den == 0) & (other.den == 0) | lost
            mine, others = _shifts(self, other)
            size = np.abs(mine).max(initial=0.0) + np.abs(others).max(initial=0.0)
            return bool((scales & (np.abs(mine - others) <= AGREE * size)).all())
        except (ValueError, TooLargeError):  # shapes that do not broadcast, or that vary along different axes
            return False


def _ones(shape: tuple[int, ...]) -> Array:
    return _same_ones(shape) if math.prod(shape) <= SMALL else np.ones(shape)


@lru_cache(maxsize=64)
def _same_ones(shape: tuple[int, ...]) -> Array:
    found = np.ones(shape)
    found.flags.writeable = False
    return found


@cache
def _identity(rank: int) -> Storage:
    one, zero = np.ones((1,) * rank), np.zeros((1,) * rank)
    for shared in (one, zero):
        shared.flags.writeable = False
    return Storage(one, one, zero)


def _apart(one: Storage, other: Storage) -> bool:
    """Whether the scales of the first channel differ already."""
    if not (one.den.size and one.num.size and other.den.size and other.num.size):
        return False
    x, y = one.den.item(0) * other.num.item(0), other.den.item(0) * one.num.item(0)
    return bool(abs(x - y) > AGREE * max(abs(x), abs(y)))


def _shifted(one: Storage, other: Storage) -> bool:
    """Whether the only shift of the two is plain to see; false where arithmetic lost or overflowed it."""
    shift = one.num * other.off if one.is_scale else other.num * one.off
    return bool(0 < np.abs(shift).max(initial=0.0) < math.inf)


def _shifts(one: Storage, other: Storage) -> tuple[Array, Array]:
    """Both shifts, in units of v' or of v, whichever are the larger ones: no channel drowns another one."""
    large = np.abs(one.den) >= np.abs(one.num)
    units = (np.where(large, each.den, each.num) for each in (one, other))
    mine, others = (each.off / np.where(unit == 0, 1.0, unit) for each, unit in zip((one, other), units, strict=True))
    return mine, others


def _close(x: Array, y: Array) -> NDArray[np.bool_]:
    size = np.maximum(np.abs(x), np.abs(y))
    return np.asarray(np.abs(x - y) <= AGREE * size)


def snap(total: Array, *terms: Array, within: float = ROUNDING) -> Array:
    """`total`, with what is only the rounding of a sum of `terms` set to exactly zero."""
    magnitude: Any = 0.0
    for term in terms:
        magnitude = magnitude + np.abs(term)
    return np.where(np.abs(total) <= within * magnitude, 0.0, total)
