"""Nodes that became one: the merged node must make what they make together, and its constants must be theirs.

A kernel is derived here from the original's nodes, tap by tap (`bnfold.certificate.taps`), and every stored number
compared with it. Then both are evaluated in full on a small tensor, with every border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Array, Storage
from bnfold.certificate.affines import SLACK, storage_of
from bnfold.certificate.evaluate import evaluate, magnitude
from bnfold.certificate.formulas import BIAS
from bnfold.certificate.result import NotCertifiedError, WrongError, require
from bnfold.certificate.rounding import EPS, Exact, alike, fitted, once
from bnfold.certificate.rows import Rows
from bnfold.certificate.sample import Draws, draw
from bnfold.certificate.scales import SCALES, scales_of
from bnfold.certificate.stored import as_often, check_constant, stored_constant
from bnfold.certificate.taps import Form, Terms, at_tap, places_of, shape_of, weight_slot
from bnfold.certificate.wiring import GraphPair, Pair, Region
from bnfold.constants import Constant
from bnfold.graph import Node


def check_region(graph: GraphPair, region: Region, draws: Draws) -> int:
    """Test a merged node; returns how many constants it has.

    Raises:
        WrongError: a constant or the node is wrong.
        NotCertifiedError: there is no way to tell.
    """
    new, root = region.new, region.members[-1]
    shape = root.graph.shape(region.source)
    if new.op in SCALES and shape is not None:
        scales, sizes = scales_of(graph, region, shape)
        _check_constants(graph, region, scales)
        _check_numerically(graph, region, scales, sizes, draws)
        return len(scales)
    channels = None if shape is None or len(shape) < 2 else shape[region.axis(len(shape))]
    groups = new.get_int("group", 1)
    if shape is None or not isinstance(channels, int) or channels % groups:
        raise NotCertifiedError(f"the channels of {region.source!r} are not known")
    terms = Terms(region, channels, len(shape), groups)
    held = [storage_of(graph, root, name) for name in (region.source, root.outputs[0])]
    given, made = (storage.map(terms.turned) for storage in held)
    rows = None if region.windowed else Rows.of(given, made)
    if rows is None and not (given.has_decode and made.has_encode):
        raise NotCertifiedError("a channel at its ends is dead or lost")
    form = _form(region, terms, given, made) if rows is None else rows.form(region, terms)
    constants = _constants(region, form, terms)
    _check_constants(graph, region, constants)
    for storage in held:
        terms.meets(storage.num + storage.off + storage.den)
    for sizes in _sizes(region, shape, terms):
        _check_numerically(graph, region, constants, sizes, draws)
    return len(constants)


def _form(region: Region, terms: Terms, given: Storage, made: Storage) -> Form:
    """What the merged node should be, of x' and y'."""
    beta = terms.along(given.beta, terms.channels)
    form = terms.through(region, terms.start(terms.vector(given.alpha, terms.channels), beta))
    a, b = terms.vector(made.a, form.channels), terms.along(made.b, form.channels)
    return form.scaled(a, b, np.abs(b))


def _check_constants(graph: GraphPair, region: Region, constants: Mapping[int, Exact]) -> None:
    """Every one is what it should be; a bias may be left out where it is zero."""
    pair = Pair(region.kept, region.new, region.bias)
    root = region.members[-1]
    whole = root.graph.shape(root.outputs[0])
    for slot, exact in constants.items():
        held = None if slot == BIAS and region.bias is None else stored_constant(pair, slot)
        if held is not None or slot not in (2, BIAS):
            added = slot == BIAS or (slot == 2 and region.new.op == "Gemm")
            check_constant(pair, slot, as_often(exact, held, whole) if added else exact, graph.narrowed)
        elif np.any(np.abs(exact.value) > exact.doubts(0, exact.shape[0], exact.value)):
            raise WrongError("constant", "it lacks a bias")


def _constants(region: Region, form: Form, terms: Terms) -> dict[int, Exact]:
    """What the merged node should hold."""
    new = region.new
    count = (len(region.members) + sum(math.prod(shape_of(node)[1:]) for node in region.members) + 8) * EPS
    groups, outputs, inputs = next(iter(form.taps.values()))[0].shape
    bias = Exact.of(form.shift[0], count * form.shift[1])
    if not region.windowed:
        ((value, bound),) = (each for at, each in form.taps.items() if at == ())
        turned = region.left or (new.op == "Gemm" and new.get_int("transB", 0))
        if new.op == "Gemm" and (new.get_float("alpha", 1.0), new.get_float("beta", 1.0)) != (1.0, 1.0):
            raise WrongError("node", "alpha and beta of a merged Gemm are not one")
        value, bound = (each[0] if turned else each[0].T for each in (value, bound))
        if region.bias is not None:
            held = stored_constant(Pair(region.kept, new, region.bias), BIAS)
            if region.left and held is not None and len(held.shape) > 1:
                bias = Exact.of(_as_column(form.shift[0]), count * _as_column(form.shift[1]))
            else:
                bias = Exact.of(*once(form.shift[0], count * form.shift[1]))
        return {weight_slot(new): Exact.of(value, count * bound), (BIAS if new.op == "MatMul" else 2): bias}
    kernel = shape_of(new)[2:]
    shape = (groups * outputs, inputs, *kernel)
    value, bound = np.zeros(shape), np.zeros(shape)
    left = dict(form.taps)
    for tap, place in places_of(new, kernel).items():
        if place in left:
            value[at_tap(tap)], bound[at_tap(tap)] = (side.reshape(-1, inputs) for side in left.pop(place))
    if any(np.any(missing) for missing, _ in left.values()):
        raise WrongError("node", "its window does not hold all that the merged nodes see")
    return {1: Exact.of(value, count * bound), 2: bias}


def _as_column(shift: Array) -> Array:
    """A shift that stands along the last axis, along the last but one."""
    return shift[:, None] if shift.ndim == 1 else shift.swapaxes(-1, -2)


def _sizes(region: Region, shape: tuple[object, ...], terms: Terms) -> Iterator[tuple[int, ...]]:
    """Shapes of x for the numeric test: the true ones, or smaller ones that meet the borders in the same way."""
    if not region.windowed:
        yield tuple(terms.channels if axis == terms.axis else size for axis, size in enumerate(terms.rows))
        return
    kernel = shape_of(region.new)[2:]
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
        yield (terms.rows[0], terms.channels, *found)


_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
"""Members with a constant that lies along axes of the tensor."""

FEW = 16
"""Channels of a depthwise convolution that are evaluated: each works alone, and every number is compared anyhow."""


def _some(region: Region, channels: int) -> NDArray[np.int64] | None:
    """Which channels to evaluate, where no node mixes them; None for all."""
    convolutions = [node for node in (*region.members, region.new) if node.op == "Conv"]
    alone = all(node.get_int("group", 1) == channels == shape_of(node)[0] for node in convolutions)
    if channels <= FEW or region.new.version < 7 or not alone:
        return None
    return np.unique(np.linspace(0, channels - 1, FEW).astype(np.int64))


def _cut(array: Array, axis: int, some: NDArray[np.int64] | None) -> Array:
    """Some channels of an array that has them along an axis, or does not vary along it."""
    return array if some is None or axis < 0 or array.shape[axis] == 1 else np.take(array, some, axis)


def _check_numerically(
    graph: GraphPair, region: Region, exact: Mapping[int, Exact], sizes: tuple[int, ...], draws: Draws
) -> None:
    """den y' = num y + off on a random tensor."""
    root, new = region.members[-1], region.new
    some = _some(region, sizes[1]) if region.windowed else None
    own, result = (storage_of(graph, root, name) for name in (region.source, root.outputs[0]))
    if some is not None:
        sizes = (sizes[0], len(some), *sizes[2:])
        own, result = (storage.map(lambda array: _cut(array, 1, some)) for storage in (own, result))
    sample = draw(own, sizes, draws)
    values, bounds = {region.source: sample[0]}, {region.source: sample[2]}
    for node in region.members:
        values[node.outputs[0]], bounds[node.outputs[0]] = _evaluated(node, values, bounds, some, region.windowed)
    y, y_size = values[root.outputs[0]], bounds[root.outputs[0]]
    read = next(name for slot, name in enumerate(new.inputs) if slot not in exact)
    terms = sum(math.prod(shape_of(node)[1:]) for node in (*region.members, new))
    for size_of in (_magnitude, _terms):
        held, held_size = _replaced(region, {read: sample[1]}, {read: sample[3]}, some, exact, size_of)
        if y.shape != held.shape:
            raise WrongError("node", f"its output would have shape {held.shape}, not {y.shape}")
        size = np.abs(result.den) * held_size + np.abs(result.num) * y_size + np.abs(result.off)
        error = np.abs(result.den * held - result.num * y - result.off) / np.where(size == 0, 1.0, size)
        if error.max(initial=0.0) <= (SLACK + terms) * EPS:
            return
    require(error, (SLACK + terms) * EPS, f"{new.op} does not make what {root.outputs[0]!r} should hold")


