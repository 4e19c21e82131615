"""Einsum of a tensor and weights.

Source: ONNX operator Einsum-12.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from bnfold.affine import Storage, snap
from bnfold.rules.base import OUT, Accept, View, need_encode
from bnfold.rules.contraction import Labels, Product, arrived, decided, meet, roles
from bnfold.rules.operands import first_accepted
from bnfold.rules.unlocks import NO_SHIFT, VALID


def einsum(view: View) -> list[Accept]:
    """y = sum x w over labels.  W' = a W alpha;  scales of rows pass;  a shift of x passes on, sum beta w."""
    terms, out = _equation(view)
    labels = {0: terms[0], 1: terms[1], OUT: out}
    ways = [Product(view, x, w, labels) for x, w in roles(view)]
    return decided(first_accepted([partial(_met, way) for way in ways], view, "conflict", "no operand is free"))


def _met(product: Product) -> Accept:
    view = product.view
    met = meet(product)
    if met.passed is not None:
        return view.settle({**met.wants, OUT: met.passed}, met.edits)
    shift, y = met.a * arrived(product, met.beta), view.port(OUT)
    if y.fixed:
        _, b = need_encode(view, y.storage)
        if np.any(snap(shift + b, shift, b) != 0):
            raise view.refuse(
                "shift-refused", "Einsum has no bias that would take a shift", f"use a Gemm, or {NO_SHIFT}"
            )
        return view.settle({**met.wants, OUT: y.storage}, met.edits)
    return view.settle({**met.wants, OUT: Storage.encode(met.a, -shift)}, met.edits)


def _equation(view: View) -> tuple[list[Labels], Labels]:
    """The labels of both operands and of the output."""
    equation = view.node.get_string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = [tuple(term) for term in left.split(",")]
    if not arrow:
        letters = sorted({letter for term in terms for letter in term})
        right = "".join(letter for letter in letters if left.count(letter) == 1)
    if len(terms) != 2 or any(len(set(term)) < len(term) for term in (*terms, tuple(right))):
        raise view.refuse(
            "unsupported-form",
            f"the equation {equation!r} is not one of two plain operands",
            "use a MatMul with Transpose or Reshape around it",
        )
    if not _fits(view, terms):
        raise view.refuse("unsupported-form", f"the equation {equation!r} does not fit its operands", VALID)
    return [_met_by(view, slot, terms) for slot in (0, 1)], tuple(right)


def _fits(view: View, terms: list[Labels]) -> bool:
    """Whether there is a label for each axis, and sizes under one label can meet."""
    shapes = [view.port(slot).shape for slot in (0, 1)]
    if any(len(shape) != len(term) for shape, term in zip(shapes, terms, strict=True)):
        return False
    sizes = [dict(zip(term, shape, strict=True)) for shape, term in zip(shapes, terms, strict=True)]
    pairs = [(sizes[0][label], sizes[1][label]) for label in sizes[0].keys() & sizes[1].keys()]
    return all(1 in pair or not all(isinstance(n, int) for n in pair) or pair[0] == pair[1] for pair in pairs)


def _met_by(view: View, slot: int, terms: list[Labels]) -> Labels:
    """An operand's labels, without those of axes of size one that meet larger ones."""
    shape, other = view.port(slot).shape, dict(zip(terms[1 - slot], view.port(1 - slot).shape, strict=True))
    return tuple("" if n == 1 and other.get(name, 1) != 1 else name for name, n in zip(terms[slot], shape, strict=True))
