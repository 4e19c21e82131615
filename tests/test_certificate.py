"""The certificate passes right folds, and fails every seeded bug: wrong constants, wrong rules, wrong wiring."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

import bnfold
from bnfold.affine import Storage
from bnfold.certificate import Certificate, certify, windows
from bnfold.certificate.nodes import check_node
from bnfold.certificate.result import NotCertifiedError
from bnfold.certificate.rounding import Exact, compare
from bnfold.certificate.sample import Draws
from bnfold.certificate.wiring import GraphPair, Pair
from bnfold.constants import from_initializer
from bnfold.graph import Model
from bnfold.kernels import KERNELS, Call
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.solver import solve
from bnfold.source import read
from bnfold.witness import GraphWitness, Witness
from bnfold.write import folded, rounded
from tests.builder import Builder

Shapes = Mapping[str, tuple[int, ...]]
Change = Callable[[onnx.ModelProto], Any]


def build(text: str, weights: Shapes, *, opset: int = 17, type_: str = "float", ir: int = 8) -> onnx.ModelProto:
    """A model from ONNX's text form. `weights` get random values; `NAME_bn` becomes the four parameters of a BN.

    Gammas are of both signs and variances small: 'float' in the text stands for the type asked.
    """
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}]> agraph '
    model = parser.parse_model(header + text.replace("float[", f"{type_}["))
    rng = np.random.default_rng(7)
    code = {"float": 1, "float16": 10, "double": 11, "bfloat16": 16}[type_]

    def add(name: str, value: NDArray[Any]) -> None:
        model.graph.initializer.append(numpy_helper.from_array(rounded(value.astype(np.float64), code), name))

    for name, shape in weights.items():
        if name.endswith("_bn"):
            add(f"{name}_s", rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape))
            add(f"{name}_b", rng.normal(size=shape))
            add(f"{name}_m", rng.normal(size=shape))
            add(f"{name}_v", rng.uniform(0.1, 3, shape))
        else:
            add(name, rng.normal(size=shape))
    return model


def bn(out: str, x: str, name: str, attributes: str = "") -> str:
    return f"{out} = BatchNormalization{attributes}({x}, {name}_s, {name}_b, {name}_m, {name}_v)"


def fold(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Witness]:
    rewrite = Rewrite.of(solve(Model(read(model))).plan)
    return folded(rewrite), witness_of(rewrite)


def check(original: onnx.ModelProto, optimized: onnx.ModelProto, witness: Witness) -> Certificate:
    return certify(Model(read(original)), Model(read(optimized)), witness)


def kinds(certificate: Certificate) -> set[str]:
    assert not certificate.ok
    return {failure.kind for failure in certificate.failures}


CONV = f"(float[N,4,8,8] x) => (float[N,6,8,8] y) {{ a = Conv<pads=[1,1,1,1]>(x, w, c) {bn('y', 'a', 'p_bn')} }}"
CONV_WEIGHTS = {"w": (6, 4, 3, 3), "c": (6,), "p_bn": (6,)}

RIGHT: dict[str, tuple[str, Shapes]] = {
    "conv": (CONV, CONV_WEIGHTS),
    "conv without bias, strided, dilated, unknown size": (
        (
            "(float[N,4,H,W] x) => (float[N,6,A,B] y) "
            f"{{ a = Conv<strides=[2,3],dilations=[2,1],pads=[2,1,0,1]>(x, w) {bn('y', 'a', 'p_bn')} }}"
        ),
        {"w": (6, 4, 3, 3), "p_bn": (6,)},
    ),
    "groups": (
        f"(float[N,4,5] x) => (float[N,6,5] y) {{ a = Conv<group=2>(x, w, c) {bn('y', 'a', 'p_bn')} }}",
        {"w": (6, 2, 1), "c": (6,), "p_bn": (6,)},
    ),
    "in front of a grouped conv": (
        f"(float[N,4,9] x) => (float[N,6,7] y) {{ {bn('a', 'x', 'p_bn')} y = Conv<group=2>(a, w) }}",
        {"w": (6, 2, 3), "p_bn": (4,)},
    ),
    "end pads that no window reaches": (
        (
            "(float[N,4,8,8] x) => (float[N,6,3,3] y) "
            f"{{ {bn('a', 'x', 'p_bn')} y = Conv<strides=[3,3],pads=[0,0,2,1]>(a, w) }}"
        ),
        {"w": (6, 4, 2, 2), "p_bn": (4,)},
    ),
    "conv transposed": (
        (
            "(float[N,4,5,5] x) => (float[N,6,10,10] y) "
            f"{{ a = ConvTranspose<group=2,strides=[2,2],pads=[1,1,1,1]>(x, w, c) {bn('y', 'a', 'p_bn')} }}"
        ),
        {"w": (4, 3, 4, 4), "c": (6,), "p_bn": (6,)},
    ),
    "in front of a transposed conv": (
        f"(float[N,4,5,5] x) => (float[N,6,5,5] y) {{ {bn('a', 'x', 'p_bn')} y = ConvTranspose<group=2>(a, w, c) }}",
        {"w": (4, 3, 1, 1), "c": (6,), "p_bn": (4,)},
    ),
    "gemm": (
        f"(float[N,4] x) => (float[N,4] y) {{ a = Gemm<alpha=0.5,beta=2.0>(x, w, c) {bn('y', 'a', 'p_bn')} }}",
        {"w": (4, 4), "c": (4,), "p_bn": (4,)},
    ),
    "in front of a gemm": (
        f"(float[N,5] x) => (float[N,4] y) {{ {bn('a', 'x', 'p_bn')} y = Gemm<alpha=0.5,beta=2.0,transB=1>(a, w, c) }}",
        {"w": (4, 5), "c": (4,), "p_bn": (5,)},
    ),
    "gemm with beta zero": (
        f"(float[N,5] x) => (float[N,4] y) {{ a = Gemm<beta=0.0>(x, w, c) {bn('y', 'a', 'p_bn')} }}",
        {"w": (5, 4), "c": (4,), "p_bn": (4,)},
    ),
    "matmul and add": (
        f"(float[N,5] x) => (float[N,4] y) {{ {bn('a', 'x', 'p_bn')} b = MatMul(a, w) y = Add(b, c) }}",
        {"w": (5, 4), "c": (4,), "p_bn": (5,)},
    ),
    "matmul without bias": (
        f"(float[N,5] x) => (float[N,4] y) {{ a = MatMul(x, w) {bn('y', 'a', 'p_bn')} }}",
        {"w": (5, 4), "p_bn": (4,)},
    ),
    "matmul with its constant on the left": (
        f"(float[N,5,3] x) => (float[N,4,3] y) {{ a = MatMul(w, x) {bn('y', 'a', 'p_bn')} }}",
        {"w": (4, 5), "p_bn": (4,)},
    ),
    "another BN": (
        f"(float[N,4,8] x) => (float[N,4,8] y) {{ {bn('a', 'x', 'p_bn')} {bn('y', 'a', 'q_bn', '<epsilon=0.01>')} }}",
        {"p_bn": (4,), "q_bn": (4,)},
    ),
    "decomposed": (
        (
            "(float[N,4,8] x) => (float[N,6,8] y) "
            "{ a = Conv(x, w) b = Sub(a, m) d = Div(b, v) e = Mul(g, d) y = Sub(c, e) }"
        ),
        {"w": (6, 4, 1), "m": (6, 1), "v": (1, 6, 1), "g": (6, 1), "c": (6, 1)},
    ),
    "pools": (
        (
            "(float[N,4,9,9] x) => (float[N,6] y) { a = Conv(x, w, c) "
            "b = AveragePool<kernel_shape=[2,2],strides=[2,2],pads=[0,0,1,1],ceil_mode=1>(a) g = GlobalAveragePool(b) "
            f"f = Flatten(g) {bn('y', 'f', 'p_bn')} }}"
        ),
        {"w": (6, 4, 1, 1), "c": (6,), "p_bn": (6,)},
    ),
    "sum of two": (
        (
            "(float[N,4,8] x) => (float[N,6,8] y) "
            f"{{ a = Conv(x, w, c) b = Conv(x, u) s = Add(a, b) {bn('y', 's', 'p_bn')} }}"
        ),
        {"w": (6, 4, 1), "c": (6,), "u": (6, 4, 1), "p_bn": (6,)},
    ),
    "two readers": (
        (
            "(float[N,4,8] x) => (float[N,6,8] y, float[N,6,6] z) "
            f"{{ {bn('a', 'x', 'p_bn')} y = Conv(a, w) z = Conv(a, u) }}"
        ),
        {"w": (6, 4, 1), "u": (6, 4, 3), "p_bn": (4,)},
    ),
    "concat with a constant": (
        f"(float[1,4,8] x) => (float[1,6,8] y) {{ a = Conv(x, w) k = Concat<axis=1>(a, d) {bn('y', 'k', 'p_bn')} }}",
        {"w": (4, 4, 1), "d": (1, 2, 8), "p_bn": (6,)},
    ),
    "clip": (
        (
            "(float[N,4,8] x) => (float[N,6,8] y) { a = Conv(x, w, c) m = Mul(a, two) t = Add(m, one) "
            "k = Clip(t, low, high) r = Mul(k, two) y = Sub(r, one) }"
        ),
        {"w": (6, 4, 1), "c": (6,), "two": (), "one": (), "low": (), "high": ()},
    ),
    "the largest turned into the smallest": (
        "(float[N,4,8] x) => (float[N,6,8] y) { a = Conv(x, w) k = Max(m, a, n) y = Sub(c, k) }",
        {"w": (6, 4, 1), "m": (6, 1), "n": (8,), "c": (6, 1)},
    ),
    "slopes turned over": (
        "(float[N,4,8] x) => (float[N,6,8] y) { m = Mul(g, x) p = PRelu(m, k) y = Conv(p, w) }",
        {"w": (6, 4, 1), "g": (4, 1), "k": (4, 1)},
    ),
    "a border": (
        (
            "(float[N,4,8] x) => (float[N,6,11] y) { a = Conv(x, w) s = Constant<value_ints=[0,0,1,0,0,2]>() "
            "k = Pad(a, s, v) t = Add(k, one) y = Mul(t, two) }"
        ),
        {"w": (6, 4, 1), "v": (), "one": (), "two": ()},
    ),
    "a new border": (
        (
            "(float[N,4,8] x) => (float[N,6,11] y) { s = Constant<value_ints=[0,0,1,0,0,2]>() "
            "t = Add(x, one) k = Pad(t, s) y = Conv(k, w) }"
        ),
        {"w": (6, 4, 1), "one": ()},
    ),
    "sum with several constants": (
        f"(float[N,4,8] x) => (float[N,6,8] y) {{ a = Conv(x, w) s = Sum(d, a, e) {bn('y', 's', 'p_bn')} }}",
        {"w": (6, 4, 1), "d": (6, 1), "e": (8,), "p_bn": (6,)},
    ),
    "mean with a constant": (
        f"(float[N,4,8] x) => (float[N,6,8] y) {{ a = Conv(x, w) s = Mean(a, d, a) {bn('y', 's', 'p_bn')} }}",
        {"w": (6, 4, 1), "d": (6, 1), "p_bn": (6,)},
    ),
    "a constant divided": (
        "(float[N,4,8] x) => (float[N,6,8] y) { m = Mul(g, x) d = Div(c, m) y = Conv(d, w) }",
        {"w": (6, 4, 1), "g": (4, 1), "c": (4, 1)},
    ),
    "where": (
        (
            "(float[N,4,8] x, bool[8] b) => (float[N,6,8] y) "
            f"{{ a = Conv(x, w) s = Where(b, d, a) {bn('y', 's', 'p_bn')} }}"
        ),
        {"w": (6, 4, 1), "d": (6, 1), "p_bn": (6,)},
    ),
    "movers": (
        (
            "(float[N,4,8] x) => (float[N,8,6] y) "
            f"{{ a = Conv(x, w) t = Transpose<perm=[0,2,1]>(a) u = Transpose<perm=[0,2,1]>(t) {bn('b', 'u', 'p_bn')} "
            "y = Transpose<perm=[0,2,1]>(b) }"
        ),
        {"w": (6, 4, 1), "p_bn": (6,)},
    ),
}


def right(case: str, type_: str = "float", opset: int = 17) -> onnx.ModelProto:
    text, weights = RIGHT[case]
    return build(text, weights, type_=type_, opset=opset)


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_fold_passes(case: str) -> None:
    model = right(case)
    optimized, witness = fold(model)
    assert op_types(optimized).count("BatchNormalization") == (1 if case == "another BN" else 0)
    certificate = check(model, optimized, witness)
    assert certificate.ok, certificate.failures
    assert certificate.checked >= 2 and certificate.constants >= 1
    assert certificate.to_json()["ok"] is True


@pytest.mark.parametrize("type_", ["float16", "bfloat16", "double"])
@pytest.mark.parametrize("case", ["conv", "gemm", "in front of a gemm", "another BN"])
def test_other_types_pass(case: str, type_: str) -> None:
    model = right(case, type_)
    assert check(model, *fold(model)).ok


@pytest.mark.parametrize("case", ["matmul without bias", "matmul with its constant on the left"])
def test_a_bias_behind_a_matmul_in_old_opsets(case: str) -> None:
    model = right(case, opset=6)
    set_attribute("BatchNormalization", is_test=1)(model)
    optimized, witness = fold(model)
    assert op_types(optimized) == ["MatMul", "Add"]
    assert check(model, optimized, witness).ok
    set_attribute("Add", axis=0 if case == "matmul without bias" else 2)(optimized)
    assert kinds(check(model, optimized, witness)) == {"node"}
    set_attribute("Add", broadcast=0)(optimized)
    assert kinds(check(model, optimized, witness)) == {"node"}


def test_of_many_alike_nodes_that_left_the_wrong_one_is_named() -> None:
    convs = "".join(f"c{i} = Conv(x{i}, w{i}) {bn(f'x{i + 1}', f'c{i}', f'p{i}_bn')} " for i in range(4))
    weights: dict[str, tuple[int, ...]] = {f"w{i}": (5, 5, 1, 1) for i in range(4)} | {
        f"p{i}_bn": (5,) for i in range(4)
    }
    model = build(f"(float[N,5,3,4] x0) => (float[N,5,3,4] x4) {{ {convs} }}", weights)
    optimized, witness = fold(model)
    assert check(model, optimized, witness).ok
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "p2_bn_b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(1.0001), bias.name))
    failures = check(model, optimized, witness).failures
    assert [(failure.node, failure.kind) for failure in failures] == [("x3", "node")]


@pytest.mark.parametrize("call", ["Relu({0})", "Neg({0})", "Add({0}, {0})", "Sum({0}, {0}, {0})", "Add({0}, r)"])
def test_of_many_alike_nodes_the_wrong_ones_are_named(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = " ".join(f"x{i + 1} = {call.format(f'x{i}')}" for i in range(12))
    model = build(f"(float[N,5,3,4] q) => (float[N,5,3,4] z) {{ r = Relu(q) x0 = Relu(q) {nodes} z = Relu(x12) }}", {})
    scale = np.array([2.0, 3.0, 4.0, 5.0, 6.0]).reshape(1, 5, 1, 1)
    stored = {name: Storage.encode(scale, 0 * scale) for name in ("r", *(f"x{i}" for i in range(13)))}
    stored["x7"] = Storage.encode(scale * [[[[1]], [[1]], [[1 + 1e-9]], [[1]], [[1]]]], 0 * scale)
    alone: list[str] = []

    def noted(graph: GraphPair, pair: Pair, draws: Draws) -> int:
        alone.append(pair.old.label)
        return check_node(graph, pair, draws)

    monkeypatch.setattr("bnfold.certificate.check_node", noted)
    found = check(model, model, Witness((GraphWitness("", stored, {}, {}, {}),)))
    ends = {"r", "x0", "z"}  # which the model stores as they were
    assert {failure.node for failure in found.failures} - ends == {"x7", "x8"}
    assert set(alone) == {"x7", "x8"} | ends


def test_an_unfolded_model_passes() -> None:
    model = right("conv")
    certificate = check(model, model, Witness())
    assert certificate.ok and certificate.checked == 0 and certificate.unchanged == 6


def initializer(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def put(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def nudge(model: onnx.ModelProto, name: str, ulps: int) -> None:
    """Move one element by some units in the last place: the one in the middle, which no border case singles out."""
    value = np.array(initializer(model, name))
    flat = value.reshape(-1)
    bits = flat.view({2: np.int16, 4: np.int32, 8: np.int64}[value.dtype.itemsize])
    bits[flat.size // 2] += ulps
    put(model, name, value)


def new_constants(model: onnx.ModelProto, optimized: onnx.ModelProto) -> list[str]:
    old = {tensor.name for tensor in model.graph.initializer}
    return [tensor.name for tensor in optimized.graph.initializer if tensor.name not in old]


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("ulps", [2, -3])
def test_every_new_constant_is_seen_when_off_by_a_few_ulp(case: str, ulps: int) -> None:
    model = right(case)
    optimized, witness = fold(model)
    names = new_constants(model, optimized)
    assert names
    for name in names:
        corrupted = onnx.ModelProto.FromString(optimized.SerializeToString())
        nudge(corrupted, name, ulps)
        certificate = check(model, corrupted, witness)
        assert kinds(certificate) == {"constant"}, name
        assert 1 < certificate.failures[0].error < 4


@pytest.mark.parametrize("type_", ["float16", "bfloat16"])
def test_small_types_are_seen_when_off_by_one_ulp(type_: str) -> None:
    model = right("conv", type_)
    optimized, witness = fold(model)
    for name in new_constants(model, optimized):
        corrupted = onnx.ModelProto.FromString(optimized.SerializeToString())
        nudge(corrupted, name, 1)
        assert kinds(check(model, corrupted, witness)) == {"constant"}


def test_double_is_seen_when_off_by_more_than_its_arithmetic() -> None:
    model = right("conv", "double")
    optimized, witness = fold(model)
    for name in new_constants(model, optimized):
        corrupted = onnx.ModelProto.FromString(optimized.SerializeToString())
        nudge(corrupted, name, 10000)
        assert kinds(check(model, corrupted, witness)) == {"constant"}


@pytest.mark.parametrize("case", ["two readers", "conv"])
def test_a_constant_that_the_fold_does_not_concern(case: str) -> None:
    text, weights = RIGHT[case]
    text = text.replace(" y)", " y, float[R,5] r)").replace(" y,", " y, float[R,5] r,", "r)" not in text)
    text = text.replace("(float[", "(float[R,3] side, float[", 1).rstrip("} ") + " q = MatMul(side, k) r = Tanh(q) }"
    model = build(text, {**weights, "k": (3, 5)})
    optimized, witness = fold(model)
    assert check(model, optimized, witness).ok
    nudge(optimized, "k", 1)
    assert kinds(check(model, optimized, witness)) == {"constant"}


def test_an_unrelated_constant_of_an_op_without_formula() -> None:
    text = CONV.replace("(float[", "(float[R,3] side, float[", 1).replace(
        "y) {", "y, float[R,3] r) { r = PRelu(side, k) "
    )
    model = build(text, {**CONV_WEIGHTS, "k": (3,)})
    optimized, witness = fold(model)
    assert check(model, optimized, witness).ok
    nudge(optimized, "k", 1)
    assert kinds(check(model, optimized, witness)) == {"constant"}


# Wrong rules: a right fold of one model, then one change to both the original and the output, after which it is wrong.


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == op)
    return found


def set_attribute(op: str, **values: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        target = node(model, op)
        kept = [a for a in target.attribute if a.name not in values]
        del target.attribute[:]
        target.attribute.extend(kept)
        target.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in values.items())

    return change


def become(op: str, new: str, **attributes: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        target = node(model, op)
        target.op_type = new
        target.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in attributes.items())

    return change


def swap_inputs(op: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        target = node(model, op)
        target.input[0], target.input[1] = target.input[1], target.input[0]

    return change


def resize(model: onnx.ModelProto) -> None:
    """Forget every declared size but the channels', so that a changed attribute still fits."""
    for value in [*model.graph.input, *model.graph.output]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis != 1:
                dim.dim_param = f"{value.name}{axis}"


