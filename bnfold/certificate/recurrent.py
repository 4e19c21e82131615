"""LSTM, GRU and RNN: what their input weights and biases should be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bnfold.certificate.formulas import Formula
from bnfold.certificate.ports import read_along, weight_of
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import EPS, Exact
from bnfold.certificate.wiring import GraphPair, Pair


def _recurrent(graph: GraphPair, pair: Pair) -> Mapping[int, Exact]:
    """W' = W alpha;  B' = [Wb + W.beta, Rb]."""
    node = pair.old
    w = weight_of(node, 1)
    directions, rows, size = w.shape
    alpha, beta = read_along(graph, node, node.inputs[0], 2, size)
    found = {1: Exact.scaled(w, alpha.reshape(1, 1, -1))}
    old = node.constant(3)
    if node.input(3) and old is None:
        if np.any(beta):
            raise NotCertifiedError("its bias is not constant")
        return found
    values = w.float64()
    value, doubt = np.zeros((directions, 2 * rows)), np.zeros((directions, 2 * rows))
    value[:, :rows], doubt[:, :rows] = values @ beta, np.abs(values) @ np.abs(beta)
    if old is not None:
        value, doubt = value + old.float64(), doubt + np.abs(old.float64())
    found[3] = Exact.of(value, (size + 8) * EPS * doubt)
    return found


FORMULAS: Mapping[str, Formula] = dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent)
