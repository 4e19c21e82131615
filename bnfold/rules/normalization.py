"""Normalisations by the tensor's own statistics: what is uniform over the normalised axes vanishes, or nearly.

With N_e(x) = (x - mean) / sqrt(variance + e) and s != 0:  N_e(s x + t) = sign(s) N_{e/s^2}(x).

Source: ONNX operators InstanceNormalization-6/22, GroupNormalization-18/21, LayerNormalization-17,
RMSNormalization-23, LpNormalization-1/22, Softmax and LogSoftmax -1/11/13.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bnfold.affine import ROUNDING, Array
from bnfold.constants import Constant
from bnfold.plan import Edit, NewConstant, SetAttribute
from bnfold.rules.base import OUT, Accept, View, faults, need_decode, need_encode
from bnfold.rules.unlocks import (
    CONSTANT,
    LAYER_BETWEEN,
    LESS_EXTREME,
    NO_SHIFT,
    OTHER_OPERATOR,
    POSITIVE,
    UNIFORM,
    VALID,
)

EPSILON = float(np.float32(1e-5))
"""Default of `epsilon` in every one of these operators."""


def instance_norm(view: View) -> list[Accept]:
    """y = g N(x) + h, by channel and sample.  g' = a sign(alpha) g;  h' = a h + b;  e' = e / alpha^2; any beta."""
    channels = _channels(view)
    alpha, beta = need_decode(view, view.port(0).storage)
    _uniform(view, beta, "shift", range(2, beta.ndim))
    sign = _vector(view, alpha, "scale", channels)
    a, b = (_vector(view, array, "scale", channels) for array in need_encode(view, view.port(OUT).storage))
    return [Accept({}, (*_epsilon(view, alpha), *_parameters(view, a * np.sign(sign), a, b)))]


