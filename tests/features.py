"""One small model for each feature of the format: a Conv, a BatchNormalization, a Relu, and the feature beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from tests.builder import Builder
from tests.features_graphs import (
    UNKNOWN,
    Feature,
    beside,
    body,
    custom,
    dead_nodes,
    everything_in_a_body,
    function,
    function_extras,
    function_with_a_body,
    idle_inputs,
    learned_trees,
    looped,
    named_like_tensors,
    names_that_folding_wants,
    names_that_shadow,
    nested,
    one_name_for_all,
    optionals,
    overloads,
    overridable,
    passed_on,
    same_names_in_both_bodies,
    sequences,
    sparse_initializer,
    trailing_blanks,
    training,
    unicode_names,
    unnamed,
    unsorted,
    untyped_ends,
    value,
)

LATIN = b"caf\xe9 \xff\xfe"
"""Bytes that are not UTF-8."""

IRS = range(3, int(onnx.IR_VERSION) + 1)


def plain(fold: bool, ir: int = 10) -> ModelProto:
    """Conv, BatchNormalization where there is something to `fold`, Relu; the names of nodes and tensors are theirs."""
    b = Builder(opset=9 if ir < 7 else 18, type_=TensorProto.FLOAT, ir=ir)
    y = b.conv(b.input("N", 3, 8, 6), 4, 3, pads=[1, 1, 1, 1])
    return b.model(b.node("Relu", b.bn(y) if fold else y))


def unknown(*path: str | int) -> Feature:
    """An unknown field in the message at this place."""

    def put(model: ModelProto) -> None:
        message: Any = model
        for step in path:
            message = message[step] if isinstance(step, int) else getattr(message, step)
        message.MergeFromString(UNKNOWN)

    return put


def metadata(*path: str | int) -> Feature:
    """Metadata, twice under one key, on the message at this place."""

    def put(model: ModelProto) -> None:
        message: Any = model
        for step in path:
            message = message[step] if isinstance(step, int) else getattr(message, step)
        for text in ("one", "two"):
            message.metadata_props.add(key="key", value=text)

    return put


def documented(model: ModelProto) -> None:
    messages: list[Any] = [model, model.graph, model.graph.node[-1], model.graph.input[0], model.graph.output[0]]
    messages += [model.graph.node[0], model.graph.node[0].attribute[0]]
    for i, message in enumerate(messages):
        message.doc_string = f"number {i}"


def stored(type_: int, raw: bool = True) -> Feature:
    """An initializer of an element type, in raw data or in the type's own field, that a node of its own reads."""

    def put(model: ModelProto) -> None:
        if type_ == TensorProto.STRING:
            tensor = TensorProto(name="stored", data_type=type_, dims=[2], string_data=[b"word", LATIN])
        elif raw:
            array = np.ones(5, helper.tensor_dtype_to_np_dtype(type_))
            tensor = numpy_helper.from_array(array, "stored")
        else:
            tensor = helper.make_tensor("stored", type_, [5], np.ones(5))
        model.graph.initializer.append(tensor)
        model.opset_import.append(helper.make_opsetid("own", 3))
        node = helper.make_node("Read", ["stored"], ["read"], domain="own")
        beside(model, node, out=value("read"))

    return put


def tensor_extras(model: ModelProto) -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "unused")
    tensor.doc_string = "nothing reads this"
    tensor.metadata_props.add(key="key", value="value")
    tensor.segment.begin, tensor.segment.end = 0, 2
    tensor.MergeFromString(UNKNOWN)
    model.graph.initializer.insert(0, tensor)


def empty_tensors(model: ModelProto) -> None:
    for name, dims in (("none", [0, 3]), ("scalar", [])):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(dims, np.float32), name))
        beside(model, helper.make_node("Identity", [name], [f"{name}.out"]), out=value(f"{name}.out", *dims))


def quantized(model: ModelProto) -> None:
    scale = numpy_helper.from_array(np.array(0.25, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(3, np.int8), "zero")
    model.graph.initializer.extend([scale, zero])
    names = ["relu", "scale", "zero"]
    beside(model, helper.make_node("QuantizeLinear", names, ["quantized"]))
    names[0] = "quantized"
    beside(model, helper.make_node("DequantizeLinear", names, ["real"]), out=value("real", "N", 4, 8, 6))


def annotated(model: ModelProto) -> None:
    entry = model.graph.quantization_annotation.add(tensor_name="relu")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="relu.scale")


def denotations(model: ModelProto) -> None:
    kind = model.graph.input[0].type
    kind.denotation = "IMAGE"
    for dim, name in zip(kind.tensor_type.shape.dim, ("DATA_BATCH", "DATA_CHANNEL", "", ""), strict=True):
        dim.denotation = name


def value_infos(model: ModelProto) -> None:
    for name in ("conv", "relu", "nobody"):
        model.graph.value_info.append(value(name, "N", 4, 8, 6))
        model.graph.value_info[-1].doc_string = name
    if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return
    model.graph.value_info.append(value("bn", "N", 4, 8, 6))


def strings(model: ModelProto) -> None:
    model.graph.input.append(value("words", "K", type_=TensorProto.STRING))
    node = helper.make_node("StringNormalizer", ["words"], ["kept"], stopwords=["a", "ü"], case_change_action="LOWER")
    beside(model, node, out=value("kept", "K2", type_=TensorProto.STRING))


def attributes(**values: Any) -> Feature:
    return lambda model: (custom(model, **values), None)[1]


