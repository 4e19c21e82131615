"""Verification: a correct fold passes, and every kind of difference is seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import samples
from bnfold.equivalence import CERTIFIED_ONLY, DIFFERENT, EQUIVALENT, verify
from bnfold.equivalence.noise import Evidence, K, judge
from bnfold.errors import ModelError, UsageError
from bnfold.oracle import Unsupported

Array = npt.NDArray[Any]

DEPTH, WIDTH = 4, 12

SMALL = {"x": (2, 3, 20, 28)}


def info(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def made(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    opset: int = 17,
    ir: int = 8,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def network(
    *,
    folded: bool,
    dtype: Any = np.float32,
    corrupt: Callable[[dict[str, Array]], None] | None = None,
    bn_opset: int = 17,
    shape: Sequence[int | str | None] = ("n", 3, "h", "w"),
) -> onnx.ModelProto:
    """Four times Conv, BatchNormalization, Relu, then a mean; the same one folded, with constants rounded once."""
    random = np.random.default_rng(3)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, constants, x = [], {}, "x"
    for layer in range(DEPTH):
        inputs = 3 if layer == 0 else WIDTH
        w = (random.standard_normal((WIDTH, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(dtype)
        # Awkward gammas; the betas keep every channel alive, so that each constant matters.
        bn = [random.uniform(-1.5, 1.5, WIDTH), random.uniform(0.2, 0.8, WIDTH), random.standard_normal(WIDTH) * 0.2]
        scale, bias, mean = (array.astype(dtype) for array in bn)
        var = random.uniform(0.2, 1.5, WIDTH).astype(dtype)
        names = [f"{name}{layer}" for name in ("w", "scale", "bias", "mean", "var")]
        if folded:
            wide = [array.astype(np.float64) for array in (w, scale, bias, mean, var)]
            factor = wide[1] / np.sqrt(wide[4] + float(np.float32(1e-5)))
            constants[f"w{layer}"] = (wide[0] * factor.reshape(-1, 1, 1, 1)).astype(dtype)
            constants[f"b{layer}"] = (wide[2] - factor * wide[3]).astype(dtype)
            nodes.append(helper.make_node("Conv", [x, f"w{layer}", f"b{layer}"], [f"y{layer}"], pads=[1] * 4))
        else:
            constants |= dict(zip(names, (w, scale, bias, mean, var), strict=True))
            nodes.append(helper.make_node("Conv", [x, names[0]], [f"c{layer}"], pads=[1] * 4))
            test: dict[str, Any] = {"is_test": 1} if bn_opset < 7 else {}
            nodes.append(helper.make_node("BatchNormalization", [f"c{layer}", *names[1:]], [f"y{layer}"], **test))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"r{layer}"]))
        x = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    if corrupt is not None:
        corrupt(constants)
    outputs = [info("mean", None, kind), info(x, None, kind)]
    return made(nodes, constants, [info("x", shape, kind)], outputs, opset=bn_opset)


def scaled(name: str, factor: float, channel: int = 5) -> Callable[[dict[str, Array]], None]:
    def corrupt(constants: dict[str, Array]) -> None:
        array = constants[name].copy()
        array[channel] = array[channel] * np.asarray(factor, array.dtype)
        constants[name] = array

    return corrupt


def test_a_correct_fold_is_equivalent_and_says_what_was_measured() -> None:
    said: list[str] = []
    found = verify(network(folded=False), network(folded=True), providers=["cpu"], progress=said.append)
    assert found.status == EQUIVALENT
    assert found.passed
    assert found.problems == ()
    assert found.noise.status == "float64"
    shape = found.inputs[0]["shape"]
    assert shape[0] > 1
    assert shape[2] != shape[3]
    check = found.noise.outputs[0]
    assert check.before is not None
    assert check.after is not None
    assert check.floor is not None
    assert check.ratio is not None
    assert 0 < check.before.norm < 1e-5
    assert check.k_needed < K
    assert [set(runtime.outputs) for runtime in found.runtime] == [{"off", "on"}]
    assert sum(row["nodes"] for row in found.runtime[0].nodes) == 2 * DEPTH + 1
    assert said
    report = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert report["status"] == EQUIVALENT
    assert report["noise"]["outputs"][0]["before"]["norm"] == check.before.norm


@pytest.mark.parametrize("name", [f"{kind}{layer}" for kind in "wb" for layer in range(DEPTH)])
def test_a_thousandth_in_one_channel_is_seen(name: str) -> None:
    found = verify(network(folded=False), network(folded=True, corrupt=scaled(name, 1.001)), shapes=SMALL, samples=1)
    assert found.status == DIFFERENT
    assert not found.noise.passed
    assert "times it" in found.problems[0]
    assert found.worst is not None
    assert found.worst.k_needed > K


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_judged_at_its_own_noise(dtype: Any) -> None:
    original = network(folded=False, dtype=dtype, shape=[2, 3, 24, 32])
    found = verify(original, network(folded=True, dtype=dtype, shape=[2, 3, 24, 32]))
    assert found.passed, found.problems
    worst = found.noise.stored[0].noise
    assert worst is not None
    assert worst.norm > 1e-5
    wrong = network(folded=True, dtype=dtype, shape=[2, 3, 24, 32], corrupt=scaled("b2", 1.5))
    assert verify(original, wrong).status == DIFFERENT


def test_nan_is_seen() -> None:
    found = verify(network(folded=False), network(folded=True, corrupt=scaled("b1", np.nan)), shapes=SMALL, samples=1)
    assert found.status == DIFFERENT
    assert "NaN" in found.problems[0]
    json.dumps(found.to_json(), allow_nan=False)


def test_wiring_is_seen() -> None:
    wrong = network(folded=True)
    relu = next(node for node in wrong.graph.node if node.op_type == "Relu")
    relu.op_type = "Abs"
    assert verify(network(folded=False), wrong, shapes=SMALL, samples=1).status == DIFFERENT


def output_dropped(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def outputs_swapped(model: onnx.ModelProto) -> None:
    first = onnx.ValueInfoProto()
    first.CopyFrom(model.graph.output[0])
    del model.graph.output[0]
    model.graph.output.append(first)


def input_retyped(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def input_fixed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


@pytest.mark.parametrize("change", [output_dropped, outputs_swapped, input_retyped, input_fixed])
def test_another_interface_is_different(change: Callable[[onnx.ModelProto], None]) -> None:
    wrong = network(folded=True)
    change(wrong)
    found = verify(network(folded=False), wrong)
    assert found.status == DIFFERENT
    assert found.runtime == ()
    assert ("input" in found.problems[0]) or ("output" in found.problems[0])


def test_initializers_that_are_inputs_below_ir_4_are_no_inputs() -> None:
    original, folded = network(folded=False), network(folded=True)
    for model in (original, folded):
        model.ir_version = 3
        model.graph.input.extend(info(t.name, list(t.dims), t.data_type) for t in model.graph.initializer)
    found = verify(original, folded, shapes=SMALL, samples=1)
    assert found.status == EQUIVALENT
    assert [entry["name"] for entry in found.inputs] == ["x"]


def unary(op: str, *, kind: int = TensorProto.FLOAT, out: int | None = None, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    return made([node], {}, [info("x", ["n", 4], kind)], [info("y", None, kind if out is None else out)])


def test_another_shape_at_run_time_is_different() -> None:
    one = unary("ReduceMean", axes=[1], keepdims=1)
    two = unary("ReduceMean", axes=[1], keepdims=0)
    found = verify(one, two)
    assert found.status == DIFFERENT
    assert "shape" in found.problems[0]


def test_a_model_that_does_not_run_is_different() -> None:
    broken = made(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        {"s": np.array([7, 5])},
        [info("x", ["n", 4])],
        [info("y", None)],
    )
    found = verify(unary("Abs"), broken)
    assert found.status == DIFFERENT
    assert "the optimized model fails" in found.problems[0]


@pytest.mark.parametrize("bn_opset", [1, 6])
def test_certified_only_where_no_runtime_runs_the_original(bn_opset: int) -> None:
    original = network(folded=False, bn_opset=bn_opset, shape=[2, 3, 9, 8])
    found = verify(original, network(folded=True, shape=[2, 3, 9, 8]))
    assert found.status == CERTIFIED_ONLY
    assert found.noise.status == "float64, both models"
    assert "BatchNormalization" in found.notes[0]
    wrong = verify(original, network(folded=True, shape=[2, 3, 9, 8], corrupt=scaled("w2", 1.001)))
    assert wrong.status == DIFFERENT


def test_certified_only_where_nothing_runs_the_original() -> None:
    custom = made(
        [helper.make_node("Magic", ["x"], ["y"], domain="nowhere")], {}, [info("x", [2, 4])], [info("y", [2, 4])]
    )
    found = verify(custom, custom)
    assert found.status == CERTIFIED_ONLY
    assert found.noise.status.startswith("not run")
    assert "Magic" in found.notes[0]


def test_without_a_float64_kernel_the_check_is_weaker_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.kernels import KERNELS

    def refuse(call: Any, *inputs: Any) -> Any:
        raise Unsupported("Relu", "")

    monkeypatch.setitem(KERNELS, ("", "Relu"), refuse)
    found = verify(network(folded=False), network(folded=True), shapes=SMALL, samples=1)
    assert found.status == EQUIVALENT
    assert found.noise.status.startswith("weaker")
    assert "Relu" in found.noise.status
    wrong = network(folded=True, corrupt=scaled("b2", 1.001))
    assert verify(network(folded=False), wrong, shapes=SMALL).status == DIFFERENT


def test_an_oracle_that_is_wrong_does_not_make_the_rule_toothless(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.kernels import KERNELS

    monkeypatch.setitem(KERNELS, ("", "Relu"), lambda call, x: np.maximum(x, 0.1))
    wrong = network(folded=True, corrupt=scaled("b2", 1.01))
    found = verify(network(folded=False), wrong, shapes=SMALL, samples=1)
    assert found.noise.status.startswith("weaker")
    assert found.status == DIFFERENT


def test_integer_outputs_must_be_equal() -> None:
    inputs, outputs = [info("x", ["n", 50])], [info("y", None, TensorProto.INT64)]
    first = made([helper.make_node("ArgMax", ["x"], ["y"], axis=1)], {}, inputs, outputs)
    last = made([helper.make_node("ArgMin", ["x"], ["y"], axis=1)], {}, inputs, outputs)
    assert verify(first, first).status == EQUIVALENT
    found = verify(first, last)
    assert found.status == DIFFERENT
    assert found.noise.outputs[0].mismatches == 3


def test_shapes_and_inputs_of_the_user(tmp_path: Path) -> None:
    original, folded = network(folded=False), network(folded=True)
    found = verify(original, folded, shapes={"x": (1, 3, 20, 28)}, samples=1)
    assert found.inputs[0]["shape"] == [1, 3, 20, 28]
    own = np.random.default_rng(0).standard_normal((2, 3, 15, 16)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=own)
    np.save(tmp_path / "in.npy", own)
    for inputs in ({"x": own}, tmp_path / "in.npz", tmp_path / "in.npy"):
        found = verify(original, folded, inputs=inputs, samples=0)
        assert (found.samples, found.inputs[0]["shape"]) == (1, [2, 3, 15, 16])
        assert found.status == EQUIVALENT
    assert verify(original, folded, inputs={"x": own}, samples=1).samples == 2


def wrong_usage(tmp_path: Path) -> list[tuple[dict[str, Any], str]]:
    (tmp_path / "bad.npz").write_text("no")
    return [
        ({"shapes": {"y": (1,)}}, "no input"),
        ({"shapes": {"x": (1, 4, 8, 8)}}, "does not fit"),
        ({"inputs": {"z": np.ones(3)}}, "has no 'x'"),
        ({"inputs": {"x": np.ones((1, 3, 8, 8), np.int64)}}, "int64"),
        ({"inputs": {"x": np.ones((1, 4, 8, 8), np.float32)}}, "shape"),
        ({"inputs": tmp_path / "none.npz"}, "does not exist"),
        ({"inputs": tmp_path / "bad.npz"}, "not an .npz"),
        ({"providers": ["gpu"]}, "unknown provider"),
    ]


def test_wrong_usage_is_said(tmp_path: Path) -> None:
    original = network(folded=False)
    for arguments, text in wrong_usage(tmp_path):
        with pytest.raises(UsageError, match=text):
            verify(original, original, **arguments)


def test_a_model_that_runs_on_no_size_asks_for_one() -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    picky = made(nodes, {"c": np.ones((1, 3, 77, 91), np.float32)}, [info("x", ["n", 3, "h", "w"])], [info("y", None)])
    with pytest.raises(ModelError, match="--shape x="):
        verify(picky, picky)
    assert verify(picky, picky, shapes={"x": (2, 3, 77, 91)}).status == EQUIVALENT


def test_neither_model_is_modified() -> None:
    models = network(folded=False), network(folded=True)
    before = [model.SerializeToString() for model in models]
    verify(*models, shapes=SMALL, samples=1)
    assert [model.SerializeToString() for model in models] == before


# The rule on its own.


def evidence(**changes: Any) -> Evidence:
    random = np.random.default_rng(1)
    truth = random.standard_normal((2, 3, 40))
    before = (truth * (1 + 1e-6 * random.standard_normal(truth.shape))).astype(np.float32)
    after = (truth * (1 + 1e-6 * random.standard_normal(truth.shape))).astype(np.float32)
    known: dict[str, Any] = {"output": "y", "sample": 0, "reference": truth, "before": before, "after": after}
    return Evidence(**known | changes)


def test_the_rule_scales_with_the_noise() -> None:
    known = evidence()
    assert judge(known).passed
    tenfold = (known.reference * (1 + 1e-4 * np.sin(np.arange(40)))).astype(np.float32)
    assert not judge(evidence(after=tenfold)).passed
    assert judge(evidence(after=tenfold, noisy=[known.reference * (1 + 1e-4)])).passed


def test_a_large_channel_does_not_hide_a_small_one() -> None:
    random = np.random.default_rng(2)
    truth = random.standard_normal((2, 2, 80)) * np.array([1e6, 1.0]).reshape(1, 2, 1)
    before = (truth * (1 + 1e-6 * random.standard_normal(truth.shape))).astype(np.float32)
    after = before.copy()
    after[:, 1] *= np.float32(1.001)
    check = judge(Evidence("y", 0, truth, before, after))
    assert not check.passed
    assert "channel 1" in check.problem


@pytest.mark.parametrize(
    ("before", "after", "passed"),
    [
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (np.inf, np.nan, False),
        (1.0, np.inf, False),
        (np.inf, 1.0, False),
    ],
)
def test_what_is_not_finite_must_be_so_in_both(before: float, after: float, passed: bool) -> None:
    known = evidence()
    arrays = {}
    for name, value in (("reference", before), ("before", before), ("after", after)):
        array = getattr(known, name).copy()
        array[0, 0, 0] = value
        arrays[name] = array
    assert judge(evidence(**arrays)).passed is passed


def test_a_tie_may_fall_otherwise_where_rounding_moves_it() -> None:
    one, other = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    tied = {"reference": one, "before": one, "after": other}
    assert not judge(evidence(**tied)).passed
    assert judge(evidence(**tied, noisy=[other])).passed
    assert not judge(evidence(**tied | {"after": other.astype(np.int32)})).passed


# Inputs.


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
