"""Bodies of If, Loop and Scan: affines fold inside them, their ends stay, and what they capture stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import api
from bnfold.certificate import certify
from bnfold.graph import Model
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.runtime import Session
from bnfold.solver import solve
from bnfold.source import read
from bnfold.write import folded
from tests.text import build, ops, optimize

BN = "BatchNormalization"
CONV = "a = Conv <pads=[1,1,1,1]> (x, w)"
YES = "zero = Constant <value_float=0.0> () most = ReduceMax <keepdims=0> (x) k = Greater(most, zero)"
TIMES = "n = Constant <value_int=2> () one = Constant <value_int=1> () go = Cast <to=9> (one)"


def if_(then: str, other: str, out: str = "y") -> str:
    return (
        f"{YES} {out} = If (k) <then_branch = t () => (float[A,B,C,D] p) {{ {then} }}, "
        f"else_branch = e () => (float[A,B,C,D] q) {{ {other} }}>"
    )


def loop(body: str, outs: str = "r", made: str = "y", state: str = "x") -> str:
    ends = ", ".join(f"float[A,B,C,D] {name}" for name in outs.split())
    return (
        f"{TIMES} {made} = Loop (n, go, {state}) <body = l (int64 i, bool c0, float[N,4,H,W] h) => "
        f"(bool c1, {ends}) {{ c1 = Identity(c0) {body} }}>"
    )


def bn(x: str, y: str) -> str:
    return f"{y} = {BN}({x}, s, b, m, v)"


CASES: dict[str, tuple[str, int]] = {
    "in both branches": (if_(f"f = Conv(x, w1) {bn('f', 'p')}", f"{bn('x', 'g')} q = Conv(g, w1)"), 0),
    "a branch of a Conv and an affine": (
        if_("f = Conv(x, w1) j = ReduceMean <keepdims=0> (s) d = Mul(f, j) p = Add(d, j)", "q = Neg(x)"),
        0,
    ),
    "a captured result is pulled": (f"{CONV} {bn('a', 'c')} {if_('p = Relu(c)', 'q = Neg(c)')}", 0),
    "a captured input is pushed": (
        f"{CONV} {if_('p = Relu(a)', 'q = Neg(a)', 'o')} {bn('a', 'c')} d = Conv(c, w1) y = Add(o, d)",
        0,
    ),
    "between two that are captured": (
        f"{CONV} {bn('a', 'c')} {if_('p = Add(a, c)', 'q = Neg(c)')}",
        1,
    ),
    "the output of a branch is an affine of a captured tensor": (f"{CONV} {if_(bn('a', 'p'), 'q = Relu(a)')}", 1),
    "an outer tensor that gets another name is read by an affine of a body": (
        f"{CONV} ones = Div(v, v) c = Mul(a, ones1) {if_(bn('a', 'g') + ' p = Conv(g, w1)', 'q = Neg(c)')}".replace(
            "ones = Div(v, v)", "ones0 = Div(v, v) ax = Constant <value_ints=[1, 2]> () ones1 = Unsqueeze(ones0, ax)"
        ),
        0,
    ),
    "beside a capture that nothing touches": (
        f"{if_('p = Relu(x)', 'q = Neg(x)', 'o')} {CONV} {bn('a', 'c')} y = Add(o, c)",
        0,
    ),
    "in a Loop": (loop(f"f = Conv(h, w1) {bn('f', 'd')} r = Relu(d)"), 0),
    "in a Loop, in front": (loop(f"{bn('h', 'd')} r = Conv(d, w1)"), 0),
    "a scan output is the affine": (
        loop(f"f = Conv(h, w1) {bn('f', 'd')} r = Relu(d)", "r d", "z, all") + " y = Add(z, z)",
        0,
    ),
    "a Loop-carried value in both senses": (loop(bn("h", "r")), 1),
    "a Loop-carried value between": (loop(f"f = Conv(h, w1) r = Relu(f) {bn('r', 'd')}", "r d", "y, all"), 1),
    "behind a Loop": (loop("f = Conv(h, w1) r = Relu(f)", made="z") + bn("z", "y"), 1),
    "in front of a Loop": (f"{CONV} {bn('a', 'c')} {loop('r = Relu(h)', state='c')}", 0),
    "a weight that the outer graph reads too": (
        f"a = Conv(x, w1) {if_('f = Conv(a, w1) ' + bn('f', 'p'), 'q = Neg(a)')}",
        0,
    ),
    "nested": (loop(f"f = Conv(h, w1) {if_(bn('f', 'g') + ' p = Conv(g, w1)', 'q = Neg(f)', 'r')}"), 0),
    "nested, captured from two graphs away": (
        f"{CONV} {bn('a', 'c')} {loop(if_('p = Add(c, h)', 'q = Sub(h, c)', 'r'))}",
        0,
    ),
    "a Scan": (
        f"zeros = ConstantOfShape(w0) last, y = Scan <num_scan_inputs=1, body = l (float[4,H,W] h, float[4,H,W] e) => "
        f"(float[4,H,W] r, float[4,H,W] o) {{ ax = Constant <value_ints=[0]> () u = Unsqueeze(e, ax) f = Conv(u, w1) "
        f"{bn('f', 'd')} o = Squeeze(d, ax) r = Add(h, o) }}> (zeros, x)".replace("w0", "dims"),
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bodies(name: str) -> None:
    graph, left = CASES[name]
    if name == "a Scan":
        graph = "full = Shape <start=1> (x) " + graph.replace("dims", "full")
    before = build(graph)
    result = optimize(before, left)
    assert result.batchnorm.before + sum(a.op != BN for a in result.affines) == len(result.affines)
    assert sum(affine.status == "kept" for affine in result.affines) == left
    assert result.proto is not None
    assert [v.SerializeToString() for v in before.graph.output] == [
        v.SerializeToString() for v in result.proto.graph.output
    ]
    if left:
        codes = {reason.code for affine in result.affines for reason in affine.reasons}
        assert codes & {"captured", "graph-input", "graph-output", "opaque-op"}, codes


def test_a_weight_of_the_outer_graph_is_cloned() -> None:
    result = optimize(build(CASES["a weight that the outer graph reads too"][0]))
    assert result.proto is not None
    readers = [node.input[1] for node in result.proto.graph.node if node.op_type == "Conv"]
    body = body_of(result.proto, "then_branch")
    assert readers == ["w1"] and [node.input[1] for node in body.node] == ["w1.folded"]


def test_parameters_that_are_the_bodys_own() -> None:
    model = build(CASES["in a Loop"][0])
    body = body_of(model, "body")
    for tensor in list(model.graph.initializer):
        body.initializer.append(tensor)
    del model.graph.initializer[:]
    result = optimize(model)
    assert result.proto is not None and not result.proto.graph.initializer
    assert [tensor.name for tensor in body_of(result.proto, "body").initializer] == ["w1.folded", "f.bias.folded"]


def test_the_batched_scan_of_opset_8() -> None:
    """Scan-8 has a first input of its own (lengths) and an axis for the batch; the body sees neither."""
    elements = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, 6]) for name in ("h", "e", "r", "o")]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["e", "k"], ["f"]),
            helper.make_node("Mul", ["f", "s"], ["g"], name="scale"),
            helper.make_node("Add", ["g", "s"], ["o"], name="shift"),
            helper.make_node("Add", ["h", "o"], ["r"], name="sum"),
        ],
        "body",
        elements[:2],
        elements[2:],
    )
    rng = np.random.default_rng(0)
    weights = {"k": rng.normal(size=(6, 6)), "s": rng.normal(size=6)}
    graph = helper.make_graph(
        [helper.make_node("Scan", ["", "start", "x"], ["last", "y"], body=body, num_scan_inputs=1)],
        "g",
        [
            helper.make_tensor_value_info("start", TensorProto.FLOAT, [2, 5, 6]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 5, 6]),
        ],
        [
            helper.make_tensor_value_info("last", TensorProto.FLOAT, [2, 5, 6]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 5, 6]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    result = api.optimize(model)
    assert result.proto is not None
    assert {affine.node: affine.status for affine in result.affines}["scale"] == "folded"
    assert ops(result.proto) == ["Scan", "MatMul", "Add", "Add"]
    shapes = {"start": (2, 5, 6), "x": (2, 3, 5, 6)}
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    old, new = (Session(one.SerializeToString()).run(feeds) for one in (model, result.proto))
    for name in ("last", "y"):
        np.testing.assert_allclose(new[name], old[name], rtol=1e-5, atol=1e-5)


def body_of(model: onnx.ModelProto, attribute: str) -> onnx.GraphProto:
    """The first body of this name."""
    found: onnx.GraphProto = next(a.g for node in model.graph.node for a in node.attribute if a.name == attribute)
    return found


def _wrong_bias(body: onnx.GraphProto) -> None:
    bias = body.initializer[0]
    bias.CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), bias.name))


WRONG: dict[str, Callable[[onnx.GraphProto], object]] = {
    "a weight": lambda body: body.node[0].input.__setitem__(1, "w1"),
    "a captured tensor": lambda body: body.node[0].input.__setitem__(0, "k"),
    "a bias": _wrong_bias,
    "an output": lambda body: body.output[0].__setattr__("name", "x"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("branch", ["then_branch", "else_branch"])
def test_the_certificate_sees_a_wrong_body(name: str, branch: str) -> None:
    model = build(CASES["in both branches"][0])
    given = Model(read(model))
    rewrite = Rewrite.of(solve(given).plan)
    made = folded(rewrite)
    assert certify(given, Model(read(made)), witness_of(rewrite)).ok
    WRONG[name](body_of(made, branch))
    assert not certify(given, Model(read(made)), witness_of(rewrite)).ok
