"""What nodes cost at run time, so that a merge is made only where it pays.

Counted in elements moved: an element that is read or written costs one, a multiplication a small part of that. Scales
and shifts cost nothing, because they fold; a sum costs what else it reads, because runtimes add while they convolve.
`python -m tests.zoo.merge_cost` holds this against measurement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.graph import Dim
from bnfold.merges.terms import Kernel

DENSE, SPARSE = 1 / 16, 1 / 64
"""A multiplication against an element moved: of a dense kernel, and of a depthwise one."""

MARGIN = 0.9
"""A merge must cost at most so much of what it replaces: the model is not exact."""

BLOCK = (8, 4)
"""Output and input channels of a group that dense kernels work on at once: fewer take as long."""

LONG = 7
"""Taps of an axis beyond which padding makes a kernel take twice as long (CREPE: 64 and 512 taps, 1.5 to 1.9 times)."""

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
    work = kernel.products * SPARSE
    if kernel.inputs > kernel.group:
        outputs, inputs = kernel.outputs // kernel.group, kernel.inputs // kernel.group
        blocks = -(-outputs // BLOCK[0]) * BLOCK[0] * -(-inputs // BLOCK[1]) * BLOCK[1]
        work = kernel.group * blocks * math.prod(kernel.taps) * DENSE
    moved = x.positions * kernel.inputs + y.positions * kernel.outputs + math.prod(kernel.shape)
    if any(axis.taps > LONG and axis.begin + axis.end for axis in kernel.axes):
        work *= 2
    return y.positions * work + moved


def sum_cost(operands: int, channels: int, y: Extent) -> float:
    """Of adding so many tensors up."""
    return (operands - 1) * y.positions * channels


def copy_cost(channels: int, y: Extent) -> float:
    """Of reading and writing a tensor."""
    return 2 * y.positions * channels
