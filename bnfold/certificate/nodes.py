"""The numeric test of one node: the new node, on what the output holds, must make what the old one makes, re-stored.

Everything is float64. New constants are taken before their rounding, as the formulas give them: so the test allows no
more than the rounding of float64, and whether the constants are rounded rightly is told apart from whether they are
right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from bnfold.affine import Array, Storage
from bnfold.certificate import windows
from bnfold.certificate.evaluate import evaluate, magnitude
from bnfold.certificate.formulas import BIAS, affine_of, exact_constants
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact, compare, fitted, in_memory, read_rows, spans
from bnfold.certificate.sample import Drawn, Shapes, draw, integers
from bnfold.certificate.wiring import GraphPair, Pair
from bnfold.constants import Constant
from bnfold.graph import Node
from bnfold.source import FLOATS

WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})

INDIFFERENT = {"Shape": 0, "Size": 0, "CastLike": 1}
"""Inputs of which only the shape or the type matters."""

SLACK = 128
"""Roundings of float64 that a result may carry, besides one for each term of its sums."""

LARGE = 1 << 22
"""Elements above which a weight is tested on some of its outputs only. (Each of its elements is compared anyhow.)"""


def touched(graph: GraphPair, pair: Pair) -> bool:
    """Whether a node must be tested: it has a re-stored tensor, a new constant, a bias behind it, a new attribute."""
    node = pair.old
    used = [name for slot, name in enumerate(node.inputs) if name and INDIFFERENT.get(node.op) != slot]
    restored = any(graph.storage(name) is not None for name in [*used, *node.outputs] if name)
    return restored or bool(pair.changed) or pair.bias is not None or pair.reset


def check_removed(graph: GraphPair, node: Node) -> None:
    """Its input and its output are one tensor in the output: den' v' = num' (s v + t) + off' wherever v is."""
    x_name, y_name = graph.witness.removed[node.index]
    slot, s, t, t_size = affine_of(node)
    if (node.inputs[slot], node.outputs[0]) != (x_name, y_name):
        raise NotCertifiedError(f"it left between {x_name!r} and {y_name!r}, which are not its ends")
    x, y = (graph.storage(name) or Storage.identity(s.ndim) for name in (x_name, y_name))
    if x.is_degenerate or y.is_degenerate:
        raise NotCertifiedError("a channel is stored in a way that says nothing")
    with np.errstate(all="ignore"):
        slope = _relative(y.num * s * x.den, -y.den * x.num)
        through = (y.num * t * x.num, -y.num * s * x.off, y.off * x.num)
        offset = _relative(*through, size=np.abs(y.num * x.num) * t_size + np.abs(through[1]) + np.abs(through[2]))
        # Where v is lost, v' is the constant off/den, and y must be just that.
        held = (y.den * x.off, -x.den * y.num * t, -x.den * y.off)
        constant = _relative(*held, size=np.abs(held[0]) + np.abs(x.den * y.num) * t_size + np.abs(held[2]))
        error = np.maximum(slope, np.where(x.num == 0, constant, offset))
    _require(error, "it left, but its two ends are not the same values")


def _relative(*terms: Array, size: Array | None = None) -> Array:
    """A sum that should be zero, relative to the magnitude of its terms."""
    total = sum(terms[1:], terms[0])
    whole = np.asarray(sum(np.abs(term) for term in terms)) if size is None else size
    return np.where(total == 0, 0.0, np.abs(total) / np.where(whole == 0, 1.0, whole))


class NodeError(Exception):
    """A node that does not do what it should."""

    def __init__(self, kind: str, text: str, error: float) -> None:
        super().__init__(text)
        self.kind, self.error = kind, error


def _require(error: Array, text: str, limit: float = SLACK * EPS) -> None:
    worst = float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))
    if worst > limit:
        raise NodeError("node", text, worst)


def check_node(graph: GraphPair, pair: Pair, rng: np.random.Generator) -> int:
    """Test one node; returns how many new constants it has.

    Raises:
        NodeError: a constant or the node is wrong.
        NotCertifiedError: there is no way to tell.
    """
    exact = exact_constants(graph, pair)
    for slot, value in exact.items():
        _check_constant(pair, slot, value)
    test = _Test(graph, pair, exact, rng)
    if pair.old.op in WINDOWED:
        test.window()
    else:
        test.whole()
    return len(exact)


def _added(pair: Pair) -> Constant:
    assert pair.bias is not None
    return next(c for slot in (0, 1) if (c := pair.bias.constant(slot)) is not None)


def _check_constant(pair: Pair, slot: int, exact: Exact) -> None:
    stored = _added(pair) if slot == BIAS else pair.new.constant(slot)
    if stored is None:
        raise NotCertifiedError(f"its new input {slot} is no constant")
    weights = [c for c in (pair.old.constant(s) for s in (1, 0)) if c is not None]
    old = pair.old.constant(slot) if slot != BIAS and pair.old.input(slot) else weights[0] if weights else None
    what = "its bias" if slot == BIAS else f"the constant {pair.new.input(slot)!r} at input {slot}"
    if old is not None and stored.type != old.type or stored.type not in FLOATS:
        raise NodeError("constant", f"{what} has another element type than before", 0.0)
    error = compare(stored, exact)
    if error:
        text = f"off by {error:.3g} units in the last place" if np.isfinite(error) else "of another shape, or not finite"
        raise NodeError("constant", f"{what} is {text}", error)


class _Test:
    """One node, its constants before and after, and the samples."""

    def __init__(self, graph: GraphPair, pair: Pair, exact: Mapping[int, Exact], rng: np.random.Generator) -> None:
        self.graph, self.pair, self.exact, self.rng = graph, pair, exact, rng
        self.node = pair.old
        self.kept = self._some_outputs()
        self.constants: dict[int, Drawn] = {}
        for slot in range(max(len(self.node.inputs), len(pair.new.inputs))):
            if slot in exact or self.node.constant(slot) is not None:
                self.constants[slot] = self._constant(slot)

    def _some_outputs(self) -> tuple[int, int, Array] | None:
        """For a large matrix or kernel: its output axis, that axis of the result, and which outputs to test."""
        node = self.node
        slot = 0 if node.op == "MatMul" and node.constant(1) is None else 1
        weight = node.constant(slot)
        if weight is None or int(np.prod(weight.shape, dtype=np.int64)) <= LARGE:
            return None
        axes = {
            "Conv": (0, 1) if node.get_int("group", 1) == 1 else None,
            "Gemm": (0 if node.get_int("transB", 0) else 1, -1),
            "MatMul": ((0, -2) if slot == 0 else (1, -1)) if len(weight.shape) == 2 else None,
        }.get(node.op)
        if axes is None:
            return None
        return (*axes, np.unique(np.linspace(0, weight.shape[axes[0]] - 1, 64).astype(np.int64)))

    def _constant(self, slot: int) -> Drawn:
        """The old and the new value at an input; None on a side where there is none."""
        old, exact = self.node.constant(slot), self.exact.get(slot)
        if old is not None and old.type not in FLOATS:
            value = np.asarray(old.load())
            return Drawn(value, value, value, value)
        before = None if old is None else self._part(slot, old.shape, _reader(in_memory(old)))
        after = before
        if exact is not None:
            after = self._part(slot, exact.shape, lambda start, stop: exact.rows(start, stop)[0])
            stored = self.pair.new.constant(slot)
            # The stored one's own shape decides how it meets the other operand.
            fit = None if stored is None or self.kept else fitted(after, stored.shape)
            after = after if fit is None else fit
        if before is None or after is None:
            assert after is not None
            before = np.zeros(0)
        return Drawn(before, after, np.abs(before), np.abs(after))

    def _part(self, slot: int, shape: tuple[int, ...], rows: object) -> Array:
        """A constant, or of a large weight and its bias what belongs to the outputs that are tested."""
        read = rows
        assert callable(read)
        if self.kept is None:
            return np.asarray(read(0, shape[0] if shape else 1))
        axis, _, chosen = self.kept
        pieces = [np.asarray(read(start, stop)) for start, stop in spans(shape)] if slot == 2 or axis == 1 else []
        if slot == 2:
            whole = np.concatenate(pieces) if shape else pieces[0]
            return whole if not shape or whole.shape[-1] == 1 else whole[..., chosen]
        if axis == 1:
            return np.concatenate([piece[:, chosen] for piece in pieces])
        return np.concatenate([np.asarray(read(int(row), int(row) + 1)) for row in chosen])

    def window(self) -> None:
        """Convolutions and pools."""
        node, graph = self.node, self.graph
        for name in (node.inputs[0], node.outputs[0]):
            storage = graph.storage(name)
            arrays = () if storage is None else (storage.den, storage.num, storage.off)
            if any(size != 1 for array in arrays for size in (array.shape[0], *array.shape[2:])):
                raise NotCertifiedError(f"{name!r} is stored in a way that varies within a window")
        shape = node.graph.shape(node.inputs[0])
        if shape is None:
            raise NotCertifiedError("the rank of its input is not known")
        weight = self._weight() if "Conv" in node.op else None
        kernel = weight.old.shape[2:] if weight is not None else tuple(node.get_ints("kernel_shape") or ())
        group, transposed = node.get_int("group", 1), node.op == "ConvTranspose"
        channels = shape[1]
        if weight is not None:
            channels = weight.old.shape[0] if transposed else weight.old.shape[1] * group
        if not isinstance(channels, int):
            channels = _channels(graph, node)
        bias = self.constants.get(2)
        for axes in windows.samples(node, shape[2:], kernel):
            x = draw(graph.storage(node.inputs[0]), (2, channels, *(axis.size for axis in axes)), self.rng)
            if weight is None:
                old, new = windows.pool(node, x.old, axes), windows.pool(node, x.new, axes)
                sizes = [windows.pool(node, size, axes)[0] for size in (x.old_size, x.new_size)]
                terms = int(np.prod(kernel))
            else:
                sides = [(x.old, weight.old, bias and bias.old), (x.new, weight.new, bias and bias.new)]
                sides += [(x.old_size, weight.old_size, bias and bias.old_size)]
                sides += [(x.new_size, weight.new_size, bias and bias.new_size)]
                made = [windows.convolve(v, w, b if b is not None and b.size else None, axes, group, transposed) for v, w, b in sides]
                old, new, sizes = made[:1], made[1:2], made[2:]
                terms = weight.old.size // weight.old.shape[0]
            self._relate(old, new, sizes, terms)

    def _weight(self) -> Drawn:
        if 1 in self.constants:
            return self.constants[1]
        shape = self.node.graph.shape(self.node.inputs[1])
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            raise NotCertifiedError("the shape of its weights is not known")
        return draw(self.graph.storage(self.node.inputs[1]), tuple(int(dim or 1) for dim in shape), self.rng)

    def whole(self) -> None:
        """Any other operator, on tensors of the true shape where that matters."""
        try:
            self._whole(2)
        except NotCertifiedError:
            self._whole(1)  # a constant target shape may have a batch of one built in

    def _whole(self, unknown: int) -> None:
        node, pair = self.node, self.pair
        shapes = Shapes(self.graph, node, unknown)
        drawn: dict[str, Drawn] = {}
        sides: list[list[Array | None]] = [[], [], [], []]
        for slot in range(max(len(node.inputs), len(pair.new.inputs))):
            found = self.constants.get(slot)
            name = node.input(slot)
            if found is None and name:
                found = drawn.get(name) or self._drawn(shapes, slot)
                drawn[name] = found
            values = (None,) * 4 if found is None else (found.old, found.new, found.old_size, found.new_size)
            for side, value in zip(sides, values, strict=True):
                side.append(None if value is None or (slot not in shapes.found and not name and not value.size) else value)
        old_inputs, new_inputs, old_sizes, new_sizes = sides
        for slot in range(len(node.inputs), len(old_inputs)):
            old_inputs[slot] = old_sizes[slot] = None
        with np.errstate(all="ignore"):
            old, new = evaluate(node, _trimmed(old_inputs)), evaluate(pair.new, _trimmed(new_inputs))
            sizes = [
                magnitude(node, _trimmed(old_inputs), _trimmed(old_sizes), old),
                magnitude(pair.new, _trimmed(new_inputs), _trimmed(new_sizes), new),
            ]
            if pair.bias is not None:
                new, sizes[1] = self._with_bias(new[0], sizes[1])
        entering = sum(value.size for value in old_inputs if value is not None)
        self._relate(old, new, sizes, max(1, entering // max(1, old[0].size)) + self._summed(old_inputs))

    def _summed(self, inputs: Sequence[Array | None]) -> int:
        """Terms of each sum of a matrix product."""
        first = inputs[0]
        return first.shape[-1] + first.shape[-2] if self.node.op in ("MatMul", "Gemm") and first is not None else 0

    def _drawn(self, shapes: Shapes, slot: int) -> Drawn:
        name = self.node.inputs[slot]
        if slot not in shapes.found:
            value = integers(self.graph, shapes, slot)
            return Drawn(value, value, value, value)
        if self.node.graph.type(name) == TensorProto.BOOL:
            value = self.rng.random(shapes.found[slot]) < 0.5
            return Drawn(value, value, value, value)
        return draw(self.graph.storage(name), shapes.found[slot], self.rng)

    def _with_bias(self, y: Array, size: Array) -> tuple[list[Array], Array]:
        """The Add behind a MatMul."""
        value = self.exact[BIAS].value
        stored = _added(self.pair)
        fit = fitted(value, stored.shape)
        value = value if fit is None else fit
        if self.kept is not None and value.ndim >= -self.kept[1]:
            value = np.take(value, self.kept[2], self.kept[1])
        assert self.pair.bias is not None
        if self.pair.bias.version < 7 and not self.pair.bias.get_int("broadcast", 0) and value.shape != y.shape:
            raise NodeError("node", "the Add behind it does not broadcast in this opset", float("inf"))
        return [y + value], size + np.abs(value)

    def _relate(self, old: Sequence[Array], new: Sequence[Array], sizes: Sequence[Array], terms: int) -> None:
        """den y' = num y + off, and y' is finite."""
        node = self.node
        for slot, name in enumerate(node.outputs):
            if not name:
                continue
            storage = self.graph.storage(name)
            y, held = old[slot], new[slot]
            if y.shape != held.shape:
                raise NodeError("node", f"its output would have shape {held.shape}, not {y.shape}", float("inf"))
            if storage is None and np.array_equal(y, held, equal_nan=True):
                continue
            den, num, off = self._part_of(storage or Storage.identity(y.ndim))
            size_old, size_new = (sizes[0], sizes[1]) if slot == 0 or sizes[0].shape == y.shape else (np.abs(y), np.abs(held))
            size = np.abs(den) * size_new + np.abs(num) * size_old + np.abs(off)
            with np.errstate(all="ignore"):
                error = np.abs(den * held - num * y - off) / np.where(size == 0, 1.0, size)
            error = np.where(np.isfinite(held), error, np.inf)
            _require(error, f"{node.op} does not make what {name!r} should hold", (SLACK + terms) * EPS)

    def _part_of(self, storage: Storage) -> tuple[Array, Array, Array]:
        arrays = (storage.den, storage.num, storage.off)
        if self.kept is None:
            return arrays
        _, axis, chosen = self.kept
        cut = [array if array.shape[axis] == 1 else np.take(array, chosen, axis) for array in arrays]
        return cut[0], cut[1], cut[2]


def _reader(constant: Constant) -> object:
    return lambda start, stop: read_rows(constant, start, stop)


def _channels(graph: GraphPair, node: Node) -> int:
    for name in (node.inputs[0], node.outputs[0]):
        storage = graph.storage(name)
        if storage is not None:
            return max(array.shape[1] for array in (storage.den, storage.num, storage.off))
    return 1


def _trimmed(values: list[Array | None]) -> list[Array | None]:
    """Without the optional inputs at the end that are left out."""
    end = len(values)
    while end and values[end - 1] is None:
        end -= 1
    return values[:end]
