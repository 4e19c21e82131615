"""When two demands on one tensor are the same."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.affine import Storage


def stored(den: list[float], num: list[float], off: list[float]) -> Storage:
    return Storage(*(np.array(values) for values in (den, num, off)))


PAIRS: list[tuple[Storage, Storage, bool]] = [
    (stored([1, 1], [2, 3], [0, 5]), stored([2, -1], [4, -3], [0, -5]), True),
    (stored([1, 1], [2, 3], [0, 5]), stored([1, 1], [2, 3], [0, 5 + 1e-14]), True),
    (stored([1, 1], [2, 3], [0, 5]), stored([1, 1], [2, 3], [0, 5 + 1e-9]), False),
    (stored([1, 1], [2, 3], [0, 5]), stored([1, 1], [2, 4], [0, 5]), False),
    (stored([0, 1], [2, 3], [4, 5]), stored([0, 1], [3, 3], [6, 5]), True),
    (stored([0, 1], [2, 3], [4, 5]), stored([0, 1], [3, 3], [4, 5]), False),
    (stored([2, 1], [0, 3], [4, 5]), stored([3, 1], [0, 3], [6, 5]), True),
    (stored([2, 1], [0, 3], [4, 5]), stored([3, 1], [0, 3], [6, 4]), False),
    # A channel of variance 1e-6 beside one of which little is left: each counts by what it holds.
    (stored([444, 8e-4], [6e7, 1.4e-6], [-1.2e8, -3e-3]), stored([444, 8e-4], [6e7, 1.4e-6], [-1.2e8, 4e-6]), False),
    (stored([444, 0], [6e7, 1e-9], [-1.2e8, 1e-9]), stored([444, 0], [6e7, 1e-9], [-1.2e8, -1e-9]), False),
]


@pytest.mark.parametrize(("one", "other", "same"), PAIRS)
def test_two_demands_agree(one: Storage, other: Storage, same: bool) -> None:
    assert one.agrees(other) is same
    assert other.agrees(one) is same
