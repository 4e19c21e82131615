"""Channels that are constant: what is pushed out of a BatchNormalization with gamma = 0 is ``v = 0*v' + beta``.

Such a channel passes any function, of one tensor or of several that are all constant there: ``y = 0*y' + f(beta)``,
as long as f stays finite on whatever the dead v' holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.rules.base import OUT, Accept, Mask, Port, Rule, View, compress, lift
from bnfold.rules.unlocks import NOT_ZERO

Combine = Callable[[View, Sequence[Array]], Array]
"""(view, the value at each input) to the value of the output, of constant channels."""


def passes_constants(combine: Combine, annihilates: bool = False) -> Callable[[Rule], Rule]:
    """A rule that looks at living channels only, and `combine` for those in which every operand is dead.

    Args:
        combine: the operator, in float64.
        annihilates: whether one operand that is zero makes the output zero.
    """

    def decorate(rule: Rule) -> Rule:
        @wraps(rule)
        def split(view: View) -> list[Accept]:
            slots = [key for key, port in view.ports.items() if key >= 0 and port.constant is None]
            if all(view.ports[slot].storage.has_encode for slot in slots) or OUT not in view.ports:
                return rule(view)
            dead = _dead(view, slots, annihilates)
            value = _value(view, combine, dead)
            living = _living(view, [*slots, OUT], dead)
            return [_joined(view, accept, dead, value) for accept in rule(living)]

        return split

    return decorate


def _dead(view: View, slots: Sequence[int], annihilates: bool) -> Mask:
    """Where the output is constant, in its rank."""
    rank = view.port(OUT).rank
    masks: list[Mask] = [lift(view.ports[slot].storage.den, rank) == 0 for slot in slots]
    found: Mask = np.asarray(np.logical_and.reduce(np.broadcast_arrays(*masks)))
    for slot, mask in zip(slots, masks, strict=True):
        if annihilates:
            found = found | (mask & (lift(view.ports[slot].storage.off, rank) == 0))
    return found


def _value(view: View, combine: Combine, dead: Mask) -> Array:
    """The constant that the output is in dead channels."""
    values: list[Array] = []
    for slot, name in enumerate(view.node.inputs):
        port = view.ports.get(slot)
        if port is None or not name:
            values.append(np.zeros(()))
        elif port.constant is not None:
            values.append(port.constant.float64() if port.constant.is_float else np.asarray(port.constant.load()))
        else:
            storage = port.storage
            constant = storage.den == 0
            values.append(np.where(constant, -storage.off / np.where(constant, storage.num, 1.0), 0.0))
    try:
        with np.errstate(all="ignore"):
            value = np.where(dead, combine(view, values), 0.0)
    except ValueError as error:
        text = f"a constant channel does not fit the operands of {view.node.op}"
        raise view.refuse("zero-scale", text, NOT_ZERO) from error
    if not np.all(np.isfinite(value)):
        raise view.refuse("zero-scale", f"{view.node.op} of a constant channel is not finite", NOT_ZERO)
    return value + 0.0  # no negative zeros


def _living(view: View, keys: Sequence[int], dead: Mask) -> View:
    ports = dict(view.ports)
    for key in keys:
        port = ports[key]
        if port.storage.is_identity:
            continue
        ports[key] = port._replace(storage=_without(port, dead))
    return view._replace(ports=ports)


def _without(port: Port, dead: Mask) -> Storage:
    """The port's storage, with the identity where the output is dead."""
    shape = (1,) * (dead.ndim - port.rank) + tuple(port.shape)
    lacking = tuple(axis for axis, size in enumerate(shape) if size == 1 and dead.shape[axis] != 1)
    mask = np.all(dead, axis=lacking, keepdims=True)
    mask = mask.reshape(mask.shape[dead.ndim - port.rank :])
    return port.storage.but(mask, Storage.identity(port.rank)).map(compress)


def _joined(view: View, accept: Accept, dead: Mask, value: Array) -> Accept:
    """The answer for the living channels, and the output's constants."""
    out = view.port(OUT)
    living = accept.assign.get(OUT, _without(out, dead))
    known = Storage.decode(np.zeros_like(value), value)
    settled = view.settle({OUT: living.but(dead, known).map(compress)})
    assign = {key: storage for key, storage in accept.assign.items() if key != OUT}
    return Accept({**assign, **settled.assign}, accept.edits)
