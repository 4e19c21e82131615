"""Ranks and channel counts that the operators tell where shape inference does not: a table of single facts."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import shapes
from bnfold.graph import Dim, Model, Node, Shape
from bnfold.inference import _WEIGHTS, with_kernel
from bnfold.source import read
from tests.builder import Builder
from tests.law import fold

WEIGHTS = {
    "w": np.zeros((6, 2, 3, 3), np.float32),
    "c": np.zeros((6, 1, 1), np.float32),
    "v": np.zeros(6, np.float32),
    "k": np.array(1),
    "k1": np.array([1]),
    "five": np.array([5]),
    "keep": np.array([0, 2, 3, -1]),
    "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
    "m": np.zeros((6, 5), np.float32),
    "w1": np.zeros((4, 5, 1), np.float32),
    "w3": np.zeros((4, 6, 2, 2), np.float32),
    "large": np.array([8, 8]),
    "w2": np.zeros((4, 6, 1), np.float32),
    "wt": np.zeros((6, 2, 3, 3), np.float32),
    "c4": np.zeros((4, 1, 1), np.float32),
    "zero": np.array([0]),
    "two": np.array([2]),
    "free": np.array([-1]),
    "keep2": np.array([0, 2, 3]),
    "minus": np.array([-1, -1, -1, -1]),
    "ones": np.array([1, 1, 1, 1]),
    "halves": np.array([2, 2, 2, 2]),
    "twos": np.array([2]),
}

Made = tuple[str, list[str], dict[str, Any]]
"""A node: operator, inputs, attributes."""


def unknown(*nodes: Made) -> Model:
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


CONV: Made = ("Conv", ["t0", "w"], {"group": 2})


def lettered(*shapes: Shape | None) -> tuple[Shape | None, ...]:
    """Shapes in which the sizes without a name of the model's are a, b, c, ... in order."""
    letters: dict[str, str] = {}

    def letter(found: re.Match[str]) -> str:
        return letters.setdefault(found[0], "abcdefghij"[len(letters)])

    def renamed(size: Dim) -> Dim:
        return re.sub(r"unk__\d+|\?\w+:\d+", letter, size) if isinstance(size, str) else size

    return tuple(shape and tuple(renamed(size) for size in shape) for shape in shapes)


PADDED: Made = ("Conv", ["t0", "w"], {"group": 2, "pads": [1, 1, 1, 1]})
T0 = ("a", 4, "b", "c")

PARTS: list[Made] = [("Shape", ["t1"], {"end": 2}), ("Shape", ["t0"], {"end": 2})]
"""The batch and the channels of both."""