THROUGH = (
    f"(float[N,4,8,8] x) => (float[N,6,8,8] y) {{ a = Conv(x, w, c) i = Identity(a) {bn('y', 'i', 'p_bn')} }}",
    {"w": (6, 4, 1, 1), "c": (6,), "p_bn": (6,)},
)
"""A BN that is pulled through an Identity, with a shift and scales of both signs."""

IN_FRONT = (
    f"(float[N,4,8,8] x) => (float[N,6,6,6] y) {{ {bn('a', 'x', 'p_bn')} y = Conv(a, w, c) }}",
    {"w": (6, 4, 3, 3), "c": (6,), "p_bn": (4,)},
)

WRONG_RULES: dict[str, tuple[tuple[str, Shapes], Change]] = {
    "shift into padding at the beginning": (IN_FRONT, set_attribute("Conv", pads=[1, 0, 0, 0])),
    "shift into padding at the end": (IN_FRONT, set_attribute("Conv", pads=[0, 0, 0, 1])),
    "shift into automatic padding": (IN_FRONT, set_attribute("Conv", auto_pad="SAME_LOWER")),
    "shift through a relu": (THROUGH, become("Identity", "Relu")),
    "sign through a leaky relu": (THROUGH, become("Identity", "LeakyRelu", alpha=0.9)),
    "sign through a max pool": (THROUGH, become("Identity", "MaxPool", kernel_shape=[2, 2])),
    "shift through counted padding": (
        THROUGH,
        become("Identity", "AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    ),
    "shift through an Lp pool": (THROUGH, become("Identity", "LpPool", kernel_shape=[2, 2])),
    "through a sigmoid": (THROUGH, become("Identity", "Sigmoid")),
    "through hard swish": (THROUGH, become("Identity", "HardSwish")),
    "through instance statistics": (THROUGH, become("Identity", "MeanVarianceNormalization")),
    "through an operator that nobody knows": (THROUGH, become("Identity", "NoSuchOperator")),
    "a shift summed": (THROUGH, become("Identity", "ReduceL2", axes=[2], keepdims=1)),
    "a sum taken for a mean": (RIGHT["mean with a constant"], become("Mean", "Sum")),
    "a slope below zero": (RIGHT["slopes turned over"], become("PRelu", "Mul")),
    "transposed square gemm": (RIGHT["gemm"], set_attribute("Gemm", transB=1)),
    "gemm's alpha": (RIGHT["in front of a gemm"], set_attribute("Gemm", alpha=0.25)),
    "the other difference": (
        (RIGHT["sum of two"][0].replace("Add", "Sub"), RIGHT["sum of two"][1]),
        swap_inputs("Sub"),
    ),
    "a product taken for a sum": (RIGHT["sum of two"], become("Add", "Mul")),
    "concat in another order": (RIGHT["concat with a constant"], swap_inputs("Concat")),
    "shift into a transposed conv that extends": (
        RIGHT["in front of a transposed conv"],
        set_attribute("ConvTranspose", strides=[2, 2], output_padding=[1, 1]),
    ),
    "another axis order": (
        (
            (
                "(float[N,4,4,4] x) => (float[N,4,4,4] y) "
                f"{{ a = Conv(x, w) b = Transpose<perm=[0,1,3,2]>(a) {bn('y', 'b', 'p_bn')} }}"
            ),
            {"w": (4, 4, 1, 1), "p_bn": (4,)},
        ),
        set_attribute("Transpose", perm=[0, 2, 1, 3]),
    ),
}


@pytest.mark.parametrize("case", WRONG_RULES)
def test_a_wrong_rule_is_seen(case: str) -> None:
    (text, weights), change = WRONG_RULES[case]
    model = build(text, weights)
    resize(model)
    optimized, witness = fold(model)
    assert check(model, optimized, witness).ok
    change(model)
    change(optimized)
    assert kinds(check(model, optimized, witness)) <= {"node", "constant"}


def test_an_unknown_op_is_never_passed() -> None:
    (text, weights), _ = WRONG_RULES["through an operator that nobody knows"]
    model = build(text, weights)
    optimized, witness = fold(model)
    for proto in (model, optimized):
        become("Identity", "NoSuchOperator")(proto)
    assert any("cannot be certified" in failure.text for failure in check(model, optimized, witness).failures)


def test_an_end_pad_that_is_reached_is_told_from_one_that_is_not() -> None:
    model = right("end pads that no window reaches")
    optimized, witness = fold(model)
    for proto in (model, optimized):
        set_attribute("Conv", strides=[2, 2], pads=[0, 0, 2, 1])(proto)
        proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 5
        proto.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4
    assert kinds(check(model, optimized, witness)) == {"node"}


# Wrong folds: the output is changed behind a right witness.


def permute_groups(model: onnx.ModelProto) -> None:
    name = node(model, "Conv").input[1]
    put(model, name, np.concatenate(np.split(initializer(model, name), 2)[::-1]))


def flip_sign(model: onnx.ModelProto) -> None:
    name = node(model, "Conv").input[1]
    value = np.array(initializer(model, name))
    value[3] *= -1
    put(model, name, value)


def transpose_gemm(model: onnx.ModelProto) -> None:
    name = node(model, "Gemm").input[1]
    put(model, name, initializer(model, name).T)


def drop_bias(model: onnx.ModelProto) -> None:
    del node(model, "Conv").input[2]


def one_reader_keeps_its_weight(model: onnx.ModelProto) -> None:
    second = [n for n in model.graph.node if n.op_type == "Conv"][1]
    original = right("two readers")
    model.graph.initializer.append(next(t for t in original.graph.initializer if t.name == "u"))
    second.input[1] = "u"


def in_another_type(model: onnx.ModelProto) -> None:
    name = node(model, "Conv").input[1]
    put(model, name, initializer(model, name).astype(np.float64))


def in_another_shape(model: onnx.ModelProto) -> None:
    name = node(model, "Conv").input[1]
    put(model, name, initializer(model, name)[..., :2])


def as_it_was(model: onnx.ModelProto) -> None:
    original = right("conv")
    model.graph.initializer.append(next(t for t in original.graph.initializer if t.name == "w"))
    node(model, "Conv").input[1] = "w"


WRONG_FOLDS: list[tuple[str, Change, str]] = [
    ("groups", permute_groups, "constant"),
    ("groups", flip_sign, "constant"),
    ("gemm", transpose_gemm, "constant"),
    ("in front of a gemm", set_attribute("Gemm", beta=1.0), "constant"),
    ("in front of a gemm", set_attribute("Gemm", transB=0), "wiring"),
    ("conv", drop_bias, "wiring"),
    ("conv", in_another_type, "constant"),
    ("conv", in_another_shape, "constant"),
    ("conv", as_it_was, "node"),
    ("two readers", one_reader_keeps_its_weight, "node"),
]


@pytest.mark.parametrize(("case", "change", "kind"), WRONG_FOLDS)
def test_a_wrong_fold_is_seen(case: str, change: Change, kind: str) -> None:
    model = right(case)
    optimized, witness = fold(model)
    change(optimized)
    assert kind in kinds(check(model, optimized, witness))


@pytest.mark.parametrize("epsilon", [0.0, 1e-5 * (1 + 1e-9), 1e-3])
def test_another_epsilon_is_seen(epsilon: float) -> None:
    """Float32(1e-5) is not 1e-5; an attribute can only hold a float32, so the nearest one to the double is the next."""
    model = right("conv")
    optimized, witness = fold(model)
    value = float(np.nextafter(np.float32(1e-5), np.float32(1))) if 1e-5 < epsilon < 2e-5 else epsilon
    set_attribute("BatchNormalization", epsilon=value)(model)
    assert kinds(check(model, optimized, witness)) == {"node"}


@pytest.mark.parametrize("parameter", ["p_bn_s", "p_bn_b", "p_bn_m", "p_bn_v"])
def test_another_parameter_of_a_node_that_left_is_seen(parameter: str) -> None:
    model = right("conv")
    optimized, witness = fold(model)
    nudge(model, parameter, 1)
    assert kinds(check(model, optimized, witness)) == {"node"}


@pytest.mark.parametrize(
    "change", [become("Mul", "Div"), become("Div", "Mul"), become("Sub", "Add"), swap_inputs("Sub"), swap_inputs("Div")]
)
def test_another_operator_that_left_is_seen(change: Change) -> None:
    model = right("decomposed")
    optimized, witness = fold(model)
    change(model)
    assert kinds(check(model, optimized, witness)) == {"node"}


# Wrong wiring.

TWO = build(
    "(float[N,4,8,8] x) => (float[N,6,8,8] y, float[N,6,8,8] z) { "
    f"a = Conv(x, w, c) {bn('p', 'a', 'p_bn')} r = Relu(p) d = Conv(x, u) {bn('q', 'd', 'q_bn')} "
    "y = Sub(r, q) z = LeakyRelu<alpha=0.5>(q) }",
    {"w": (6, 4, 1, 1), "c": (6,), "u": (6, 4, 1, 1), "p_bn": (6,), "q_bn": (6,)},
)


def both_from_one(model: onnx.ModelProto) -> None:
    node(model, "Sub").input[1] = node(model, "Sub").input[0]


def without_relu(model: onnx.ModelProto) -> None:
    relu = node(model, "Relu")
    node(model, "Sub").input[0] = relu.input[0]
    model.graph.node.remove(relu)


def extra_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Relu", ["x"], ["unused"]))


def relu_behind(model: onnx.ModelProto) -> None:
    node(model, "LeakyRelu").output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Relu", ["before"], ["z"]))


def in_another_order(model: onnx.ModelProto) -> None:
    nodes = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([nodes[2], nodes[0], nodes[1], *nodes[3:]])


def renamed_node(model: onnx.ModelProto) -> None:
    node(model, "Relu").name = "another"


def another_weight(model: onnx.ModelProto) -> None:
    first, second = (n for n in model.graph.node if n.op_type == "Conv")
    second.input[1] = first.input[1]


def output_names_swapped(model: onnx.ModelProto) -> None:
    node(model, "Sub").output[0], node(model, "LeakyRelu").output[0] = "z", "y"


def outputs_swapped(model: onnx.ModelProto) -> None:
    model.graph.output.insert(0, model.graph.output[1])
    del model.graph.output[2]


def output_renamed(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = node(model, "Sub").output[0] = "why"


def input_retyped(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 10


def input_resized(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9


def another_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 16


def new_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", 1, [1]))


WRONG_WIRING: list[tuple[Change, str]] = [
    (swap_inputs("Sub"), "wiring"),
    (both_from_one, "wiring"),
    (without_relu, "wiring"),
    (extra_node, "wiring"),
    (relu_behind, "wiring"),
    (in_another_order, "wiring"),
    (renamed_node, "wiring"),
    (become("Relu", "LeakyRelu"), "wiring"),
    (set_attribute("LeakyRelu", alpha=0.51), "constant"),
    (set_attribute("LeakyRelu", beta=0.51), "wiring"),
    (set_attribute("Conv", pads=[0, 0, 0, 0]), "wiring"),
    (another_weight, "constant"),
    (output_names_swapped, "wiring"),
    (outputs_swapped, "interface"),
    (output_renamed, "interface"),
    (input_retyped, "interface"),
    (input_resized, "interface"),
    (another_opset, "interface"),
    (new_input, "interface"),
]


@pytest.mark.parametrize(("change", "kind"), WRONG_WIRING)
def test_wrong_wiring_is_seen(change: Change, kind: str) -> None:
    optimized, witness = fold(TWO)
    assert check(TWO, optimized, witness).ok
    change(optimized)
    assert kind in kinds(check(TWO, optimized, witness))


def test_only_the_opposite_operator_may_take_its_place() -> None:
    model = right("the largest turned into the smallest")
    optimized, witness = fold(model)
    assert op_types(optimized) == ["Conv", "Min"] and check(model, optimized, witness).ok
    for op, kind in (("Max", "node"), ("Sum", "wiring"), ("Mean", "wiring")):
        node(optimized, "Min").op_type = op
        assert kind in kinds(check(model, optimized, witness))
        node(optimized, op).op_type = "Min"
    node(optimized, "Min").domain = "elsewhere"
    assert "wiring" in kinds(check(model, optimized, witness))


# Wrong witnesses.

Forgery = Callable[[GraphWitness], GraphWitness]


def restored(name: str, change: Callable[[Storage], Storage | None]) -> Forgery:
    def rewrite(told: GraphWitness) -> GraphWitness:
        storage = dict(told.storage)
        new = change(storage.pop(name, Storage.identity(4)))
        return dataclasses.replace(told, storage=storage if new is None else {**storage, name: new})

    return rewrite


def left(change: Callable[[int, tuple[str, str]], tuple[str, str] | None]) -> Forgery:
    def rewrite(told: GraphWitness) -> GraphWitness:
        changed = {index: change(index, ends) for index, ends in told.removed.items()}
        return dataclasses.replace(told, removed={i: ends for i, ends in changed.items() if ends is not None})

    return rewrite


TWICE = Storage.encode(np.full((1, 1, 1, 1), 2.0), np.zeros((1, 1, 1, 1)))
NOTHING = Storage(*(np.zeros((1, 1, 1, 1)) for _ in range(3)))
NAN = Storage.encode(np.full((1, 1, 1, 1), np.nan), np.zeros((1, 1, 1, 1)))

WRONG_WITNESSES: dict[str, tuple[Forgery, str]] = {
    "a re-stored tensor is left out": (restored("a", lambda _: None), "node"),
    "a tensor that was not re-stored": (restored("r", lambda _: TWICE), "node"),
    "a scale that is off by little": (
        restored("a", lambda s: Storage(s.den, s.num * (1 + 1e-12), s.off)),
        "node",
    ),
    "a shift that is off by little": (restored("a", lambda s: Storage(s.den, s.num, s.off * (1 + 1e-12))), "node"),
    "a storage that says nothing": (restored("d", lambda _: NOTHING), "node"),
    "a storage that is no number": (restored("d", lambda _: NAN), "node"),
    "an input is re-stored": (restored("x", lambda _: TWICE), "boundary"),
    "an output is re-stored": (restored("z", lambda _: TWICE), "boundary"),
    "a weight is re-stored": (restored("w", lambda _: TWICE), "boundary"),
    "a node that left is left out": (left(lambda index, ends: None if index == 1 else ends), "wiring"),
    "a node left between others": (left(lambda index, ends: ("d", "q") if index == 1 else ends), "node"),
    "a node that is not there": (left(lambda index, ends: ends), "wiring"),
    "no names": (lambda told: dataclasses.replace(told, names={}), "wiring"),
    "two tensors under one name": (
        lambda told: dataclasses.replace(told, names={**told.names, "r": "q"}),
        "wiring",
    ),
    "another graph": (lambda told: dataclasses.replace(told, path="elsewhere/"), "interface"),
}


@pytest.mark.parametrize("case", WRONG_WITNESSES)
def test_a_wrong_witness_is_seen(case: str) -> None:
    rewrite, kind = WRONG_WITNESSES[case]
    optimized, witness = fold(TWO)
    told = rewrite(witness.graphs[0])
    if case == "a node that is not there":
        told = dataclasses.replace(told, removed={**told.removed, 99: ("a", "p")})
    assert kind in kinds(check(TWO, optimized, Witness((told,))))


# Graphs in graphs, old models, external data.

BRANCHES = (
    "(float[N,4,8] x, bool[] k) => (float[N,6,8] y) "
    f"{{ a = Conv(x, w) {bn('b', 'a', 'p_bn')} y = If(k) <then_branch = t () => (float[N,6,8] o) "
    f"{{ h = Conv(b, u) {bn('o', 'h', 'q_bn')} }}, else_branch = e () => (float[N,6,8] s) {{ s = Identity(b) }}> }}"
)


def branches() -> onnx.ModelProto:
    return build(BRANCHES, {"w": (6, 4, 1), "u": (6, 6, 1), "p_bn": (6,), "q_bn": (6,)})


def test_branches_pass_and_are_seen() -> None:
    model = branches()
    optimized, witness = fold(model)
    assert sum(len(told.removed) for told in witness.graphs) == 2
    assert check(model, optimized, witness).ok
    body = next(a.g for a in node(optimized, "If").attribute if a.name == "then_branch")
    wrong = onnx.ModelProto.FromString(optimized.SerializeToString())
    next(a.g for a in node(wrong, "If").attribute if a.name == "then_branch").node[0].input[0] = "x"
    assert "wiring" in kinds(check(model, wrong, witness))
    weight = body.node[0].input[1]
    tensor = next(t for t in [*body.initializer, *optimized.graph.initializer] if t.name == weight)
    tensor.CopyFrom(numpy_helper.from_array(np.nextafter(numpy_helper.to_array(tensor), np.float32(9)) + 0, weight))
    assert kinds(check(model, optimized, witness)) == {"constant"}


def test_a_captured_tensor_is_stored_as_it_was() -> None:
    model = branches()
    optimized, witness = fold(model)
    main = witness.graphs[0]
    one = np.ones((1, 1, 1))
    main = dataclasses.replace(main, storage={**main.storage, "b": Storage.encode(2 * one, 0 * one)})
    certificate = check(model, optimized, Witness((main, *witness.graphs[1:])))
    assert "boundary" in kinds(certificate)


def test_ir_3_lists_its_initializers() -> None:
    text, weights = RIGHT["conv"]
    model = build(text, weights, opset=9, ir=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    optimized, witness = fold(model)
    assert op_types(optimized) == ["Conv"]
    assert check(model, optimized, witness).ok
    del optimized.graph.input[-1]
    assert kinds(check(model, optimized, witness)) == {"interface"}


def test_an_overridable_default_stays() -> None:
    text = CONV.replace("(float[N", "(float[6,4,1,1] k, float[N", 1).replace(
        "y) {", "y, float[N,6,8,8] r) { r = Conv(x, k) "
    )
    model = build(text, {**CONV_WEIGHTS, "k": (6, 4, 1, 1)})
    optimized, witness = fold(model)
    assert check(model, optimized, witness).ok
    nudge(optimized, "k", 1)
    assert "interface" in kinds(check(model, optimized, witness))


def test_external_data(tmp_path: Any) -> None:
    model = build(RIGHT["two readers"][0].replace("y = Conv(a, w)", "y = Conv(x, w)"), RIGHT["two readers"][1])
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    optimized, witness = fold(model)
    before, after = tmp_path / "before/m.onnx", tmp_path / "after/n.onnx"
    for proto, path, name in ((model, before, "a"), (optimized, after, "b")):
        copy = onnx.ModelProto.FromString(proto.SerializeToString())
        onnx.save_model(copy, path, save_as_external_data=True, size_threshold=0, location=name)
    certificate = certify(Model(read(before)), Model(read(after)), witness)
    assert certificate.ok and certificate.unchanged >= 1
    entries = {t.name: t for t in onnx.load(after, load_external_data=False).graph.initializer}
    for name in ("w", "u.folded"):
        offset = next(int(entry.value) for entry in entries[name].external_data if entry.key == "offset")
        data = bytearray((tmp_path / "after/b").read_bytes())
        data[offset + 4] ^= 4
        (tmp_path / "after/b").write_bytes(data)
        assert kinds(certify(Model(read(before)), Model(read(after)), witness)) == {"constant"}
        data[offset + 4] ^= 4
        (tmp_path / "after/b").write_bytes(data)


def test_a_large_weight_is_tested_on_some_outputs_and_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.certificate.nodes.LARGE", 8)
    monkeypatch.setattr("bnfold.certificate.rounding.CHUNK", 8)
    for case in ("conv", "in front of a gemm", "gemm", "matmul and add", "matmul with its constant on the left"):
        model = right(case)
        optimized, witness = fold(model)
        certificate = check(model, optimized, witness)
        assert certificate.ok, certificate.failures
        for name in new_constants(model, optimized):
            corrupted = onnx.ModelProto.FromString(optimized.SerializeToString())
            nudge(corrupted, name, 2)
            assert kinds(check(model, corrupted, witness)) == {"constant"}


# The windows: what they see at a few positions is what the whole operator computes there.

GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 2, 0, 1]},
    {"strides": [2, 3], "pads": [2, 0, 1, 1]},
    {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID", "strides": [3, 1]},
]


def windows_of(op: str, attributes: Mapping[str, Any], kernel: list[int]) -> tuple[Any, tuple[windows.Axis, ...]]:
    made = onnx.helper.make_node(op, ["x", "w"][: 2 if "Conv" in op else 1], ["y"], **attributes)
    graph = onnx.helper.make_graph([made], "g", [], [onnx.helper.make_tensor_value_info("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    inner = Model(read(model)).main.nodes[0]
    (axes,) = windows.samples(inner, (11, 8), (kernel[0], kernel[1]))
    return inner, axes


def at(full: NDArray[Any], axes: tuple[windows.Axis, ...], which: str) -> NDArray[Any]:
    picked: NDArray[Any] = full[np.ix_(range(full.shape[0]), range(full.shape[1]), *(getattr(a, which) for a in axes))]
    return picked


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"])
def test_windows_agree_with_the_whole_operator(op: str, geometry: dict[str, Any]) -> None:
    if op == "ConvTranspose":
        geometry = {**geometry, "output_padding": [0, 0] if "auto_pad" in geometry else [1, 0]}
    if op == "ConvTranspose" and "strides" not in geometry and "dilations" not in geometry:
        geometry["output_padding"] = [0, 0]
    if op in ("AveragePool", "LpPool"):
        geometry = {name: value for name, value in geometry.items() if name != "dilations"}
    if op == "AveragePool":
        geometry = {**geometry, "count_include_pad": 1, "ceil_mode": 0 if "auto_pad" in geometry else 1}
    geometry = {**geometry, "kernel_shape": [3, 2]} if "Pool" in op else {**geometry, "group": 2}
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 4, 11, 8))
    w = rng.normal(size=(4, 3, 3, 2) if op == "ConvTranspose" else (6, 2, 3, 2))
    inner, axes = windows_of(op, geometry, [3, 2])
    call = Call(op, "", 17, geometry)
    if "Conv" in op:
        full = KERNELS["", op](call, x, w)
        seen = windows.unfold(at(x, axes, "elements"), axes, 0.0)
        few = windows.convolve(seen, w, None, axes, 2, op == "ConvTranspose")
    else:
        full = KERNELS["", op](call, x)
        few = windows.pool(inner, at(x, axes, "elements"), axes)[0]
    np.testing.assert_allclose(few, at(full, axes, "positions"), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("value", "stored", "wrong"),
    [
        (0.0, np.float32(0), False),
        (0.0, np.float32(1e-45), True),
        (1.0, np.float32(1), False),
        (1.0, np.nextafter(np.float32(1), np.float32(0)), True),  # half an ULP of one, but a whole one of its own
        (1.0, np.nextafter(np.float32(1), np.float32(2)), True),
        (1 + 2**-24, np.float32(1), False),  # halfway: either neighbour
        (1 + 2**-24, np.nextafter(np.float32(1), np.float32(2)), False),
        (1e30, np.float16(np.inf), True),
        (-np.inf, np.float32(-np.inf), False),
        (np.inf, np.float32(-np.inf), True),
        (np.nan, np.float32(np.nan), False),
        (np.nan, np.float32(0), True),
        (0.1, np.float32(np.nan), True),
    ],
)
def test_half_a_unit_in_the_last_place(value: float, stored: Any, wrong: bool) -> None:
    tensor = numpy_helper.from_array(np.array([stored]), "c")
    error = compare(from_initializer(tensor, None), Exact.of(np.array([value]), np.zeros(1)))
    assert (error > 0) == wrong


@pytest.mark.parametrize("length", [4_099, 4_110, 40_003, 3_000_001, 2**33 + 1])
@pytest.mark.parametrize("stride", [1, 3])
def test_long_axes_are_looked_at_from_both_ends(length: int, stride: int) -> None:
    at = windows._Window(length, 3, stride, 2, "NOTSET", 2, 1, False, 0, None)
    axis = windows._sliding(at)
    last = (length + 3 - 5) // stride
    assert axis.positions[0] == 0 and axis.positions[-1] <= last
    assert stride == 3 or last - axis.positions[-1] < 5, "the last window stands in the padding"
    for position, taps in zip(axis.positions, axis.taps, strict=True):
        places = position * stride + 2 * np.arange(3) - 2
        inside = (places >= 0) & (places < length)
        assert np.array_equal(axis.elements[taps[inside]], places[inside]) and np.all(taps[~inside] == -1)


@pytest.mark.parametrize("begin", [0, 3, 20_000])
@pytest.mark.parametrize("output_size", [None, 90_000])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize("length", [30_011, 30_012])
def test_long_axes_that_are_made_longer_are_looked_at_from_both_ends(
    monkeypatch: pytest.MonkeyPatch, length: int, stride: int, dilation: int, output_size: int | None, begin: int
) -> None:
    at = windows._Window(length, 3, stride, dilation, "NOTSET", begin, 1, False, 1, output_size)
    cut = windows._spreading.__wrapped__(at)
    monkeypatch.setattr(windows, "LONG", 1 << 40)
    whole = windows._spreading.__wrapped__(at)
    for found, wanted in zip(vars(cut).values(), vars(whole).values(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_an_axis_that_the_file_says_is_long_is_made_longer_at_once() -> None:
    at = windows._Window(1 << 31, 3, 2, 1, "NOTSET", 0, 0, False, 0, None)
    axis = windows._spreading(at)
    assert (axis.positions[0], axis.positions[-1]) == (0, 1 << 32) and axis.elements[-1] == (1 << 31) - 1
    with pytest.raises(NotCertifiedError, match="different places"):
        windows._spreading(dataclasses.replace(at, stride=1 << 30))


@pytest.mark.parametrize("seed", range(8))
def test_what_cancels_between_nodes_that_left_is_no_mistake(seed: int) -> None:
    """A variance of a millionth: the first BN's shift is hundreds, and what both make of it is not."""
    rng, b = np.random.default_rng(seed), Builder()
    x = b.conv(b.input(3, 4, 5, 4), 4, 1)
    rows = b.node("Add", b.node("Concat", x, x, axis=1), b.constant(rng.normal(size=(5, 1))))
    b.conv(b.node("Sigmoid", rows), 2, 1)
    tiny: dict[str, Any] = {"beta": rng.normal(size=4), "mean": 2 * rng.normal(size=4), "variance": [1e-6] * 4}
    b.conv(b.node("Relu", b.node("GlobalLpPool", b.bn(b.bn(x, gamma=rng.uniform(0.5, 2, 4), **tiny)), p=3)), 2, 1)
    result = bnfold.optimize(b.model(), verify=False)
    assert result.batchnorm.after == 0 and not result.warnings


def test_what_cancels_in_front_of_a_node_that_left_is_no_mistake() -> None:
    """As above, where what is left of a shift of a thousand goes through another BatchNormalization."""
    b = Builder()
    bns: list[dict[str, Any]] = [
        {
            "gamma": [1.9651672051082971, -1.339942749580989],
            "beta": [0.8999555986036696, -2.7983911573421207],
            "mean": [-1.8917332698388627, -1.1688694234641357],
            "variance": [0.0, 0.956364212776],
        },
        {
            "gamma": [0.62189607, 1.04394625],
            "beta": [1.21222668, 0.51861399],
            "mean": [-0.04468083, 0.16127237],
            "variance": [1e-6, 0.963635711],
        },
    ]
    y = b.node("Slice", b.node("Relu", b.input(3, 2, 5, 4)), *(b.constant([n]) for n in (0, 100, 0)))
    y = b.node("Add", y, b.constant(np.array([0.16556239, -0.08475033]).reshape(2, 1, 1)))
    for parameters in bns:
        y = b.bn(y, **parameters)
    b.conv(b.node("PRelu", y, b.constant(b.normal(2, 1, 1))), 2, 1)
    result = bnfold.optimize(b.model(), verify=False)
    assert result.batchnorm.after == 0 and not result.warnings
