"""The numeric test of one node: the new node, on what the output holds, must make what the old one makes, re-stored.

Everything is float64. New constants are taken before their rounding, as the formulas give them: so the test allows no
more than the rounding of float64. That the stored constants are those, rounded once, is checked apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold.affine import Array, Storage
from bnfold.certificate import windows
from bnfold.certificate.affines import SLACK, terms_ahead, terms_behind
from bnfold.certificate.evaluate import evaluate, magnitudes
from bnfold.certificate.exact import exact_attributes, exact_constants
from bnfold.certificate.extents import LARGE, RECURRENT, ROWS, Shapes, grid, integers, picks_rows
from bnfold.certificate.formulas import BIAS
from bnfold.certificate.kinks import ROUNDS, kinks
from bnfold.certificate.narrowed import rounded_once
from bnfold.certificate.result import NotCertifiedError, WrongError, lost_alike, require
from bnfold.certificate.rounding import EPS, Exact, fitted, identical, in_memory, read_rows, spans
from bnfold.certificate.sample import NOTHING, Draws, Sample, draw, misfit, within_domain
from bnfold.certificate.stored import as_often, check_attribute, check_constant, stored_constant
from bnfold.certificate.wiring import GraphPair, Pair
from bnfold.source import FLOATS

WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
"""Operators that make of finite numbers finite ones, unless their weights are none."""

BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Gemm"})
"""Operators whose constants may say one number again and again."""

INDIFFERENT = {"Shape": 0, "Size": 0, "CastLike": 1}
"""Inputs of which only the shape or the type matters."""

MANY = 32
"""More axes than any tensor has, and as many as an array of numpy 1 may have."""


def touched(graph: GraphPair, pair: Pair) -> bool:
    """Whether a node must be tested: it has a re-stored tensor, a new constant, a bias behind it, a new attribute."""
    return bool(pair.changed) or pair.bias is not None or pair.reset or _restored(graph, pair)


def _restored(graph: GraphPair, pair: Pair) -> bool:
    node = pair.old
    indifferent = INDIFFERENT.get(node.op)
    used = [name for slot, name in enumerate(node.inputs) if slot != indifferent]
    return any(graph.storage(name) is not None for name in (*used, *node.outputs) if name)


def check_node(graph: GraphPair, pair: Pair, draws: Draws) -> int:
    """Test one node; returns how many new constants it has.

    Raises:
        WrongError: a constant or the node is wrong.
        NotCertifiedError: there is no way to tell.
    """
    if not (_restored(graph, pair) or pair.bias or pair.reset):
        for slot in sorted(pair.changed):
            old, new = pair.old.constant(slot), pair.new.constant(slot)
            if old is None or new is None or not (identical(old, new) or rounded_once(old, new, graph.narrowed)):
                raise WrongError(
                    "constant", f"the constant {pair.new.input(slot)!r} at input {slot} changed for no reason"
                )
        return len(pair.changed)
    exact, attributes = exact_constants(graph, pair), exact_attributes(graph, pair)
    for slot, value in exact.items():
        if pair.old.op in BROADCASTING or (slot == BIAS and pair.bias is not None):
            value = as_often(value, stored_constant(pair, slot), pair.old.graph.shape(pair.old.outputs[0]))
        check_constant(pair, slot, value, graph.narrowed)
    for name, value in attributes.items():
        check_attribute(pair, name, value)
    test = _Test(graph, pair, exact, {name: float(value.value) for name, value in attributes.items()}, draws)
    if pair.old.op in WINDOWED:
        test.window()
    else:
        test.whole()
    return len(exact) + len(attributes)


class _Test:
    """One node, its constants before and after, and the samples."""

    def __init__(
        self,
        graph: GraphPair,
        pair: Pair,
        exact: Mapping[int, Exact],
        attributes: Mapping[str, float],
        draws: Draws,
    ) -> None:
        self.graph, self.pair, self.exact, self.attributes, self.draws = graph, pair, exact, attributes, draws
        self.node = pair.old
        self.some = self._some_outputs()
        self.slots = range(max(len(pair.old.inputs), len(pair.new.inputs)))
        self.constants = {slot: self._constant(slot) for slot in self.slots}

    def _some_outputs(self) -> tuple[int, int, NDArray[np.int64]] | None:
        """For a large matrix or kernel: its output axis, that axis of the result, and which outputs to test."""
        node = self.node
        left = node.op == "MatMul" and node.constant(1) is None
        weight = node.constant(0 if left else 1)
        if weight is None or math.prod(weight.shape) <= LARGE:
            return None
        axes = {
            "Conv": (0, 1) if node.get_int("group", 1) == 1 else None,
            "Gemm": (0 if node.get_int("transB", 0) else 1, -1),
            "MatMul": ((0, -2) if left else (1, -1)) if len(weight.shape) == 2 else None,
        }.get(node.op)
        return axes and (*axes, np.unique(np.linspace(0, weight.shape[axes[0]] - 1, 64).astype(np.int64)))

    def _constant(self, slot: int) -> Sample:
        """The old and the new value at an input; `NOTHING` where there is no constant."""
        old, exact = self.node.constant(slot), self.exact.get(slot)
        if old is not None and old.type not in FLOATS:
            return Sample.same(np.asarray(old.load()))
        before = after = None
        if old is not None:
            source = in_memory(old)
            before = after = self._part(slot, old.shape, lambda start, stop: read_rows(source, start, stop))
        if exact is not None:
            after = self._part(slot, exact.shape, exact.rows)
            stored = stored_constant(self.pair, slot)
            # The stored one's own shape decides how it meets the other operand.
            if stored is not None and self.some and slot and _aligned(stored.shape) not in (_aligned(exact.shape), ()):
                raise WrongError("constant", f"the constant {stored.name!r} at input {slot} lies along other axes")
            fit = None if stored is None or self.some else fitted(after, stored.shape)
            after = after if fit is None else fit
        return Sample(before, after, None, None)

    def _part(self, slot: int, shape: tuple[int, ...], rows: Callable[[int, int], Array]) -> Array:
        """A constant; of a large weight, and of its bias, only what belongs to the outputs that are tested."""
        if self.some is None:
            few = ROWS if slot == 0 and picks_rows(self.node) else math.inf
            return rows(0, int(min(few, shape[0])) if shape else 1)
        axis, _, chosen = self.some
        if slot != 2 and axis == 0:
            return np.concatenate([rows(int(row), int(row) + 1) for row in chosen])
        if len(shape) < 2:
            whole = rows(0, shape[0] if shape else 1)
            return whole[chosen] if whole.size > 1 else whole
        pick = chosen if shape[-1] != 1 else slice(None)
        return np.concatenate([rows(start, stop)[..., pick] for start, stop in spans(shape)])

    def window(self) -> None:
        """Convolutions and pools."""
        node, graph = self.node, self.graph
        weighted, batch = node.op in ("Conv", "ConvTranspose"), 1
        for name in (node.inputs[0], node.outputs[0]):
            varying = grid(graph.storage(name))
            batch = max(batch, *varying[:1], 1)
            if any(size != 1 for axis, size in enumerate(varying) if axis > 1 or (axis == 0 and weighted)):
                raise NotCertifiedError(f"{name!r} is stored in a way that varies within a window")
        shape = node.graph.shape(node.inputs[0])
        if shape is None:
            raise NotCertifiedError("the rank of its input is not known")
        storage, bias = graph.storage(node.inputs[0]), self.constants.get(2, NOTHING)
        group, transposed = node.get_int("group", 1), node.op == "ConvTranspose"
        if weighted:
            if node.input(2) and node.constant(2) is None:
                bias = self._drawn(2)
            weight = self.constants[1] if node.constant(1) is not None else self._drawn(1)
            rows, columns, *kernel = next(side.shape for side in weight if side is not None)
            channels, terms = (rows if transposed else columns * group), columns * math.prod(kernel)
        else:
            kernel = list(node.get_ints("kernel_shape") or ())
            channels = max((*grid(storage), 1, 1)[1], (*grid(graph.storage(node.outputs[0])), 1, 1)[1])
            terms = math.prod(kernel)
        for axes in windows.samples(node, shape[2:], tuple(kernel)):
            if not weighted:
                x = draw(storage, (max(batch, 2), channels, *(axis.size for axis in axes)), self.draws)
                made = [windows.pool(node, side, axes) for side in x]
                self._relate(made[0], made[1], made[2], made[3], terms)
                continue
            seen = self._seen(storage, channels, axes)
            sides = zip(seen[:2], weight[:2], bias[:2], strict=True)
            y, held = (windows.convolve(*side, axes, group, transposed) for side in sides)
            if self._plainly(y, held, terms):
                continue
            sized = zip(seen[2:], weight.sized[2:], bias.sized[2:], strict=True)
            y_size, held_size = (windows.convolve(*side, axes, group, transposed) for side in sized)
            self._relate([y], [held], [y_size], [held_size], terms)

    def _seen(self, storage: Storage | None, channels: int, axes: tuple[windows.Axis, ...]) -> Sample:
        """What the windows of a convolution see of a random tensor; of one that is stored as it was always the same."""
        shape = (1, channels, *(axis.size for axis in axes))

        def make() -> Sample:
            old, new, old_size, new_size = draw(storage, shape, self.draws)
            seen, size = (windows.unfold(side, axes, 0.0) for side in (old, old_size))
            if new is old:
                return Sample(seen, seen, size, size)
            return Sample(seen, windows.unfold(new, axes, 0.0), size, windows.unfold(new_size, axes, 0.0))

        count = channels * math.prod(axis.taps.size for axis in axes)
        return make() if storage is not None else self.draws.kept(count, ("seen", channels, axes), make)

    def _drawn(self, slot: int) -> Sample:
        """Weights or a bias that the graph computes, in their true shape."""
        shape = self.node.graph.shape(self.node.inputs[slot])
        if shape is None or not all(isinstance(dim, int) and dim > 0 for dim in shape):
            raise NotCertifiedError("the shape of its weights is not known")
        return draw(self.graph.storage(self.node.inputs[slot]), tuple(int(dim or 1) for dim in shape), self.draws, slot)

    def whole(self) -> None:
        """Any other operator, on tensors of the true shape where that matters."""
        for _ in range(ROUNDS if kinks(self.node, MANY) else 1):
            try:
                self._whole(2)
            except NotCertifiedError:
                self._whole(1)  # a target shape may have a batch of one built in

    def _whole(self, unknown: int) -> None:
        node, drawn = self.node, dict[str, Sample]()
        shapes = Shapes(self.graph, node, unknown)
        given: list[Sample] = []
        for slot in self.slots:
            name = node.input(slot)
            if slot in shapes.instead:
                given.append(Sample.same(shapes.instead[slot]))
            elif name and node.constant(slot) is None:
                drawn[name] = drawn.get(name) or self._dynamic(shapes, slot)
                given.append(drawn[name])
            else:
                given.append(self.constants[slot].sized)
        try:
            self._compare(given)
        except WrongError:
            self._compare([self._with_terms(*each) for each in zip(self.slots, given, strict=True)])

    def _with_terms(self, slot: int, sample: Sample) -> Sample:
        """A sample as large as the terms are that it was made of."""
        exact = self.exact.get(slot)
        if exact is not None and exact.doubt is not None and np.shape(sample.new) == exact.shape:
            return Sample(sample.old, sample.new, sample.old_size, np.abs(sample.new) + exact.doubt / EPS)
        terms = terms_behind(self.graph, self.node, self.node.input(slot))
        if terms is None or sample.old_size is None:
            return sample
        return Sample(sample.old, sample.new, sample.old_size + terms[0], sample.new_size + terms[1])

    def _compare(self, given: list[Sample]) -> None:
        node, new = self.node, self.pair.new
        x, held, x_size, held_size = (_trimmed([sample[side] for sample in given]) for side in range(4))
        with np.errstate(all="ignore"):
            y, made = evaluate(node, x), evaluate(new, held, self.attributes)
            sizes = [magnitudes(node, x, x_size, y), magnitudes(new, held, held_size, made)]
            if self.pair.bias is not None:
                made, sizes[1] = [self._with_bias(made[0])], [np.abs(self._with_bias(sizes[1][0], np.abs))]
        first = x[0]
        summed = max(first.shape) if node.op in ("MatMul", "Gemm") and first is not None else 0
        entering = sum(value.size for value in x if value is not None)
        self._relate(y, made, sizes[0], sizes[1], summed + entering // max(1, y[0].size))

    def _dynamic(self, shapes: Shapes, slot: int) -> Sample:
        name = self.node.inputs[slot]
        if slot not in shapes.found:
            return Sample.same(integers(shapes, slot))
        if self.node.graph.type(name) == TensorProto.BOOL:
            return Sample.same(self.draws.rng.random(shapes.found[slot]) < 0.5)
        storage = self.graph.storage(name)
        shape = shapes.found[slot]
        sample = draw(storage, shape, self.draws, slot, kinks(self.node, len(shape)))
        return within_domain(self.node, storage, sample) if slot == 0 else sample

    def _with_bias(self, y: Array, of: Callable[[Array], Array] = np.asarray) -> Array:
        """What the Add behind a MatMul makes, with its own attributes and the shape in which the bias is stored."""
        add, stored = self.pair.bias, stored_constant(self.pair, BIAS)
        assert add is not None and stored is not None
        value, shape = self.exact[BIAS].value, stored.shape
        if self.some is not None:
            _, axis, chosen = self.some
            shape = tuple(len(chosen) if size == value.shape[axis] else size for size in shape)
            value = value.take(chosen, axis)
        fit = fitted(value, shape)
        value = of(value if fit is None else fit)
        if add.version < 7 and not add.get_int("broadcast", 0) and value.shape != y.shape:
            raise WrongError("node", "the Add behind it does not broadcast in this opset")
        return evaluate(add, [y, value] if add.constant(1) is not None else [value, y])[0]

    def _plainly(self, y: Array, held: Array, terms: int) -> bool:
        """Whether one output passes `_relate` even if its terms were no larger than the output itself."""
        storage = self.graph.storage(self.node.outputs[0]) or Storage.identity(y.ndim)
        if y.shape != held.shape:
            return False
        with np.errstate(all="ignore"):
            error = misfit(*self._part_of(storage), y, held, np.abs(y), np.abs(held))
        return bool(error.max(initial=0.0) <= (SLACK + terms) * EPS)

    def _relate(
        self,
        old: Sequence[Array],
        new: Sequence[Array],
        old_sizes: Sequence[Array],
        new_sizes: Sequence[Array],
        terms: int,
    ) -> None:
        """den y' = num y + off, and y' is finite, or a weight that is not spoils both alike."""
        node = self.node
        for slot, name in enumerate(node.outputs):
            if not name or (slot and not self._is_read(name)):
                continue
            if slot >= len(old):
                raise NotCertifiedError(f"nothing is known of its output {slot}")
            storage, y, held = self.graph.storage(name), old[slot], new[slot]
            if y.shape != held.shape:
                raise WrongError("node", f"its output would have shape {held.shape}, not {y.shape}")
            if storage is None and np.array_equal(y, held):
                continue
            den, num, off = self._part_of(storage or Storage.identity(y.ndim))
            y_size, held_size = np.abs(y), np.abs(held)
            if slot < len(old_sizes) and old_sizes[slot].shape == y.shape:
                y_size, held_size = old_sizes[slot], new_sizes[slot]
            elif node.op in RECURRENT:  # the last states are as uncertain as all states
                y_size, held_size = (np.full(y.shape, np.max(sizes[0])) for sizes in (old_sizes, new_sizes))
            allowed = (SLACK + terms) * EPS
            with np.errstate(all="ignore"):
                error = misfit(den, num, off, y, held, y_size, held_size)
                if node.op in LINEAR:
                    error = np.where(lost_alike(den * held, num * y + off) & (den != 0) & (num != 0), 0.0, error)
                if error.max(initial=0.0) > allowed and (ahead := terms_ahead(self.graph, node, name)) is not None:
                    error = np.minimum(error, misfit(den, num, off, y, held, y_size, held_size + self._cut(ahead)))
            require(error, allowed, f"{node.op} does not make what {name!r} should hold")

    def _is_read(self, name: str) -> bool:
        graph = self.node.graph
        return bool(graph.consumers.get(name)) or name in graph.output_set or name in graph.captured

    def _part_of(self, storage: Storage) -> tuple[Array, Array, Array]:
        return self._cut(storage.den), self._cut(storage.num), self._cut(storage.off)

    def _cut(self, array: Array) -> Array:
        """What of an array over the output's channels belongs to those that are tested."""
        if self.some is None or array.shape[self.some[1]] == 1:
            return array
        return np.take(array, self.some[2], self.some[1])


def _aligned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the ones in front, which change nothing."""
    return shape if not shape or shape[0] != 1 else _aligned(shape[1:])


def _trimmed(values: list[Any]) -> list[Any]:
    """Without the optional inputs at the end that are left out."""
    while values and values[-1] is None:
        values.pop()
    return values
