"""Fold and convert: types, casts, constants rounded once, what stays in float32, and that nothing else changes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import conversion
from bnfold.constants import from_initializer
from bnfold.errors import ModelError, UsageError
from bnfold.precision.values import trouble
from bnfold.precision.wishes import CODES
from tests.builder import Builder
from tests.halves import (
    BRAIN,
    CASES,
    FLOAT,
    HALF,
    SAME,
    Case,
    builder,
    captured,
    casts,
    constants,
    made,
    residual,
    types,
)
from tests.program import names, saved


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast the result is does not matter here."""
    monkeypatch.setattr(conversion, "MEASURED", 0.01)


# ------------------------------------------------------------------------------------------------- every kind of model


@pytest.mark.parametrize("case", CASES)
def test_a_fold_is_converted_certified_and_verified(case: str) -> None:
    model = CASES[case]()
    result = bnfold.optimize(model, precision="fp16")
    assert result.status == "verified", result.to_json()["verify"]
    assert result.precision is not None and result.proto is not None
    assert result.precision.nodes > 0 and result.batchnorm.after == 0
    onnx.checker.check_model(result.proto)
    types(result.proto)
    for what in ("input", "output"):
        before = [value for value in getattr(model.graph, what) if value.name not in constants(model)]
        after = [value for value in getattr(result.proto.graph, what) if value.name not in constants(result.proto)]
        assert list(before) == list(after), what


def test_every_node_but_the_ends_is_in_the_smaller_type() -> None:
    result = made(residual())
    assert not result.kept
    assert [(node.input[0], node.output[0]) for node in casts(result.proto)] == [
        ("x", "x.fp16"), ("flat.fp16", "flat"), ("gemm.fp16", "gemm"),
    ]  # fmt: skip
    ends = {value.name for value in (*result.proto.graph.input, *result.proto.graph.output)}
    assert {name for name, type_ in types(result.proto).items() if type_ == FLOAT} == ends


# --------------------------------------------------------------------------------------------------------- rounded once


@pytest.mark.parametrize("case", ["branches", "residual"])
@pytest.mark.parametrize(("precision", "type_"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_new_constants_are_rounded_once_from_float64(case: str, precision: str, type_: Any) -> None:
    model = CASES[case]() if case == "branches" else residual(builder(22))
    model.opset_import[0].version = 22
    result = made(model, precision)
    held, twice = constants(result.proto), 0
    assert result.exact
    for name, exact in result.exact.items():
        stored = held[name].astype(np.float64)
        assert held[name].dtype == type_, name
        # The nearest of the stored value and its neighbours, in integers of the type's own spacing.
        bits, least = (11, -24) if type_ is np.float16 else (8, -133)
        unit = np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - bits, least))
        assert np.all(np.abs(stored - exact) <= unit / 2), name
        twice += int(np.count_nonzero(stored != exact.astype(np.float32).astype(type_).astype(np.float64)))
    if case == "branches" and precision == "fp16":
        assert twice > 0, "no value here tells one rounding from two"


def test_a_value_beside_a_tie_goes_the_right_way() -> None:
    """1 + 2^-11 lies between two float16; 2^-30 more is lost in float32, and decides."""
    b = builder()
    y = b.node("MatMul", b.input(2, 1), b.constant([[1 + 2**-11]], "weight"))
    model = b.model(b.bn(y, gamma=1 + 2**-23, beta=0.0, mean=0.0, variance=1.0 - 2**-24, epsilon=0.0))
    result = made(model)
    (name, exact), *_ = ((name, value) for name, value in result.exact.items() if value.shape == (1, 1))
    once, twice = np.float16(exact[0, 0]), np.float16(np.float32(exact[0, 0]))
    assert constants(result.proto)[name][0, 0] == once
    assert 1 + 2**-11 < exact[0, 0] < 1 + 2**-11 + 2**-22
    assert once == 1 + 2**-10 and twice >= 1


def test_constants_that_stay_what_they_were_are_rounded_to_nearest() -> None:
    model = residual()
    result = made(model)
    before, after = constants(model), constants(result.proto)
    for name in ("gemm.weight", "gemm.bias"):
        assert after[name].dtype == np.float16
        assert np.array_equal(after[name], before[name].astype(np.float16))


