"""Verification: a correct fold passes, and every kind of difference is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold import oracle
from bnfold.equivalence import CERTIFIED_ONLY, DIFFERENT, EQUIVALENT, verifier, verify
from bnfold.equivalence.noise import K
from bnfold.errors import ModelError, UsageError
from bnfold.kernels.rounding import Rounding
from bnfold.oracle import Unsupported
from tests.pairs import DEPTH, SMALL, info, made, network, scaled, unary


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


@pytest.mark.parametrize("bn_opset", [6, 15])
def test_noise_that_is_small_by_luck_is_drawn_again(monkeypatch: pytest.MonkeyPatch, bn_opset: int) -> None:
    class Lucky(Rounding):
        def __init__(self, seed: int, **how: Any) -> None:
            super().__init__(seed, **how)
            drawn.add(seed)
            if seed <= 4:
                self._pool *= 1e-3

    drawn: set[int] = set()
    monkeypatch.setattr(oracle, "Rounding", Lucky)
    original = network(folded=False, bn_opset=bn_opset, shape=[2, 3, 9, 8])
    near = network(folded=True, shape=[2, 3, 9, 8], corrupt=scaled("w2", 1.00003))
    assert verify(original, near).passed
    assert drawn == set(range(1, 9))
    with monkeypatch.context() as patched:
        patched.setattr(verifier, "drawn_again", lambda *_: False)
        assert not verify(original, near).passed
    wrong = verify(original, network(folded=True, shape=[2, 3, 9, 8], corrupt=scaled("w2", 1.001)))
    assert wrong.status == DIFFERENT and len(wrong.problems) == len(set(wrong.problems))


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
