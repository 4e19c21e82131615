"""Sums of products of a tensor and weights, with their axes by name: what Gemm, MatMul and Einsum share.

y[...] = p * sum x[...] w[...], where x = alpha x' + beta and y' = a y + b. What varies along the weights' axes goes
into the weights, W' = a W alpha; what varies along the others, the rows, passes between x and y; beta arrives in y as
the constant p * sum beta w.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import AGREE, ROUNDING, Array, Storage
from bnfold.constants import Constant
from bnfold.plan import Edit, NewConstant
from bnfold.rules.base import OUT, Accept, View, compress, need_decode, need_encode
from bnfold.rules.convolution import constant_weight
from bnfold.rules.unlocks import CONSTANTS, NOT_ZERO, UNIFORM
from bnfold.sums import exact_sum

LIMIT = 1 << 24
"""Products that a shift of several rows may take to arrive in the output."""

PIECE = 1 << 21
"""Weights that are added up at once."""

Labels = tuple[str, ...]
"""A name for each axis; '' for one of size one that meets a larger one."""


@dataclass(frozen=True, eq=False)
class Product:
    """One way to see a node: x at an input slot, the weights at another."""

    view: View
    x: int
    w: int
    labels: Mapping[int, Labels]
    """By port."""
    gain: float = 1.0

    @property
    def weight(self) -> Constant | None:
        """The weights; None where they are a tensor of the graph, which takes a scale only."""
        if self.view.node.constant(self.w) is None:
            port = self.view.port(self.w)
            if not port.pinned:
                return None
        return constant_weight(self.view, self.w)

    @cached_property
    def order(self) -> list[str]:
        """Every label once."""
        return sorted({label for labels in self.labels.values() for label in labels if label})

    @property
    def rows(self) -> list[int]:
        """Positions in the joint order of the labels that the weights do not have."""
        return [axis for axis, name in enumerate(self.order) if name not in self.labels[self.w]]

    def joint(self, key: int, array: Array) -> Array:
        """An array of the port, with one axis for every label of the node."""
        names = self.labels[key]
        array = array[tuple(slice(None) if name else 0 for name in names)]
        kept = [name for name in names if name]
        array = array.transpose(sorted(range(len(kept)), key=lambda axis: kept[axis]))
        sizes = dict(zip(sorted(kept), array.shape, strict=True))
        return array.reshape([sizes.get(name, 1) for name in self.order])

    def local(self, key: int, array: Array) -> Array:
        """The reverse of `joint`; refuses where the array varies along an axis that the port lacks."""
        names = self.labels[key]
        array = compress(array)
        lacking = [name for name, size in zip(self.order, array.shape, strict=True) if size > 1 and name not in names]
        if lacking:
            raise self.view.refuse(
                "row-axis", f"the demand varies on an axis that {self.view.port(key).name!r} does not have", UNIFORM
            )
        kept = [self.order.index(name) for name in names if name]
        others = [axis for axis in range(array.ndim) if axis not in kept]
        array = array.transpose(kept + others).reshape([array.shape[axis] for axis in kept])
        return np.expand_dims(array, tuple(axis for axis, name in enumerate(names) if not name))

    def axes(self, names: Iterable[str]) -> list[int]:
        """Positions of labels in the joint order."""
        return [self.order.index(name) for name in names if name]


def roles(view: View) -> list[tuple[int, int]]:
    """Input slots of x and of the weights: the constant, or either operand where none is constant."""
    for w in (1, 0):
        if view.node.constant(w) is not None:
            return [(1 - w, w)]
    asked = view.port(1).fixed and not view.port(1).storage.is_identity
    return [(1, 0), (0, 1)] if asked else [(0, 1), (1, 0)]


def decided(accepts: list[Accept]) -> list[Accept]:
    """One way is enough where none leaves anything to decide."""
    return next(([accept] for accept in accepts if not accept.assign), accepts)


@dataclass(frozen=True, eq=False)
class Met:
    """What the scales at a product come to."""

    wants: Mapping[int, Storage]
    edits: tuple[Edit, ...]
    a: Array
    """The output's scale."""
    beta: Array
    """The input's shift."""
    passed: Storage | None = None
    """Storage of the output where a scale of zero passes to it, so that `a` does not exist."""


