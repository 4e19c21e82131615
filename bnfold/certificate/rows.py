"""Products by one matrix that became one, where scales vary along the rows: those pass, also where they are 0.

Where the matrix is on the left these are columns, turned around.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.certificate.ports import regular
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import alike, once
from bnfold.certificate.taps import Form, Terms
from bnfold.certificate.wiring import Region

UNREAD = 1e40
"""How large what is stored of a constant may be: it is not read, but must not overflow."""


@dataclass(frozen=True, eq=False)
class Rows:
    """How x and y are stored, row by row.

    Of a `fine` row nothing is lost but some channels of x that are constants. Of a `lost` one all of x and y are:
    what is stored of them is a constant. Of any other x and y are constants themselves, and the numeric test sees
    whether they are the right ones.
    """

    given: Storage
    made: Storage
    fine: NDArray[np.bool_]
    lost: NDArray[np.bool_]

    @staticmethod
    def of(given: Storage, made: Storage) -> Rows | None:
        """None where no scale varies along the rows; channels are on the last axis.

        Raises:
            NotCertifiedError: of some row a part is lost, or of all rows.
        """
        parts = [array for storage in (given, made) for array in (storage.den, storage.num)]
        shared = [alike(array, range(array.ndim - 1)) for array in parts]
        if all(array.size == array.shape[-1] for array in shared):
            return None
        lead = np.broadcast_shapes(*(array.shape[:-1] for array in parts))
        there = [np.broadcast_to((array != 0).all(-1), lead) for array in parts]
        empty = [np.broadcast_to((array == 0).all(-1), lead) for array in parts]
        fine = there[1] & there[2] & ~empty[0]
        lost = there[0] & empty[1] & there[2] & empty[3]
        known = empty[0] & there[1] & empty[2] & there[3]
        if not fine.any() or not (fine | lost | known).all():
            raise NotCertifiedError("a channel at its ends is dead or lost")
        return Rows(given, made, fine, lost)

    def form(self, region: Region, terms: Terms) -> Form:
        """What the merged node should be, of x' and y': one matrix; the numeric test sees whether it fits all rows."""
        given, made = regular(self.given, self.lost[..., None]), regular(self.made, ~self.fine[..., None])
        beta = np.broadcast_to(given.beta, (*given.beta.shape[:-1], terms.channels))
        form = terms.through(region, terms.start(self._one(given.alpha, terms.channels), beta))
        none = np.zeros(form.channels)
        scaled = form.scaled(self._one(made.a, form.channels), none, none)
        ((matrix, bound),) = ((value[0], size[0]) for value, size in scaled.taps.values())
        held, left = self.given.off / _filled(self.given.den), self.made.off / _filled(self.made.den)
        held = np.broadcast_to(held, (*held.shape[:-1], terms.channels))
        kept = made.a * form.shift[0] + made.b, np.abs(made.a) * form.shift[1] + np.abs(made.b)
        lost = left - held @ matrix.T, np.abs(left) + np.abs(held) @ bound.T
        value, size = (np.where(self.lost[..., None], *pair) for pair in zip(lost, kept, strict=True))
        size = np.where((self.fine | self.lost)[..., None], size, UNREAD)
        return Form(scaled.taps, once(value, size), scaled.stride)

    def _one(self, array: Array, channels: int) -> Array:
        """The array at the fine row of which least is a constant."""
        rows = np.broadcast_to(array, (*self.fine.shape, channels))[self.fine]
        return np.array(rows[np.count_nonzero(rows, axis=-1).argmax()])


def _filled(array: Array) -> Array:
    return np.where(array == 0, 1.0, array)
