"""Operators of several operands that broadcast against each other: what their rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.graph import Shape
from bnfold.plan import Edit
from bnfold.rules.base import Accept, Port, Refused, View, compress, lift, restored_constant
from bnfold.rules.unlocks import ONE_EACH, OPSET_7, UNIFORM


def refuse_axis(view: View) -> None:
    """Refuse the broadcasting of operators before opset 7, which begins at an axis."""
    node = view.node
    if node.get_int("broadcast", 0) and "axis" in node.attributes:
        raise view.refuse("opaque-op", "broadcasting along an axis, as before opset 7", OPSET_7)


def first_accepted(
    ways: Sequence[Callable[[], Accept]], view: View, code: str, text: str, unlock: str = ONE_EACH
) -> list[Accept]:
    """The ways that are accepted; where none is, the refusal of the first."""
    accepted: list[Accept] = []
    refusal: Refused | None = None
    for way in ways:
        try:
            accepted.append(way())
        except Refused as error:
            refusal = refusal or error
    if not accepted:
        raise refusal or view.refuse(code, text, unlock)
    return accepted


def fitted(view: View, port: Port, a: Array, b: Array, rank: int) -> Storage:
    """Encode (a, b), given in the output's rank, on an operand; refuses where the operand lacks an axis."""
    shape: Shape = port.shape if port.constant is None else (None,) * rank
    return Storage.encode(_drop_axes(view, port, a, shape, rank), _drop_axes(view, port, b, shape, rank))


def fitted_scale(view: View, key: int, scale: Array) -> Storage:
    """As `fitted`, of a scale alone."""
    return fitted(view, view.port(key), scale, np.zeros((1,) * scale.ndim), scale.ndim)


def _drop_axes(view: View, port: Port, array: Array, shape: Shape, rank: int) -> Array:
    array, missing = lift(compress(array), rank), rank - len(shape)
    sizes = zip(array.shape, (1,) * missing + shape, strict=True) if array.size != 1 else ()
    if lacking := [axis for axis, (own, size) in enumerate(sizes) if own != 1 and size == 1]:
        text = f"operand {port.name!r} of {view.node.op} has no axis {lacking[0]} to vary on"
        raise view.refuse("lacks-axis", text, f"compute {port.name!r} in full, not broadcast, or {UNIFORM}")
    return array.reshape(array.shape[missing:]) if missing else array


def constant_edits(view: View, slots: Sequence[int], hint: str) -> tuple[Edit, ...]:
    """The edits that store the constants among these operands as their ports say."""
    edits: tuple[Edit, ...] = ()
    for slot in slots:
        if view.port(slot).constant is not None:
            edits += restored_constant(view, slot, hint)
    return edits
