"""The rule that tells noise from a difference, on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bnfold.equivalence.noise import Evidence, judge

Array = npt.NDArray[Any]


def evidence(**changes: Any) -> Evidence:
    random = np.random.default_rng(1)
    truth = random.standard_normal((2, 3, 40))
    before = (truth * (1 + 1e-6 * random.standard_normal(truth.shape))).astype(np.float32)
    after = (truth * (1 + 1e-6 * random.standard_normal(truth.shape))).astype(np.float32)
    known: dict[str, Any] = {"output": "y", "sample": 0, "reference": truth, "before": before, "after": after}
    return Evidence(**known | changes)


def test_the_rule_scales_with_the_noise() -> None:
    known = evidence()
    assert judge(known).passed
    tenfold = (known.reference * (1 + 1e-4 * np.sin(np.arange(40)))).astype(np.float32)
    assert not judge(evidence(after=tenfold)).passed
    assert judge(evidence(after=tenfold, noisy=[known.reference * (1 + 1e-4)])).passed


def test_a_large_channel_does_not_hide_a_small_one() -> None:
    random = np.random.default_rng(2)
    truth = random.standard_normal((2, 2, 80)) * np.array([1e6, 1.0]).reshape(1, 2, 1)
    before = (truth * (1 + 1e-6 * random.standard_normal(truth.shape))).astype(np.float32)
    after = before.copy()
    after[:, 1] *= np.float32(1.001)
    check = judge(Evidence("y", 0, truth, before, after))
    assert not check.passed
    assert "channel 1" in check.problem


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (np.inf, np.nan, False),
        (1.0, np.inf, False),
        (np.inf, 1.0, False),
    ],
)
def test_what_is_not_finite_must_be_so_in_both(before: float, after: float, passed: bool) -> None:
    known = evidence()
    arrays = {}
    for name, value in (("reference", before), ("before", before), ("after", after)):
        array = getattr(known, name).copy()
        array[0, 0, 0] = value
        arrays[name] = array
    assert judge(evidence(**arrays)).passed is passed


def test_a_tie_may_fall_otherwise_where_rounding_moves_it() -> None:
    one, other = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    tied = {"reference": one, "before": one, "after": other}
    assert not judge(evidence(**tied)).passed
    assert judge(evidence(**tied, noisy=[other])).passed
    assert not judge(evidence(**tied | {"after": other.astype(np.int32)})).passed
