"""The axes of MatMul, Gemm and Einsum by letters, as in an equation of Einsum."""

from __future__ import annotations

import string

from bnfold.certificate.result import NotCertifiedError
from bnfold.graph import Node


def letters(node: Node) -> tuple[str, str, str]:
    """Letters for the axes of both operands and of the output."""
    ranks = [node.graph.rank(node.inputs[slot]) for slot in (0, 1)]
    if None in ranks:
        raise NotCertifiedError("the rank of its operands is not known")
    first, second = (int(rank or 0) for rank in ranks)
    if node.op == "Gemm":
        a, b = ("mk", "km")[bool(node.get_int("transA", 0))], ("kn", "nk")[bool(node.get_int("transB", 0))]
        return a, b, "mn"
    if node.op == "MatMul":
        batch = string.ascii_uppercase[: max(first, second, 2) - 2]
        one = "k" if first == 1 else batch[len(batch) - first + 2 :] + "mk"
        other = "k" if second == 1 else batch[len(batch) - second + 2 :] + "kn"
        return one, other, batch + "m" * (first > 1) + "n" * (second > 1)
    left, arrow, out = node.get_string("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "." in left + out:
        raise NotCertifiedError("its equation is not one of two operands with named axes")
    own = "".join(sorted(letter for letter in set("".join(terms)) if left.count(letter) == 1))
    return terms[0], terms[1], out if arrow else own
