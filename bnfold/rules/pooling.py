"""Pooling over the spatial axes, 2 and up.

Source: ONNX operators MaxPool, AveragePool, LpPool, GlobalMaxPool, GlobalAveragePool, GlobalLpPool, all versions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold.affine import Storage
from bnfold.rules.activation import absolute
from bnfold.rules.base import Accept, Rule, View, arriving, channels_where, faults, refuse_signs, varies_on
from bnfold.rules.elementwise import same_on_both
from bnfold.rules.unlocks import NO_SHIFT, NOT_ZERO, UNIFORM


def _refuse_within(view: View, storage: Storage) -> None:
    pooled = {axis for axis in varies_on(storage) if axis >= 2}
    if pooled:
        text = f"{view.node.op} pools over axis {min(pooled)}, on which the demand varies"
        raise view.refuse("not-uniform", text, UNIFORM)


def pool(counts_padding: Callable[[View], bool], any_sign: bool) -> Rule:
    """A scale passes (positive only for a maximum), a shift where no padding is counted."""

    def rule(view: View) -> list[Accept]:
        def check(storage: Storage) -> Storage:
            _refuse_within(view, storage)
            constant = (storage.num == 0) | (storage.den == 0)
            if any(view.node.outputs[1:]) and np.any(constant):
                text = "a constant channel has no indices"
                raise view.refuse("zero-scale", text, NOT_ZERO, channels_where(constant))
            if not any_sign:
                refuse_signs(view, storage)
            shifted = storage.off != 0
            if np.any(shifted) and counts_padding(view):
                text = f"{view.node.op} counts padded zeros, which have no shift"
                unlock = f"pool without counting the padding, or {NO_SHIFT}"
                raise view.refuse("padded-shift", text, unlock, *faults(shifted, arriving(view, storage)[1]))
            return storage

        return same_on_both(view, check)

    return rule


def average_counts_padding(view: View) -> bool:
    """Whether an AveragePool may average over padded zeros."""
    node = view.node
    padded = any(node.get_ints("pads") or []) or node.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if node.version < 7:
        return padded
    counted = bool(node.get_int("count_include_pad", 0))
    return counted and (padded or bool(node.get_int("ceil_mode", 0)))


max_pool = pool(lambda view: False, any_sign=False)
average_pool = pool(average_counts_padding, any_sign=True)
global_average_pool = pool(lambda view: False, any_sign=True)
global_max_pool = pool(lambda view: False, any_sign=False)


def lp_pool(view: View) -> list[Accept]:
    """y = (sum of abs(x)^p)^(1/p): b = 0, a passes as abs(a); backwards only a > 0."""
    for port in view.ports.values():
        _refuse_within(view, port.storage)
        constant = (port.storage.den == 0) | ((port.storage.num == 0) & (port.storage.off != 0))
        if np.any(constant):  # of which it makes another constant, by how many there are in a window
            raise view.refuse("zero-scale", f"a constant channel reaches {view.node.op}", NOT_ZERO)
    return absolute(view)