def test_tensors_below_the_range_are_not_lifted_to_its_smallest_value() -> None:
    """As the converter would: it makes 6e-8 of everything between 0 and that."""
    b = builder()
    weight = b.normal(6, 6)
    weight[0] = 1e-9
    b.node("MatMul", b.input(2, 6), b.constant(weight, "weight"))
    assert np.array_equal(constants(made(b.model()).proto)["weight"][0], np.zeros(6))


# ----------------------------------------------------------------------------------------------- what stays in float32


def small(finish: Callable[[Builder, str], str], opset: int = 17) -> Case:
    def make() -> onnx.ModelProto:
        b = builder(opset)
        return b.model(b.node("Relu", finish(b, b.bn(b.conv(b.input(2, 3, 8, 8), 4, 3)))))

    return make


def _quantized(b: Builder, y: str) -> str:
    scale, zero = b.constant(0.1, "scale"), b.constant(np.array(3, np.int8), "zero")
    y = b.node("QuantizeLinear", y, scale, zero, name="quantize")
    return b.node("Sigmoid", b.node("DequantizeLinear", y, scale, zero, name="dequantize"), name="behind")


def _normalized(b: Builder, y: str) -> str:
    return b.node("InstanceNormalization", y, b.constant(b.normal(4)), b.constant(b.normal(4)), epsilon=1e-9, name="at")


