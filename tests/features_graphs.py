"""Features of graphs, bodies, functions and names, each put beside what a model has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Feature = Callable[[ModelProto], None]
"""Puts one feature into a model in place."""

UNKNOWN = b"\xca\x3e\x05later"
"""Field 1001 of a message, which no version of the format has yet."""


def value(name: str, *shape: int | str, type_: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, type_, list(shape))


def beside(model: ModelProto, *nodes: NodeProto, out: onnx.ValueInfoProto | None = None) -> None:
    """Put nodes behind all others, and their result among the outputs."""
    model.graph.node.extend(nodes)
    if out is not None:
        model.graph.output.append(out)


def custom(model: ModelProto, op: str = "Odd", **attributes: Any) -> NodeProto:
    """A node of a domain of one's own, which reads the result."""
    if not any(entry.domain == "own" for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("own", 3))
    node = helper.make_node(op, ["relu"], [f"{op}.out"], name=op, domain="own", **attributes)
    beside(model, node, out=value(f"{op}.out"))
    made: NodeProto = model.graph.node[-1]
    return made


def sparse_initializer(read: bool) -> Feature:
    def put(model: ModelProto) -> None:
        values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "sparse")
        indices = numpy_helper.from_array(np.array([1, 4], np.int64), "sparse.indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6]))
        if read:
            beside(model, helper.make_node("Identity", ["sparse"], ["sparse.out"]), out=value("sparse.out", 6))

    return put


def untyped_ends(model: ModelProto) -> None:
    model.graph.output[0].ClearField("type")
    model.graph.value_info.append(onnx.ValueInfoProto(name="conv"))


def passed_on(model: ModelProto) -> None:
    """Outputs that are an input, an initializer, and the same tensor twice."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "given"))
    for name, shape in (("x", ("N", 3, 8, 6)), ("given", (2,)), ("relu", ("N", 4, 8, 6))):
        model.graph.output.append(value(name, *shape))


def idle_inputs(model: ModelProto) -> None:
    """Inputs that nothing reads, of every kind of type."""
    word = helper.make_tensor_type_proto(TensorProto.STRING, ["K"])
    types = {
        "strings": word,
        "sequence": helper.make_sequence_type_proto(word),
        "optional": helper.make_optional_type_proto(helper.make_sequence_type_proto(word)),
        "map": helper.make_map_type_proto(TensorProto.INT64, word),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [None, 3]),
        "nothing": onnx.TypeProto(),
    }
    for name, type_ in types.items():
        model.graph.input.append(helper.make_value_info(name, type_))


def sequences(model: ModelProto) -> None:
    beside(model, helper.make_node("SequenceConstruct", ["relu", "relu"], ["list"]))
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    beside(
        model,
        helper.make_node("SequenceMap", ["list"], ["mapped"], body=body(["Neg"], inputs=["item"])),
        out=helper.make_value_info("mapped", helper.make_sequence_type_proto(element)),
    )


def optionals(model: ModelProto) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    beside(
        model, helper.make_node("Optional", ["relu"], ["maybe"]), helper.make_node("Optional", [], ["no"], type=kind)
    )
    beside(model, helper.make_node("OptionalGetElement", ["maybe"], ["surely"]), out=value("surely"))
    model.graph.output.append(helper.make_value_info("no", helper.make_optional_type_proto(kind)))


def body(ops: list[str], name: str = "body", inputs: list[str] | None = None, read: str = "") -> GraphProto:
    """A body in which one operator follows another, from its first input or a tensor `read` outside."""
    given = inputs or []
    chain = [given[0] if given else read]
    nodes = []
    for i, op in enumerate(ops):
        chain.append(f"inner{i}")
        nodes.append(helper.make_node(op, chain[-2:-1], chain[-1:], name=f"node{i}"))
    return helper.make_graph(nodes, name, [onnx.ValueInfoProto(name=each) for each in given], [value(chain[-1])])


def choice(model: ModelProto, then: GraphProto, other: GraphProto) -> NodeProto:
    model.graph.input.append(value("go", type_=TensorProto.BOOL))
    node = helper.make_node("If", ["go"], ["chosen"], name="if", then_branch=then, else_branch=other)
    beside(model, node, out=value("chosen"))
    made: NodeProto = model.graph.node[-1]
    return made


def same_names_in_both_bodies(model: ModelProto) -> None:
    choice(model, body(["Neg", "Abs"], read="relu"), body(["Abs", "Neg"], read="relu"))


def names_that_shadow(model: ModelProto) -> None:
    """A body's own tensors and nodes are called as those of the outer graph, which it does not read."""
    inner = [body(["Neg", "Abs"], read="relu") for _ in range(2)]
    for graph in inner:
        graph.node[0].output[0] = graph.node[1].input[0] = "conv"
        graph.node[0].name, graph.node[1].name = "conv", "bn"
    choice(model, *inner)


def everything_in_a_body(model: ModelProto) -> None:
    inner = body(["Neg"], read="relu")
    inner.doc_string, inner.node[0].doc_string = "a body", "inside"
    inner.metadata_props.add(key="key", value="value")
    inner.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "idle"))
    inner.value_info.append(value("inner0", 1, 2))
    inner.quantization_annotation.add(tensor_name="inner0")
    sparse_initializer(read=False)(ModelProto(graph=inner))
    for message in (inner, inner.node[0], inner.initializer[0], inner.output[0]):
        message.MergeFromString(UNKNOWN)
    choice(model, inner, body(["Abs"], read="relu"))


