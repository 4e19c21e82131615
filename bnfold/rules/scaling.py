"""Nodes that are affine maps themselves: BatchNormalization, and Mul or Div by a constant.

As absorbers they take a demand into their own constants; as sources they are what the solver removes. Add and Sub of
a constant are sources too, and absorb by the rule for sums.

Source: ONNX operators BatchNormalization-1/6/7/9/14/15, Mul, Div, Add, Sub -1/6/7/13/14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Affine, Array, Storage, snap
from bnfold.constants import Constant, Room
from bnfold.graph import Node
from bnfold.plan import Edit, NewConstant
from bnfold.reasons import Reason
from bnfold.rules.base import (
    OUT,
    Accept,
    Refused,
    View,
    channel_count,
    channels_where,
    compress,
    faults,
    lift,
    need_decode,
    need_encode,
    only_axis,
)
from bnfold.rules.unlocks import CONSTANT, NOT_ZERO, OPSET_7, SIZED, VALID
from bnfold.source import FLOATS, limits_of


@dataclass(frozen=True, eq=False)
class Source:
    """An affine node: ``output = scale * input + shift`` with arrays that broadcast against the tensor."""

    node: Node
    slot: int
    """The input slot of the tensor; the other inputs are constants."""
    affine: Affine
    spread: Array | None = None
    """Standard deviation of the input by channel, where the node knows it (a BatchNormalization does)."""
    mean: Array | None = None
    """Mean of the input by channel, where the node knows it."""
    note: str = ""
    """What the reader of the report must know of the map."""
    shift: Array | None = None
    """The shift as it is, where the map counts some of it as zero."""

    @property
    def ends(self) -> tuple[str, str]:
        """The tensors before and behind the node, which become one when it leaves."""
        return self.node.inputs[self.slot], self.node.outputs[0]


AFFINE_OPS = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})


def as_source(node: Node) -> Source | Reason | None:
    """The affine map that a node computes; a reason where it looks like one and is not; None where it does not."""
    if node.op not in AFFINE_OPS:
        return None
    if "source" not in node.memo:
        made = _normalization_source(node) if node.op == "BatchNormalization" else _operand_source(node)
        room = node.graph.model.room
        if isinstance(made, Source) and not room.has_for_affine(max(map(math.prod, made.affine.shapes))):
            text = f"it and nodes like it have more than {Room.AFFINES:,} numbers"
            made = Reason("search-limit", text, node.label, "fold it before the export")
        node.memo["source"] = made
    found = node.memo["source"]
    assert found is None or isinstance(found, Source | Reason)
    return found


def is_constant(node: Node) -> bool:
    """Whether a BatchNormalization computes a constant: of standardised weights, as exporters leave them."""
    return node.op == "BatchNormalization" and node.graph.stored(node.outputs[0]) is not None


def _normalization_source(node: Node) -> Source | Reason | None:
    found = None if is_constant(node) else _batchnorm_source(node)
    if isinstance(found, Source) and node.constant(0) is not None:
        text = "its input is a constant, and what it makes of that is not finite, or too large to be worked out here"
        return Reason("unsupported-form", text, node.label, "store what it computes")
    return found


def _batchnorm_source(node: Node) -> Source | Reason:
    def no(code: str, text: str, unlock: str, channels: tuple[int, ...] = (), values: tuple[float, ...] = ()) -> Reason:
        return Reason(code, text, node.label, unlock, channels, values)

    version = node.version
    if node.get_int("training_mode", 0):
        return no("training-mode", "training_mode is 1: batch statistics", "export the model in evaluation mode")
    if version < 7 and not node.get_int("is_test", 0):
        return no("training-mode", "is_test is 0: batch statistics", "export the model in evaluation mode")
    used = [
        name for name in node.outputs[1:] if name and (node.graph.consumers.get(name) or name in node.graph.output_set)
    ]
    if used or (len([name for name in node.outputs if name]) > 1 and version < 14):
        return no("training-mode", "its statistics outputs are used", "export the model in evaluation mode")
    if not node.get_int("spatial", 1):
        text = "spatial is 0: one statistic for every position, not for every channel"
        return no("unsupported-form", text, "set spatial to 1")
    parameters: list[Constant] = []
    for slot, what in enumerate(("scale", "bias", "mean", "variance"), start=1):
        constant, name = node.constant(slot), node.input(slot)
        owner = node.graph.owner(name)
        if constant is None and owner is not None and name in owner.overridable:
            why, place = owner.override_of(name)
            return no("overridable-parameter", f"its {what} {name!r} {why}", f"remove {name!r} from the {place}")
        if constant is None:
            return no("dynamic-parameters", f"its {what} is computed at run time", CONSTANT)
        if not constant.is_float:
            return no("unsupported-form", f"its {what} is not of a float type", "convert its parameters to floats")
        parameters.append(constant)
    shape = node.graph.shape(node.input(0))
    if shape is None or len(shape) < 2:
        return no("unknown-shape", "the rank of its input is not known", "export with shapes")
    size = parameters[0].shape
    if (
        len(size) != 1
        or not size[0]
        or any(p.shape != size for p in parameters)
        or (shape[1] not in (size[0], None) and isinstance(shape[1], int))
    ):
        text = f"its parameters have shapes {[p.shape for p in parameters]}, not one per channel"
        return no("unsupported-form", text, VALID)
    gamma, bias, mean, variance = (p.float64() for p in parameters)
    total = variance + node.get_float("epsilon", float(np.float32(1e-5)))
    bad, why = _unusable(gamma, bias, mean, total)
    if bad.any():
        text = f"in {channel_count(bad)} {why}"
        return no("invalid-statistics", text, "repair or prune these channels", *faults(bad, total))
    scale = gamma / np.sqrt(total)
    along = (1, -1) + (1,) * (len(shape) - 2)
    shift = bias - scale * mean
    exact, small = shift, negligible(shift, bias, gamma, node.graph.type(node.outputs[0]))
    note = ""
    if small.any():
        shift = np.where(small, 0.0, shift)
        note = (
            f"the shift of {np.count_nonzero(small)} channels counts as zero: below half a unit in the last place "
            f"of every output within {SIGMAS:g} standard deviations"
        )
    affine = Affine(compress(scale.reshape(along)), compress(shift.reshape(along)))
    return Source(
        node,
        0,
        affine,
        np.sqrt(total).reshape(along),
        mean.reshape(along),
        note,
        exact.reshape(along) if note else None,
    )


LARGEST = 1e60
"""Beyond what float32 holds; products of a few such numbers overflow in float64, in which folds are computed."""

EXTREME = "a parameter is larger than 1e60, or nearer to zero than 1e-60"


def extreme(values: Array) -> NDArray[np.bool_]:
    """Which are too large or too small to be computed with."""
    sizes = np.abs(values)
    return np.asarray((sizes > LARGEST) | ((sizes < 1 / LARGEST) & (sizes > 0)))


def _unusable(gamma: Array, bias: Array, mean: Array, total: Array) -> tuple[NDArray[np.bool_], str]:
    """The channels of a BatchNormalization that cannot be computed with, and why; `total` is variance + epsilon."""
    with np.errstate(invalid="ignore"):
        bad = ~((total > 0) & np.isfinite(total) & np.isfinite(gamma) & np.isfinite(bias) & np.isfinite(mean))
    if bad.any():
        return bad, "var + epsilon <= 0, or a parameter is not finite"
    return extreme(gamma / np.sqrt(total)) | extreme(bias) | extreme(mean), EXTREME


SIGMAS = 8.0
"""How far from its mean a value may lie that is within the statistics of a BatchNormalization."""


def negligible(shift: Array, bias: Array, gamma: Array, type_: int) -> NDArray[np.bool_]:
    """Where s*x + t rounds to s*x: 0 < abs(t) < half an ULP of every output ``bias + gamma*z``, abs(z) <= SIGMAS."""
    least = np.abs(bias) - SIGMAS * np.abs(gamma)
    if not (least > 0).any():
        return np.zeros(shift.shape, np.bool_)
    precision = limits_of(FLOATS.get(type_, np.dtype(np.float64))).nmant
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.where(least > 0, np.exp2(np.floor(np.log2(least)) - precision - 1), 0.0)
    return np.asarray((shift != 0) & (np.abs(shift) < half))


def _operand_source(node: Node) -> Source | Reason | None:
    constants = [node.constant(slot) for slot in (0, 1)]
    if (constants[0] is None) == (constants[1] is None):
        return None
    slot = 0 if constants[0] is None else 1
    constant = constants[1 - slot]
    assert constant is not None
    if not constant.is_float or (node.op == "Div" and slot == 1):
        return None
    shape = node.graph.shape(node.input(slot))
    if shape is None:
        return Reason("unknown-shape", "the rank of its input is not known", node.label, "export with shapes")
    value = aligned(node, constant, len(shape))
    if value is None or any(size not in (1, dim) for size, dim in zip(value.shape, shape, strict=True)):
        certain = value is None or any(
            n not in (1, m) for n, m in zip(value.shape, shape, strict=True) if isinstance(m, int)
        )
        text = f"its constant of shape {constant.shape} {'enlarges' if certain else 'may enlarge'} the tensor {shape}"
        return Reason("changes-shape", text, node.label, "expand the tensor before the node" if certain else SIZED)
    value = compress(value)
    one, zero = np.ones((1,) * len(shape)), np.zeros((1,) * len(shape))
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1.0 / value if node.op == "Div" else one
    if not np.all(np.isfinite(value)) or not np.all(np.isfinite(inverse)):
        text = "its constant is not finite, or divides by zero"
        return Reason("invalid-statistics", text, node.label, "repair or prune these channels")
    if np.any(extreme(value)):
        return Reason("invalid-statistics", EXTREME, node.label, "repair or prune these channels")
    maps = {
        "Mul": Affine(value, zero),
        "Div": Affine(inverse, zero),
        "Add": Affine(one, value),
        "Sub": Affine(one, -value) if slot == 0 else Affine(-one, value),
    }
    return Source(node, slot, maps[node.op])


def aligned(node: Node, constant: Constant, rank: int) -> Array | None:
    """The constant's values so that they broadcast against a tensor of this rank; None where they enlarge it."""
    value = constant.float64() if np.prod(constant.shape, dtype=float) <= 1 << 24 else None
    if value is None or value.ndim > rank:
        return None
    if node.version < 7 and node.get_int("broadcast", 0) and "axis" in node.attributes:
        axis = node.get_int("axis", 0) % rank
        if axis + value.ndim > rank:
            return None
        value = value.reshape(value.shape + (1,) * (rank - axis - value.ndim))
    return lift(value, rank)


