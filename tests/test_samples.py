"""The random samples of a verification: seeded, signed, of sizes and types that the model takes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnfold import samples
from bnfold.equivalence import EQUIVALENT, verify
from tests.pairs import info, made, network


def test_samples_are_seeded_signed_and_of_several_scales() -> None:
    specs = samples.input_specs(network(folded=False))
    shapes = next(samples.candidates(specs))
    made_once = [samples.make(specs, shapes, index, 0, (0, 9))["x"] for index in range(3)]
    again = [samples.make(specs, shapes, index, 0, (0, 9))["x"] for index in range(3)]
    for one, two in zip(made_once, again, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.min() < 0 < one.max()
    spreads = [float(array.std()) for array in made_once]
    assert max(spreads) > 4 * min(spreads)
    assert not np.array_equal(made_once[0], samples.make(specs, shapes, 0, 1, (0, 9))["x"])


def test_integers_and_booleans_get_values_too() -> None:
    inputs = [info("i", ["n", 50], TensorProto.INT64), info("b", ["n", 50], TensorProto.BOOL)]
    nodes = [helper.make_node("Where", ["b", "i", "i"], ["y"])]
    model = made(nodes, {}, inputs, [info("y", None, TensorProto.INT64)])
    specs = samples.input_specs(model)
    feeds = samples.make(specs, next(samples.candidates(specs)), 0, 0, (0, 9))
    assert set(np.unique(feeds["b"])) == {False, True}
    assert feeds["i"].min() >= 0
    assert verify(model, model).status == EQUIVALENT


def test_one_name_has_one_size() -> None:
    inputs = [info("a", ["n", "k"]), info("b", ["k", 4])]
    model = made([helper.make_node("MatMul", ["a", "b"], ["y"])], {}, inputs, [info("y", None)])
    found = verify(model, model)
    assert found.inputs[0]["shape"][1] == found.inputs[1]["shape"][0]


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.INT64, TensorProto.UINT8]
)
def test_an_input_without_axes(kind: int) -> None:
    """A threshold, a time step, a switch: a sample of it is an array too."""
    nodes = [
        helper.make_node("Cast", ["c"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "number"], ["y"]),
    ]
    model = made(nodes, {}, [info("x", [2, 3]), info("c", [], kind)], [info("y", [2, 3])])
    run = verify(model, model)
    assert run.status == EQUIVALENT
    assert next(entry for entry in run.inputs if entry["name"] == "c")["shape"] == []