KEPT: dict[str, tuple[Case, dict[str, str]]] = {
    "an operator that the converter leaves": (
        small(lambda b, y: b.node("CumSum", y, b.constant(np.array(1)), name="at")), {"at": "operator"},
    ),
    "a constant beyond the range": (
        small(lambda b, y: b.node("Min", b.node("Mul", y, b.constant(1e6), name="at"), b.constant(9.0), name="end")),
        {"at": "constant-overflow", "end": "operator"},
    ),
    "a mask": (
        small(lambda b, y: b.node("Softmax", b.node("Add", y, b.constant(-3e38 * np.eye(6)), name="at"))),
        {"at": "constant-overflow"},
    ),
    "a mask by choice": (
        small(lambda b, y: b.node("Where", b.node("Greater", y, b.constant(0.1)), y, b.constant(-1e9), name="at")),
        {"at": "constant-overflow"},
    ),
    "a constant below the range": (
        small(lambda b, y: b.node("Div", y, b.constant(3e-7), name="at")), {"at": "constant-lost"},
    ),
    "an epsilon": (small(_normalized), {"at": "epsilon"}),
    "variance that is lost": (
        small(lambda b, y: b.bn(b.node("Sigmoid", b.node("Tanh", y)), variance=1e-8, epsilon=1e-12, name="at")),
        {"at": "epsilon"},
    ),
    "variance below the range": (
        small(lambda b, y: b.bn(b.node("Relu", y), variance=3e-8, epsilon=1e-7, beta=5.0, name="at")),
        {"at": "constant-lost"},
    ),
    "quantized": (
        small(_quantized),
        {"conv": "quantized", "quantize": "quantized", "dequantize": "quantized", "behind": "quantized"},
    ),
    "a sequence": (
        small(lambda b, y: b.node("SequenceAt", b.node("SplitToSequence", y, axis=1), b.constant(1), name="at")),
        {"splittosequence": "unknown-type", "at": "unknown-type"},
    ),
    "an If": (lambda: captured(builder()), {"if": "body"}),
    "a Resize to computed sizes": (CASES["sizes in floats"], {"as_float": "sizes", "mul": "sizes", "floor": "sizes"}),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
def test_nodes_that_stay_are_named_with_their_reason(what: str) -> None:
    make, expected = KEPT[what]
    result = made(make())
    assert result.kept == expected
    assert result.certificate().ok
    types(result.proto)


def test_a_call_that_cannot_be_inlined_keeps_its_types() -> None:
    model = residual()
    body = helper.make_function(
        "own", "both", ["a"], ["b", "a"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    node = next(node for node in model.graph.node if node.name == "sum")
    node.op_type, node.domain = "both", "own"
    node.output.append("spare")
    model.functions.append(body)
    model.graph.value_info.append(helper.make_tensor_value_info("sum", FLOAT, ["N", 6, 9, 12]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    result = made(model)
    assert result.kept == {"sum": "function"}
    assert result.certificate().ok
    assert types(result.proto)["sum"] == FLOAT


def test_every_code_is_documented_and_seen() -> None:
    page = (Path(__file__).parent.parent / "docs" / "precision.md").read_text()
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", page, re.MULTILINE))
    assert listed == CODES
    tested = {code for _, expected in KEPT.values() for code in expected.values()}
    assert set(CODES) - tested == {"kept-by-user", "type", "domain", "function", "overflow"}, (
        "these have tests of their own"
    )


def test_an_operator_that_nobody_knows_keeps_its_types() -> None:
    model = residual()
    node = next(node for node in model.graph.node if node.name == "sum")
    node.op_type, node.domain = "Relu", "own"
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("sum", FLOAT, ["N", 6, 9, 12]))
    result = made(model)
    assert result.kept == {"sum": "domain"}
    assert {type_ for name, type_ in types(result.proto).items() if name in node.input} == {HALF}
    at = next(node for node in result.proto.graph.node if node.domain == "own")
    assert types(result.proto)[at.input[0]] == FLOAT and at.output[0] == "sum"


def test_a_user_keeps_nodes_by_name_or_glob() -> None:
    result = made(residual(), keep=("gemm", "*sum"))
    assert result.kept == dict.fromkeys(["sum", "gemm"], "kept-by-user")
    assert constants(result.proto)["gemm.weight"].dtype == np.float32
    assert made(residual(), keep=("nothing*",)).conversion.warnings == (
        "--keep-fp32 'nothing*' matches no node of the folded model",
    )


def test_two_nodes_that_stay_have_no_cast_between_them() -> None:
    result = made(residual(), keep=("flat", "gemm"))
    assert [(node.input[0], node.output[0]) for node in casts(result.proto)] == [
        ("x", "x.fp16"), ("globalaveragepool", "globalaveragepool.fp32"),
    ]  # fmt: skip
    assert made(residual(), keep=("*",)).proto.graph.node[0].op_type == "Conv"


def test_a_weight_of_two_readers_is_there_in_both_types() -> None:
    held = constants(made(CASES["a weight of two readers"]()).proto)
    assert (held["weight"].dtype, held["weight.fp16"].dtype) == (np.float32, np.float16)
    assert np.array_equal(held["weight.fp16"], held["weight"].astype(np.float16))


def test_a_constant_node_of_which_one_reader_stays_is_not_rounded() -> None:
    result = made(CASES["Constant nodes"]())
    assert result.kept == {"largest": "operator"}
    (bound,) = (node.attribute[0].t for node in result.proto.graph.node if node.op_type == "Constant")
    assert bound.data_type == FLOAT and numpy_helper.to_array(bound) == np.float32(0.7)


@pytest.mark.parametrize("opset", [17, 22])
def test_bfloat16_is_what_the_opset_allows(opset: int) -> None:
    result = made(residual(builder(opset)), "bf16")
    kept = {"conv": "type", "conv2": "type", "globalaveragepool": "type"} if opset < 22 else {}
    assert result.kept == kept
    assert result.certificate().ok
    assert (types(result.proto)["gemm.weight"], types(result.proto)["x"]) == (BRAIN, FLOAT)
    assert any("version_converter" in warning for warning in result.conversion.warnings) == (opset < 22)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([1.0, -65519.0], ""),
        ([1.0, 65520.0], "constant-overflow"),
        ([np.inf, np.nan, 1.0], ""),
        ([1e-9, 1.0], ""),
        ([1e-9, 1e-9], "constant-lost"),
        ([6.1e-5, 7e-5], ""),
        ([0.0, 0.0], ""),
    ],
)
def test_what_a_constant_loses(values: list[float], code: str) -> None:
    constant = from_initializer(numpy_helper.from_array(np.array(values), "c"), None)
    found = trouble(constant, HALF)
    assert (found[0] if found else "") == code
    if not code.endswith("overflow"):
        assert trouble(constant, BRAIN) is None


# ------------------------------------------------------------------------------------------ what overflows when it runs


def squares(size: float = 300.0) -> onnx.ModelProto:
    """Squares of large numbers, their mean, its root."""
    b = builder()
    y = b.bn(b.conv(b.input(2, 3, 8, 8), 4, 3), gamma=size, name="bn")
    square = b.node("Mul", y, y, name="square")
    mean = b.node("ReduceMean", square, axes=[2, 3], keepdims=1, name="mean")
    return b.model(b.node("Div", y, b.node("Sqrt", mean, name="root"), name="normalised"))


def test_tensors_that_overflow_on_the_inputs_stay_in_float32() -> None:
    result = bnfold.optimize(squares(), precision="fp16")
    assert result.status == "verified" and result.precision is not None
    kept = {kept.node: kept.code for kept in result.precision.kept}
    assert kept == {"square": "overflow", "mean": "overflow", "root": "overflow"}
    assert "reached" in result.precision.kept[0].reason
    assert bnfold.optimize(squares(1.0), precision="fp16").precision.kept == ()  # type: ignore[union-attr]


def test_a_mask_stays_with_what_reads_it() -> None:
    b = builder()
    y = b.bn(b.conv(b.input(2, 3, 8, 8), 4, 3))
    y = b.node("Where", b.node("Greater", y, b.constant(0.1)), y, b.constant(-1e9), name="mask")
    result = bnfold.optimize(b.model(b.node("Softmax", b.node("Mul", y, b.constant(2.0)))), precision="fp16")
    assert result.status == "verified" and result.precision is not None
    kept = {kept.node: kept.code for kept in result.precision.kept}
    assert kept == {"mask": "constant-overflow", "mul": "overflow", "softmax": "overflow"}


def test_nothing_is_run_where_nothing_is_to_be_verified() -> None:
    result = bnfold.optimize(squares(), precision="fp16", verify=False)
    assert (result.status, result.precision.kept) == ("certified", ())  # type: ignore[union-attr]
    assert result.warnings == ("whether tensors overflow in float16 was not looked for: nothing was run (--no-verify)",)


def test_a_layer_that_only_its_fold_makes_fit() -> None:
    """Weights of 1e-7, and a BatchNormalization that makes numbers of them."""
    b = builder()
    y = b.conv(b.input(2, 3, 8, 8), 4, 3, scale=1e-7, bias=False)
    y = b.bn(y, gamma=1.0, variance=2.5e-13, mean=0.0, epsilon=1e-20)
    model = b.model(b.conv(b.node("Relu", y), 5, 3))
    result = bnfold.optimize(model, precision="fp16")
    assert (result.status, result.batchnorm.after, result.precision.kept) == ("verified", 0, ())  # type: ignore[union-attr]
    kept = {kept.node: kept.code for kept in bnfold.optimize(model, precision="fp16", keep=["bn"]).precision.kept}  # type: ignore[union-attr]
    assert kept == {"conv": "constant-lost", "bn": "epsilon"}


# ------------------------------------------------------------------------------------------------------- nothing else


def test_what_a_type_does_not_concern_stays_field_by_field() -> None:
    model = residual()
    model.doc_string, model.producer_name = "a model", "me"
    model.metadata_props.add(key="classes", value="[]")
    model.graph.doc_string = "a graph"
    for node in model.graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="from", value=node.name)
    for tensor in model.graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
    model.graph.value_info.append(helper.make_tensor_value_info("sum", FLOAT, ["N", 6, 9, 12]))
    model.graph.value_info[0].doc_string = "about sum"
    fold = bnfold.optimize(model).proto
    half = bnfold.optimize(model, precision="fp16").proto
    assert fold is not None and half is not None
    for message in (fold, half):
        assert message.graph.value_info[0].type.tensor_type.elem_type == (HALF if message is half else FLOAT)
        message.graph.value_info[0].type.tensor_type.elem_type = FLOAT
    new = {node.name for node in casts(half)}
    kept = [node for node in half.graph.node if node.name not in new]
    carried = {"x.fp16": "x", "flat.fp16": "flat", "gemm.fp16": "gemm"}
    for before, after in zip(fold.graph.node, kept, strict=True):
        after.input[:] = [carried.get(name, name) for name in after.input]
        after.output[:] = [carried.get(name, name) for name in after.output]
        assert before == after
    for one, other in zip(fold.graph.initializer, half.graph.initializer, strict=True):
        assert (one.name, one.doc_string, one.dims) == (other.name, other.doc_string, other.dims)
    for message in (fold, half):
        del message.graph.node[:]
        del message.graph.initializer[:]
    assert fold == half


def test_a_model_of_another_type_has_nothing_to_convert() -> None:
    b = Builder(type_=HALF)
    model = b.model(b.bn(b.conv(b.input(2, 3, 8, 8), 4, 3)))
    with pytest.raises(ModelError, match="has no float32 to convert to float16; leave --precision out"):
        bnfold.optimize(model, precision="fp16")
    with pytest.raises(ModelError, match="nothing of it can be converted to bfloat16: conv stays, ONNX has no Conv in"):
        bnfold.optimize(small(lambda b, y: y)(), precision="bf16", keep_fp32=["relu"])


def test_a_precision_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="choose from fp32, fp16, bf16"):
        bnfold.optimize(residual(), precision="fp8")


