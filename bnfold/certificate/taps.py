"""What nodes of the original are together, tap by tap: a place of x, and a matrix from input to output channels.

A place is relative to where a window begins; the matrices are those of the groups that the merged node has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.affines import affine_of, changes_nothing
from bnfold.certificate.ports import vector, weight_of
from bnfold.certificate.result import NotCertifiedError, WrongError
from bnfold.certificate.rounding import alike
from bnfold.certificate.wiring import Region
from bnfold.graph import Node

Tap = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Form:
    """A tensor as a map of x: for every tap a matrix for each group, (groups, outputs, inputs); and a shift.

    Of matrices that are diagonal only that may be there, (groups, outputs). With the sums of magnitudes that both are
    made of.
    """

    taps: Mapping[Tap, tuple[Array, Array]]
    shift: tuple[Array, Array]
    """Shape (groups * outputs,); where no window moves, behind the axes of x along which it varies."""
    stride: tuple[int, ...]
    """Places of x from one output to the next."""

    @property
    def channels(self) -> int:
        """How many the tensor has."""
        return int(self.shift[0].shape[-1])

    @property
    def nothing(self) -> Array:
        """The matrices of a tap that sees nothing."""
        return np.zeros_like(_written_out(next(iter(self.taps.values()))[0]))

    @property
    def written_out(self) -> Form:
        """This with whole matrices."""
        taps = {at: (_written_out(value), _written_out(bound)) for at, (value, bound) in self.taps.items()}
        return Form(taps, self.shift, self.stride)

    def scaled(self, scale: Array, shift: Array, size: Array) -> Form:
        """scale * this + shift, by channel; `size` is the magnitude of the shift."""
        first = next(iter(self.taps.values()))[0]
        along = scale.reshape(first.shape[0], -1, *(1,) * (first.ndim - 2))
        taps = {at: (value * along, bound * np.abs(along)) for at, (value, bound) in self.taps.items()}
        value, bound = self.shift
        return Form(taps, (value * scale + shift, bound * np.abs(scale) + size), self.stride)

    def plus(self, other: Form, sign: float) -> Form:
        """this + sign * other."""
        if self.stride != other.stride:
            raise WrongError("node", "branches of different strides were merged")
        ranks = {value.ndim for form in (self, other) for value, _ in form.taps.values()}
        one, other = (self, other) if len(ranks) == 1 else (self.written_out, other.written_out)
        taps = dict(one.taps)
        for at, (value, bound) in other.taps.items():
            mine = taps.get(at)
            taps[at] = (sign * value, bound) if mine is None else (mine[0] + sign * value, mine[1] + bound)
        shift = self.shift[0] + sign * other.shift[0], self.shift[1] + other.shift[1]
        return Form(taps, shift, self.stride)


def _written_out(matrix: Array) -> Array:
    return matrix if matrix.ndim > 2 else matrix[:, :, None] * np.eye(matrix.shape[1])


def _times(matrix: Array, other: Array) -> Array:
    """The product of a whole matrix and another one."""
    return matrix @ other if other.ndim > 2 else matrix * other[:, None]


@dataclass
class Terms:
    """The forms of all tensors in a region."""

    region: Region
    channels: int
    rank: int
    """Of x."""
    groups: int
    forms: dict[str, Form] = field(default_factory=dict)
    rows: list[int] = field(init=False)
    """How large axes of x must be, so that what varies along them, or is written out, can be tested; the first ones."""

    def __post_init__(self) -> None:
        self.rows = [2] * (1 if self.region.windowed else self.rank)

    def meets(self, array: Array) -> None:
        """Note an array that is combined with a tensor."""
        for axis, size in enumerate(array.shape[-self.rank :]):
            at = axis + self.rank - min(array.ndim, self.rank)
            if at < len(self.rows) and size > 1:
                self.rows[at] = size

    @property
    def axis(self) -> int:
        """Where the channels are."""
        return self.region.axis(self.rank)

    def turned(self, array: Array) -> Array:
        """What belongs to a tensor, with its channels last where they are on its last axis but one."""
        return np.atleast_2d(array).swapaxes(-1, -2) if self.region.left else array

    def vector(self, array: Array, size: int) -> Array:
        """A scale by channel; the array is turned."""
        return vector(array, 1 if self.region.windowed else -1, size)

    def along(self, array: Array, size: int) -> Array:
        """A shift by channel, and by row too where no window moves; the array is turned."""
        if self.region.windowed or array.ndim < 2:
            return self.vector(array, size)
        array = alike(array, range(array.ndim - 1))
        if array.shape[-1] not in (1, size):
            raise NotCertifiedError("a shift varies on another axis than the channels")
        rows = np.broadcast_to(array, (*array.shape[:-1], size))
        return rows.reshape(-1) if rows.size == size else rows

    @property
    def spatial(self) -> int:
        """How many axes a window has."""
        return self.rank - 2 if self.region.windowed else 0

    def start(self, alpha: Array, beta: Array) -> Form:
        """x = alpha x' + beta."""
        scale = alpha.reshape(self.groups, -1)
        return Form({(0,) * self.spatial: (scale, np.abs(scale))}, (beta, np.abs(beta)), (1,) * self.spatial)

    def through(self, region: Region, source: Form) -> Form:
        """The form of what the region makes of a source of this form."""
        self.forms[region.source] = source
        for node in region.members:
            self.step(node)
        return self.forms[region.members[-1].outputs[0]].written_out

    def step(self, node: Node) -> None:
        """The form of a node's output."""
        given = [self.forms[name] for name in node.inputs if name in self.forms]
        self.forms[node.outputs[0]] = self._made(node, given)

    def _made(self, node: Node, given: list[Form]) -> Form:
        first = given[0]
        count = first.channels
        none = np.zeros(count)
        if node.op in ("Conv", "Gemm", "MatMul", "AveragePool"):
            return self._weighted(node, first)
        if changes_nothing(node):
            return first
        if node.op == "Pad":
            return self._padded(node, first)
        if node.op == "Concat" and len(given) == len(node.inputs):
            return self._stacked(node, given)
        if node.op == "Neg":
            return first.scaled(none - 1, none, none)
        if node.op in ("Add", "Sub", "Sum", "Mean") and len(given) == len(node.inputs):
            total = first
            for other in given[1:]:
                total = total.plus(other, -1.0 if node.op == "Sub" else 1.0)
            return total.scaled(none + 1 / len(given), none, none) if node.op == "Mean" else total
        _, s, t, size = affine_of(node)
        self.meets(s + t)
        s, t, size = (self.turned(array) for array in (s, t, size))
        return first.scaled(self.vector(s, count), self.along(t, count), self.along(size, count))

    def _stacked(self, node: Node, given: list[Form]) -> Form:
        """The outputs of all, one behind the other: those of a merged node that has no groups."""
        if node.get_int("axis", 1) % self.rank != self.axis or self.groups != 1:
            raise NotCertifiedError(f"{node.label} does not put output channels one behind the other")
        if len({form.stride for form in given}) > 1:
            raise WrongError("node", "branches of different strides were merged")
        sides = []
        for side in range(2):
            taps: dict[Tap, Array] = {}
            for at in {at for form in given for at in form.taps}:
                blocks = [_written_out(form.taps[at][side]) if at in form.taps else form.nothing for form in given]
                taps[at] = np.concatenate(blocks, axis=1)
            sides.append(taps)
        lead = np.broadcast_shapes(*(form.shift[0].shape[:-1] for form in given))
        shift = tuple(
            np.concatenate([np.broadcast_to(form.shift[side], (*lead, form.channels)) for form in given], axis=-1)
            for side in range(2)
        )
        return Form({at: (sides[0][at], sides[1][at]) for at in sides[0]}, (shift[0], shift[1]), given[0].stride)

    def _padded(self, node: Node, form: Form) -> Form:
        """Zeros around x: an output is made of what stands so much further to the front.

        A shift that meets the zeros is found by the numeric test.
        """
        given, held = node.constant(1), node.constant(2)
        pads = node.get_ints("pads") or ([] if given is None else given.ints())
        value = node.get_float("value", 0.0) if held is None else float(held.float64().ravel()[0])
        chosen = node.constant(3)
        axes = [axis % self.rank for axis in chosen.ints()] if chosen is not None else list(range(self.rank))
        plain = node.get_string("mode", "constant") == "constant" and len(pads) == 2 * len(axes)
        ends = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True)) if plain else {}
        if not plain or value or any(any(both) for axis, both in ends.items() if axis < 2):
            raise NotCertifiedError(f"{node.label} puts something else than zeros around its input")
        begins = [ends.get(axis, (0, 0))[0] for axis in range(2, self.rank)]
        taps = {
            tuple(a - b * s for a, b, s in zip(at, begins, form.stride, strict=True)): each
            for at, each in form.taps.items()
        }
        return Form(taps, form.shift, form.stride)

    def _weighted(self, node: Node, form: Form) -> Form:
        if node.op in ("Gemm", "MatMul") and (self.region.windowed or self.region.left != (weight_slot(node) == 0)):
            raise NotCertifiedError(f"{node.label} works on another axis than what it became")
        weights, bias, group, places = _weights(node, self.spatial, form.channels)
        outputs, inputs = weights.shape[:2]
        each = (outputs // self.groups, inputs * group // self.groups)
        if group % self.groups or inputs * group != form.channels:
            raise WrongError("node", f"{node.label} does not fit the groups of the merged node")
        stride = node.get_ints("strides") or [1] * self.spatial
        taps: dict[Tap, tuple[Array, Array]] = {}
        lead = form.shift[0].shape[:-1]
        moved, bound = np.zeros((*lead, outputs)), np.zeros((*lead, outputs))
        shift, size = (part.reshape(*lead, self.groups, -1, 1) for part in form.shift)
        for tap, place in places.items():
            matrix = _blocks(weights[at_tap(tap)], group, self.groups, *each)
            moved += (matrix @ shift).reshape(moved.shape)
            bound += (np.abs(matrix) @ size).reshape(bound.shape)
            for at, (value, magnitudes) in form.taps.items():
                where = tuple(a * s + b for a, s, b in zip(place, form.stride, at, strict=True))
                made = _times(matrix, value), _times(np.abs(matrix), magnitudes)
                mine = taps.get(where)
                taps[where] = made if mine is None else (mine[0] + made[0], mine[1] + made[1])
        stride_now = tuple(a * b for a, b in zip(form.stride, stride, strict=True))
        return Form(taps, (moved + bias, bound + np.abs(bias)), stride_now)


def _weights(node: Node, spatial: int, channels: int) -> tuple[Array, Array, int, dict[Tap, Tap]]:
    """Weights as (outputs, inputs of a group, *taps), the bias, the groups, and for each tap its place."""
    if node.op == "AveragePool":  # where padding is not counted the numeric test finds it wrong
        kernel = tuple(node.get_ints("kernel_shape") or ())
        if node.get_int("ceil_mode", 0) or len(kernel) != spatial:
            raise NotCertifiedError(f"{node.label} rounds its size up")
        mean = np.full((channels, 1, *kernel), 1 / math.prod(kernel))
        return mean, np.zeros(channels), channels, places_of(node, kernel)
    slot = weight_slot(node)
    weights = weight_of(node, slot).float64()
    bias = node.constant(2)
    if node.op != "Conv":
        factor, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
        own = weights if slot == 0 or node.get_int("transB", 0) else weights.T
        own = own * factor if node.op == "Gemm" else own
        added = np.zeros(1) if bias is None or beta == 0 else beta * bias.float64().reshape(-1)
        if weights.ndim != 2 or added.size not in (1, own.shape[0]) or node.get_int("transA", 0):
            raise NotCertifiedError(f"{node.label} is no product of its last axis by one matrix")
        return own, np.broadcast_to(added, own.shape[:1]), 1, {(): ()}
    added = np.zeros(weights.shape[0]) if bias is None else bias.float64()
    return weights, added, node.get_int("group", 1), places_of(node, weights.shape[2:])


def places_of(node: Node, kernel: tuple[int, ...]) -> dict[Tap, Tap]:
    """For each tap of a Conv which place of x it sees, relative to the output's own."""
    begins, dilations = _begins(node, kernel), node.get_ints("dilations") or [1] * len(kernel)
    return {
        tap: tuple(t * d - b for t, d, b in zip(tap, dilations, begins, strict=True)) for tap in np.ndindex(*kernel)
    }


def _begins(node: Node, kernel: tuple[int, ...]) -> list[int]:
    """Zeros in front of x along each axis."""
    spatial, mode = len(kernel), node.get_string("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return [0] * spatial if mode == "VALID" else (node.get_ints("pads") or [0] * (2 * spatial))[:spatial]
    shape = node.graph.shape(node.inputs[0]) or ()
    found = []
    for axis in range(spatial):
        stride = (node.get_ints("strides") or [1] * spatial)[axis]
        reach = (kernel[axis] - 1) * (node.get_ints("dilations") or [1] * spatial)[axis] + 1
        size = shape[2 + axis]
        if reach == 1 or stride == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max(0, (math.ceil(size / stride) - 1) * stride + reach - size)
        else:
            raise NotCertifiedError(f"how {node.label} pads depends on a size that is not known")
        found.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return found


def at_tap(tap: Tap) -> tuple[Any, ...]:
    """The index of a tap in weights."""
    return (..., *tap)


def _blocks(matrix: Array, group: int, groups: int, outputs: int, inputs: int) -> Array:
    """Weights of `group` groups as those of fewer: (groups, outputs, inputs), zeros where a channel is not read."""
    rows, columns = matrix.shape[0] // group, matrix.shape[1]
    found: Array = np.zeros((groups, outputs, inputs))
    for own in range(group):
        block, place = divmod(own, group // groups)
        top, left = place * rows, place * columns
        found[block, top : top + rows, left : left + columns] = matrix[own * rows : (own + 1) * rows]
    return found


def weight_slot(node: Node) -> int:
    """Where a Conv, Gemm or MatMul has its constant weights."""
    return 0 if node.op == "MatMul" and node.constant(0) is not None else 1


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of a node's constant weights; () where it has none."""
    if node.op == "AveragePool":
        return (1, 1, *(node.get_ints("kernel_shape") or ()))
    weight = node.constant(weight_slot(node)) if node.op in ("Conv", "Gemm", "MatMul") else None
    return () if weight is None else weight.shape
