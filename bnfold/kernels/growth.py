"""Operators that make as many elements as the numbers in their inputs say: known before any memory is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bnfold.kernels import resize, shape
from bnfold.kernels.base import Array, Call, ints


def elements(call: Call, inputs: Sequence[Any]) -> int:
    """How many elements a node will make; 0 for operators whose inputs bound that, and where these make no sense."""
    rule = _RULES.get(call.op) if call.domain == "" else None
    if rule is None:
        return 0
    try:
        return int(rule(call, *inputs))
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0  # what is wrong the kernel says


def _padded(
    call: Call, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> int:
    amounts = shape.pad_amounts(call, x, pads, axes)
    return math.prod(
        size + max(0, before) + max(0, after) for (before, after), size in zip(amounts, x.shape, strict=True)
    )


def _tiled(call: Call, x: Array, repeats: Array, axis: Array | None = None) -> int:
    return int(x.size) * math.prod(max(0, count) for count in ints(repeats))


_RULES: Mapping[str, Callable[..., int]] = {
    "ConstantOfShape": lambda call, sizes: math.prod(max(0, size) for size in ints(sizes)),
    "Pad": _padded,
    "Range": lambda call, *numbers: shape.range_count(*numbers),
    "Resize": resize.elements,
    "Tile": _tiled,
    "Upsample": resize.elements,
}