def odd_attributes(model: ModelProto) -> None:
    node = custom(
        model, tensors=[numpy_helper.from_array(np.ones(2, np.float32), "t")], graphs=[body(["Neg"], read="x")]
    )
    node.attribute.append(
        AttributeProto(name="kind", type=AttributeProto.TYPE_PROTO, tp=helper.make_tensor_type_proto(1, [2]))
    )
    node.attribute.append(AttributeProto(name="untyped", i=7))
    node.attribute.append(AttributeProto(name="empty", type=AttributeProto.INTS))
    node.attribute.append(AttributeProto(name="zero", type=AttributeProto.INT, i=0))
    node.attribute.append(AttributeProto(name="twice", type=AttributeProto.FLOAT, f=-0.0))
    node.attribute.append(AttributeProto(name="twice", type=AttributeProto.FLOAT, f=float("nan")))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "v"), numpy_helper.from_array(np.zeros(1, np.int64), "i"), [3]
    )
    node.attribute.append(helper.make_attribute("sparse", sparse))
    node.attribute[0].doc_string = "an attribute"
    node.attribute[0].MergeFromString(UNKNOWN)


def devices(model: ModelProto) -> None:
    model.configuration.add(name="two", num_devices=2, device=["a", "b"])
    entry = model.graph.node[-1].device_configurations.add(configuration_id="two", pipeline_stage=1)
    entry.sharding_spec.add(tensor_name="relu", device=[0, 1])


def producer(model: ModelProto) -> None:
    model.producer_name, model.producer_version, model.domain, model.model_version = "somebody", "1.2", "org.own", 42


def more_domains(model: ModelProto) -> None:
    for domain, version in (("ai.onnx.ml", 3), ("com.microsoft", 1), ("own", 1), ("own", 1)):
        model.opset_import.append(helper.make_opsetid(domain, version))


def sparse_constant(model: ModelProto) -> None:
    values, indices = (numpy_helper.from_array(np.array([1], kind), "") for kind in (np.float32, np.int64))
    node = helper.make_node("Constant", [], ["few"], sparse_value=helper.make_sparse_tensor(values, indices, [3]))
    beside(model, node, out=value("few", 3))


def every_constant(model: ModelProto) -> None:
    forms: dict[str, Any] = {"value_float": 1.5, "value_floats": [1.5], "value_int": 1, "value_ints": [1, 2]}
    forms |= {"value_string": "ü", "value_strings": ["a", LATIN]}
    for name, given in forms.items():
        beside(model, helper.make_node("Constant", [], [name], **{name: given}), out=onnx.ValueInfoProto(name=name))


def explicit_defaults(model: ModelProto) -> None:
    """Fields that are set to what they would be anyway."""
    model.doc_string, model.domain, model.graph.doc_string, model.model_version = "", "", "", 0
    for node in model.graph.node:
        node.domain, node.doc_string = "", ""
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT


def long_domain_name(model: ModelProto) -> None:
    """The operators' own domain by its other name."""
    for node in model.graph.node:
        node.domain = "ai.onnx"


def _name(feature: Feature) -> str:
    return str(getattr(feature, "__name__", "")).replace("_", " ")


TYPES = [number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")]

FEATURES: dict[str, Feature] = {
    **{f"IR {ir}": lambda model: None for ir in IRS},
    **{f"{TensorProto.DataType.Name(t)} raw": stored(t) for t in TYPES},
    **{
        f"{TensorProto.DataType.Name(t)} in its own field": stored(t, raw=False)
        for t in TYPES
        if t not in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    },
    "strings in a tensor": stored(TensorProto.STRING),
    "a sparse initializer that is read": sparse_initializer(read=True),
    "a sparse initializer that nothing reads": sparse_initializer(read=False),
    "bytes that are not UTF-8 in an attribute": attributes(text=LATIN, texts=[LATIN, b"\x00"]),
    "attributes of numbers": attributes(f=1e-45, i=-(2**63), floats=[float("inf"), -0.0], ints=[0, 2**63 - 1]),
    "metadata of the model": metadata(),
    "metadata of the graph": metadata("graph"),
    "metadata of a node": metadata("graph", "node", 0),
    "metadata of an input": metadata("graph", "input", 0),
    "metadata of an output": metadata("graph", "output", 0),
    "an unknown field of the model": unknown(),
    "an unknown field of the graph": unknown("graph"),
    "an unknown field of a node": unknown("graph", "node", 0),
    "an unknown field of an attribute": unknown("graph", "node", 0, "attribute", 0),
    "an unknown field of an input": unknown("graph", "input", 0),
    "an unknown field of a type": unknown("graph", "input", 0, "type"),
    "an unknown field of a size": unknown("graph", "output", 0, "type", "tensor_type", "shape", "dim", 1),
    "an unknown field of an opset": unknown("opset_import", 0),
    "a function that nothing calls": lambda model: (function(model, call=False), None)[1],
    "a function that is called": lambda model: (function(model), None)[1],
    **{
        _name(feature): feature
        for feature in (
            documented, tensor_extras, empty_tensors, quantized, annotated, denotations, value_infos, untyped_ends,
            passed_on, idle_inputs, sequences, optionals, strings, same_names_in_both_bodies, names_that_shadow,
            everything_in_a_body, looped, nested, unsorted, unnamed, one_name_for_all, named_like_tensors,
            names_that_folding_wants, unicode_names, dead_nodes, trailing_blanks, overridable, odd_attributes,
            function_extras, overloads, function_with_a_body, training, devices, producer, more_domains, learned_trees,
            sparse_constant, every_constant, explicit_defaults, long_domain_name,
        )
    },
}  # fmt: skip
"""By name: what is put beside the nodes of :func:`plain`. For every IR version, nothing."""


def with_feature(name: str, fold: bool) -> ModelProto:
    """The model with one feature."""
    model = plain(fold, int(name.removeprefix("IR "))) if name.startswith("IR ") else plain(fold)
    FEATURES[name](model)
    return model