def batchnorm(view: View) -> list[Accept]:
    """Any demand: gamma' = a gamma alpha;  mu' = (mu - beta)/alpha;  B' = a B + b.

    So x' is still read relative to its own mean: a shift that went into B' would cancel there, and lose bits. Where
    alpha is zero, or mu' would hardly fit its type: mu' = mu;  B' = a (B + gamma/sigma (beta - mu + alpha mu)) + b.
    """
    source = as_source(view.node)
    if isinstance(source, Reason):
        raise Refused(source)
    assert source is not None
    scale, bias, mean = (view.node.constant(slot) for slot in (1, 2, 3))
    assert scale is not None and bias is not None and mean is not None
    size = scale.shape[0]
    alpha, beta = need_decode(view, only_axis(view, view.port(0), 1, size))
    a, b = need_encode(view, only_axis(view, view.port(OUT), 1, size))
    if view.port(0).storage.is_identity and view.port(OUT).storage.is_identity:
        return [Accept()]
    s, mu = source.affine.scale.reshape(-1), mean.float64()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        moved = (mu - beta) / alpha
        moves = (alpha != 0) & (np.abs(moved) <= limits_of(FLOATS[mean.type]).max / _ROOM)
        factor, offset = np.where(moves, 1 / alpha, 1.0), np.where(moves, -beta / alpha, 0.0)
    shift = np.where(moves, 0.0, a * s * (beta - mu + alpha * mu)) + b
    edits: tuple[Edit, ...] = (
        NewConstant(1, "scale", scale.type, scale.shape, scale, (a * alpha,)),
        NewConstant(2, "bias", bias.type, bias.shape, bias, (a,), lambda: shift),
    )
    if np.any(factor != 1) or np.any(offset != 0):
        edits += (NewConstant(3, "mean", mean.type, mean.shape, mean, (factor,), lambda: offset),)
    return [Accept({}, edits)]


