"""Pads that nodes compute from sizes: known where the sizes must be what they are, as ONNX Runtime computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import bnfold
from bnfold import static
from bnfold.graph import Model
from bnfold.patch import witness_of
from bnfold.source import read
from tests.builder import Builder, Dim
from tests.merging import Row, certified, check, ops, solved

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def size(b: Builder, x: str, axis: int) -> str:
    """One size of a tensor, as a float."""
    return b.node("Cast", b.node("Gather", b.node("Shape", x), b.constant(axis)), to=b.type)


def same(b: Builder, x: str, stride: int = 2, kernel: int = 3) -> str:
    """The pads of TensorFlow's SAME, as PyTorch exports them."""
    pairs = []
    for axis in (3, 2):
        given = size(b, x, axis)
        steps = b.node("Ceil", b.node("Div", given, b.constant(float(stride))))
        reach = b.node("Mul", b.node("Sub", steps, b.constant(1.0)), b.constant(float(stride)))
        least = b.node("Cast", b.constant(0), to=b.type)
        total = b.node("Clip", b.node("Sub", b.node("Add", reach, b.constant(float(kernel))), given), least, "")
        half = b.node("Cast", b.node("Cast", b.node("Div", total, b.constant(2.0)), to=INT64), to=b.type)
        pairs += [half, b.node("Sub", total, half)]
    ends = b.node("Cast", b.node("Concat", *(b.node("Unsqueeze", one, b.constant([0])) for one in pairs), axis=0), to=7)
    count = b.node("Sub", b.constant([8]), b.node("Gather", b.node("Shape", ends), b.constant([0])))
    value = helper.make_tensor("value", INT64, [1], [0])
    every = b.node("Concat", ends, b.node("ConstantOfShape", count, value=value), axis=0)
    rows = b.node("Reshape", every, b.constant([-1, 2]))
    turned = b.node("Slice", rows, b.constant([-1]), b.constant([-(2**63) + 1]), b.constant([0]), b.constant([-1]))
    return b.node("Cast", b.node("Reshape", b.node("Transpose", turned, perm=[1, 0]), b.constant([-1])), to=INT64)


def padded(b: Builder, x: str, value: str = "", stride: int = 2, kernel: int = 3) -> str:
    """A strided convolution of 4 channels with SAME padding."""
    y = b.node("Pad", x, same(b, x, stride, kernel), *([value] if value else []))
    return convolved(b, y, kernel, stride)


def convolved(b: Builder, x: str, kernel: int = 3, stride: int = 1) -> str:
    weight = b.constant(b.normal(4, 4, kernel, kernel))
    return b.node("Conv", x, weight, b.constant(b.normal(4)), strides=[stride] * 2)


def twice(b: Builder, x: str) -> str:
    """The second is padded by what the first makes."""
    return padded(b, b.node("Relu", padded(b, x)))


def crop(b: Builder, x: str) -> str:
    """A negative pad."""
    less = b.node("Sub", b.node("Gather", b.node("Shape", x), b.constant([2])), b.constant([8]))
    pads = b.node("Concat", b.constant([0, 0, 0, 0, 0, 0]), less, b.constant([1]), axis=0)
    return convolved(b, b.node("Pad", x, pads))


def transposed(b: Builder, x: str) -> str:
    """A ConvTranspose, cut and padded to a size that is computed beside the free batch, as tf2onnx writes it."""
    y = b.node("ConvTranspose", x, b.constant(b.normal(4, 6, 3)), strides=[2])
    shape = b.node("Cast", b.node("Concat", b.node("Shape", x), b.constant([16]), axis=0), to=INT32)
    want = b.node("Cast", b.node("Slice", shape, b.constant([3]), b.constant([4])), to=INT64)
    more = b.node("Sub", b.node("Slice", b.node("Shape", y), b.constant([2]), b.constant([3])), want)
    start = b.node("Div", b.node("Max", more, b.constant([0])), b.constant([2]))
    y = b.node("Slice", y, start, b.node("Add", start, want), b.constant([2]))
    end = b.node("Max", b.node("Neg", more), b.constant([0]))
    y = b.node("Pad", y, b.node("Concat", b.constant([0, 0, 0, 0, 0]), end, axis=0))
    return b.node("Add", b.node("Mul", y, b.constant(np.exp(b.normal(6, 1)))), b.constant(b.normal(6, 1)))


