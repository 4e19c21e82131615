"""Operators that make as many elements as the numbers in their inputs say: known before any memory is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bnfold.kernels import resize
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
    amounts = ints((call.get("pads") or call.get("paddings")) if pads is None else pads)
    places = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in ints(axes)]
    sizes = list(x.shape)
    for at, place in enumerate(places):
        sizes[place] += max(0, amounts[at]) + max(0, amounts[at + len(places)])
    return math.prod(sizes)


def _tiled(call: Call, x: Array, repeats: Array, axis: Array | None = None) -> int:
    return int(x.size) * math.prod(max(0, count) for count in ints(repeats))


def _counted(call: Call, start: Array, limit: Array, delta: Array) -> int:
    count: int = math.ceil((limit.item() - start.item()) / delta.item())
    return max(0, count)


_RULES: Mapping[str, Callable[..., int]] = {
    "ConstantOfShape": lambda call, shape: math.prod(max(0, size) for size in ints(shape)),
    "Pad": _padded,
    "Range": _counted,
    "Resize": resize.elements,
    "Tile": _tiled,
    "Upsample": resize.elements,
}
