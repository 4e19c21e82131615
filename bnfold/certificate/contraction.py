"""MatMul, Gemm and Einsum: what weights and biases should be, by the names of axes.

``x = alpha*x' + beta`` on one operand, ``y' = a*y + b`` on the output, weights w on the other operand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.certificate.affines import storage_of
from bnfold.certificate.formulas import BIAS, Formula
from bnfold.certificate.letters import letters
from bnfold.certificate.ports import regular, weight_of
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact, read_rows, spans
from bnfold.certificate.stored import stored_constant
from bnfold.certificate.wiring import GraphPair, Pair
from bnfold.constants import Constant
from bnfold.graph import Node


def _at_row(array: Array, names: str, own: str, rows: Mapping[str, int]) -> Array:
    """The array along the axes of the weights, in their order, and at one index of all others."""
    at = [slice(None) if name in own else min(rows[name], n - 1) for name, n in zip(names, array.shape, strict=True)]
    array = array[tuple(at)]
    kept = [name for name in names if name in own]
    array = array.transpose([kept.index(name) for name in own if name in kept])
    return array[tuple(slice(None) if name in kept else None for name in own)]


def _product(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """W' = a W alpha;  C' = (a (q C + p beta.W) + b) / q', with p and q as Gemm's alpha and beta."""
    node = pair.old
    slot = 1 if node.constant(1) is not None or node.constant(0) is None else 0
    *names, y = letters(node)
    x, x_name, own = names[1 - slot], node.inputs[1 - slot], names[slot]
    found: dict[int, Exact] = {}
    w = weight_of(node, slot) if node.constant(slot) is not None else None
    given, made = storage_of(graph, node, x_name), storage_of(graph, node, node.outputs[0])
    rows = _row((x, given), (y, made), own)
    given, made = regular(given, given.num == 0), regular(made, made.den == 0)
    alpha, a, b = given.alpha, made.a, made.b
    if w is not None:
        whole = tuple(slice(0, 1) if size == 1 else slice(None) for size in w.shape)  # one that meets many is a row
        factors = _at_row(a, y, own, rows), _at_row(alpha, x, own, rows)
        found[slot] = Exact.scaled(w, *(factor[whole] for factor in factors))
    if pair.bias is None and node.op != "Gemm":
        return found
    moved, size, count = _arrived(node, w, 1 - slot, given.beta)
    terms = [a * moved, b]
    doubt = (count + 8) * EPS * (np.abs(a) * size + np.abs(b))
    if node.op == "MatMul":
        found[BIAS] = _sum(terms, doubt)
        free = [w.shape[own.index(name)] if w is not None and name in own else 1 for name in y]
        stored = stored_constant(pair, BIAS)
        if stored is not None and list(stored.shape) == free:  # which may repeat one value
            shape = np.broadcast_shapes(found[BIAS].shape, stored.shape)
            found[BIAS] = Exact.of(np.broadcast_to(sum(terms[1:], terms[0]), shape), np.broadcast_to(doubt, shape))
        return found
    q, new_q = node.get_float("beta", 1.0), pair.new.get_float("beta", 1.0)
    c = node.constant(2)
    if c is not None and q != 0:
        terms.append(a * q * c.float64())
        doubt = doubt + 8 * EPS * np.abs(terms[-1])
    if c is not None or not node.input(2):
        found[2] = _sum([term / new_q for term in terms], doubt / abs(new_q))
    return found


def _row(x: tuple[str, Storage], y: tuple[str, Storage], own: str) -> dict[str, int]:
    """An index for each axis that the weights lack: a place where neither scale is zero, if there is one."""
    free = list(dict.fromkeys(name for names, _ in (x, y) for name in names if name not in own))
    places = np.ones((1,) * len(free), np.bool_)
    for names, storage in (x, y):
        both = (storage.den != 0) & (storage.num != 0)
        fine = np.asarray(both.any(axis=tuple(axis for axis, name in enumerate(names) if name in own)))
        kept = [name for name in names if name not in own]
        fine = fine.transpose([kept.index(name) for name in free if name in kept])
        places = places & fine[tuple(slice(None) if name in kept else None for name in free)]
    return dict(zip(free, map(int, np.unravel_index(np.argmax(places), places.shape)), strict=True))


def _sum(terms: Sequence[Array], doubt: Array) -> Exact:
    """The sum of terms, and how far it may be off."""
    value = np.asarray(sum(terms[1:], terms[0]))
    shape = np.broadcast_shapes(value.shape, doubt.shape)
    return Exact.of(np.broadcast_to(value, shape), np.broadcast_to(doubt, shape))


def _arrived(node: Node, w: Constant | None, slot: int, beta: Array) -> tuple[Array, Array, int]:
    """beta . W in the output, the sum of magnitudes, and how many terms it has."""
    *operands, y = letters(node)
    x, own = operands[slot], operands[1 - slot]
    if not np.any(beta):
        return np.zeros((1,) * len(y)), np.zeros((1,) * len(y)), 0
    if w is None:
        raise NotCertifiedError("its weights are not constant, and a shift reaches them")
    gain = node.get_float("alpha", 1.0) if node.op == "Gemm" else 1.0
    shape, sizes = node.graph.shape(node.inputs[slot]), list(beta.shape)
    for axis, name in enumerate(x):
        if name in y:
            continue
        size = w.shape[own.index(name)] if name in own else None if shape is None else shape[axis]
        if not isinstance(size, int):
            raise NotCertifiedError("the size of an axis that it sums is not known")
        sizes[axis] = max(sizes[axis], size)
    beta = np.broadcast_to(beta * gain, sizes)
    pieces = []
    for start, stop in spans(w.shape):
        piece, at = read_rows(w, start, stop), x.find(own[0])
        cut = at >= 0 and beta.shape[at] != 1 and w.shape[0] != 1
        part = beta.take(range(start, stop), at) if cut else beta
        pieces.append([np.einsum(f"{x},{own}->{y}", *sides) for sides in ((part, piece), (abs(part), abs(piece)))])
    gone = [size for name, size in zip(own, w.shape, strict=True) if name not in y]
    if own[0] in y:
        total, magnitude = (np.concatenate(sides, y.index(own[0])) for sides in zip(*pieces, strict=True))
    else:
        total, magnitude = (np.sum(sides, axis=0) for sides in zip(*pieces, strict=True))
    return total, magnitude, int(np.prod(gone, dtype=np.int64))


FORMULAS: Mapping[str, Formula] = dict.fromkeys(("Gemm", "MatMul", "Einsum"), _product)
