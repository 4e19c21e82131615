"""Models that merge, or do not: a row of a table, and what every result must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from bnfold.certificate import Certificate, certify
from bnfold.folding import Folded, Folder, Wishes
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.runtime import Session
from bnfold.source import read
from bnfold.witness import Witness
from bnfold.write import folded
from tests.builder import Builder
from tests.law import feeds

SAME: dict[str, Any] = {"pads": [1, 1, 1, 1]}
TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Row:
    """A graph, and the operators that are left of it."""

    name: str
    make: Callable[[Builder], object]
    left: str
    opset: int = 17
    ir: int = 8

    def model(self, type_: int = TensorProto.DOUBLE) -> onnx.ModelProto:
        b = Builder(self.opset, type_, self.ir)
        outputs = self.make(b)
        return b.model(*outputs) if isinstance(outputs, tuple) else b.model()


def image(b: Builder, channels: int = 4, *sizes: int | str, batch: int = 2) -> str:
    return b.input(batch, channels, *(sizes or (7, 6)))


def solved(model: onnx.ModelProto, wishes: Wishes | None = None) -> tuple[Folded, onnx.ModelProto]:
    found = Folder(Model(read(model))).solve(wishes or Wishes())
    return found, folded(found.rewrite)


def certified(model: onnx.ModelProto, made: onnx.ModelProto, witness: Witness) -> Certificate:
    return certify(Model(read(model)), Model(read(made)), witness)


def agree(model: onnx.ModelProto, made: onnx.ModelProto, seed: int = 7) -> None:
    """In float64, at every output."""
    values = feeds(model, seed)
    for name, expected in Oracle(model).run(values).items():
        found = Oracle(made).run(values)[name]
        assert found.shape == expected.shape
        assert np.max(np.abs(found - expected)) <= TOLERANCE * max(1.0, np.max(np.abs(expected)))


def ops(model: onnx.ModelProto) -> str:
    return " ".join(node.op_type for node in model.graph.node)


def check(row: Row) -> None:
    """What is left of it, that the result is the same and certified, and that the original did not change."""
    model = row.model()
    before = model.SerializeToString(deterministic=True)
    found, made = solved(model)
    assert ops(made) == row.left
    onnx.checker.check_model(made, full_check=True)
    assert [value.SerializeToString() for value in made.graph.output] == [
        value.SerializeToString() for value in model.graph.output
    ]
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures
    assert model.SerializeToString(deterministic=True) == before


def run(row: Row) -> None:
    """ONNX Runtime computes the same from both, whatever it optimises itself."""
    model = row.model(TensorProto.FLOAT)
    _, made = solved(model)
    values = feeds(model)
    for name, expected in Session(model.SerializeToString(), optimize=False).run(values).items():
        found = Session(made.SerializeToString(), optimize=True).run(values)[name]
        assert np.max(np.abs(found - expected)) <= 2e-5 * np.max(np.abs(expected))


def spoilt(slot: int, op: str, by: float = 1e-12) -> Callable[[onnx.ModelProto], None]:
    """Moves the last number of a constant, relative to the largest."""

    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == op)
        tensor = next(t for t in model.graph.initializer if t.name == node.input[slot])
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.ravel()[-1] += by * np.abs(array).max()
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    return change
