"""Gemm and MatMul: absorb what varies along the weights' axes; a scale of rows passes through.

Source: ONNX operators Gemm-1/6/7/9/11/13, MatMul-1/9/13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from bnfold.affine import Array, Storage, snap
from bnfold.constants import Constant
from bnfold.plan import Edit, NewBias, NewConstant, SetAttribute
from bnfold.rules.base import OUT, Accept, Port, View, lift, need_encode
from bnfold.rules.contraction import Labels, Met, Product, arrived, arrived_shape, decided, meet, roles
from bnfold.rules.operands import first_accepted, fitted
from bnfold.rules.unlocks import CONSTANT, NOT_ZERO, VALID


def gemm(view: View) -> list[Accept]:
    """Y = p A B + q C.  B' = alpha B a;  C' = a (C + p/q beta.B) + b/q;  without C, or with q = 0: q becomes 1.

    The constant may be A. A scale of rows passes, and C takes it too; a C that is no constant takes a and any shift.
    """
    node = view.node
    a = ("m", "k")[:: -1 if node.get_int("transA", 0) else 1]
    b = ("k", "n")[:: -1 if node.get_int("transB", 0) else 1]
    labels = {0: a, 1: b, OUT: ("m", "n")}
    return _ways(view, lambda x, w: _gemm(Product(view, x, w, labels, node.get_float("alpha", 1.0))))


def _ways(view: View, way: Callable[[int, int], list[Accept]]) -> list[Accept]:
    found: list[Accept] = []

    def of(x: int, w: int) -> Accept:
        first, *more = way(x, w)
        found.extend(more)
        return first

    return decided([*first_accepted([partial(of, *role) for role in roles(view)], view, "conflict", ""), *found])


def _gemm(product: Product) -> list[Accept]:
    view = product.view
    node, y, c = view.node, view.port(OUT), _addend(view)
    if any(len(view.port(key).shape) != 2 for key in (0, 1, OUT)):
        raise view.refuse("unsupported-form", "the operands of Gemm are no matrices", VALID)
    old = node.constant(2) if node.get_float("beta", 1.0) != 0 else None
    if old is not None and not _fits(view, old):
        raise view.refuse("unsupported-form", f"the bias of Gemm, of shape {old.shape}, does not fit its result", VALID)
    leads = c is not None and c.fixed and not y.fixed and not c.storage.is_identity
    met = meet(product, lift(need_encode(view, c.storage)[0], 2) if c is not None and leads else None)
    if met.passed is not None:
        raise view.refuse("zero-scale", "rows of scale zero do not pass a Gemm", NOT_ZERO)
    _, b = need_encode(view, y.storage)
    if c is None:
        wants = {**met.wants, OUT: Storage.encode(met.a, b)}
        return [view.settle(wants, met.edits + _new_addend(product, met, b, old))]
    q = node.get_float("beta", 1.0)
    shift = met.a * arrived(product, met.beta)
    _, own = need_encode(view, c.storage)

    def to_output() -> Accept:
        through = q * lift(own, 2) if leads or c.fixed else 0.0
        storage = c.storage if leads or c.fixed else fitted(view, c, met.a, np.zeros((1, 1)), 2)
        back = Storage.encode(met.a, snap(through - shift, shift, np.asarray(through)))
        return view.settle({**met.wants, OUT: back, 2: storage}, met.edits)

    def to_addend() -> Accept:
        storage = fitted(view, c, met.a, snap(shift + b, shift, b) / q, 2)
        return view.settle({**met.wants, OUT: Storage.encode(met.a, b), 2: storage}, met.edits)

    return decided(first_accepted([to_addend, to_output], view, "conflict", "no operand is free to take the shift"))


def _addend(view: View) -> Port | None:
    """C where it is computed by the graph; one whose meaning must stay cannot change."""
    node = view.node
    if not node.input(2) or node.constant(2) is not None or node.get_float("beta", 1.0) == 0:
        return None
    port = view.port(2)
    if port.pinned:
        raise view.refuse("dynamic-weight", "the bias of Gemm is computed at run time", CONSTANT)
    return port


def _new_addend(product: Product, met: Met, b: Array, old: Constant | None) -> tuple[Edit, ...]:
    """The new C: a C + (a arrived + b) / q, where C was this constant, or left out."""
    node, a, beta = product.view.node, met.a, met.beta
    q = node.get_float("beta", 1.0)
    used = bool(node.input(2)) and q != 0
    shifted = bool(np.any(beta != 0)) or bool(np.any(b != 0))
    if not shifted and (not used or np.all(a == 1)):
        return ()
    divisor = q if used else 1.0
    shape = _addend_shape(product, old, a, b, beta)

    def shift() -> Array:
        value = (a * arrived(product, beta) + b if np.any(beta != 0) else b) / divisor
        return value.reshape(value.shape[2 - len(shape) :])

    factors = (a.reshape(a.shape[2 - len(shape) :]),) if old is not None else ()
    edits: tuple[Edit, ...] = (NewConstant(2, "bias", _addend_type(product, old), shape, old, factors, shift),)
    if not used and q != 1.0:
        edits += (SetAttribute("beta", 1.0),)
    if node.version < 7 and not node.get_int("broadcast", 0):
        edits += (SetAttribute("broadcast", 1),)
    return edits


def _fits(view: View, addend: Constant) -> bool:
    """Whether C may be added to what Gemm makes; before opset 7 it is broadcast only where the node says so."""
    node, shape = view.node, addend.shape
    whole = node.version < 7 and not node.get_int("broadcast", 0)
    if not addend.is_float or len(shape) > 2 or (whole and len(shape) < 2):
        return False
    sizes = zip(reversed(shape), reversed(view.port(OUT).shape), strict=False)
    return all(n == of or isinstance(of, str) or (n == 1 and not whole) for n, of in sizes)


def _addend_type(product: Product, old: Constant | None) -> int:
    constant, node = old or product.weight, product.view.node
    return node.graph.type(node.outputs[0]) if constant is None else constant.type


def _addend_shape(product: Product, old: Constant | None, a: Array, b: Array, beta: Array) -> tuple[int, ...]:
    """A vector, or a matrix where it varies along rows too; before opset 7 that is a whole one."""
    view, shapes = product.view, [b.shape]
    outputs = view.port(OUT).shape
    if np.any(beta != 0):
        shapes.append(arrived_shape(product, beta))
    if old is not None:
        shapes += [a.shape, old.shape]
    shape = np.broadcast_shapes((1, 1), *shapes)
    if old is None and shape == (1, 1) and isinstance(outputs[1], int):
        shape = (1, outputs[1])
    if shape[0] == 1 and (old is None or len(old.shape) < 2):
        return shape[1:]
    if shape[0] != 1 and view.node.version < 7:
        known = tuple(size for size in outputs if isinstance(size, int))
        if len(known) < 2:
            raise view.refuse("unknown-shape", "the number of rows of Gemm is not known", "export with shapes")
        return known
    return shape


NEEDS_ADD = "give the MatMul a bias: an Add behind it"


def matmul(view: View) -> list[Accept]:
    """y = x W.  W' = alpha W a on its own axes; a (beta.W) + b is a constant shift of the output.

    The shift goes on to the Add behind it, or becomes a bias of its own. A scale of rows passes. W x alike.
    """
    labels = _matmul_labels(view)
    return _ways(view, lambda x, w: _matmul(Product(view, x, w, labels)))


def _matmul_labels(view: View) -> dict[int, Labels]:
    """(b1, b0, m, k), (b1, b0, k, n) and (b1, b0, m, n), of which a vector has k only."""
    first, second = view.port(0).shape, view.port(1).shape
    if not first or not second:
        raise view.refuse("unsupported-form", "MatMul of a number", VALID)
    batch = {}
    for slot, shape, other in ((0, first, second), (1, second, first)):
        lead, met = shape[:-2][::-1], other[:-2][::-1]
        alike = [n == 1 and i < len(met) and met[i] != 1 for i, n in enumerate(lead)]
        batch[slot] = tuple("" if skip else f"b{i}" for i, skip in enumerate(alike))[::-1]
    rank = max(len(first), len(second)) - 2
    ends = (("m", "k") if len(first) > 1 else ("k",)), (("k", "n") if len(second) > 1 else ("k",))
    out = (*(f"b{i}" for i in reversed(range(rank))), *("m",) * (len(first) > 1), *("n",) * (len(second) > 1))
    return {0: (*batch[0], *ends[0]), 1: (*batch[1], *ends[1]), OUT: out}


def _matmul(product: Product) -> list[Accept]:
    view, y = product.view, product.view.port(OUT)
    met = meet(product)
    if met.passed is not None:
        return [view.settle({**met.wants, OUT: met.passed}, met.edits)]
    _, b = need_encode(view, y.storage)
    shift = met.a * arrived(product, met.beta)
    bias = snap(shift + b, shift, b)
    if np.all(bias == 0):
        return [view.settle({**met.wants, OUT: Storage.encode(met.a, b)}, met.edits)]
    ways: list[Callable[[], Accept]] = []
    if not (view.bias_behind or view.only_moves) and product.weight is not None and _addable(view, bias):
        added = NewBias(product.weight.type, np.broadcast_to(bias, _bias_shape(product, bias)))
        ways.append(lambda: view.settle({**met.wants, OUT: Storage.encode(met.a, b)}, (*met.edits, added)))
    if not y.fixed:
        ways.append(lambda: view.settle({**met.wants, OUT: Storage.encode(met.a, -shift)}, met.edits))
    if not ways and view.only_moves:
        raise view.refuse(
            "would-only-move",
            "the addition would only move behind a MatMul",
            NEEDS_ADD,
        )
    return first_accepted(
        ways, view, "shift-refused", "MatMul has no bias of its own; the Add behind it takes the shift", NEEDS_ADD
    )


def _addable(view: View, bias: Array) -> bool:
    """Whether an Add can do it: before opset 7 its constant has one axis."""
    return view.node.version >= 7 or sum(size != 1 for size in bias.shape) <= 1


def _bias_shape(product: Product, bias: Array) -> tuple[int, ...]:
    """A bias has the whole last axis where the weights have it, or whatever axis it varies on."""
    last = product.view.port(OUT).shape[-1]
    plain = all(size == 1 for size in bias.shape) and product.labels[OUT][-1:] == product.labels[product.w][-1:]
    return (*bias.shape[:-1], last) if plain and isinstance(last, int) else bias.shape
