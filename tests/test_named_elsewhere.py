"""Tensors that something beside the nodes names, as a sharding or a training step: no name is left hanging."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold.protos import every_node, quantized, read_in_training, sharded, trained
from tests.text import build

Put = Callable[[ModelProto, str], object]


def by_a_sharding(model: ModelProto, name: str) -> None:
    model.ir_version = 11
    model.configuration.add(name="two", num_devices=2)
    node = next(node for node in model.graph.node if name in (*node.input, *node.output))
    node.device_configurations.add(configuration_id="two").sharding_spec.add(tensor_name=name, device=[0, 1])


def by_a_parameter_of_an_annotation(model: ModelProto, name: str) -> None:
    entry = model.graph.quantization_annotation.add(tensor_name="y")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=name)


def by_a_training_step(model: ModelProto, name: str, key: str = "") -> None:
    nodes = [helper.make_node("Identity", [name], ["next"])]
    found = [onnx.ValueInfoProto(name="next")]
    info = model.training_info.add(algorithm=helper.make_graph(nodes, "algorithm", [], found))
    if key:
        info.update_binding.add(key=key, value="next")


def inside_a_training_step(model: ModelProto, name: str) -> None:
    by_a_training_step(model, "next0")
    inner = model.training_info[0].algorithm.node[0]
    body = helper.make_graph([helper.make_node("Neg", [name], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")])
    inner.CopyFrom(helper.make_node("If", ["go"], ["next"], then_branch=body, else_branch=body))


def as_what_training_updates(model: ModelProto, name: str) -> None:
    by_a_training_step(model, "x", key=name)


STAYS: list[tuple[Put, str, str]] = [
    (by_a_sharding, "c", "annotated"),
    (by_a_sharding, "w", "annotated"),
    (by_a_parameter_of_an_annotation, "w", "annotated"),
    (by_a_training_step, "c", "annotated"),
    (inside_a_training_step, "c", "annotated"),
    (as_what_training_updates, "w", "overridable-weight"),
    (as_what_training_updates, "s", "overridable-parameter"),
]
FOLDS: list[tuple[Put, str]] = [
    (by_a_sharding, "n"),
    (by_a_sharding, "y"),
    (by_a_sharding, "s"),
    (by_a_parameter_of_an_annotation, "s"),
    (by_a_training_step, "n"),
    (by_a_training_step, "w"),
    (by_a_training_step, "s"),
    (inside_a_training_step, "w"),
    (inside_a_training_step, "s"),
    (as_what_training_updates, "idle"),
]


def named(put: Put, name: str) -> ModelProto:
    model = build("c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n)")
    model.graph.initializer.add(name="idle", data_type=1, dims=[0], raw_data=b"")
    put(model, name)
    return model


def hanging(model: ModelProto) -> set[str]:
    graph = model.graph
    found = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    found |= {name for node in graph.node for name in node.output}
    named = {*quantized(graph), *read_in_training(model), *trained(model)}
    named |= {name for node in graph.node for name in sharded(node)}
    inner = {name for info in model.training_info for node in every_node(info.algorithm.node) for name in node.output}
    return named - found - inner - {"go", "next0"}


@pytest.mark.parametrize(("put", "name", "code"), STAYS, ids=lambda each: getattr(each, "__name__", each))
def test_stays(put: Put, name: str, code: str) -> None:
    model = named(put, name)
    result = bnfold.optimize(model, verify=False)
    assert result.proto is not None and result.proto == model
    assert code in {reason.code for affine in result.affines for reason in affine.reasons}


@pytest.mark.parametrize(("put", "name"), FOLDS, ids=lambda each: getattr(each, "__name__", each))
def test_folds_and_leaves_the_name(put: Put, name: str) -> None:
    result = bnfold.optimize(named(put, name), verify=False)
    assert result.proto is not None and result.batchnorm.after == 0
    assert not hanging(result.proto)
    if name in ("w", "s") and put is not by_a_sharding:
        assert name in {tensor.name for tensor in result.proto.graph.initializer}
