"""Sums of several tensors.

Source: ONNX operators Add, Sub -1/6/7/13/14, Sum, Mean -1/6/8/13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bnfold.affine import AGREE, Array, Storage, snap
from bnfold.rules.base import OUT, Accept, View, compress, lift, need_encode
from bnfold.rules.dead import passes_constants
from bnfold.rules.operands import constant_edits, first_accepted, fitted, refuse_axis
from bnfold.rules.unlocks import NOT_ZERO


def _weights(view: View) -> dict[int, float]:
    """What each operand is multiplied by."""
    node, count = view.node, len(view.node.inputs)
    if node.op == "Mean":
        return dict.fromkeys(range(count), 1.0 / count)
    return {slot: -1.0 if node.op == "Sub" and slot == 1 else 1.0 for slot in range(count)}


def _total(view: View, values: Sequence[Array]) -> Array:
    terms = [weight * values[slot] for slot, weight in _weights(view).items()]
    return sum(terms[1:], terms[0])


@passes_constants(_total)
def add(view: View) -> list[Accept]:
    """y = sum of w_i x_i: every port takes the same scale; the shifts balance, one free port takes the rest.

    w is 1; -1 for what Sub subtracts; 1/n for the Mean of n. Of several constants the first takes the shift.
    """
    refuse_axis(view)
    weights = _weights(view)
    keys = [*weights, OUT]
    out = view.port(OUT)
    lead = next((key for key in keys if view.port(key).fixed and not view.port(key).storage.is_identity), None)
    if lead is None:
        lead = next((key for key in keys if view.port(key).fixed), OUT)
    a = compress(lift(need_encode(view, view.port(lead).storage)[0], out.rank))
    shifts: dict[int, Array] = {}
    terms: list[Array] = []
    for key in keys:
        port = view.port(key)
        own_a, own_b = need_encode(view, port.storage)
        shifts[key] = lift(own_b, out.rank)
        if port.storage.is_scale:
            continue
        if not port.fixed:  # the shift is relative to what is stored: it scales along
            if np.count_nonzero(own_a) < own_a.size:
                raise view.refuse("zero-scale", "a constant channel meets one that varies", NOT_ZERO)
            shifts[key] = shifts[key] * a / lift(own_a, out.rank)
        if key != OUT:
            terms.append(weights[key] * shifts[key])
    # Demands that agree are one: what they differ by may be rounded where numbers were larger, and is no shift.
    rest = snap(shifts[OUT] - sum(terms), shifts[OUT], *terms, within=AGREE)

    def settled(key: int, shift: Array) -> Mapping[int, Storage]:
        return view.settle({key: fitted(view, view.port(key), a, shift, out.rank)}).assign

    plain: dict[int, Mapping[int, Storage]] = {lead: {}}  # which is stored so already

    def way(extra: dict[int, Array]) -> Accept:
        assign: dict[int, Storage] = {}
        for key in keys:
            if key in extra:
                assign |= settled(key, shifts[key] + extra[key])
                continue
            if key not in plain:  # the same in every way
                plain[key] = settled(key, shifts[key])
            assign |= plain[key]
        return Accept(assign, constant_edits(view, list(weights), "shift"))

    if not np.count_nonzero(rest):
        return [way({})]
    first = next((slot for slot in weights if view.port(slot).constant is not None), None)
    groups: dict[str, list[int]] = {}
    for key in keys:
        port = view.port(key)
        if not port.fixed and (port.constant is None or key == first):
            groups.setdefault(port.name, []).append(key)
    takers = sorted(groups.values(), key=lambda group: view.port(group[0]).near)
    ways = [_taker(way, group, rest, weights) for group in takers]
    return first_accepted(ways, view, "conflict", "no operand is free to take the shift")


def _taker(
    way: Callable[[dict[int, Array]], Accept], group: list[int], rest: Array, weights: dict[int, float]
) -> Callable[[], Accept]:
    weight = sum(weights.get(key, -1.0) for key in group)

    def take() -> Accept:
        return way(dict.fromkeys(group, rest / weight))

    return take if weight else (lambda: way({}))
