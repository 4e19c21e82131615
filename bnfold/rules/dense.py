"""Gemm and MatMul: absorb what varies along the weights' axes; a scale of rows passes through.

Source: ONNX operators Gemm-1/6/7/9/11/13, MatMul-1/9/13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bnfold.affine import Array, Storage, snap
from bnfold.plan import Edit, NewBias, NewConstant, SetAttribute
from bnfold.rules.base import OUT, Accept, View, need_decode, need_encode, only_axis, varies_on
from bnfold.rules.convolution import constant_weight
from bnfold.sums import exact_sum


def gemm(view: View) -> list[Accept]:
    """Y = p A B + q C.  B' = alpha B a;  C' = a (C + p/q beta.B) + b/q;  without C, or with q = 0: q becomes 1."""
    node = view.node
    if node.constant(1) is None and node.constant(0) is not None:
        raise view.refuse("unsupported-form", "Gemm has its constant on the left; only constants on the right fold")
    weight = constant_weight(view, 1)
    trans_a, trans_b = bool(node.get_int("transA", 0)), bool(node.get_int("transB", 0))
    p, q = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
    if len(weight.shape) != 2:
        raise view.refuse("unsupported-form", f"the weights of Gemm have shape {weight.shape}")
    k, n = weight.shape[::-1] if trans_b else weight.shape
    x, y = view.port(0), view.port(OUT)
    alpha, beta = need_decode(view, only_axis(view, x, 0 if trans_a else 1, k))
    a, b = need_encode(view, only_axis(view, y, 1, n))
    axes = (slice(None), None) if not trans_b else (None, slice(None))
    per_k, per_n = alpha[axes], a[axes[::-1]]
    factors = tuple(factor for factor in (per_k, per_n) if np.any(factor != 1))
    edits: tuple[Edit, ...] = ()
    if factors:
        edits += (NewConstant(1, "weight", weight.type, weight.shape, weight, factors),)

    def moved() -> Array:
        matrix = weight.float64() if trans_b else weight.float64().T
        return exact_sum(matrix * beta[None, :]) * p

    shifted = bool(np.any(beta != 0))
    return [Accept({}, edits + _gemm_bias(view, weight.type, q, a, b, moved if shifted else None))]


def _gemm_bias(
    view: View, type_: int, q: float, a: Array, b: Array, moved: Callable[[], Array] | None
) -> tuple[Edit, ...]:
    """The new C: a C + (a moved + b) / q."""
    node, name = view.node, view.node.input(2)
    used = bool(name) and q != 0
    old = node.constant(2) if used else None
    unshifted = moved is None and bool(np.all(b == 0))
    if used and old is None:
        if unshifted and np.all(a == 1):
            return ()
        raise view.refuse("dynamic-weight", "the bias of Gemm is computed at run time")
    if unshifted and (not used or np.all(a == 1)):
        return ()
    divisor = q if used else 1.0
    shift = (lambda: b / divisor) if moved is None else (lambda: (a * moved() + b) / divisor)
    shape = np.broadcast_shapes(old.shape, a.shape) if old else a.shape
    edits: tuple[Edit, ...] = (
        NewConstant(2, "bias", old.type if old else type_, shape, old, (a,) if old else (), shift),
    )
    if not used and q != 1.0:
        edits += (SetAttribute("beta", 1.0),)
    if node.version < 7 and not node.get_int("broadcast", 0):
        edits += (SetAttribute("broadcast", 1),)
    return edits


def matmul(view: View) -> list[Accept]:
    """y = x W.  W' = alpha W a on its own axes; a (beta.W) + b is a constant shift of the output.

    The shift goes on to the Add behind it, or becomes a bias of its own. A scale of rows passes. W x alike.
    """
    node = view.node
    left = node.constant(1) is None and node.constant(0) is not None
    weight = constant_weight(view, 0 if left else 1)
    x, y = view.port(1 if left else 0), view.port(OUT)
    if len(weight.shape) < 2 or x.rank < 2:
        raise view.refuse("unsupported-form", f"MatMul of vectors: weights {weight.shape}, input of rank {x.rank}")
    axis = -2 if left else -1
    k, n = (weight.shape[-1], weight.shape[-2]) if left else (weight.shape[-2], weight.shape[-1])
    rows = _passing_rows(view, 1 if left else 0, axis)
    if rows is not None:
        return [view.settle(rows)]
    alpha, beta = need_decode(view, only_axis(view, x, axis, k))
    a, b = need_encode(view, only_axis(view, y, axis, n))
    per_k, per_n = (alpha[None, :], a[:, None]) if left else (alpha[:, None], a[None, :])
    factors = tuple(factor for factor in (per_k, per_n) if np.any(factor != 1))
    edits: tuple[Edit, ...] = ()
    if factors:
        edits += (NewConstant(0 if left else 1, "weight", weight.type, weight.shape, weight, factors),)
    arrived = np.zeros_like(b)
    if np.any(beta != 0):
        if len(weight.shape) != 2:
            raise view.refuse(
                "shift-refused", "MatMul has a batch of weights, and a shift would need a batch of biases"
            )
        arrived = a * exact_sum((weight.float64() if left else weight.float64().T) * beta[None, :])
    bias = snap(arrived + b, arrived, b)
    along = (1,) * (y.rank - 2) + ((n, 1) if left else (1, n))
    if np.all(bias == 0):
        return [Accept({}, edits)]
    ways: list[Accept] = []
    if not (view.bias_behind or view.only_moves):
        ways.append(Accept({}, (*edits, NewBias(weight.type, bias.reshape(along)))))
    if not y.fixed:
        ways.append(view.settle({OUT: Storage.encode(a.reshape(along), -arrived.reshape(along))}, edits))
    if not ways and view.only_moves:
        raise view.refuse("would-only-move", "the addition would only move behind a MatMul")
    if not ways:
        raise view.refuse("shift-refused", "MatMul has no bias of its own; the Add behind it takes the shift")
    return ways


def _passing_rows(view: View, key: int, axis: int) -> Mapping[int, Storage] | None:
    """A scale that varies only along rows, with none on the weights' axes, passes from one side to the other."""
    x, y = view.port(key), view.port(OUT)
    for one, other, target in ((x, y, OUT), (y, x, key)):
        varying = varies_on(one.storage)
        if not one.fixed or not varying or axis % one.rank in varying:
            continue
        if not one.storage.is_scale or one.rank != other.rank:
            raise view.refuse("row-axis", f"a shift that varies along the rows of {view.node.op} does not pass")
        return {target: one.storage}
    return None
