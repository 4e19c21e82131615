"""Ranks and channel counts that the operators tell where shape inference does not: a table of single facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.graph import Model, Shape
from bnfold.source import read

WEIGHTS = {
    "w": np.zeros((6, 2, 3, 3), np.float32),
    "c": np.zeros((6, 1, 1), np.float32),
    "v": np.zeros(6, np.float32),
    "k": np.array(1),
}


def unknown(*nodes: tuple[str, list[str], dict[str, Any]]) -> Model:
    """A Loop, whose output `t0` has no shape, and behind it each node reading the one before: t1, t2, ..."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Abs", ["s"], ["r"])],
        "body",
        [helper.make_empty_tensor_value_info(name) for name in ("i", "go", "s")],
        [helper.make_empty_tensor_value_info(name) for name in ("on", "r")],
    )
    made = [helper.make_node("Loop", ["k", "", "x"], ["t0"], body=body)]
    for i, (op, inputs, attributes) in enumerate(nodes):
        made.append(helper.make_node(op, inputs, [f"t{i + 1}"], **attributes))
    ends = [helper.make_empty_tensor_value_info(name) for name in ("x", f"t{len(nodes)}")]
    ends[0].type.tensor_type.elem_type = TensorProto.FLOAT
    inits = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    model = helper.make_model(
        helper.make_graph(made, "g", ends[:1], ends[1:], inits), opset_imports=[helper.make_opsetid("", 17)]
    )
    return Model(read(model))


CONV = ("Conv", ["t0", "w"], {"group": 2})


@pytest.mark.parametrize(
    ("nodes", "name", "shape"),
    [
        ([CONV], "t0", (None, 4, None, None)),
        ([CONV], "t1", (None, 6, None, None)),
        ([("ConvTranspose", ["t0", "w"], {"group": 2})], "t0", (None, 6, None, None)),
        ([("ConvTranspose", ["t0", "w"], {"group": 2})], "t1", (None, 4, None, None)),
        ([CONV, ("Relu", ["t1"], {})], "t2", (None, 6, None, None)),
        ([CONV, ("MaxPool", ["t1"], {"kernel_shape": [2, 2]})], "t2", (None, 6, None, None)),
        ([CONV, ("Transpose", ["t1"], {"perm": [0, 2, 3, 1]})], "t2", (None, None, None, 6)),
        ([CONV, ("Mul", ["t1", "c"], {})], "t2", (None, 6, None, None)),
        ([CONV, ("Add", ["v", "t1"], {})], "t2", (None, 6, None, 6)),
        ([CONV, ("BatchNormalization", ["t1", "v", "v", "v", "v"], {})], "t2", (None, 6, None, None)),
        ([("Relu", ["t0"], {}), ("Conv", ["t1", "w"], {"group": 2})], "t0", (None, 4, None, None)),
        ([("Relu", ["t0"], {})], "t1", None),
        ([("Mul", ["t0", "c"], {})], "t1", None),
        ([("TopK", ["t0", "k"], {})], "t1", None),
    ],
)
def test_what_operators_tell(
    nodes: list[tuple[str, list[str], dict[str, Any]]], name: str, shape: Shape | None
) -> None:
    assert unknown(*nodes).main.shape(name) == shape


def test_a_batchnorm_behind_a_tensor_of_unknown_shape_folds() -> None:
    from bnfold.solver import solve

    model = unknown(CONV, ("BatchNormalization", ["t1", "v", "v", "v", "v"], {}))
    assert [outcome.folded for outcome in solve(model).outcomes] == [True]


def test_shapes_that_are_known_stay() -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHTS["w"], "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert Model(read(model)).main.shape("y") == ("N", 6, 6, 6)