FORWARDS: list[tuple[list[Made], Shape]] = [
    ([CONV], ("a", 6, "d", "e")),
    ([PADDED], ("a", 6, "b", "c")),
    ([PADDED, ("ConvTranspose", ["t1", "wt"], {"group": 2})], ("a", 4, "d", "e")),
    ([PADDED, ("Relu", ["t1"], {})], ("a", 6, "b", "c")),
    ([PADDED, ("MaxPool", ["t1"], {"kernel_shape": [2, 2]})], ("a", 6, "d", "e")),
    ([PADDED, ("GlobalAveragePool", ["t1"], {})], ("a", 6, 1, 1)),
    ([PADDED, ("Transpose", ["t1"], {"perm": [0, 2, 3, 1]})], ("a", "b", "c", 6)),
    ([PADDED, ("Mul", ["t1", "c"], {})], ("a", 6, "b", "c")),
    ([PADDED, ("Add", ["v", "t1"], {})], ("a", 6, "b", 6)),
    ([PADDED, ("BatchNormalization", ["t1", "v", "v", "v", "v"], {})], ("a", 6, "b", "c")),
    ([PADDED, ("Concat", ["t1", "t1"], {"axis": 1})], ("a", 12, "b", "c")),
    ([PADDED, ("ReduceMean", ["t1"], {"axes": [2, 3], "keepdims": 0})], ("a", 6)),
    ([PADDED, ("Flatten", ["t1"], {"axis": 1})], ("a", "d")),
    ([PADDED, ("Pad", ["t1", "pads"], {})], ("a", 8, "b", "c")),
    ([PADDED, ("Slice", ["t1", "k1", "five", "k1"], {})], ("a", 4, "b", "c")),
    ([PADDED, ("MatMul", ["t1", "m"], {})], ("a", 6, "b", 5)),
    ([PADDED, ("Reshape", ["t1", "keep"], {})], ("a", 2, 3, "b * c")),
    ([PADDED, ("Unsqueeze", ["t1", "k1"], {}), ("Squeeze", ["t2", "k1"], {})], ("a", 6, "b", "c")),
    ([PADDED, ("Shape", ["t1"], {}), ("Expand", ["c", "t2"], {})], ("a", 6, "b", "c")),
    ([PADDED, ("Shape", ["t1"], {}), ("ConstantOfShape", ["t2"], {})], ("a", 6, "b", "c")),
    (
        [
            PADDED,
            ("Shape", ["t1"], {}),
            ("Unsqueeze", ["t2", "zero"], {}),
            ("Gather", ["t3", "zero"], {}),
            ("Squeeze", ["t4", "zero"], {}),
            ("ConstantOfShape", ["t5"], {}),
        ],
        ("d", "e", "f", "g"),
    ),
    ([("Conv", ["t0", "w"], {"group": 2, "auto_pad": "SAME_UPPER"}), ("Conv", ["t1", "w3"], {})], ("a", 4, "d", "e")),
    (
        [
            PADDED,
            ("Shape", ["t1"], {"end": 2}),
            ("Concat", ["t2", "large"], {"axis": 0}),
            ("Resize", ["t1", "", "", "t3"], {}),
        ],
        ("a", 6, 8, 8),
    ),
    (
        [
            PADDED,
            ("Shape", ["t1"], {"start": 2}),
            ("Concat", ["keep2", "t2"], {"axis": 0}),
            ("Reshape", ["t1", "t3"], {}),
        ],
        ("a", 2, 3, "b", "c"),
    ),
    (
        [
            PADDED,
            ("Shape", ["t1"], {}),
            ("Gather", ["t2", "k"], {}),
            ("Unsqueeze", ["t3", "zero"], {}),
            ("Concat", ["t4", "free"], {"axis": 0}),
            ("GlobalAveragePool", ["t1"], {}),
            ("Reshape", ["t6", "t5"], {}),
        ],
        (6, "a"),
    ),
    (
        [
            PADDED,
            ("Shape", ["t1"], {}),
            ("Slice", ["t2", "two", "five"], {}),
            ("ReduceProd", ["t3"], {"keepdims": 1}),
            ("Concat", ["keep2", "t4"], {"axis": 0}),
            ("Cast", ["t5"], {"to": TensorProto.INT64}),
            ("Reshape", ["t1", "t6"], {}),
        ],
        ("a", 2, 3, "b * c"),
    ),
    (
        [
            PADDED,
            ("Shape", ["t1"], {}),
            ("Equal", ["t2", "minus"], {}),
            ("Where", ["t3", "ones", "t2"], {}),
            ("Expand", ["c", "t4"], {}),
        ],
        ("a", 6, "b", "c"),
    ),
    (
        [
            PADDED,
            ("Shape", ["t1"], {}),
            ("Mul", ["t2", "halves"], {}),
            ("Div", ["t3", "twos"], {}),
            ("Reshape", ["t1", "t4"], {}),
        ],
        ("a", 6, "b", "c"),
    ),
    ([PADDED, *PARTS, ("Max", ["t2", "t3", "t2"], {}), ("ConstantOfShape", ["t4"], {})], ("a", 6)),
    ([PADDED, *PARTS, ("Max", ["t2", "t3", "two"], {}), ("ConstantOfShape", ["t4"], {})], ("d", 6)),
    ([PADDED, *PARTS, ("Min", ["t2", "five"], {}), ("ConstantOfShape", ["t4"], {})], ("d", 5)),
]

