"""The windows of a Conv and the border of a Pad, axis by axis: which inputs an output sees.

Source: ONNX operators Conv and Pad, all versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.graph import Dim, Node
from bnfold.malformed import pads_too_much


@dataclass(frozen=True)
class Axis:
    """A window along one axis: output o sees inputs ``o*stride + t*dilation - begin`` for every t below `taps`."""

    taps: int
    stride: int = 1
    dilation: int = 1
    begin: int = 0
    """Zeros in front of the input, and behind it."""
    end: int = 0

    @property
    def reach(self) -> int:
        """From the first tap to the last."""
        return (self.taps - 1) * self.dilation

    @property
    def growth(self) -> int:
        """How many more outputs than inputs a stride of one makes."""
        return self.begin + self.end - self.reach

    def outputs(self, size: int) -> int:
        """Outputs for an input of this size."""
        return (size + self.growth - 1) // self.stride + 1

    def touches_padding(self, size: Dim) -> bool:
        """Whether some window reaches a padded zero: where the size is not known, whether one may."""
        if self.begin > 0 or self.end <= 0:
            return self.begin > 0
        if not isinstance(size, int):
            return True
        return (self.outputs(size) - 1) * self.stride + self.reach - self.begin >= size


def axes_of(node: Node, kernel: Sequence[int], sizes: Sequence[Dim]) -> list[Axis | None]:
    """The windows of a Conv along its spatial axes; None where `auto_pad` pads by a size that is not known.

    Args:
        node: the Conv.
        kernel: taps along each spatial axis.
        sizes: sizes of its input along these axes.
    """
    n = len(kernel)
    mode = node.get_string("auto_pad", "NOTSET")
    pads = [0] * (2 * n) if mode == "VALID" else node.get_ints("pads") or [0] * (2 * n)
    strides = node.get_ints("strides") or [1] * n
    dilations = node.get_ints("dilations") or [1] * n
    found: list[Axis | None] = []
    for i, size in enumerate(sizes):
        axis = Axis(kernel[i], strides[i], dilations[i], pads[i], pads[n + i])
        found.append(_same(axis, size, mode) if mode in ("SAME_UPPER", "SAME_LOWER") else axis)
    return found


def _same(axis: Axis, size: Dim, mode: str) -> Axis | None:
    """Padded so that there are size/stride outputs, rounded up."""
    if axis.taps == 1:
        total = 0
    elif axis.stride == 1:
        total = axis.reach
    elif isinstance(size, int):
        total = max(0, (-(-size // axis.stride) - 1) * axis.stride + axis.reach + 1 - size)
    else:
        return None
    begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
    return Axis(axis.taps, axis.stride, axis.dilation, begin, total - begin)


def pads_of(node: Node, rank: int) -> dict[int, tuple[int, int]] | None:
    """How much a Pad puts in front and behind, on every axis where it does.

    None where that is computed at run time, or is more than any model needs.

    Args:
        node: the Pad.
        rank: of its input.
    """
    pads = node.get_ints("pads") or node.get_ints("paddings")
    given, chosen = node.constant(1) if pads is None else None, node.constant(3)
    if given is not None:
        pads = given.ints()
    if pads is None or pads_too_much(pads) or (node.input(3) and chosen is None):
        return None
    axes = list(range(rank)) if chosen is None else [axis % rank for axis in chosen.ints()]
    both = {axis: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes)}
    return {axis: ends for axis, ends in both.items() if any(ends)}
