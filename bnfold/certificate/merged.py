"""Nodes that became one: the merged node must make what they make together, and its kernel must be theirs.

The kernel is derived here from the original's nodes, tap by tap: a tap is a place of the input, relative to where a
window begins, with a matrix from input to output channels in every group. Then both are evaluated in full on a small
tensor, with every border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.affines import SLACK, affine_of, storage_of
from bnfold.certificate.evaluate import evaluate, magnitude
from bnfold.certificate.formulas import BIAS
from bnfold.certificate.ports import vector, weight_of
from bnfold.certificate.result import NotCertifiedError, WrongError, require
from bnfold.certificate.rounding import EPS, Exact
from bnfold.certificate.sample import draw
from bnfold.certificate.stored import check_constant, stored_constant
from bnfold.certificate.wiring import GraphPair, Pair, Region
from bnfold.graph import Node

Tap = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Form:
    """A tensor as a map of x: for every tap a matrix for each group, (groups, outputs, inputs); and a shift.

    With the sums of magnitudes that both are made of.
    """

    taps: Mapping[Tap, tuple[Array, Array]]
    shift: tuple[Array, Array]
    """Shape (groups * outputs,)."""
    stride: tuple[int, ...]
    """Places of x from one output to the next."""

    def scaled(self, scale: Array, shift: Array, size: Array) -> _Form:
        """scale * this + shift, by channel; `size` is the magnitude of the shift."""
        groups = next(iter(self.taps.values()))[0].shape[0]
        along = scale.reshape(groups, -1, 1)
        taps = {at: (value * along, bound * np.abs(along)) for at, (value, bound) in self.taps.items()}
        value, bound = self.shift
        return _Form(taps, (value * scale + shift, bound * np.abs(scale) + size), self.stride)

    def plus(self, other: _Form, sign: float) -> _Form:
        """this + sign * other."""
        if self.stride != other.stride:
            raise WrongError("node", "branches of different strides were merged")
        taps = dict(self.taps)
        for at, (value, bound) in other.taps.items():
            mine = taps.get(at)
            taps[at] = (sign * value, bound) if mine is None else (mine[0] + sign * value, mine[1] + bound)
        shift = self.shift[0] + sign * other.shift[0], self.shift[1] + other.shift[1]
        return _Form(taps, shift, self.stride)


@dataclass
class _Terms:
    """The forms of all tensors in a region."""

    region: Region
    channels: int
    rank: int
    """Of x."""
    groups: int
    forms: dict[str, _Form] = field(default_factory=dict)

    @property
    def axis(self) -> int:
        """Where the channels are."""
        return 1 if self.region.windowed else self.rank - 1

    @property
    def spatial(self) -> int:
        """How many axes a window has."""
        return self.rank - 2 if self.region.windowed else 0

    def start(self, alpha: Array, beta: Array) -> _Form:
        """x = alpha x' + beta."""
        each = self.channels // self.groups
        eye = np.eye(each)[None] * alpha.reshape(self.groups, each, 1)
        return _Form({(0,) * self.spatial: (eye, np.abs(eye))}, (beta, np.abs(beta)), (1,) * self.spatial)

    def step(self, node: Node) -> None:
        """The form of a node's output."""
        given = [self.forms[name] for name in node.inputs if name in self.forms]
        self.forms[node.outputs[0]] = self._made(node, given)

    def _made(self, node: Node, given: list[_Form]) -> _Form:
        first = given[0]
        none = np.zeros_like(first.shift[0])
        if node.op in ("Conv", "Gemm", "MatMul", "AveragePool"):
            return self._weighted(node, first)
        if node.op == "Identity":
            return first
        if node.op == "Pad":
            return self._padded(node, first)
        if node.op == "Neg":
            return first.scaled(none - 1, none, none)
        if node.op in ("Add", "Sub", "Sum", "Mean") and len(given) == len(node.inputs):
            total = first
            for other in given[1:]:
                total = total.plus(other, -1.0 if node.op == "Sub" else 1.0)
            return total.scaled(none + 1 / len(given), none, none) if node.op == "Mean" else total
        _, s, t, size = affine_of(node)
        count = len(none)
        return first.scaled(*(vector(each, self.axis, count) for each in (s, t, size)))

    def _padded(self, node: Node, form: _Form) -> _Form:
        """Zeros around x: an output is made of what stands so much further to the front.

        A shift that meets the zeros is found by the numeric test.
        """
        given, held = node.constant(1), node.constant(2)
        pads = node.get_ints("pads") or ([] if given is None else given.ints())
        value = node.get_float("value", 0.0) if held is None else float(held.float64().ravel()[0])
        plain = node.get_string("mode", "constant") == "constant" and not node.input(3) and len(pads) == 2 * self.rank
        if not plain or value or any(pads[:2] + pads[self.rank : self.rank + 2]):
            raise NotCertifiedError(f"{node.label} puts something else than zeros around its input")
        begins = pads[2 : self.rank]
        taps = {
            tuple(a - b * s for a, b, s in zip(at, begins, form.stride, strict=True)): each
            for at, each in form.taps.items()
        }
        return _Form(taps, form.shift, form.stride)

    def _weighted(self, node: Node, form: _Form) -> _Form:
        weights, bias, group, places = _weights(node, self.spatial, len(form.shift[0]))
        outputs, inputs = weights.shape[:2]
        each = (outputs // self.groups, inputs * group // self.groups)
        if group % self.groups or inputs * group != len(form.shift[0]):
            raise WrongError("node", f"{node.label} does not fit the groups of the merged node")
        stride = node.get_ints("strides") or [1] * self.spatial
        moved, bound = np.zeros(outputs), np.zeros(outputs)
        taps: dict[Tap, tuple[Array, Array]] = {}
        shift, size = (part.reshape(self.groups, -1, 1) for part in form.shift)
        for tap, place in places.items():
            matrix = _blocks(weights[_at(tap)], group, self.groups, *each)
            moved += (matrix @ shift).reshape(-1)
            bound += (np.abs(matrix) @ size).reshape(-1)
            for at, (value, magnitudes) in form.taps.items():
                where = tuple(a * s + b for a, s, b in zip(place, form.stride, at, strict=True))
                made = matrix @ value, np.abs(matrix) @ magnitudes
                mine = taps.get(where)
                taps[where] = made if mine is None else (mine[0] + made[0], mine[1] + made[1])
        stride_now = tuple(a * b for a, b in zip(form.stride, stride, strict=True))
        return _Form(taps, (moved + bias, bound + np.abs(bias)), stride_now)


def _weights(node: Node, spatial: int, channels: int) -> tuple[Array, Array, int, dict[Tap, Tap]]:
    """Weights as (outputs, inputs of a group, *taps), the bias, the groups, and for each tap its place."""
    if node.op == "AveragePool":  # where padding is not counted the numeric test finds it wrong
        kernel = tuple(node.get_ints("kernel_shape") or ())
        if node.get_int("ceil_mode", 0) or len(kernel) != spatial:
            raise NotCertifiedError(f"{node.label} rounds its size up")
        mean = np.full((channels, 1, *kernel), 1 / math.prod(kernel))
        return mean, np.zeros(channels), channels, _places(node, kernel)
    weights = weight_of(node, 1).float64()
    bias = node.constant(2)
    if node.op != "Conv":
        factor, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
        own = weights if node.get_int("transB", 0) else weights.T
        own = own * factor if node.op == "Gemm" else own
        added = np.zeros(1) if bias is None or beta == 0 else beta * bias.float64().reshape(-1)
        if weights.ndim != 2 or added.size not in (1, own.shape[0]) or node.get_int("transA", 0):
            raise NotCertifiedError(f"{node.label} is no product of its last axis by one matrix")
        return own, np.broadcast_to(added, own.shape[:1]), 1, {(): ()}
    added = np.zeros(weights.shape[0]) if bias is None else bias.float64()
    return weights, added, node.get_int("group", 1), _places(node, weights.shape[2:])


def _places(node: Node, kernel: tuple[int, ...]) -> dict[Tap, Tap]:
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


def _at(tap: Tap) -> tuple[Any, ...]:
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


def check_region(graph: GraphPair, region: Region, rng: np.random.Generator) -> int:
    """Test a merged node; returns how many constants it has.

    Raises:
        WrongError: a constant or the node is wrong.
        NotCertifiedError: there is no way to tell.
    """
    new, root = region.new, region.members[-1]
    shape = root.graph.shape(region.source)
    channels = None if shape is None else shape[1 if region.windowed else -1]
    groups = new.get_int("group", 1)
    if shape is None or not isinstance(channels, int) or channels % groups or len(shape) < 2:
        raise NotCertifiedError(f"the channels of {region.source!r} are not known")
    terms = _Terms(region, channels, len(shape), groups)
    given, made = (storage_of(graph, root, name) for name in (region.source, root.outputs[0]))
    if not (given.has_decode and made.has_encode):
        raise NotCertifiedError("a channel at its ends is dead or lost")
    alpha, beta = (vector(each, terms.axis, channels) for each in (given.alpha, given.beta))
    terms.forms[region.source] = terms.start(alpha, beta)
    for node in region.members:
        terms.step(node)
    form = terms.forms[root.outputs[0]]
    size = len(form.shift[0])
    a, b = (vector(each, terms.axis, size) for each in (made.a, made.b))
    constants = _constants(region, form.scaled(a, b, np.abs(b)), terms)
    pair = Pair(region.kept, new, region.bias)
    for slot, exact in constants.items():
        held = None if slot == BIAS and region.bias is None else stored_constant(pair, slot)
        if held is not None or slot == 1:
            check_constant(pair, slot, exact)
        elif np.any(np.abs(exact.value) > exact.doubts(0, size, exact.value)):
            raise WrongError("constant", "it lacks a bias")
    for sizes in _sizes(region, shape, terms):
        _check_numerically(graph, region, constants, sizes, rng)
    return len(constants)


def _constants(region: Region, form: _Form, terms: _Terms) -> dict[int, Exact]:
    """What the merged node should hold."""
    new = region.new
    count = (len(region.members) + sum(math.prod(_shape(node)[1:]) for node in region.members) + 8) * EPS
    groups, outputs, inputs = next(iter(form.taps.values()))[0].shape
    bias = Exact.of(form.shift[0], count * form.shift[1])
    if not region.windowed:
        ((value, bound),) = (each for at, each in form.taps.items() if at == ())
        turned = new.op == "Gemm" and new.get_int("transB", 0)
        if new.op == "Gemm" and (new.get_float("alpha", 1.0), new.get_float("beta", 1.0)) != (1.0, 1.0):
            raise WrongError("node", "alpha and beta of a merged Gemm are not one")
        value, bound = (each[0] if turned else each[0].T for each in (value, bound))
        return {1: Exact.of(value, count * bound), (BIAS if new.op == "MatMul" else 2): bias}
    kernel = _shape(new)[2:]
    shape = (groups * outputs, inputs, *kernel)
    value, bound = np.zeros(shape), np.zeros(shape)
    left = dict(form.taps)
    for tap, place in _places(new, kernel).items():
        if place in left:
            value[_at(tap)], bound[_at(tap)] = (side.reshape(-1, inputs) for side in left.pop(place))
    if any(np.any(missing) for missing, _ in left.values()):
        raise WrongError("node", "its window does not hold all that the merged nodes see")
    return {1: Exact.of(value, count * bound), 2: bias}


def _shape(node: Node) -> tuple[int, ...]:
    """Shape of a node's constant weights; () where it has none."""
    if node.op == "AveragePool":
        return (1, 1, *(node.get_ints("kernel_shape") or ()))
    weight = node.constant(1) if node.op in ("Conv", "Gemm", "MatMul") else None
    return () if weight is None else weight.shape


def _sizes(region: Region, shape: tuple[object, ...], terms: _Terms) -> Iterator[tuple[int, ...]]:
    """Shapes of x for the numeric test: the true ones, or smaller ones that meet the borders in the same way."""
    if not region.windowed:
        yield (*(2 for _ in shape[:-1]), terms.channels)
        return
    kernel = _shape(region.new)[2:]
    strides = region.new.get_ints("strides") or [1] * len(kernel)
    dilations = region.new.get_ints("dilations") or [1] * len(kernel)
    unknown = [i for i, size in enumerate(shape[2:]) if not isinstance(size, int)]
    rounds = min(4, max((strides[i] for i in unknown), default=1))
    for n in range(rounds):
        found = []
        for i, size in enumerate(shape[2:]):
            least = 2 * (kernel[i] - 1) * dilations[i] + 3 * strides[i] + 1
            if not isinstance(size, int):
                found.append(least + n)
            else:
                found.append(size if size <= least else least + (size - least) % strides[i])
        yield (2, terms.channels, *found)


def _check_numerically(
    graph: GraphPair, region: Region, exact: Mapping[int, Exact], sizes: tuple[int, ...], rng: np.random.Generator
) -> None:
    """den y' = num y + off on a random tensor."""
    root, new = region.members[-1], region.new
    sample = draw(graph.storage(region.source), sizes, rng)
    values, bounds = {region.source: sample[0]}, {region.source: sample[2]}
    for node in region.members:
        values[node.outputs[0]], bounds[node.outputs[0]] = _evaluated(node, values, bounds)
    y, y_size = values[root.outputs[0]], bounds[root.outputs[0]]
    held, held_size = _evaluated(new, {new.inputs[0]: sample[1]}, {new.inputs[0]: sample[3]}, exact)
    if region.bias is not None:
        bias = exact[BIAS].value
        held, held_size = held + bias, held_size + np.abs(bias)
    if y.shape != held.shape:
        raise WrongError("node", f"its output would have shape {held.shape}, not {y.shape}")
    storage = storage_of(graph, root, root.outputs[0])
    den, num, off = storage.den, storage.num, storage.off
    size = np.abs(den) * held_size + np.abs(num) * y_size + np.abs(off)
    error = np.abs(den * held - num * y - off) / np.where(size == 0, 1.0, size)
    terms = sum(math.prod(_shape(node)[1:]) for node in (*region.members, new))
    require(error, (SLACK + terms) * EPS, f"{new.op} does not make what {root.outputs[0]!r} should hold")


def _evaluated(
    node: Node, values: Mapping[str, Array], bounds: Mapping[str, Array], exact: Mapping[int, Exact] | None = None
) -> tuple[Array, Array]:
    """A node's output, and the sum of magnitudes that it is made of."""

    def given(pick: Callable[[Array], Array], dynamic: Mapping[str, Array]) -> list[Array | None]:
        found: list[Array | None] = []
        for slot, name in enumerate(node.inputs):
            constant = node.constant(slot)
            if name in dynamic:
                found.append(dynamic[name])
            elif exact is not None and slot in exact:
                found.append(pick(exact[slot].value))
            else:
                found.append(None if constant is None else pick(constant.float64()))
        return found

    inputs, sizes = given(np.asarray, values), given(np.abs, bounds)
    y = evaluate(node, inputs)[0]
    if node.op in ("Conv", "AveragePool"):
        return y, evaluate(node, sizes)[0]
    return y, magnitude(node, inputs, sizes, y)