MERGED = [
    Row("all sizes fixed", lambda b: padded(b, b.input(2, 4, 7, 6)), "Conv"),
    Row("a free batch", lambda b: padded(b, b.input("N", 4, 7, 6)), "Conv"),
    Row("one behind the other", lambda b: twice(b, b.input("N", 4, 13, 10)), "Conv Relu Conv"),
    Row("nothing to pad", lambda b: padded(b, b.input(2, 4, 6, 8), kernel=2), "Conv"),
    Row(
        "its zero computed", lambda b: padded(b, x := b.input(2, 4, 7, 6), b.node("Sub", *[size(b, x, 2)] * 2)), "Conv"
    ),
    Row("a BatchNormalization between", lambda b: padded(b, b.conv(b.input("N", 3, 7, 6), 4, 3)), "Conv Conv"),
]


@pytest.mark.parametrize("row", MERGED, ids=lambda row: row.name)
def test_zeros_join_the_convolution(row: Row) -> None:
    """And the nodes that computed the pads leave."""
    check(row)
    original = row.model(FLOAT)
    found, made = solved(original)
    assert ops(made) == row.left
    assert certified(original, made, witness_of(found.rewrite)).ok
    same_results(original, made)


def test_cuts_beside_a_free_batch() -> None:
    """What stands behind them folds into the weights in front."""
    b = Builder(17, FLOAT)
    original = b.model(transposed(b, b.input("N", 4, 8)))
    found, made = solved(original)
    assert all(outcome.folded for outcome in found.outcomes) and len(found.outcomes) == 2
    assert certified(original, made, witness_of(found.rewrite)).ok
    same_results(original, made)


def same_results(original: onnx.ModelProto, made: onnx.ModelProto, **free: int) -> None:
    """On ONNX Runtime, with sizes for what is free."""
    shape = [
        max(dim.dim_value, 0) or free.get(dim.dim_param, 5)
        for dim in original.graph.input[0].type.tensor_type.shape.dim
    ]
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    results = []
    for model in (original, made):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, {original.graph.input[0].name: x})[0])
    assert results[0].shape == results[1].shape
    assert np.max(np.abs(results[0] - results[1])) <= 1e-4


def test_scalar_arithmetic_is_no_affine() -> None:
    """What computes pads from sizes is neither folded nor kept: it is not in the report."""
    model = Row("", lambda b: padded(b, b.bn(b.input("N", 4, 7, 6))), "").model(FLOAT)
    assert [affine.op for affine in bnfold.explain(model).affines] == ["BatchNormalization"]


# ------------------------------------------------------------------------------------------------- what stays

Sizes = dict[str, int]


def lying(b: Builder) -> onnx.ModelProto:
    """An inner tensor of free sizes is declared to have some."""
    padded(b, b.node("Relu", b.input(2, 4, "H", "W"), name="inner"))
    model = b.model()
    model.graph.value_info.append(helper.make_tensor_value_info("inner", FLOAT, [2, 4, 7, 6]))
    return model


def lying_output(b: Builder) -> onnx.ModelProto:
    """An output of free sizes is declared to have some."""
    y = padded(b, b.node("Relu", b.input(2, 4, "H", "W"), name="inner"))
    model = b.model(y, "inner")
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("inner", FLOAT, [2, 4, 7, 6]))
    return model


def free(b: Builder) -> onnx.ModelProto:
    padded(b, b.input(2, 4, 7, "W"))
    return b.model()


def minus_one(b: Builder) -> onnx.ModelProto:
    """Some exporters write -1 for a size that is free."""
    padded(b, b.input(2, 4, 7, "W"))
    model = b.model()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = -1
    return model