BACKWARDS: list[tuple[list[Made], Shape]] = [
    ([CONV], T0),
    ([("ConvTranspose", ["t0", "w"], {"group": 2})], ("a", 6, "b", "c")),
    ([("Relu", ["t0"], {}), ("Conv", ["t1", "w"], {"group": 2})], T0),
    ([("Gemm", ["t0", "m"], {})], ("a", 6)),
    ([("Gemm", ["t0", "m"], {"transA": 1, "transB": 1})], (5, "a")),
    ([("Transpose", ["t0"], {"perm": [0, 3, 1, 2]}), ("Conv", ["t1", "w"], {"group": 2})], ("a", "b", "c", 4)),
    ([("MatMul", ["t0", "m"], {}), ("Conv", ["t1", "w1"], {})], ("a", 5, 6)),
    ([("Squeeze", ["t0", "k1"], {}), ("Conv", ["t1", "w"], {"group": 2})], ("a", 1, 4, "b", "c")),
    ([("Unsqueeze", ["t0", "zero"], {}), ("Conv", ["t1", "w"], {"group": 2})], (4, "a", "b")),
    ([("Add", ["t0", "k"], {}), ("Conv", ["t1", "w"], {"group": 2})], T0),
    ([("Mul", ["t0", "c4"], {}), ("Conv", ["t1", "w"], {"group": 2})], ("a", "b", "c", "d")),
    ([("AveragePool", ["t0"], {"kernel_shape": [2, 2]}), ("Conv", ["t1", "w"], {"group": 2})], T0),
    ([("Concat", ["t0", "t0"], {"axis": 1}), ("Conv", ["t1", "w"], {"group": 2})], ("a", "b", "c", "d")),
    (
        [
            ("BatchNormalization", ["t0", "v", "v", "v", "v"], {}),
            ("MatMul", ["t1", "m"], {}),
            ("Conv", ["t2", "w2"], {}),
        ],
        ("a", 6, 6),
    ),
]

NOTHING: list[list[Made]] = [
    [("Relu", ["t0"], {})],
    [("Mul", ["t0", "c"], {})],
    [("TopK", ["t0", "k"], {})],
    [("Reshape", ["v", "t0"], {})],
]


@pytest.mark.parametrize(("nodes", "shape"), FORWARDS)
def test_what_operators_tell_of_what_they_make(nodes: list[Made], shape: Shape) -> None:
    graph = unknown(*nodes).main
    last = (*T0[:3], 6) if nodes[-1][0] == "MatMul" else T0  # which tells of what it reads, too
    assert lettered(graph.shape("t0"), graph.shape(f"t{len(nodes)}")) == (last, shape)


@pytest.mark.parametrize(("nodes", "shape"), BACKWARDS)
def test_what_operators_tell_of_what_they_read(nodes: list[Made], shape: Shape) -> None:
    assert lettered(unknown(*nodes).main.shape("t0")) == lettered(shape)


@pytest.mark.parametrize("nodes", NOTHING)
def test_what_tells_nothing(nodes: list[Made]) -> None:
    graph = unknown(*nodes).main
    assert graph.shape("t0") is None and graph.shape(f"t{len(nodes)}") is None


@pytest.mark.parametrize("wrong", [(2, 9, 9, 6), (2, 6, 81), (2, 6, 9, 8)])
def test_a_shape_that_an_operator_contradicts(wrong: tuple[int, ...]) -> None:
    """Some exporters turn tensors round, and leave the declared shapes: runtimes compute with what operators say."""
    b = Builder()
    y = b.node("Relu", b.conv(b.input(2, 3, 11, 11), 6, 3))
    model = b.model(b.conv(b.bn(y, 6), 4))
    model.graph.value_info.append(helper.make_tensor_value_info(y, b.type, wrong))
    assert Model(read(model)).main.shape(y) == (2, 6, 9, 9)
    assert fold(model).left == 0