def meet(product: Product, given: Array | None = None) -> Met:
    """Put the scales into the weights, and pass those of rows on.

    Args:
        product: the node.
        given: the output's scale, where another operand has decided it.
    """
    view = product.view
    x, y = view.port(product.x), view.port(OUT)
    if not (x.storage.has_decode and y.storage.has_encode) and given is None:
        return _meet_zeros(product)
    alpha, beta = map(compress, need_decode(view, x.storage))
    a = compress(need_encode(view, y.storage)[0]) if given is None else given
    rows = product.rows
    alpha_rows, alpha_within = _separate(view, product.joint(product.x, alpha), rows)
    a_rows, a_within = _separate(view, product.joint(OUT, a), rows)
    passing = alpha_rows * a_rows
    rest = passing.reshape(-1)[0]
    wants: dict[int, Storage] = {}
    if not np.all(np.abs(passing - rest) <= AGREE * np.abs(passing)):
        rest = 1.0
        if not y.fixed and given is None:
            y_alpha = product.local(OUT, passing / _nonzero(view, product.joint(OUT, a)))
            if np.any(y_alpha == 0):
                edits = weight_edits(product, (alpha_within, a_within), wants)
                return Met(wants, edits, a, beta, Storage.decode(y_alpha, arrived(product, beta)))
            a = 1.0 / y_alpha
        elif not x.fixed:
            x_a = product.local(product.x, passing / _nonzero(view, product.joint(product.x, alpha)))
            wants[product.x] = Storage.encode(x_a, -x_a * beta)
        else:
            raise view.refuse("row-axis", f"scales along the rows of {view.node.op} differ on its two sides", UNIFORM)
    factors = (alpha_within, a_within, np.full((1,) * len(product.order), rest))
    return Met(wants, weight_edits(product, factors, wants), a, beta)


def _meet_zeros(product: Product) -> Met:
    """As `meet`, where rows of scale zero have passed, so that x has no decode or y no encode: they must be alike."""
    view = product.view
    x, y = view.port(product.x).storage, view.port(OUT).storage
    pushed = x.has_decode and y.has_decode
    stuck = view.refuse("zero-scale", f"a channel of scale zero reaches {view.node.op}, which cannot undo it", NOT_ZERO)
    if not pushed and not (x.has_encode and y.has_encode and x.is_scale):
        raise stuck
    of_x, of_y = (x.alpha, y.alpha) if pushed else (x.a, y.a)
    x_rows, x_within = _separate(view, product.joint(product.x, of_x), product.rows)
    y_rows, y_within = _separate(view, product.joint(OUT, of_y), product.rows)
    if not np.all(np.abs(x_rows - y_rows) <= AGREE):
        raise stuck
    wants: dict[int, Storage] = {}
    factors = (x_within, 1 / _nonzero(view, y_within)) if pushed else (y_within, 1 / _nonzero(view, x_within))
    edits = weight_edits(product, factors, wants)
    if pushed:
        return Met(wants, edits, of_y, x.beta, Storage.decode(of_y, arrived(product, x.beta)))
    return Met(wants, edits, of_y, np.zeros_like(of_x))


def weight_edits(product: Product, factors: tuple[Array, ...], wants: dict[int, Storage]) -> tuple[Edit, ...]:
    """Scale constant weights; or want weights that are computed to be stored with the scale."""
    factors = tuple(compress(factor) for factor in factors)
    one = math.prod(float(factor.flat[0]) for factor in factors if factor.size == 1)
    uniform = np.full((1,) * len(product.order), 1.0 if abs(one - 1) <= ROUNDING else one)
    varying = (factor for factor in factors if factor.size > 1)
    local = tuple(product.local(product.w, factor) for factor in (*varying, uniform) if np.any(factor != 1))
    weight = product.weight
    if weight is not None:
        return (NewConstant(product.w, "weight", weight.type, weight.shape, weight, local),) if local else ()
    whole: Array = np.ones((1,) * len(product.labels[product.w]))
    for factor in local:
        whole = whole * factor
    wants[product.w] = Storage.encode(whole, np.zeros_like(whole))
    return ()


