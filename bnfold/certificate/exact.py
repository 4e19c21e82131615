"""The exact values of what a fold may change at a node, whatever its operator: constants, and float attributes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.certificate import contraction, formulas, normalization, quantization, recurrent
from bnfold.certificate.formulas import BIAS, Formula
from bnfold.certificate.operands import ATTRIBUTES
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact
from bnfold.certificate.wiring import GraphPair, Pair

FORMULAS: Mapping[str, Formula] = {
    **formulas.FORMULAS,
    **contraction.FORMULAS,
    **normalization.FORMULAS,
    **recurrent.FORMULAS,
    **quantization.FORMULAS,
}


def exact_constants(graph: GraphPair, pair: Pair) -> dict[int, Exact]:
    """The exact values of a pair's new constants, by input slot.

    Raises:
        NotCertifiedError: there is no formula for what changed.
    """
    slots = pair.changed | ({BIAS} if pair.bias else set())
    if not slots:
        return {}
    formula = FORMULAS.get(pair.old.op)
    if formula is None:
        raise NotCertifiedError(f"there is no formula for new constants of {pair.old.op}")
    with np.errstate(all="ignore"):
        found = formula(graph, pair)
    if slots - set(found):
        raise NotCertifiedError(f"there is no formula for the new constant at input {min(slots - set(found))}")
    return {slot: found[slot] for slot in slots}


def exact_attributes(graph: GraphPair, pair: Pair) -> dict[str, Exact]:
    """The exact values of a pair's float attributes that a fold may change, by name.

    Some are numbers that later opsets take as inputs; an epsilon follows from how the input is stored.
    """
    if pair.old.op in normalization.FORMULAS:
        return {
            name: Exact.of(np.array(v), np.array(EPS * v)) for name, v in normalization.epsilon(graph, pair).items()
        }
    found = {}
    for name, slot in ATTRIBUTES.get(pair.old.op, {}).items():
        new = pair.new.attributes.get(name)
        if pair.reset and new is not None and new != pair.old.attributes.get(name):
            with np.errstate(all="ignore"):
                found[name] = FORMULAS[pair.old.op](graph, pair)[slot]
    return found
