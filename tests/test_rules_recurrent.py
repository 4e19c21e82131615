"""LSTM, GRU and RNN take up any affine of the sequence that they read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests.builder import Builder
from tests.law import fold, law
from tests.rows import ALL, Apply, Row, built, cases, certified, holds, runs_alike

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SEQUENCE = (7, 3, 5)
"""Steps, batch, features."""


def recurrent(
    op: str, bias: bool = True, lengths: bool = False, state: bool = False, outputs: int = 1, **attributes: Any
) -> Apply:
    hidden, directions = 4, 2 if attributes.get("direction") == "bidirectional" else 1

    def apply(b: Builder, x: str) -> str:
        rows, features = GATES[op] * hidden, b.shape(x)[2]
        batch = b.shape(x)[0 if attributes.get("layout") else 1]
        inputs = [x, b.constant(b.normal(directions, rows, features), "w")]
        inputs.append(b.constant(b.normal(directions, rows, hidden), "r"))
        inputs.append(b.constant(b.normal(directions, 2 * rows), "b") if bias else "")
        inputs.append(b.constant(np.arange(batch, dtype=np.int32) + 2, "lengths") if lengths else "")
        if state:
            shape = (batch, directions, hidden) if attributes.get("layout") else (directions, batch, hidden)
            inputs.append(b.constant(b.normal(*shape), "h"))
        names = [b.name(f"{op.lower()}.out") for _ in range(outputs)]
        return b.node(op, *inputs, outputs=["", *names[1:]] if outputs > 1 else names, hidden_size=hidden, **attributes)

    return apply


BOTH = "bidirectional"
ROWS = [
    Row("lstm", recurrent("LSTM"), ALL, "", SEQUENCE, opsets=(7, 14, 17, 22), front_axis=2),
    Row("gru", recurrent("GRU"), ALL, "", SEQUENCE, opsets=(7, 17), front_axis=2),
    Row("rnn", recurrent("RNN"), ALL, "", SEQUENCE, opsets=(7, 17), front_axis=2),
    Row("lstm without bias", recurrent("LSTM", bias=False), ALL, "", SEQUENCE, front_axis=2),
    Row("rnn without bias, with a state", recurrent("RNN", bias=False, state=True), ALL, "", SEQUENCE, front_axis=2),
    Row("lstm in both directions", recurrent("LSTM", direction=BOTH), ALL, "", SEQUENCE, front_axis=2),
    Row("gru backwards", recurrent("GRU", direction="reverse"), ALL, "", SEQUENCE, front_axis=2),
    Row("gru with lengths", recurrent("GRU", lengths=True, direction=BOTH), ALL, "", SEQUENCE, front_axis=2),
    Row(
        "gru that is linear before its reset", recurrent("GRU", linear_before_reset=1), ALL, "", SEQUENCE, front_axis=2
    ),
    Row("lstm, batch first", recurrent("LSTM", layout=1, state=True), ALL, "", (3, 7, 5), front_axis=2),
    Row("lstm, clipped", recurrent("LSTM", clip=0.7), ALL, "", SEQUENCE, front_axis=2),
    Row("lstm, seen from the batch", recurrent("LSTM"), "u", "", SEQUENCE),
]


@pytest.mark.parametrize(("row", "side", "kind", "opset"), cases(ROWS))
def test_an_affine_leaves_or_stays(row: Row, side: str, kind: str, opset: int) -> None:
    holds(row, side, kind, opset)


@pytest.mark.parametrize("row", [row for row in ROWS if "batch first" not in row.name], ids=lambda row: str(row.name))
def test_onnx_runtime_runs_what_comes_out(row: Row) -> None:
    for kind in row.front[-2:]:
        runs_alike(law(built(row, "front", kind, row.opsets[-1], TensorProto.FLOAT).model(), left=0, tolerance=1e-5))


def test_the_last_states_and_lengths_known_at_run_time() -> None:
    b = Builder()
    x = b.affine(b.input("T", "B", 5), "n", 2)
    lengths = b.input("B", name="lengths", type_=TensorProto.INT32)
    state = b.input(1, "B", 4, name="state")
    weights = b.constant(b.normal(1, 16, 5), "w"), b.constant(b.normal(1, 16, 4), "r")
    b.node("LSTM", x, *weights, "", lengths, state, outputs=["y", "h", "last"], hidden_size=4)
    case = fold(b.model("y", "h", "last"))
    assert case.left == 0
    certified(case)


@pytest.mark.parametrize(("kind", "left"), [("s", 0), ("t", 1)])
def test_a_bias_computed_at_run_time_takes_a_scale_only(kind: str, left: int) -> None:
    b = Builder()
    x, bias = b.affine(b.input(7, 3, 5), kind, 2), b.input(1, 24, name="bias")
    weights = b.constant(b.normal(1, 12, 5), "w"), b.constant(b.normal(1, 12, 4), "r")
    b.node("GRU", x, *weights, bias, outputs=["y", "h"], hidden_size=4)
    case = law(b.model(), left)
    certified(case)
    if left:
        case.reason("dynamic-weight")


def test_weights_computed_at_run_time_refuse() -> None:
    b = Builder()
    x, w = b.affine(b.input(7, 3, 5), "s", 2), b.input(1, 4, 5, name="w")
    b.node("RNN", x, w, b.constant(b.normal(1, 4, 4)), hidden_size=4)
    law(b.model(), 1).reason("dynamic-weight")
