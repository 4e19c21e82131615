"""What nodes cost at run time, so that a merge is made only where it pays.

Counted in elements moved: an element that is read or written costs one. A multiplication of a dense convolution or a
matrix product costs a small part of that, one of a depthwise convolution more, because it is less regular.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.graph import Dim
from bnfold.merges.terms import Kernel

DENSE, SPARSE = 1 / 16, 1 / 4
"""A multiplication against an element moved, with many and with few inputs in a group."""

FEW = 4
"""Inputs in a group that are few."""

UNKNOWN = 28
"""What a size counts as that is not known."""


@dataclass(frozen=True)
class Extent:
    """How many positions x has (batch and spatial axes), by axis where they are spatial."""

    batch: int
    sizes: tuple[int, ...]

    @staticmethod
    def of(batch: Sequence[Dim], sizes: Sequence[Dim]) -> Extent:
        """From a shape; a batch that is not known counts as one."""
        return Extent(
            math.prod(dim for dim in batch if isinstance(dim, int) and dim > 0),
            tuple(dim if isinstance(dim, int) and dim > 0 else UNKNOWN for dim in sizes),
        )

    @property
    def positions(self) -> int:
        """All of them."""
        return self.batch * math.prod(self.sizes)

    def behind(self, kernel: Kernel) -> Extent:
        """The extent of a kernel's output."""
        return Extent(
            self.batch, tuple(max(1, axis.outputs(n)) for axis, n in zip(kernel.axes, self.sizes, strict=True))
        )


def kernel_cost(kernel: Kernel, x: Extent) -> float:
    """Of one convolution or matrix product."""
    y = x.behind(kernel)
    each = SPARSE if kernel.inputs // kernel.group < FEW else DENSE
    moved = x.positions * kernel.inputs + y.positions * kernel.outputs + math.prod(kernel.shape)
    return y.positions * kernel.products * each + moved


def elementwise_cost(operands: int, channels: int, y: Extent) -> float:
    """Of an operator that reads so many tensors, and writes one like them."""
    return (operands + 1) * y.positions * channels
