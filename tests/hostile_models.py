"""How models are made that do harm: what lies beside them, what they claim, what would grow, what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.builder import Builder
from tests.features_graphs import body, choice, value
from tests.program import foldable, saved

Attack = Callable[[Path], Path]
"""Lays a hostile model into a folder; returns its path."""


# ------------------------------------------------------------------------------------------------------ external data


def outside(lay: Callable[[Path], object] = lambda folder: None, **entries: object) -> Attack:
    """The first weights have such entries of external data."""

    def attack(folder: Path) -> Path:
        (inner := folder / "inner").mkdir()
        path = saved(foldable(), inner / "model.onnx", external=True)
        lay(inner)
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            entry.value = str(entries.get(entry.key, entry.value))
        path.write_bytes(model.SerializeToString())
        return path

    return attack


def absolute(folder: Path) -> Path:
    """The right file by its absolute path, which ONNX does not allow: elsewhere it would be another file."""
    return outside(location=folder / "inner" / "model.bin")(folder)


def linked(target: str) -> Attack:
    """The data is a link."""
    return outside(location="link", lay=lambda folder: (folder / "link").symlink_to(target))


# ------------------------------------------------------------------------------------------------------------ tensors


def tensor(**fields: Any) -> Attack:
    """Fields of the first weights are overwritten."""

    def attack(folder: Path) -> Path:
        model = foldable()
        found = model.graph.initializer[0]
        for name, given in fields.items():
            if isinstance(given, list):
                del getattr(found, name)[:]
                getattr(found, name).extend(given)
            else:
                setattr(found, name, given)
        return written(model, folder)

    return attack


def written(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def statistics(**given: Any) -> Attack:
    """A BatchNormalization with such parameters."""

    def attack(folder: Path) -> Path:
        b = Builder(type_=TensorProto.FLOAT)
        return written(b.model(b.bn(b.conv(b.input(1, 3, 5, 6), 4, 3), **given)), folder)

    return attack


def no_channels(folder: Path) -> Path:
    b = Builder(type_=TensorProto.FLOAT)
    x = b.node("Conv", b.input(1, 3, 5, 6), b.constant(np.zeros((0, 3, 1, 1)), "weight"))
    return written(b.model(b.node("BatchNormalization", x, *(b.constant(np.zeros(0)) for _ in range(4)))), folder)


def no_outputs(folder: Path) -> Path:
    b = Builder(type_=TensorProto.FLOAT)
    x = b.node("Conv", b.input(1, 3, 5, 6), b.constant(np.zeros((0, 3, 3, 3)), "weight"))
    y = b.node("BatchNormalization", x, *(b.constant(np.zeros(0)) for _ in range(4)))
    return written(b.model(b.node("Relu", y)), folder)


def no_inputs(folder: Path) -> Path:
    b = Builder(type_=TensorProto.FLOAT)
    x = b.node("Conv", b.input(1, 0, 5, 6), b.constant(np.zeros((4, 0, 1, 1)), "weight"))
    return written(b.model(b.bn(x)), folder)


# ------------------------------------------------------------------------------------------- constants that would grow


def grown(*nodes: NodeProto, **constants: Any) -> Attack:
    """A chain on constants whose last result `z` is added to what a Conv makes, in front of a BatchNormalization."""

    def attack(folder: Path) -> Path:
        model = foldable()
        for name, given in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(given), name))
        old = list(model.graph.node)
        add = helper.make_node("Add", [old[0].output[0], "z"], ["sum"], name="sum")
        old[1].input[0] = "sum"
        del model.graph.node[:]
        model.graph.node.extend([*nodes, old[0], add, *old[1:]])
        return written(model, folder)

    return attack


def make(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def doubling(times: int) -> list[NodeProto]:
    """Concat(x, x), again and again."""
    return [make("Concat", f"z{i} z{i}", f"z{i + 1}", axis=0) for i in range(times)] + [
        make("ReduceSum", f"z{times}", "z")
    ]


def squaring(times: int) -> list[NodeProto]:
    """[N, 1] + [1, N], flattened, again and again."""
    found = []
    for i in range(times):
        found += [make("Reshape", f"z{i} column", f"c{i}"), make("Reshape", f"z{i} row", f"r{i}")]
        found += [make("Add", f"c{i} r{i}", f"s{i}"), make("Reshape", f"s{i} flat", f"z{i + 1}")]
    return [*found, make("ReduceMax", f"z{times}", "z")]


BIG = np.array([1 << 20, 1 << 20], np.int64)


def filled(type_: int, shape: str, output: str) -> NodeProto:
    """A ConstantOfShape of ones."""
    return make("ConstantOfShape", shape, output, value=helper.make_tensor("value", type_, [1], [1]))


def read_often(*nodes: NodeProto, copies: int, make_one: Callable[[int], NodeProto], **constants: Any) -> Attack:
    """Nodes that each make `f{i}` of what these make, and the sum of the largest numbers."""
    found = [*nodes]
    for i in range(copies):
        found += [make_one(i), make("ReduceMax", f"f{i}", f"m{i}")]
    return grown(*found, make("Sum", " ".join(f"m{i}" for i in range(copies)), "z"), **constants)


# -------------------------------------------------------------------------------------------------------------- graphs


def altered(change: Callable[[ModelProto], object]) -> Attack:
    def attack(folder: Path) -> Path:
        model = foldable()
        change(model)
        return written(model, folder)

    return attack


def padded(by: int) -> Callable[[ModelProto], None]:
    """The last two axes padded by so much, between a Conv and its BatchNormalization."""

    def change(model: ModelProto) -> None:
        at, norm = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "BatchNormalization")
        given, norm.input[0] = norm.input[0], "padded"
        pads = np.array([0, 0, 0, 0, 0, 0, by, by])
        model.graph.initializer.append(numpy_helper.from_array(pads, "pads"))
        model.graph.node.insert(at, helper.make_node("Pad", [given, "pads"], ["padded"], name="pad"))

    return change


def circle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def own_input(model: ModelProto) -> None:
    model.graph.node[1].input[0] = model.graph.node[1].output[0]


def constants_in_a_circle(model: ModelProto) -> None:
    model.graph.node.insert(0, make("Add", "p one", "q"))
    model.graph.node.insert(0, make("Mul", "q one", "p"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "one"))
    model.graph.node[3].input[1] = "p"


LONG = 1 << 33

LAID_OUT = {
    "Cast": "z = Cast<to = 7>(v)",
    "Concat": "z = Concat<axis = 0>(v, v)",
    "Gather": "one = Constant<value = int64[1] {0}>() z = Gather(v, one)",
    "Slice": "a = Constant<value = int64[1] {0}>() b = Constant<value = int64[1] {9}>() z = Slice(v, a, b)",
    "Size": "z = Size(v)",
    "Squeeze": "z = Squeeze(v)",
    "Unsqueeze": "axes = Constant<value = int64[1] {0}>() z = Unsqueeze(v, axes)",
    "Add": "w = Neg(v) z = Add(v, w)",
    "Sub": "w = Neg(v) z = Sub(v, w)",
    "Mul": "w = Neg(v) z = Mul(v, w)",
    "MeanVarianceNormalization": "z = MeanVarianceNormalization<axes = [0]>(v)",
    "Expand": "one = Constant<value = float {1.0}>() z = Expand(one, v)",
    "Expand, flattened": "s = Flatten<axis = 0>(v) t = Squeeze(s) one = Constant<value = float {1.0}>() "
    "z = Expand(one, t)",
    "Cast in a body": "c = Constant<value = bool {1}>() z = If(c) <then_branch = g () => (p) { p = Cast<to = 7>(v) }, "
    "else_branch = h () => (q) { q = Neg(v) }>",
    "Expand in a function": "z = own.f(v)",
    "Cast in a function": "z = own.g(v)",
    "Cast in a function of few numbers": "few = Constant<value = int64[1] {3}>() z = own.h(few)",
    "a computed length": "s = Shape(m) k = ConstantOfShape(s) flat = Constant<value = int64[1] {-1}>() "
    "n = Reshape(k, flat) z = Cast<to = 7>(n)",
    "a thousand vectors": " ".join(f"c{i} = Cast<to = 7>(u)" for i in range(1000)) + " z = Cast<to = 7>(u)",
}
"""What makes ONNX's shape inference lay out a vector `v`, whose length is an input's; `m` has two long axes."""


FUNCTIONS = (
    "f (s) => (t) { one = Constant<value = float {1.0}>() t = Expand(one, s) }",
    "g (s) => (t) { t = Cast<to = 7>(s) }",
    f"h (s) => (t) {{ n = Constant<value = int64[1] {{{LONG}}}>() u = ConstantOfShape(n) t = Cast<to = 7>(u) }}",
)


def laid_out(nodes: str) -> Attack:
    """Such nodes beside a model that folds; Shape makes inference look at numbers at all."""

    def attack(folder: Path) -> Path:
        model = foldable()
        graph = onnx.parser.parse_graph(
            f"g (int64[{LONG}] v, int64[1048576] u, float[{1 << 20}, {1 << 20}] m) => (z, size) "
            f"{{ size = Shape(m) {nodes} }}"
        )
        model.graph.input.extend(graph.input)
        model.graph.output.extend(graph.output)
        model.graph.node.extend(graph.node)
        for text in FUNCTIONS:
            made = onnx.parser.parse_function(f'<domain: "own", opset_import: ["": 17]> {text}')
            if f"own.{made.name}" in nodes:
                model.functions.append(made)
        model.opset_import.add(domain="own", version=1)
        return written(model, folder)

    return attack


def beside(nodes: str, inputs: str = "", **constants: Any) -> Attack:
    """Nodes in ONNX's own notation beside a model that folds; the last one's output `z` is an output of the model."""

    def attack(folder: Path) -> Path:
        model = foldable()
        graph = onnx.parser.parse_graph(f"g ({inputs}) => (z) {{ {nodes} }}")
        model.graph.input.extend(graph.input)
        model.graph.output.extend(graph.output)
        model.graph.node.extend(graph.node)
        model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
        return written(model, folder)

    return attack


def row(op: str, count: int, *more: str, twice: bool = False) -> str:
    """One behind the other: t0, t1, ..., z, from the tensor `v` on."""
    names = ["v", *(f"t{i}" for i in range(count - 1)), "z"]
    return " ".join(f"{b} = {op}({', '.join([a] * (1 + twice) + list(more))})" for a, b in pairwise(names))


def left_out(op: str, domain: str = "", **attributes: Any) -> Attack:
    """An operator whose first input is left out."""

    def change(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node(op, [""], ["z"], domain=domain, **attributes))
        model.graph.output.add(name="z")
        model.opset_import[0].version = 20
        if domain:
            model.opset_import.add(domain=domain, version=5)

    return altered(change)


def sizes_named(name: str) -> Attack:
    """An input with a size of this name, flattened, and some nodes behind it."""

    def change(model: ModelProto) -> None:
        model.graph.input.append(value("v", name, "b", "c"))
        model.graph.node.append(make("Flatten", "v", "f0"))
        model.graph.node.extend(make("Relu", f"f{i}" if i else "v", f"f{i + 1}") for i in range(3000))
        model.graph.output.add(name="f3000")

    return altered(change)


def many_inputs(count: int) -> Attack:
    """A Concat of so many tensors."""

    def change(model: ModelProto) -> None:
        names = [f"r{i}" for i in range(count)]
        model.graph.node.extend(make("Relu", "x", name) for name in names)
        model.graph.node.append(helper.make_node("Concat", names, ["z"], axis=1))
        model.graph.output.add(name="z")

    return altered(change)


def affine(
    shape: str, nodes: str, repeat: str = "", times: int = 0, made: str | None = None, **constants: Any
) -> Attack:
    """Nodes between an input x of this shape and an output y, with affines in them; then some again and again.

    The output is told to have the shape `made`, that of the input by default.
    """

    def attack(folder: Path) -> Path:
        again = " ".join(repeat.format(i=i, before=f"y{i - 1}" if i else "y") for i in range(times))
        last = f"y{times - 1}" if times else "y"
        graph = onnx.parser.parse_graph(
            f"g (float[{shape}] x) => (float[{made or shape}] {last}) {{ {nodes} {again} }}"
        )
        graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
        return written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)

    return attack


DIAGONAL: dict[str, Any] = {"a": np.linspace(0.5, 2, 1 << 13, dtype=np.float32)[:, None, None],
            "b": np.linspace(0, 1, 1 << 13, dtype=np.float32)}  # fmt: skip
"""A scale along one axis and a shift along another: few numbers, which are many together."""

BOTH_WAYS = {
    "nothing": "y = Relu(d)",
    "an Add": "e = Add(d, a) y = Relu(e)",
    "a Mul": "e = Mul(d, b) y = Relu(e)",
    "a Max": "e = Max(d, b) y = Relu(e)",
    "a PRelu": "y = PRelu(d, b)",
    "itself": "e = Add(d, x) y = Relu(e)",
    "a Transpose": "y = Transpose<perm = [0, 3, 2, 1]>(d)",
    "a Split": "p, q = Split<axis = 3>(d) e = Concat<axis = 3>(q, p) y = Relu(e)",
    "a scale": "e = Mul(d, a) f = Add(e, b) y = Relu(f)",
}
"""By name: what reads d, an input after such a scale and such a shift."""


def linear(build: Callable[[Builder], str]) -> Attack:
    """A model of linear nodes, which could become one."""

    def attack(folder: Path) -> Path:
        b = Builder(type_=TensorProto.FLOAT)
        return written(b.model(b.bn(build(b))), folder)

    return attack


def doubled(times: int) -> Attack:
    """A convolution, added to itself, and that to itself, again and again."""

    def build(b: Builder) -> str:
        y = b.conv(b.input(1, 3, 5, 6), 4, 1)
        for _ in range(times):
            y = b.node("Add", y, y)
        return b.node("Conv", y, b.constant(b.normal(4, 4, 1, 1), "weight"))

    return linear(build)


def added_up(count: int) -> Attack:
    """So many convolutions of one tensor, added one by one."""

    def build(b: Builder) -> str:
        x, weight = b.input(1, 3, 5, 6), b.constant(b.normal(4, 3, 1, 1), "weight")
        y = b.node("Conv", x, weight)
        for _ in range(count):
            y = b.node("Add", y, b.node("Conv", x, weight))
        return y

    return linear(build)


def depthwise(count: int, channels: int) -> Attack:
    """Depthwise convolutions, one behind the other."""

    def build(b: Builder) -> str:
        y, weight = b.input(1, channels, 5, 6), b.constant(b.normal(channels, 1, 1, 1), "weight")
        for _ in range(count):
            y = b.node("Conv", y, weight, group=channels)
        return y

    return linear(build)


def long_kernels(taps: int) -> Attack:
    """Two long convolutions, one behind the other, that make one number."""

    def build(b: Builder) -> str:
        weight = b.constant(b.normal(1, 1, taps), "weight")
        return b.node("Conv", b.node("Conv", b.input(1, 1, 2 * taps - 1), weight), weight)

    return linear(build)


def called(times: int) -> Attack:
    """A function of so many nodes, in another one as many times, which is called once."""

    def change(model: ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        for name, inner, domain in (("f", "Relu", ""), ("g", "f", "own")):
            nodes = [helper.make_node(inner, [f"t{i}"], [f"t{i + 1}"], domain=domain) for i in range(times)]
            model.functions.append(helper.make_function("own", name, ["t0"], [f"t{times}"], nodes, opsets))
        model.graph.node.append(helper.make_node("g", ["x"], ["z"], domain="own"))
        model.graph.output.add(name="z")
        model.opset_import.add(domain="own", version=1)

    return altered(change)


def nested(levels: int) -> Attack:
    def change(model: ModelProto) -> None:
        inner = body(["Neg"], read="x")
        for i in range(levels):
            node = helper.make_node("If", ["go"], [f"v{i}"], then_branch=inner, else_branch=body(["Abs"], read="x"))
            inner = helper.make_graph([node], "g", [], [value(f"v{i}")])
        choice(model, inner, body(["Abs"], read="x"))

    return altered(change)


def too_deep(folder: Path) -> Path:
    """Bodies in bodies, put together as bytes: protobuf itself does not copy a message of this depth."""
    model = foldable()
    data = body(["Neg"], read="x").SerializeToString()
    for _ in range(1000):
        data = _field(1, _field(5, _field(6, data)))  # graph.node.attribute.g
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString() + _field(7, data))
    return path


def _field(number: int, data: bytes) -> bytes:
    """A message as a field of another."""
    size, length = len(data), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def wide(op: str, count: int, **attributes: Any) -> Attack:
    """So many BatchNormalization of the input, and one operator that reads them all."""

    def attack(folder: Path) -> Path:
        model = foldable()
        nodes, given = model.graph.node, ["wide.gamma", "wide.beta", "wide.mean", "wide.variance"]
        names = [f"norm{i}" for i in range(count)]
        nodes.extend(helper.make_node("BatchNormalization", ["x", *given], [name]) for name in names)
        values = np.linspace(0.5, 1.5, 3, dtype=np.float32)
        model.graph.initializer.extend(numpy_helper.from_array(values, name) for name in given)
        nodes.append(helper.make_node(op, names, ["wide"], **attributes))
        model.graph.output.add(name="wide")
        return written(model, folder)

    return attack


def same_names(count: int, outputs: bool) -> Attack:
    def change(model: ModelProto) -> None:
        for i in range(count):
            node = make("Neg", model.graph.output[0].name, f"n{i}" if outputs else "", name="same")
            if not outputs:
                node.domain = "own"
            model.graph.node.append(node)
        model.opset_import.append(helper.make_opsetid("own", 1))

    return altered(change)


def many_readers(count: int) -> Attack:
    """One weight in many convolutions, each with a BatchNormalization of its own."""

    def attack(folder: Path) -> Path:
        b = Builder(type_=TensorProto.FLOAT)
        x, weight = b.input(1, 4, 5, 6), b.constant(b.normal(4, 4, 1, 1), "weight")
        slots = [b.constant(b.rng.uniform(0.5, 2, 4)) for _ in range(4)]
        for i in range(count):
            y = b.node("Conv", x, weight, name=f"c{i}")
            b.nodes.append(helper.make_node("BatchNormalization", [y, *slots], [f"y{i}"]))
            b.nodes.append(helper.make_node("Relu", [f"y{i}"], [f"r{i}"]))
        outputs = [value(f"r{i}", 1, 4, 5, 6) for i in range(count)]
        graph = helper.make_graph(b.nodes, "g", b.inputs, outputs, b.initializers)
        return written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)

    return attack


def huge_sizes(folder: Path) -> Path:
    """An input whose elements nobody can count, in a row."""
    b = Builder(type_=TensorProto.FLOAT)
    y = b.node("Relu", b.bn(b.conv(b.input(1 << 40, 3, 1 << 40, 1 << 40), 4, 1)))
    b.node("Hardmax", b.node("Reshape", y, b.constant([-1])), name="flat")
    graph = helper.make_graph(b.nodes, "g", b.inputs, [value("flat", 1, 1)], b.initializers)
    return written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)


def huge_channels(folder: Path) -> Path:
    """An input of very many channels, in branches that could become one convolution, and the weights of few."""
    b = Builder(type_=TensorProto.FLOAT)
    x = b.input(1, 1 << 40, 5, 6)
    made = [b.node("Conv", x, b.constant(b.normal(4, 3, 1, 1), "weight"), name=f"c{i}") for i in range(2)]
    nodes = [*b.nodes, make("Add", " ".join(made), "sum")]
    graph = helper.make_graph(nodes, "g", b.inputs, [value("sum", 1, 4, 5, 6)], b.initializers)
    return written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder)


def too_few_axes(folder: Path) -> Path:
    """Transpose permutes four of five axes, in an opset whose inference does not look."""
    b = Builder(opset=6, type_=TensorProto.FLOAT)
    y = b.per_channel("Mul", b.input(1, 3, 3, 3, 3), b.normal(3))
    b.nodes.append(helper.make_node("Transpose", [y], ["t"], name="t", perm=[0, 3, 1, 2]))
    b.nodes.append(helper.make_node("Conv", ["t", b.constant(b.normal(4, 3, 1, 1), "w")], ["c"], name="c"))
    graph = helper.make_graph(b.nodes, "g", b.inputs, [value("c", 1, 4, 3, 3)], b.initializers)
    return written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=8), folder)


def ranks(rank: int, alike: bool = True) -> Attack:
    """More axes than numpy has; of a constant too."""

    def attack(folder: Path) -> Path:
        b = Builder(type_=TensorProto.FLOAT)
        y = b.node("Mul", b.input(*[1] * rank), b.constant(np.float32(2)))
        model = b.model(b.node("Relu", y))
        model.graph.initializer[0].dims.extend([1] * rank if alike else [])
        return written(model, folder)

    return attack


def attribute(op: str, name: str, given: object, *shapes: tuple[int, ...]) -> Attack:
    """An operator between a BatchNormalization and a Conv, with such an attribute."""

    def attack(folder: Path) -> Path:
        model = foldable()
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        extra = [numpy_helper.from_array(np.ones(shape, np.float32), f"extra{i}") for i, shape in enumerate(shapes)]
        model.graph.initializer.extend(extra)
        made = helper.make_node(op, [relu.output[0], *(t.name for t in extra)], ["odd"], name="odd")
        kind = onnx.AttributeProto.INTS if given == [] else None
        made.attribute.append(helper.make_attribute(name, given, attr_type=kind))
        at = [node.output[0] for node in model.graph.node].index(relu.output[0])
        for node in model.graph.node[at + 1 :]:
            for i, read in enumerate(node.input):
                if read == relu.output[0]:
                    node.input[i] = "odd"
        model.graph.node.insert(at + 1, made)
        return written(model, folder)

    return attack