def looped(model: ModelProto) -> None:
    inner = body(["Neg"], inputs=["state"])
    inner.input.insert(0, value("turn", type_=TensorProto.INT64))
    inner.input.insert(1, value("on", type_=TensorProto.BOOL))
    inner.node.insert(0, helper.make_node("Identity", ["on"], ["still"]))
    inner.output.insert(0, value("still", type_=TensorProto.BOOL))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "turns"))
    beside(model, helper.make_node("Loop", ["turns", "", "relu"], ["looped"], body=inner), out=value("looped"))


def nested(model: ModelProto) -> None:
    """Bodies in bodies, the innermost of which reads the outermost graph."""
    graph = body(["Neg"], read="relu")
    for i in range(5):
        node = helper.make_node("If", ["go"], [f"deep{i}"], then_branch=graph, else_branch=body(["Abs"], read="relu"))
        graph = helper.make_graph([node], f"level{i}", [], [value(f"deep{i}")])
    choice(model, graph, body(["Abs"], read="relu"))


def unsorted(model: ModelProto) -> None:
    """The Relu stands first."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])


def unnamed(model: ModelProto) -> None:
    for node in model.graph.node:
        node.ClearField("name")
    model.graph.ClearField("name")


def one_name_for_all(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "node"


def named_like_tensors(model: ModelProto) -> None:
    for node, name in zip(model.graph.node, ("relu", "conv.weight", "x"), strict=False):
        node.name = name


def names_that_folding_wants(model: ModelProto) -> None:
    for name in ("conv.weight.folded", "conv.bias.folded", "conv.weight.folded.2"):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), name))
        beside(model, helper.make_node("Identity", [name], [f"{name}.out"]), out=value(f"{name}.out", 2))


def unicode_names(model: ModelProto) -> None:
    beside(model, helper.make_node("Neg", ["relu"], ["größe/☃"], name="узел"), out=value("größe/☃"))


def dead_nodes(model: ModelProto) -> None:
    """Nodes that nothing reads, one that has no output, and a constant that nobody wants."""
    beside(model, helper.make_node("Neg", ["conv"], ["nowhere"]), helper.make_node("Constant", [], ["k"], value_int=3))
    custom(model, "Sink")
    del model.graph.node[-1].output[:]
    model.graph.output.pop()


def trailing_blanks(model: ModelProto) -> None:
    node = helper.make_node("Clip", ["relu", "", ""], ["clipped"])
    beside(model, node, helper.make_node("Dropout", ["clipped"], ["kept", ""]), out=value("kept"))


def overridable(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "default"))
    model.graph.input.insert(0, value("default", 2))
    beside(model, helper.make_node("Neg", ["default"], ["overridden"]), out=value("overridden", 2))


def function(model: ModelProto, name: str = "twice", overload: str = "", call: bool = True) -> onnx.FunctionProto:
    nodes = [helper.make_node("Add", ["a", "a"], ["sum"], name="add", doc_string="inside")]
    made = helper.make_function("own", name, ["a"], ["sum"], nodes, [helper.make_opsetid("", 18)])
    made.doc_string, made.overload = "a function", overload
    model.functions.append(made)
    if call:
        custom(model, name).overload = overload
    added: onnx.FunctionProto = model.functions[-1]
    return added


def function_extras(model: ModelProto) -> None:
    made = function(model)
    made.metadata_props.add(key="key", value="value")
    made.value_info.append(value("sum"))
    made.attribute.append("given")
    made.attribute_proto.append(helper.make_attribute("default", 1.5))
    node = helper.make_node("LeakyRelu", ["sum"], ["leaky"])
    node.attribute.append(AttributeProto(name="alpha", ref_attr_name="default", type=AttributeProto.FLOAT))
    made.node.append(node)
    made.MergeFromString(UNKNOWN)


def overloads(model: ModelProto) -> None:
    function(model, overload="first")
    function(model, overload="second", call=False).node[0].op_type = "Mul"


def function_with_a_body(model: ModelProto) -> None:
    made = function(model)
    made.input.append("flag")
    node = helper.make_node(
        "If", ["flag"], ["r"], then_branch=body(["Neg"], read="sum"), else_branch=body(["Abs"], read="sum")
    )
    made.node.append(node)
    made.output[0] = "r"
    model.graph.input.append(value("flag", type_=TensorProto.BOOL))
    model.graph.node[-1].input.append("flag")


def training(model: ModelProto) -> None:
    """A training algorithm that reads the weights and writes the biases of a Gemm of its own."""
    info = model.training_info.add()
    start = helper.make_node("Constant", [], ["start"], value_float=1.0)
    info.initialization.CopyFrom(helper.make_graph([start], "initialization", [], [value("start")]))
    step = helper.make_node("Identity", ["conv.weight"], ["next"])
    info.algorithm.CopyFrom(helper.make_graph([step], "algorithm", [], [value("next")]))
    info.algorithm.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "rate"))
    info.initialization_binding.add(key="kept", value="start")
    info.update_binding.add(key="kept", value="next")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "kept"))


def learned_trees(model: ModelProto) -> None:
    """A classifier of ai.onnx.ml whose result is a sequence of maps."""
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    node = helper.make_node("ZipMap", ["relu"], ["scores"], domain="ai.onnx.ml", classlabels_strings=["a", "b"])
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    beside(model, node, out=helper.make_value_info("scores", helper.make_sequence_type_proto(kind)))