@pytest.mark.parametrize("external", [False, True])
def test_files_large_and_beside(tmp_path: Path, external: bool) -> None:
    """Large weights stay in their file until they are written, wherever that is."""
    b = builder()
    y = b.bn(b.conv(b.input(1, 32, 8, 8), 64, 3, **SAME))
    path = saved(b.model(b.conv(b.node("Relu", y), 48, 1)), tmp_path / "model.onnx", external)
    before = path.read_bytes()
    result = bnfold.optimize(path, precision="fp16")
    assert result.output == tmp_path / "model.folded.fp16.onnx" and result.status == "verified"
    sidecar = ["model.bin", "model.folded.fp16.onnx.data"] if external else []
    assert names(tmp_path) == sorted(
        ["model.folded.fp16.onnx", "model.folded.fp16.onnx.manifest.json", "model.onnx", *sidecar]
    )
    assert path.read_bytes() == before
    loaded = onnx.load(result.output)
    assert {array.dtype for array in constants(loaded).values()} == {np.dtype(np.float16)}
    assert result.model.bytes.after < 0.6 * result.model.bytes.before
    same = bnfold.optimize(path, precision="fp16", dry_run=True, force=True)
    assert same.status == "verified" and same.model.bytes.after > 0
    assert types(loaded)[loaded.graph.output[0].name] == TensorProto.FLOAT


@pytest.mark.parametrize("forge", ["type", "carries"])
def test_a_manifest_proves_a_conversion_anew(tmp_path: Path, forge: str) -> None:
    b = builder()
    path = saved(b.model(b.node("Relu", b.bn(b.conv(b.input(1, 3, 8, 8), 4, 3)))), tmp_path / "model.onnx")
    manifest = Path(f"{bnfold.optimize(path, precision='fp16').output}.manifest.json")
    assert bnfold.audit(manifest).passed
    told = json.loads(manifest.read_text())
    narrowed = told["witness"]["narrowed"]
    narrowed[forge] = TensorProto.BFLOAT16 if forge == "type" else dict.fromkeys(narrowed["carries"], "x")
    manifest.write_text(json.dumps(told, indent=1))
    assert not bnfold.audit(manifest).passed


def test_a_model_without_folds_is_converted_all_the_same(tmp_path: Path) -> None:
    b = builder()
    path = saved(b.model(b.node("Relu", b.conv(b.input(2, 3, 8, 8), 4, 3))), tmp_path / "model.onnx")
    result = bnfold.optimize(path, precision="fp16")
    assert result.status == "verified" and result.certificate is not None and result.certificate.ok
    assert result.precision is not None and result.precision.verification is None