def group_norm(view: View) -> list[Accept]:
    """As InstanceNormalization, where beta and the sign of alpha are uniform in each group; opset 18: a and b too."""
    node, channels = view.node, _channels(view)
    groups = node.get_int("num_groups", 1)
    if channels % groups:
        raise view.refuse("unsupported-form", f"{channels} channels do not make {groups} groups", VALID)
    alpha, beta = need_decode(view, view.port(0).storage)
    _uniform(view, beta, "shift", range(2, beta.ndim))
    if beta.shape[1] > 1:
        _by_group(view, np.moveaxis(beta, 1, -1), "shift", groups)
    sign = _by_group(view, _vector(view, alpha, "scale", channels), "scale", groups)
    a, b = (_vector(view, array, "scale", channels) for array in need_encode(view, view.port(OUT).storage))
    if node.version < 21:
        a, b = _by_group(view, a, "scale", groups), _by_group(view, b, "shift", groups)
    else:
        sign = np.repeat(sign, channels // groups)
    return [Accept({}, (*_epsilon(view, alpha), *_parameters(view, a * np.sign(sign), a, b)))]


def layer_norm(view: View) -> list[Accept]:
    """y = g N(x) + h, over the axes from `axis` on, where g and h are.  As above, with a beta that is uniform there."""
    first = _first_axis(view)
    alpha, beta = need_decode(view, view.port(0).storage)
    _uniform(view, beta, "shift", range(first, beta.ndim))
    a, b = need_encode(view, view.port(OUT).storage)
    _uniform(view, a, "output's scale", range(first))
    _uniform(view, b, "output's shift", range(first))
    a, b = (array[(0,) * first] for array in (a, b))
    sign = np.sign(_one(view, alpha, "scale"))
    return [Accept({}, (*_epsilon(view, alpha), *_parameters(view, a * sign, a, b)))]


def rms_norm(view: View) -> list[Accept]:
    """y = g x / sqrt(mean(x^2) + e).  g' = a sign(alpha) g;  e' = e / alpha^2;  no shift on either side."""
    first = _first_axis(view)
    alpha, beta = need_decode(view, view.port(0).storage)
    a, b = need_encode(view, view.port(OUT).storage)
    if np.any(beta != 0) or np.any(b != 0):
        raise view.refuse("shift-refused", "RMSNormalization neither removes nor adds a shift", NO_SHIFT)
    _uniform(view, a, "output's scale", range(first))
    sign = np.sign(_one(view, alpha, "scale"))
    a = a[(0,) * first]
    return [Accept({}, (*_epsilon(view, alpha), *_parameters(view, a * sign, a, np.zeros_like(a))))]


def lp_norm(view: View) -> list[Accept]:
    """y = x / norm(x) along an axis: a positive scale that is uniform there vanishes, a sign passes."""
    alpha, beta = need_decode(view, view.port(0).storage)
    if np.any(beta != 0):
        raise view.refuse("shift-through-nonlinear", "a shift does not pass LpNormalization", NO_SHIFT)
    _uniform(view, alpha, "scale", [view.node.get_int("axis", -1) % alpha.ndim])
    if np.any(alpha <= 0):
        text = "LpNormalization drops positive scales only"
        raise view.refuse("negative-scale", text, POSITIVE, *faults(alpha <= 0, alpha))
    _untouched_output(view)
    return [Accept()]


def softmax(view: View) -> list[Accept]:
    """A shift that is uniform over what is summed vanishes: along `axis`; before opset 13, over all axes from it on."""
    node, port = view.node, view.port(0)
    alpha, beta = need_decode(view, port.storage)
    if np.any(alpha != 1):
        raise view.refuse("opaque-op", f"a scale does not pass {node.op}", OTHER_OPERATOR)
    axis = node.get_int("axis", -1 if node.version >= 13 else 1)
    first = axis % port.rank if axis < port.rank else port.rank
    _uniform(view, beta, "shift", [first] if node.version >= 13 else range(first, port.rank))
    _untouched_output(view)
    return [Accept()]


def _untouched_output(view: View) -> None:
    if not view.port(OUT).storage.is_identity:
        raise view.refuse(
            "opaque-op",
            f"{view.node.op} has no constants to store its output differently",
            LAYER_BETWEEN,
        )


def _channels(view: View) -> int:
    size = view.port(0).shape[1] if view.port(0).rank > 1 else None
    if not isinstance(size, int):
        raise view.refuse("unknown-shape", f"the channel count of {view.node.op} is not known", "export with shapes")
    return size


def _first_axis(view: View) -> int:
    """The first normalised axis; refuses where the statistics are read, which a re-stored input would change."""
    node, rank = view.node, view.port(0).rank
    own = [name for name in node.outputs[1:] if name]
    if any(node.graph.consumers.get(name) or name in node.graph.output_set | node.graph.captured for name in own):
        raise view.refuse(
            "unsupported-form",
            f"the statistics that {node.op} computes are read too",
            "drop the outputs for the mean and the deviation",
        )
    return node.get_int("axis", -1) % rank


def _uniform(view: View, array: Array, what: str, axes: Iterable[int]) -> None:
    """Refuses an array that varies along one of these axes by more than rounding."""
    for axis in axes:
        if np.any(np.ptp(array, axis=axis) > ROUNDING * np.max(np.abs(array))):
            raise view.refuse(
                "not-uniform", f"the {what} varies on axis {axis} in a way that {view.node.op} mixes", UNIFORM
            )


def _vector(view: View, array: Array, what: str, size: int) -> Array:
    """An array that varies on the channel axis only, as a vector."""
    _uniform(view, array, what, [axis for axis in range(array.ndim) if axis != 1])
    return np.broadcast_to(np.moveaxis(array, 1, -1)[(0,) * (array.ndim - 1)], (size,))


def _by_group(view: View, array: Array, what: str, groups: int) -> Array:
    """The value of each group of channels, along the last axis; refuses where a group has several."""
    parts = array.reshape(*array.shape[:-1], groups, -1)
    _uniform(view, parts, f"{what} within a group", [parts.ndim - 1])
    return parts[..., 0]


def _one(view: View, array: Array, what: str) -> Array:
    _uniform(view, array, what, range(array.ndim))
    return np.asarray(array[(0,) * array.ndim])


def _epsilon(view: View, alpha: Array) -> tuple[Edit, ...]:
    """e' = e / alpha^2: one number, so that every channel needs the same abs(alpha). Where alpha is 0, none matters."""
    sizes = np.abs(alpha[alpha != 0])
    if not sizes.size or np.all(sizes == 1):
        return ()
    if np.ptp(sizes) > ROUNDING * np.max(sizes):
        raise view.refuse(
            "not-uniform",
            f"{view.node.op} has one epsilon, and its input would be scaled by {np.min(sizes):.3g} to "
            f"{np.max(sizes):.3g}",
            UNIFORM,
        )
    old = view.node.get_float("epsilon", EPSILON)
    with np.errstate(over="ignore", under="ignore"):
        new = float(np.float32(old / float(sizes.flat[0]) ** 2))
    if old and not float(np.finfo(np.float32).tiny) <= new < np.inf:
        raise view.refuse(
            "out-of-range",
            f"the epsilon of {view.node.op} would be {new}",
            LESS_EXTREME,
        )
    return (SetAttribute("epsilon", new),) if new != old else ()


def _parameters(view: View, scale: Array, a: Array, b: Array) -> tuple[Edit, ...]:
    """The new g = scale g, and the new h = a h + b; a missing h is added in the shape of g."""
    node = view.node
    edits: tuple[Edit, ...] = ()
    g = None
    if np.any(scale != 1) or np.any(b != 0):
        g = _parameter(view, 1)
    if g is not None and np.any(scale != 1):
        edits += (NewConstant(1, "scale", g.type, _grown(g, scale), g, (scale,)),)
    if np.all(a == 1) and np.all(b == 0):
        return edits
    if node.input(2):
        h = _parameter(view, 2)
        edits += (NewConstant(2, "bias", h.type, _grown(h, a, b), h, (a,), lambda: b),)
    elif np.any(b != 0):
        assert g is not None
        edits += (NewConstant(2, "bias", g.type, _grown(g, b), None, (), lambda: b),)
    return edits


def _grown(constant: Constant, *factors: Array) -> tuple[int, ...]:
    """The shape of a parameter that varies where it did, and where its factors do."""
    return np.broadcast_shapes(constant.shape, *(factor.shape for factor in factors))


def _parameter(view: View, slot: int) -> Constant:
    found = view.node.constant(slot)
    if found is None or not found.is_float:
        text = f"the {'scale' if slot == 1 else 'bias'} of {view.node.op} is computed at run time"
        raise view.refuse("dynamic-parameters", text, CONSTANT)
    return found
