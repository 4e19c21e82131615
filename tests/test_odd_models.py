"""Valid models that look odd: folded from their file, verified, and run before and after on ONNX Runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import BnfoldError, ModelError
from bnfold.malformed import deadly
from bnfold.runtime import Session
from tests.law import feeds
from tests.text import build

CONV = "c = Conv(x, w) y = BatchNormalization(c, s, b, m, v)"
Layout = Callable[[Sequence[tuple[TensorProto, bytes]]], dict[str, bytes]]


def lies(tensor: TensorProto, **entries: object) -> None:
    """Where the data of a tensor is."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def a_file_each(given: Sequence[tuple[TensorProto, bytes]]) -> dict[str, bytes]:
    for tensor, _ in given:
        lies(tensor, location=f"data/{tensor.name}")
    return {f"data/{tensor.name}": data for tensor, data in given}


def in_one(align: int, junk: int, sized: bool) -> Layout:
    def layout(given: Sequence[tuple[TensorProto, bytes]]) -> dict[str, bytes]:
        held = b"\x55" * junk
        for tensor, data in given:
            held += b"\xaa" * (-len(held) % align)
            lies(tensor, location="all", offset=len(held), length=len(data) if sized else None)
            held += data
        return {"all": held + b"\x33" * 9}

    return layout


def overlapping(given: Sequence[tuple[TensorProto, bytes]]) -> dict[str, bytes]:
    """All but the largest lie inside that one."""
    largest = max((data for _, data in given), key=len)
    for tensor, data in given:
        lies(tensor, location="all", offset=0 if data == largest else 64, length=len(data))
    return {"all": np.abs(np.frombuffer(largest, np.float32)).tobytes()}


LAYOUTS: dict[str, Layout] = {
    "a file each, neither offset nor length": a_file_each,
    "one file, aligned": in_one(64, 7, True),
    "one file, whole pages": in_one(4096, 1, True),
    "one file, not aligned, no lengths": in_one(1, 3, False),
    "regions within others": overlapping,
}


def same(path: Path, output: Path) -> None:
    """Both compute the same on ONNX Runtime."""
    given = feeds(onnx.load(path))
    before, after = (Session(each, optimize=False).run(given) for each in (path, output))
    assert before.keys() == after.keys()
    for name, value in before.items():
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(after[name], value)
        else:
            np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-5 * float(np.max(np.abs(value))))


@pytest.mark.parametrize("name", LAYOUTS)
def test_external_data_of_any_layout(name: str, tmp_path: Path) -> None:
    model = build(CONV)
    files = LAYOUTS[name]([(tensor, tensor.raw_data) for tensor in model.graph.initializer])
    for place, data in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(data)
    path, output = tmp_path / "model.onnx", tmp_path / "out" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    output.parent.mkdir()
    result = bnfold.optimize(path, output)
    assert (result.status, result.batchnorm.after) == ("verified", 0)
    same(path, output)
    for place, data in files.items():
        assert (tmp_path / place).read_bytes() == data


def with_outputs(graph: str, *outputs: onnx.ValueInfoProto, domains: Sequence[str] = (), **options: Any) -> bytes:
    model = build(graph, **options)
    model.graph.output.extend(outputs)
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
    return bytes(model.SerializeToString())


FLOAT, ANY = TensorProto.FLOAT, None
OUTPUTS: dict[str, bytes] = {
    "a sequence": with_outputs(
        f"{CONV} z = SequenceConstruct(y, x)", helper.make_tensor_sequence_value_info("z", FLOAT, ANY)
    ),
    "an optional": with_outputs(
        f"{CONV} z = Optional(y)",
        onnx.ValueInfoProto(name="z", type=helper.make_optional_type_proto(helper.make_tensor_type_proto(FLOAT, None))),
    ),
    "text": with_outputs(
        f'{CONV} z = Constant<value_strings=["a", "b"]>()', helper.make_tensor_value_info("z", TensorProto.STRING, [2])
    ),
    "maps": with_outputs(
        f"{CONV} p = ReduceMean<keepdims=0>(y, axes) z = ai.onnx.ml.ZipMap<classlabels_int64s=[7,8,9,5]>(p)",
        onnx.ValueInfoProto(
            name="z",
            type=helper.make_sequence_type_proto(
                helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
            ),
        ),
        domains=["ai.onnx.ml"],
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_no_tensors(name: str, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(OUTPUTS[name])
    if name == "maps":
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    path, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(model.SerializeToString())
    result = bnfold.optimize(path, output)
    assert (result.status, result.batchnorm.after) == ("verified", 0)
    assert bnfold.verify(path, output).status == "equivalent"
    same(path, output)


def test_what_the_runtime_does_not_survive_is_not_run(tmp_path: Path) -> None:
    model = build("c = Conv(x, w) y, n1, n2, n3, n4 = BatchNormalization(c, s, b, m, v)", opset=9, ir=8)
    assert not deadly(model)
    model.graph.node[1].output[1:] = [""] * 4
    path, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(model.SerializeToString())
    result = bnfold.optimize(path, output)
    assert (result.status, result.batchnorm.after) == ("certified-only", 0)
    assert result.verification is not None
    assert any("does not survive the node" in note for note in result.verification.notes)
    with pytest.raises(ModelError, match="does not survive the node"):
        bnfold.bench(path, output)
    made = bnfold.deploy(path, tmp_path / "served")
    assert "does not survive" in str(made.to_json())


def calls(count: int, times: int, last: str = "") -> list[str]:
    """Functions, each of which calls the next one so many times; the last one another, or Neg."""
    head = '<domain: "f", opset_import: ["" : 18, "f" : 1]>'
    found = []
    for i in range(count):
        op = f"f.g{i + 1}" if i < count - 1 else last or "Neg"
        chain = " ".join(f"t{k + 1} = {op}(t{k})" for k in range(times))
        found.append(f"{head} g{i} (t0) => (t{times}) {{ {chain} }}")
    return found


NEVER_RUN: dict[str, tuple[str, list[str], str]] = {
    "a function that calls itself": ("f.g0(d)", calls(1, 1, "f.g0"), "in a circle"),
    "two functions that call each other": ("f.g0(d)", calls(2, 1, "f.g0"), "in a circle"),
    "functions that stand for 2^40 nodes": ("f.g0(d)", calls(40, 2), "too often"),
    "functions 200 deep": ("f.g0(d)", calls(200, 1), "too deep"),
    "more arguments than the function has": ("f.g0(d, d, d)", calls(1, 1), "certified"),
    "an equation that is none": ('Einsum<equation="n.c.hw,c->n.c.hw">(d, s)', [], "whose equation is none"),
}


@pytest.mark.parametrize("name", NEVER_RUN)
def test_what_would_never_end_is_not_run(name: str, tmp_path: Path) -> None:
    call, functions, words = NEVER_RUN[name]
    model = build(f"c = Conv(x, w) d = BatchNormalization(c, s, b, m, v) y = {call}", *functions)
    path, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(model.SerializeToString())
    result = bnfold.optimize(path, output)
    assert result.status == "certified-only" and result.verification is not None
    assert words in str(result.verification.to_json())
    for act in (lambda: bnfold.bench(path, output, seconds=0), lambda: bnfold.deploy(path, tmp_path / "served")):
        with contextlib.suppress(BnfoldError):
            act()


def test_the_first_reason_is_the_one_that_is_easily_helped() -> None:
    model = build("c = Conv(x, w) d = BatchNormalization(c, s, b, m, v) y = Relu(d)")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, list(weight.dims)))
    (kept,) = bnfold.explain(model).affines
    assert kept.reasons[0].code == "overridable-weight"