def _replaced(
    region: Region,
    values: Mapping[str, Array],
    bounds: Mapping[str, Array],
    some: NDArray[np.int64] | None,
    exact: Mapping[int, Exact],
    size_of: Callable[[Exact], Array],
) -> tuple[Array, Array]:
    """What the new node makes with the Add behind it, and the sum of magnitudes that it is made of."""
    held, size = _evaluated(region.new, values, bounds, some, region.windowed, exact, size_of)
    if region.bias is None:
        return held, size
    stored = stored_constant(Pair(region.kept, region.new, region.bias), BIAS)
    bias, bias_size = (_as_stored(of(exact[BIAS]), stored) for of in (_value, size_of))
    first = region.bias.constant(1) is not None
    pairs = ((held, bias), (size, bias_size))
    held, size = (evaluate(region.bias, [y, b] if first else [b, y])[0] for y, b in pairs)
    return held, size


def _value(exact: Exact) -> Array:
    return exact.value


def _magnitude(exact: Exact) -> Array:
    return np.abs(exact.value)


def _terms(exact: Exact) -> Array:
    """How large the terms are that a constant was made of, by what they may have lost where they cancelled."""
    value = exact.value
    return np.abs(value) + exact.doubts(0, exact.shape[0] if exact.shape else 1, value) / EPS


