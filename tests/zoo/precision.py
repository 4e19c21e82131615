#!/usr/bin/env python3
"""Bits that a fold is predicted to lose against the error that is measured: the table of docs/solver.md.

A BatchNormalization in front of a padded convolution leaves its shift in its input, which a second convolution reads
too. The smaller gamma, the further from zero that input is then stored, and the more digits the second reader loses.
Run as ``python tests/zoo/precision.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bnfold import guards
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.plan import Rewrite
from bnfold.runtime import Session
from bnfold.solver import solve
from bnfold.source import read
from bnfold.write import folded
from tests.builder import Builder

GAMMAS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12)
CHANNELS, SIZE = 16, 24
MEAN, SPREAD = 0.5, 2.0


def two_readers(gamma: float) -> onnx.ModelProto:
    """x -> BN -> padded Conv -> y;  x -> Conv -> z."""
    b = Builder(17, onnx.TensorProto.FLOAT)
    x = b.conv(b.input(2, CHANNELS, SIZE, SIZE), CHANNELS, 1, scale=SPREAD / 4)
    b.conv(b.bn(x, gamma=gamma, beta=0.3, mean=MEAN, variance=SPREAD**2), CHANNELS, 3, pads=[1, 1, 1, 1])
    b.conv(x, CHANNELS, 1)
    return b.model()


def error(model: onnx.ModelProto, feeds: dict[str, NDArray[np.generic]], truth: NDArray[np.float64]) -> float:
    """Of the second reader's output on ONNX Runtime, relative."""
    name = model.graph.output[1].name
    found = np.asarray(Session(model.SerializeToString(), optimize=False).run(feeds)[name], np.float64)
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def main() -> None:
    """Print the table."""
    limit = guards.BITS["float32"]
    print("| gamma | stored around | predicted bits | error before | after | measured bits | |\n" + "|---" * 7 + "|")
    for gamma in GAMMAS:
        model = two_readers(gamma)
        rng = np.random.default_rng(1)
        feeds: dict[str, NDArray[np.generic]] = {"x": rng.normal(size=(2, CHANNELS, SIZE, SIZE)).astype(np.float32)}
        truth = np.asarray(Oracle(model).run(feeds)[model.graph.output[1].name], np.float64)
        given = Model(read(model))
        kept = not solve(given).outcomes[0].folded
        guards.BITS["float32"] = 64.0
        solution = solve(given)
        guards.BITS["float32"] = limit
        (storage,) = (s for name, s in solution.plan.graphs[0].storage.items() if name == model.graph.node[0].output[0])
        offset = float(np.max(np.abs(storage.beta)))
        predicted = float(np.max(guards.bits_lost(storage, np.full(1, MEAN), np.full(1, SPREAD))))
        before, after = error(model, feeds, truth), error(folded(Rewrite.of(solution.plan)), feeds, truth)
        verdict = f"refused: {limit:g} allowed" if kept else "folded"
        measured = np.log2(after / before)
        print(
            f"| {gamma:g} | {offset:.3g} | {predicted:.1f} | {before:.1e} | {after:.1e} | {measured:.1f} | {verdict} |"
        )


if __name__ == "__main__":
    main()