def cropping(b: Builder) -> onnx.ModelProto:
    crop(b, b.input(2, 4, 7, 6))
    return b.model()


def in_a_body(b: Builder) -> onnx.ModelProto:
    """What a body declares of its own inputs no runtime checks."""
    inner = Builder(b.opset, FLOAT)
    padded(inner, inner.input(2, 4, 7, 6, name="s"))
    body = inner.model().graph
    step, go, on = (onnx.ValueInfoProto(name=name) for name in ("step", "go", "on"))
    step.CopyFrom(helper.make_tensor_value_info("step", INT64, []))
    go.CopyFrom(helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    on.CopyFrom(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    body.node.append(helper.make_node("Identity", ["go"], ["on"]))
    made = body.output[0].name
    body.node.append(helper.make_node("Identity", ["s"], ["kept"]))
    outputs = [on, helper.make_tensor_value_info("kept", FLOAT, None), helper.make_tensor_value_info(made, FLOAT, None)]
    inputs = [step, go, *body.input]
    del body.output[:], body.input[:]
    body.output.extend(outputs)
    body.input.extend(inputs)
    x, count = b.input(2, 4, "H", "W"), b.constant(2)
    node = helper.make_node("Loop", [count, "", x], ["last", "all"], body=body)
    graph = helper.make_graph(
        [node], "g", b.inputs, [helper.make_tensor_value_info("all", FLOAT, None)], b.initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=8)


STAYS: list[tuple[Callable[[Builder], onnx.ModelProto], Sizes]] = [
    (lying, {"H": 9, "W": 4}),
    (lying_output, {"H": 9, "W": 4}),
    (free, {"W": 5}),
    (minus_one, {"W": 5}),
    (cropping, {}),
    (in_a_body, {"H": 9, "W": 4}),
]


@pytest.mark.parametrize(("make", "sizes"), STAYS, ids=lambda made: getattr(made, "__name__", ""))
def test_pads_that_stay(make: Callable[[Builder], onnx.ModelProto], sizes: Sizes) -> None:
    """Of free sizes, whatever the model declares; and pads that no convolution has."""
    model = make(Builder(17, FLOAT))
    found, made = solved(model)
    graphs = [made.graph, *(a.g for node in made.graph.node for a in node.attribute if a.HasField("g"))]
    assert [node.op_type for graph in graphs for node in graph.node].count("Pad") == 1
    assert certified(model, made, witness_of(found.rewrite)).ok
    same_results(model, made, **sizes)


def test_a_body_knows_no_sizes_of_its_own() -> None:
    main, body = Model(read(in_a_body(Builder(17, FLOAT)))).graphs
    assert not main.static and not body.static
    assert static.static_values(main) == static.static_values(body) == {}


def test_nothing_is_worked_out_for_constant_pads() -> None:
    b = Builder()
    b.node("Pad", b.input(2, 3), b.node("Cast", b.constant([1.0, 0.0, 0.0, 1.0]), to=INT64))
    assert not Model(read(b.model())).main.static


def test_a_default_that_a_caller_may_override_has_no_size() -> None:
    model = MERGED[0].model()
    assert Model(read(model)).main.static
    model.graph.initializer.append(helper.make_tensor("x", TensorProto.DOUBLE, [2, 4, 7, 6], [0.0] * 336))
    assert not Model(read(model)).main.static.keys() & set(model.graph.node[-2].input)


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_certificate_compares_the_pads(kernel: int) -> None:
    """It works out on its own how much the original pads."""

    def model(kernel: int) -> onnx.ModelProto:
        b = Builder()
        x = b.input(2, 4, 7, 8)
        convolved(b, b.node("Pad", x, same(b, x, 2, kernel)), 3, 2)
        return b.model()

    original, other = model(3), model(kernel)
    found, made = solved(original)
    assert certified(original, made, witness_of(found.rewrite)).ok
    if kernel == 3:
        pads = next(a for a in made.graph.node[0].attribute if a.name == "pads")
        assert list(pads.ints) == [1, 0, 1, 1]
        pads.ints[:] = [1, 1, 1, 0]
    assert not certified(other, made, witness_of(found.rewrite)).ok


def test_more_nodes_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MERGED[0].model()
    assert len(Model(read(model)).main.static) > 30
    monkeypatch.setattr(static, "MAX_NODES", 20)
    assert not Model(read(model)).main.static


# -------------------------------------------------------------------------------- one operator, and what it makes


@dataclass(frozen=True)
class Fact:
    """Nodes on the sizes (2, 3, 10) of x; what the last one makes is known, or not."""

    make: Callable[[Builder, str], str]
    known: bool = True
    batch: Dim = 2


def last(b: Builder, x: str, type_: int = FLOAT) -> str:
    """The 10."""
    return b.node("Cast", b.node("Gather", b.node("Shape", x), b.constant(2)), to=type_)


def on(op: str, *others: Any, type_: int = FLOAT, known: bool = True, **attributes: Any) -> Fact:
    """An operator on the 10 and constants."""

    def make(b: Builder, x: str) -> str:
        like = np.float32 if type_ == FLOAT else np.int64
        return b.node(op, last(b, x, type_), *(b.constant(np.array(each, like)) for each in others), **attributes)

    return Fact(make, known)


def moved(op: str, *others: Any, known: bool = True, batch: Dim = 2, **attributes: Any) -> Fact:
    """An operator on the shape."""
    return Fact(lambda b, x: b.node(op, b.node("Shape", x), *map(b.constant, others), **attributes), known, batch)


FACTS: dict[str, Fact] = {
    "Add": on("Add", 0.3),
    "Sub": on("Sub", 10.7),
    "Mul": on("Mul", 0.1),
    "Div": on("Div", 3.0),
    "Div of integers": on("Div", -3, type_=INT64),
    "Div by zero": on("Div", 0.0, known=False),
    "Div of integers by zero": on("Div", 0, type_=INT64, known=False),
    "Mod": on("Mod", -3, type_=INT64),
    "Mod with the other sign": on("Mod", -3, type_=INT64, fmod=1, known=False),
    "Neg": on("Neg"),
    "Abs": Fact(lambda b, x: b.node("Abs", b.node("Neg", last(b, x)))),
    "Ceil": Fact(lambda b, x: b.node("Ceil", b.node("Mul", last(b, x), b.constant(0.1)))),
    "Floor": Fact(lambda b, x: b.node("Floor", b.node("Mul", last(b, x), b.constant(0.7)))),
    "Cast of a product": Fact(lambda b, x: b.node("Cast", b.node("Mul", last(b, x), b.constant(0.7)), to=INT64)),
    "Cast of a negative number": Fact(lambda b, x: b.node("Cast", b.node("Sub", last(b, x), b.constant(12.6)), to=6)),
    "Cast to float16": Fact(lambda b, x: b.node("Cast", last(b, x), to=TensorProto.FLOAT16), known=False),
    "Cast of float64 to float32": Fact(
        lambda b, x: b.node(
            "Cast",
            b.node("Div", last(b, x, TensorProto.DOUBLE), b.constant(np.array(3.0), type_=TensorProto.DOUBLE)),
            to=FLOAT,
        )
    ),
    "Max": on("Max", 11.0, 3.0),
    "Min": on("Min", 11.0, 3.0),
    "Clip": on("Clip", 2.0, 7.0),
    "Clip from below": on("Clip", 12.0),
    "Clip from above": Fact(lambda b, x: b.node("Clip", last(b, x), "", b.constant(4.0))),
    "int32": Fact(lambda b, x: b.node("Mul", *[last(b, x, INT32)] * 2)),
    "int32 that overflows": Fact(
        lambda b, x: b.node("Mul", last(b, x, INT32), b.node("Cast", b.constant(2**31 - 1), to=INT32)), known=False
    ),
    "int64 that overflows": on("Mul", 2**64 // 10 + 1, type_=INT64, known=False),
    "Sqrt": on("Sqrt", known=False),
    "a constant that was not rounded on the way": Fact(
        lambda b, x: b.node("Ceil", b.node("Mul", b.node("Sqrt", b.constant(2.0)), last(b, x))), known=False
    ),
    "Cast that overflows": Fact(
        lambda b, x: b.node("Min", b.node("Cast", b.constant(2**33 + 1), to=INT32), last(b, x, INT32)), known=False
    ),
    "Gather": moved("Gather", [2, 0, -2]),
    "Gather beside a free size": moved("Gather", [2, -2], batch="N"),
    "Gather of a free size": moved("Gather", [2, 0], batch="N", known=False),
    "Slice beside a free size": moved("Slice", [-1], [0], [0], [-1], batch="N"),
    "Slice of a free size": moved("Slice", [0], [2], batch="N", known=False),
    "Split": Fact(
        lambda b, x: b.node("Split", b.node("Shape", x), b.constant([1, 2]), outputs=["p", "q"]) and "q", batch="N"
    ),
    "Squeeze of what was picked": Fact(
        lambda b, x: b.node("Squeeze", b.node("Gather", b.node("Shape", x), b.constant([1])), b.constant([0])),
        batch="N",
    ),
    "Gather of a Slice": Fact(
        lambda b, x: b.node("Gather", b.node("Slice", b.node("Shape", x), *map(b.constant, ([0], [2]))), b.constant(1)),
        batch="N",
    ),
    "Cast beside a free size": Fact(
        lambda b, x: b.node("Gather", b.node("Cast", b.node("Shape", x), to=INT32), b.constant([1, 2])), batch="N"
    ),
    "Cast to float beside a free size": Fact(
        lambda b, x: b.node("Gather", b.node("Cast", b.node("Shape", x), to=FLOAT), b.constant([2])), batch="N"
    ),
    "Cast of a free size": Fact(
        lambda b, x: b.node("Gather", b.node("Cast", b.node("Shape", x), to=INT32), b.constant([0])),
        known=False,
        batch="N",
    ),
    "Concat beside a free size": Fact(
        lambda b, x: b.node(
            "Slice",
            b.node("Concat", b.constant([7, 8]), b.node("Shape", x), b.node("Shape", x), axis=0),
            *map(b.constant, ([-2], [-9], [0], [-5])),
        ),
        batch="N",
    ),
    "Concat of a free size": Fact(
        lambda b, x: b.node(
            "Gather", b.node("Concat", b.node("Shape", x), b.constant([7]), axis=0), b.constant([3, 0])
        ),
        known=False,
        batch="N",
    ),
    "Concat of a free size and what is not known": Fact(
        lambda b, x: b.node(
            "Gather",
            b.node(
                "Concat",
                b.node("Shape", x),
                b.node("Unsqueeze", b.node("Cast", b.node("Sqrt", last(b, x)), to=INT64), b.constant([0])),
                axis=0,
            ),
            b.constant([1]),
        ),
        known=False,
        batch="N",
    ),
    "A table of sizes, one of them free": Fact(
        lambda b, x: b.node(
            "Gather",
            b.node("Reshape", b.node("Concat", b.node("Shape", x), b.constant([7]), axis=0), b.constant([2, 2])),
            b.constant([1]),
        ),
        batch="N",
    ),
    "Shape from the second": Fact(lambda b, x: b.node("Shape", x, start=1), batch="N"),
    "Shape to the last": Fact(lambda b, x: b.node("Shape", x, end=-1)),
    "Size": Fact(lambda b, x: b.node("Size", x)),
    "Size of free sizes": Fact(lambda b, x: b.node("Size", x), known=False, batch="N"),
    "Concat": Fact(lambda b, x: b.node("Concat", *[b.node("Shape", x)] * 2, axis=0)),
    "Concat of many": Fact(
        lambda b, x: b.node("Concat", *[b.node("Cast", b.node("Shape", x), to=FLOAT)] * 22, axis=0), known=False
    ),
    "Expand": Fact(lambda b, x: b.node("Expand", b.node("Shape", x), b.constant([2, 3]))),
    "Tile": moved("Tile", [2]),
    "Tile of many": moved("Tile", [30], known=False),
    "Shape of a Reshape by sizes": Fact(
        lambda b, x: b.node("Shape", b.node("Reshape", x, b.node("Gather", b.node("Shape", x), b.constant([2, 0, 1]))))
    ),
    "Shape of a pool that rounds up": Fact(
        lambda b, x: b.node("Shape", b.node("MaxPool", x, kernel_shape=[3], strides=[2], ceil_mode=1)), known=False
    ),
    "Shape of a pool": Fact(lambda b, x: b.node("Shape", b.node("MaxPool", x, kernel_shape=[3], strides=[2]))),
}

UNRUNNABLE = frozenset({"Div of integers by zero"})


@pytest.mark.parametrize("name", FACTS)
def test_numbers_are_those_of_onnx_runtime(name: str) -> None:
    fact = FACTS[name]
    model, wanted = pad_by(fact.make, fact.batch)
    found = Model(read(model)).main.static.get(wanted)
    assert (found is not None) == fact.known
    if found is not None:
        expected = ran(model)[wanted]
        assert found.load().dtype == expected.dtype
        np.testing.assert_array_equal(found.load(), expected, strict=True)
    elif name not in UNRUNNABLE:
        ran(model)


def pad_by(make: Callable[[Builder, str], str], batch: Dim = 2) -> tuple[onnx.ModelProto, str]:
    """A Pad that depends on what is made of the sizes of its input; every tensor is an output."""
    b = Builder(17, FLOAT)
    x = b.input(batch, 3, 10)
    wanted = make(b, x)
    pads = b.node("Reshape", b.node("Cast", wanted, to=INT64), b.constant([-1]))
    zeros = b.node("Mul", b.node("Slice", pads, b.constant([0]), b.constant([1])), b.constant([0]))
    b.node("Pad", x, b.node("Concat", *[zeros] * 6, axis=0))
    return b.model(*(name for node in b.nodes for name in node.output)), wanted


def ran(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    x = np.zeros((2, 3, 10), np.float32)
    return dict(zip(names, session.run(names, {model.graph.input[0].name: x}), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_random_arithmetic(seed: int) -> None:
    """All that is known of twenty random nodes is what ONNX Runtime computes."""
    rng = np.random.default_rng(seed)

    def make(b: Builder, x: str) -> str:
        floats, ints = [last(b, x), size(b, x, 1)], [last(b, x, INT64)]
        for _ in range(20):
            op = str(
                rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "Ceil", "Floor", "Neg", "Clip", "Cast", "int"])
            )
            x, y = (str(name) for name in rng.choice(floats, 2))
            if op in ("Ceil", "Floor", "Neg"):
                floats.append(b.node(op, x))
            elif op == "Cast":
                ints.append(b.node("Cast", b.node("Clip", x, b.constant(-1e6), b.constant(1e6)), to=INT64))
                floats.append(b.node("Cast", ints[-1], to=FLOAT))
            elif op == "int":
                other = b.constant(int(rng.choice([-3, 2, 7])))
                ints.append(b.node(str(rng.choice(["Add", "Mul", "Div", "Mod"])), str(rng.choice(ints)), other))
            elif op == "Clip":
                floats.append(b.node(op, x, y))
            else:
                y = y if rng.random() < 0.5 else b.constant(float(rng.choice([0.1, 0.7, 2.0, 3.0])))
                floats.append(b.node(op, x, y))
        return b.node("Concat", *(b.node("Unsqueeze", name, b.constant([0])) for name in floats), axis=0)

    model, _ = pad_by(make)
    known = Model(read(model)).main.static
    assert len(known) > 10
    for name, expected in ran(model).items():
        if name in known:
            np.testing.assert_array_equal(known[name].load(), expected, strict=True)