_ROOM = 16.0
"""A new mean stays this many times below the largest number of its type."""


def is_factor(node: Node) -> bool:
    """Whether a Mul or Div has one constant operand, unless that is divided by the tensor or enlarges it."""
    source = as_source(node)
    return isinstance(source, Source) or (isinstance(source, Reason) and source.code != "changes-shape")


def constant_factor(view: View) -> list[Accept]:
    """y = c x:  c' = a c alpha;  a shift passes, beta_y = c beta_x (backwards where c is not zero).  x / c alike."""
    source = as_source(view.node)
    if isinstance(source, Reason) and source.code == "search-limit":
        raise Refused(source)
    if not isinstance(source, Source):
        raise view.refuse(
            "opaque-op",
            f"{view.node.op} is not a scale by a constant that keeps the shape",
            "make it keep the shape of its input, and its other operand a constant",
        )
    slot, s = source.slot, source.affine.scale
    x, y = view.port(slot), view.port(OUT)
    want: dict[int, Storage] = {}
    if x.fixed or not y.fixed:
        alpha, beta = need_decode(view, x.storage)
        a, b = need_encode(view, y.storage)
        passed = -a * s * beta
        if np.any(snap(passed - b, passed, b) != 0):
            want = {OUT: Storage.encode(a, passed)}
    else:
        a, b = need_encode(view, y.storage)
        alpha, beta = need_decode(view, x.storage)
        missing = np.broadcast_to((a * s == 0) & (b != 0), np.broadcast_shapes(a.shape, s.shape, b.shape))
        if np.any(missing):
            raise view.refuse("zero-scale", "a shift cannot pass a factor of zero", NOT_ZERO, channels_where(missing))
        with np.errstate(divide="ignore", invalid="ignore"):
            passed = np.where(b == 0, 0.0, -b / (a * s))
        if np.any(snap(passed - beta, passed, beta) != 0):
            want = {slot: Storage.decode(alpha, passed)}
    factor = a * alpha
    constant = view.node.constant(1 - slot)
    assert constant is not None
    return [view.settle(want, _scaled_operand(view, 1 - slot, constant, factor, source.affine.scale.ndim))]


def _scaled_operand(view: View, slot: int, constant: Constant, factor: Array, rank: int) -> tuple[NewConstant, ...]:
    if np.all(factor == 1):
        return ()
    if view.node.op == "Div":
        if np.any(factor == 0):
            raise view.refuse("zero-scale", "a divisor cannot take a factor of zero", NOT_ZERO)
        factor = 1.0 / factor
    if view.node.version < 7:  # the constant's axis is an attribute
        own = aligned(view.node, constant, rank)
        assert own is not None
        if np.broadcast_shapes(own.shape, factor.shape) != own.shape:
            text = f"the constant of {view.node.op} cannot grow before opset 7"
            raise view.refuse("unsupported-form", text, OPSET_7)
        factor = np.broadcast_to(factor, own.shape).reshape(constant.shape)
    while factor.ndim > len(constant.shape) and factor.shape[0] == 1:
        factor = factor[0]
    shape = np.broadcast_shapes(constant.shape, factor.shape)
    return (NewConstant(slot, "factor", constant.type, shape, constant, (factor,)),)
