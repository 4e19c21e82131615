"""Whatever the format can hold comes through a fold as it is; where nothing folds, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import bnfold
from bnfold.errors import ModelError
from tests.features import FEATURES, TYPES, plain, stored, with_feature
from tests.features_graphs import UNKNOWN, value
from tests.keyed import unintended

Spoil = Callable[[ModelProto], object]


def folded(model: ModelProto, folder: Path) -> tuple[ModelProto, list[str]]:
    """The model after a fold from file to file, and the nodes that left."""
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    result = bnfold.optimize(path, verify=False)
    assert result.output is not None and path.read_bytes() == model.SerializeToString()
    left = [affine.node for affine in result.affines if affine.status == "folded"]
    return onnx.load(result.output, load_external_data=False), left


@pytest.mark.parametrize("name", FEATURES)
def test_a_fold_changes_nothing_beside_it(name: str, tmp_path: Path) -> None:
    before = with_feature(name, fold=True)
    after, left = folded(before, tmp_path)
    assert len(left) == 1 and len(after.graph.node) == len(before.graph.node) - 1
    assert not unintended(before, after, left)


@pytest.mark.parametrize("name", FEATURES)
def test_nothing_to_fold_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_feature(name, fold=False).SerializeToString())
    result = bnfold.optimize(path)
    assert result.output is not None and result.output.read_bytes() == path.read_bytes()
    assert all(affine.status == "kept" for affine in result.affines)


@pytest.mark.parametrize("type_", TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("read", [True, False], ids=["read", "idle"])
def test_external_data_of_every_type(type_: int, read: bool, tmp_path: Path) -> None:
    before = plain(fold=True)
    stored(type_)(before)
    tensor = before.graph.initializer[-1]
    data = bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "data.bin"), ("offset", "3"), ("length", str(len(data))), ("own", "kept")):
        tensor.external_data.add(key=key, value=text)
    if not read:
        before.graph.node.pop()
        before.graph.output.pop()
    (tmp_path / "data.bin").write_bytes(b"???" + data + b"?")
    after, left = folded(before, tmp_path)
    assert left == ["bn"] and not unintended(before, after, left)
    assert (tmp_path / "model.folded.onnx.data").read_bytes() == data


# ------------------------------------------------------------------------------------------- the comparison can fail


def _tensor(model: ModelProto) -> TensorProto:
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == "idle")
    return found


def _rename(model: ModelProto) -> None:
    model.graph.node[0].name = "another"


def _swap(model: ModelProto) -> None:
    node = model.graph.node[1]
    node.input[0] = model.graph.node[0].input[0]


def _reorder(model: ModelProto) -> None:
    model.graph.initializer.sort(key=lambda tensor: tensor.name, reverse=True)


SPOILED: dict[str, tuple[Spoil, str]] = {
    "a node's name": (_rename, "another is new"),
    "an input": (_swap, "node[relu].input[0] was"),
    "a node's document": (lambda m: setattr(m.graph.node[0], "doc_string", "new"), "node[conv].doc_string changed"),
    "an operator": (lambda m: setattr(m.graph.node[1], "op_type", "Abs"), "is new"),
    "an attribute": (lambda m: m.graph.node[0].attribute[0].ints.append(1), ".ints changed"),
    "an attribute that is new": (lambda m: m.graph.node[0].attribute.add(name="x", i=1), "node[conv].x is new"),
    "an attribute that is gone": (lambda m: m.graph.node[0].attribute.pop(), "other attributes"),
    "a tensor's data": (lambda m: setattr(_tensor(m), "raw_data", bytes(4)), "initializer[idle].raw_data changed"),
    "a tensor": (lambda m: m.graph.initializer.remove(_tensor(m)), "initializer[idle] is gone"),
    "a tensor that is new": (lambda m: m.graph.initializer.add(name="n"), "or are new"),
    "the order of tensors": (_reorder, "another order"),
    "a node": (lambda m: m.graph.node.pop(), "node relu is gone"),
    "a node that is new": (lambda m: m.graph.node.add(op_type="Neg", name="n"), "n is new"),
    "an unknown field": (lambda m: m.graph.MergeFromString(UNKNOWN), "graph has other unknown fields"),
    "one in a node": (lambda m: m.graph.node[0].MergeFromString(UNKNOWN), "node[conv] has other unknown"),
    "metadata": (lambda m: m.metadata_props.add(key="a", value="b"), "model.metadata_props changed"),
    "a function": (lambda m: m.functions.add(name="f"), "model.functions changed"),
    "an opset": (lambda m: setattr(m.opset_import[0], "version", 17), "model.opset_import changed"),
    "an input's type": (lambda m: m.graph.input[0].ClearField("type"), "input[x].type changed"),
    "an output": (lambda m: m.graph.output.add(name="more"), "output has other entries"),
    "a value's shape": (lambda m: m.graph.value_info.pop(), "value_info has other entries"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_the_comparison_sees(name: str, tmp_path: Path) -> None:
    before = plain(fold=True)
    for tensor in ("also idle", "idle"):
        before.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), tensor))
    before.graph.value_info.append(value("bn", "N", 4, 8, 6))
    after, left = folded(before, tmp_path)
    assert not unintended(before, after, left)
    spoil, words = SPOILED[name]
    spoil(after)
    assert any(words in line for line in unintended(before, after, left))


# ------------------------------------------------------------------------------------- strings that are not UTF-8

ODD: dict[str, tuple[Spoil, bool]] = {
    "a document": (lambda m: setattr(m.graph.node[0], "doc_string", "#####"), True),
    "the graph's name": (lambda m: setattr(m.graph, "name", "#####"), True),
    "the producer": (lambda m: setattr(m, "producer_name", "#####"), True),
    "metadata": (lambda m: m.metadata_props.add(key="key", value="#####"), True),
    "a symbolic size": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "#####"), True),
    "a node's name": (lambda m: setattr(m.graph.node[0], "name", "#####"), False),
    "an attribute's name": (lambda m: m.graph.node[0].attribute.add(name="#####"), True),
    "a tensor's name": (lambda m: m.graph.initializer.add(name="#####"), False),
    "a domain": (lambda m: setattr(m.graph.node[0], "domain", "#####"), False),
}
"""By where five bytes stand that are no text: whether they come through, or the name is refused."""


@pytest.mark.parametrize("name", ODD)
def test_strings_that_are_not_utf_8(name: str, tmp_path: Path) -> None:
    put, passes = ODD[name]
    model = plain(fold=True)
    put(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"#####", b"caf\xe9!"))
    if passes:
        output = bnfold.optimize(path).output
        assert output is not None and output.read_bytes().count(b"caf\xe9!") == 1
        return
    with pytest.raises(ModelError, match=r"the name 'caf\\xe9!', which is not UTF-8"):
        bnfold.optimize(path)