@pytest.mark.parametrize("op", sorted(_WEIGHTS))
def test_a_kernel_of_more_axes_than_the_image(op: str) -> None:
    """No shape makes it right; before 1.22, ONNX's own inference ends the process, unless the node says its kernel."""
    b = Builder(19, TensorProto.FLOAT)
    x, w = b.input(2, 3, 11), b.constant(np.ones((4, 3, 3, 3)))
    rest = {"DeformConv": [b.input(2, 18, 9, 9, name="offset")], "QLinearConv": [w] * 4}.get(op, [])
    y = b.node(op, *([x, w, w] if op == "QLinearConv" else [x]), w, *rest)
    graph = helper.make_graph(b.nodes, "g", b.inputs, [onnx.ValueInfoProto(name=y)], b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    shape = Model(read(model)).main.shape(y)
    assert shape is None or shape[2:] == (f"?{y}:2", f"?{y}:3")
    (node,) = model.graph.node
    (kernel,) = with_kernel(node, {w: (4, 3, 3, 3)}.get).attribute
    assert (kernel.name, list(kernel.ints)) == ("kernel_shape", [3, 3])
    assert with_kernel(node, {w: (4, 3, None, 3)}.get) is node


def test_what_contradicts_itself_stays_as_declared() -> None:
    """Of what others' operators make, only the declaration is known."""
    b = Builder()
    x = b.input(2, 3)
    graph = helper.make_graph(
        [
            helper.make_node("Op", [x], ["y"], domain="own"),
            helper.make_node("BatchNormalization", ["y", "v", "v", "v", "v"], ["t"]),
            helper.make_node("Relu", ["t"], ["z"]),
        ],
        "g",
        b.inputs,
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(WEIGHTS["v"], "v")],
        value_info=[
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 5, 5]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 6, 7]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    found = Model(read(helper.make_model(graph, opset_imports=opsets))).main
    assert found.shape("y") == (2, 3, 5, 5) and found.shape("z") == (2, 6, 7)


@pytest.mark.parametrize("name", ["N", "unk__7"])
def test_a_name_that_the_model_gives_its_input(name: str) -> None:
    """It is kept, also where it looks like one that inference makes up, as in files by tf2onnx."""
    b = Builder()
    b.node("Reshape", b.input(name, 10, 6), b.constant([-1, 10, 2, 3]))
    graph = Model(read(b.model("reshape"))).main
    assert graph.shape("reshape") == (name, 10, 2, 3)


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


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("GatherND", ["w", "two"], ["t1"], batch_dims=-9),
        helper.make_node("Split", ["v"], ["t1", "other"], num_outputs=1),
    ],
    ids=lambda node: node.op_type,
)
def test_malformed_nodes_do_not_end_the_process(node: onnx.NodeProto) -> None:
    """ONNX's inference aborts on these; a bad model must not take the caller down with it."""
    model = onnx.ModelProto()
    model.CopyFrom(unknown(("Relu", ["t0"], {})).proto)
    model.opset_import[0].version = 18
    model.graph.node[-1].CopyFrom(node)
    body = helper.make_function("f", "g", ["w", "v", "two"], ["t1"], [node], [helper.make_opsetid("", 18)])
    assert Model(read(model)).main.shape("t1") is None
    model.functions.append(body)
    model.graph.node[-1].CopyFrom(helper.make_node("g", ["w", "v", "two"], ["t1"], domain="f"))
    assert Model(read(model)).main.shape("t1") is None


def test_time_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts travel a long chain backwards and forwards again, and a node is only asked when something is new to it."""
    asked, visit = Counter[int](), shapes._Completion._visit

    def counted(self: shapes._Completion, node: Node, again: bool) -> None:
        asked[node.index] += 1
        visit(self, node, again)

    monkeypatch.setattr(shapes._Completion, "_visit", counted)
    chain: list[Made] = [("Relu", [f"t{i}"], {}) for i in range(500)]
    graph = unknown(*chain, ("Conv", ["t500", "w"], {"group": 2, "pads": [1, 1, 1, 1]})).main
    assert graph.rank("t0") == 4
    assert max(asked.values()) <= 4


@pytest.mark.parametrize("size", [2**63, -1])
def test_a_size_that_no_tensor_can_have_says_nothing(size: int) -> None:
    b = Builder()
    model = Model(read(b.model(b.node("Relu", b.input("N", 3)))))
    model.infer()
    graph = model.main
    before = graph.shape("relu")
    shapes._Completion(graph)._learn("relu", (size, 3))
    assert graph.shape("relu") == before
    shapes._Completion(graph)._learn("relu", (5, 3))
    assert graph.shape("relu") == (5, 3)