def _narrow(node: Node, array: Array, windowed: bool) -> Array:
    """What is written out for every place, and the same at each, as one: x has fewer places in the numeric test."""
    if windowed and node.op in _AFFINE:
        rank = node.graph.rank(node.outputs[0]) or array.ndim
        first = rank - array.ndim
        if node.version < 7:
            first = node.get_int("axis", first) % rank
        return alike(array, range(max(0, 2 - first), array.ndim))
    return array


def _as_stored(value: Array, stored: Constant | None) -> Array:
    """The value in the shape in which it is stored, which decides how it meets the other operand."""
    fit = None if stored is None else fitted(value, stored.shape)
    return value if fit is None else fit


def _evaluated(
    node: Node,
    values: Mapping[str, Array],
    bounds: Mapping[str, Array],
    some: NDArray[np.int64] | None,
    windowed: bool,
    exact: Mapping[int, Exact] | None = None,
    size_of: Callable[[Exact], Array] = _magnitude,
) -> tuple[Array, Array]:
    """A node's output, and the sum of magnitudes that it is made of, as large as those of its `exact` constants are."""
    rank = next(iter(values.values())).ndim
    groups = {} if some is None or node.op != "Conv" else {"group": len(some)}

    def given(
        pick: Callable[[Array], Array], of: Callable[[Exact], Array], dynamic: Mapping[str, Array]
    ) -> list[Array | None]:
        found: list[Array | None] = []
        for slot, name in enumerate(node.inputs):
            constant = node.constant(slot)
            if name in dynamic:
                found.append(dynamic[name])
            elif exact is not None and slot in exact:
                found.append(_cut(_as_stored(of(exact[slot]), constant), 0, some))
            elif constant is None:
                found.append(None)
            else:
                array = _narrow(node, constant.float64(), windowed)
                axis = 1 - (rank - array.ndim) if node.op in _AFFINE else 0
                found.append(array if node.op in ("Pad", "Dropout") else pick(_cut(array, axis, some)))
        return found

    inputs, sizes = given(np.asarray, _value, values), given(np.abs, size_of, bounds)
    y = evaluate(node, inputs, groups)[0]
    if node.op in ("Conv", "AveragePool"):
        return y, evaluate(node, sizes, groups)[0]
    return y, magnitude(node, inputs, sizes, y)