def arrived(product: Product, beta: Array) -> Array:
    """The constant that a shift of x makes of the output: p * sum beta w, which broadcasts against y."""
    view, weight = product.view, product.weight
    own = product.labels[product.w]
    shift = product.joint(product.x, beta)
    if not np.any(shift != 0):
        return np.zeros((1,) * len(product.labels[OUT]))
    if weight is None:
        raise view.refuse("dynamic-weight", f"the weights of {view.node.op} are computed at run time", CONSTANTS)
    alone = [name for name in product.labels[product.x] if name and name not in own and name not in product.labels[OUT]]
    shift = _summed(product, shift, alone) * product.gain
    gone = product.axes(name for name in own if name not in product.labels[OUT])
    matrix = product.joint(product.w, np.asarray(weight.load()))
    rows = [axis for axis, size in enumerate(shift.shape) if size > 1 and matrix.shape[axis] == 1]
    count = math.prod(shift.shape[axis] for axis in rows)
    if count > 1 and count * matrix.size > LIMIT:
        raise view.refuse("row-axis", f"a shift of {count} rows would take too long to move", UNIFORM)
    shape = [n if axis not in gone else 1 for axis, n in enumerate(np.broadcast_shapes(shift.shape, matrix.shape))]
    total = np.zeros(shape)
    for index in np.ndindex(*(shift.shape[axis] for axis in rows)):
        at = tuple(
            slice(index[rows.index(axis)], index[rows.index(axis)] + 1) if axis in rows else slice(None)
            for axis in range(shift.ndim)
        )
        _add_up(matrix, shift[at], gone, total[at])
    return product.local(OUT, total)


def _add_up(matrix: NDArray[Any], shift: Array, gone: Sequence[int], total: Array) -> None:
    """Fill `total` with the sums of matrix * shift over the axes that are gone, in parts of the longest other one."""
    along = max(range(matrix.ndim), key=lambda axis: (axis not in gone, matrix.shape[axis]), default=None)
    if along is None or along in gone:
        pieces: list[tuple[slice, ...]] = [()]
    else:
        size = matrix.shape[along]
        step = max(1, PIECE // max(1, matrix.size // max(1, size)))
        before = (slice(None),) * along
        pieces = [(*before, slice(start, start + step)) for start in range(0, size, step)]
    for at in pieces:
        met = shift[at] if at and shift.shape[len(at) - 1] > 1 else shift
        terms = np.moveaxis(matrix[at].astype(np.float64) * met, gone, range(-len(gone), 0))
        kept = terms.shape[: terms.ndim - len(gone)]
        total[at] = exact_sum(terms.reshape(*kept, -1)).reshape(total[at].shape)


def arrived_shape(product: Product, beta: Array) -> tuple[int, ...]:
    """The shape of what `arrived` returns, where there is a shift."""
    weight = product.weight
    if weight is None:
        raise product.view.refuse("dynamic-weight", "the weights are computed at run time", CONSTANTS)
    own, out = dict(zip(product.labels[product.w], weight.shape, strict=True)), product.labels[OUT]
    sizes = zip(product.order, product.joint(product.x, beta).shape, strict=True)
    varying = {name: max(size, own.get(name, 1)) for name, size in sizes}
    return tuple(varying[name] if name else 1 for name in out)


def _summed(product: Product, shift: Array, alone: list[str]) -> Array:
    """A shift over the axes that only x has, and that are summed."""
    sizes = dict(zip(product.labels[product.x], product.view.port(product.x).shape, strict=True))
    for name in alone:
        (axis,), size = product.axes([name]), sizes[name]
        if shift.shape[axis] > 1:
            shift = shift.sum(axis=axis, keepdims=True)
        elif isinstance(size, int):
            shift = shift * size
        else:
            raise product.view.refuse("unknown-shape", "the size of a summed axis is not known", "export with shapes")
    return shift


def _separate(view: View, array: Array, rows: list[int]) -> tuple[Array, Array]:
    """The array as a product of one that varies along the rows and one that varies along the weights' axes."""
    array = compress(array)
    if all(array.shape[axis] == 1 for axis in rows):
        return np.ones((1,) * array.ndim), array
    others = tuple(axis for axis in range(array.ndim) if axis not in rows)
    # The largest row: where the array is such a product, no factor of zero hides another there.
    at = np.unravel_index(np.argmax(np.abs(array)), array.shape)
    within = array[tuple(slice(at[i], at[i] + 1) if i in rows else slice(None) for i in range(array.ndim))]
    along = array[tuple(slice(at[i], at[i] + 1) if i in others else slice(None) for i in range(array.ndim))]
    top = array[at]
    if top == 0:
        return np.ones((1,) * array.ndim), within
    along = along / top
    if not np.all(np.abs(array - along * within) <= AGREE * np.abs(array)):
        raise view.refuse(
            "row-axis", f"a scale that mixes the rows and the weights of {view.node.op} does not pass", UNIFORM
        )
    return along, within


def _nonzero(view: View, array: Array) -> Array:
    if np.any(array == 0):
        raise view.refuse(
            "zero-scale", f"a channel of scale zero reaches {view.node.op} beside rows that differ", NOT_ZERO
        )
    return array
