"""Models that somebody made to do harm, and the child process in which each is tried, with little memory and time."""

from __future__ import annotations

import importlib
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.features_graphs import value
from tests.hostile_models import (
    BIG,
    BOTH_WAYS,
    DIAGONAL,
    LAID_OUT,
    Attack,
    absolute,
    added_up,
    affine,
    altered,
    attribute,
    beside,
    called,
    circle,
    constants_in_a_circle,
    depthwise,
    doubled,
    doubling,
    filled,
    grown,
    huge_channels,
    huge_sizes,
    laid_out,
    left_out,
    linked,
    long_kernels,
    make,
    many_inputs,
    many_readers,
    nested,
    no_channels,
    no_inputs,
    no_outputs,
    outside,
    own_input,
    padded,
    ranks,
    read_often,
    row,
    same_names,
    sizes_named,
    squaring,
    statistics,
    tensor,
    too_deep,
    too_few_axes,
    wide,
)
from tests.program import bnfold
from tests.zoo import forks

MEMORY = 3 << 30
"""Bytes of address space that a child may take beyond what its parent had; numpy and ONNX Runtime reserve some."""

WEIGHT = (4, 4, 1, 1)

ODD_ATTRIBUTES: list[tuple[Any, ...]] = [
    ("Conv", name, given, WEIGHT)
    for name, given in [
        ("strides", [0, 0]), ("strides", [-1, -1]), ("dilations", [0, 0]), ("dilations", [-1, 1]), ("group", 0),
        ("group", -1), ("group", 2**40), ("pads", [-9, -9, -9, -9]), ("pads", [2**60] * 4), ("pads", [1]),
        ("kernel_shape", [0, 0]), ("kernel_shape", [2**40, 1]), ("strides", []), ("strides", [2**62, 2**62]),
        ("pads", [0, 2**20] * 2), ("pads", [2**12] * 4), ("auto_pad", "\x00odd"), ("dilations", [2**62, 2**62]),
    ]
] + [
    (op, name, given, *shapes)
    for op, name, given, *shapes in [
        ("MaxPool", "kernel_shape", [0, 0]), ("MaxPool", "kernel_shape", [2**40, 2**40]), ("Softmax", "axis", 99),
        ("AveragePool", "kernel_shape", [-1, -1]), ("LpPool", "kernel_shape", [0, 0]), ("Flatten", "axis", -99),
        ("Transpose", "perm", [0, 0, 0, 0]), ("Transpose", "perm", [9, 8, 7, 6]), ("Transpose", "perm", []),
        ("Concat", "axis", 2**40), ("Split", "axis", 7), ("DepthToSpace", "blocksize", 0), ("LRN", "size", 0),
        ("DepthToSpace", "blocksize", 2**31), ("SpaceToDepth", "blocksize", 0), ("SpaceToDepth", "blocksize", -1),
        ("ReduceMean", "axes", [99]), ("ReduceMean", "axes", [0, 0, 0]), ("LeakyRelu", "alpha", float("nan")),
        ("Cast", "to", 99), ("Cast", "to", 0), ("ArgMax", "axis", -99), ("Elu", "alpha", float("inf")),
        ("Shape", "start", -(2**40)), ("CumSum", "reverse", 7), ("GlobalLpPool", "p", 0), ("Gemm", "transA", 9),
        ("Einsum", "equation", "n.c.hw,c->n.c.hw", (4,)), ("Einsum", "equation", "\u00e7,\u00e7->\u00e7", (4,)),
        ("RandomNormalLike", "seed", float("nan")), ("EyeLike", "k", 2**40), ("Hardmax", "axis", 2**31),
    ]
]  # fmt: skip
"""Every (operator, attribute, value, shapes of more inputs); attributes of any operator that no runtime would take."""


ATTACKS: dict[str, tuple[Attack, str]] = {
    "an absolute path": (outside(location="/etc/passwd"), "points outside the model's folder"),
    "an absolute path into the folder": (absolute, "points outside the model's folder"),
    "a path upwards": (outside(location="../../secret"), "points outside the model's folder"),
    "a path down and upwards": (outside(location="a/../../model.bin"), "points outside the model's folder"),
    "a link out of the folder": (linked("/etc/passwd"), "points outside the model's folder"),
    "a link to a device": (linked("/dev/zero"), "points outside the model's folder"),
    "a link to itself": (linked("link"), "is no usable name"),
    "a pipe that nobody fills": (
        outside(location="pipe", lay=lambda folder: os.mkfifo(folder / "pipe")), "is not a regular file"),
    "a folder": (outside(location="sub", lay=lambda folder: (folder / "sub").mkdir()), "is not a regular file"),
    "the folder itself": (outside(location="."), "is not a regular file"),
    "an empty path": (outside(location=""), "points outside"),
    "a path with a null": (outside(location="a\x00b"), "is no usable name"),
    "a path without end": (outside(location="a" * 100_000), "is no usable name"),
    "an offset below 0": (outside(offset=-1), "too short"),
    "an offset behind the end": (outside(offset=1 << 20), "too short"),
    "an offset behind everything": (outside(offset=1 << 70), "too short"),
    "an offset that is no number": (outside(offset="1e3"), "is no number"),
    "a length of its own": (outside(length=1 << 40), "another size"),
    "a length below 0": (outside(length=-4), "another size"),
    "ranges that overlap": (outside(offset=8), ""),
    "dims that overflow": (tensor(dims=[1 << 62, 1 << 62, 3, 3]), "does not hold what its shape says"),
    "dims whose product is small again": (tensor(dims=[1 << 33, 1 << 33, 3, 3]), "does not hold what its shape says"),
    "dims below 0": (tensor(dims=[-4, 3, 3, 3]), "has a negative dimension"),
    "dims that claim a billion": (tensor(dims=[1 << 30, 3, 3, 3]), "does not hold what its shape says"),
    "data of another length": (tensor(raw_data=b"123"), "does not hold what its shape says"),
    "no data": (tensor(raw_data=b""), "does not hold what its shape says"),
    "an unknown type": (tensor(data_type=99), ""),
    "no type": (tensor(data_type=0), ""),
    "strings as weights": (tensor(data_type=8, raw_data=b"", string_data=[b"a"] * 108), ""),
    "data in two fields": (tensor(float_data=[1.0] * 108), ""),
    "NaN in the mean": (statistics(mean=float("nan")), ""),
    "an infinite variance": (statistics(variance=np.inf), ""),
    "a variance below 0": (statistics(variance=-1.0), ""),
    "an infinite scale": (statistics(gamma=np.inf), ""),
    "a NaN as epsilon": (statistics(epsilon=float("nan")), ""),
    "epsilon below 0": (statistics(epsilon=-1e9), ""),
    "no channels": (no_channels, ""),
    "no input channels": (no_inputs, ""),
    "no output channels": (no_outputs, ""),
    "Expand without end": (grown(make("Expand", "one big", "z"), one=np.float32(1), big=BIG), ""),
    "ConstantOfShape without end": (grown(make("ConstantOfShape", "big", "z"), big=BIG), ""),
    "Tile without end": (grown(make("Tile", "one big", "z"), one=np.ones((1, 1), np.float32), big=BIG), ""),
    "Range without end": (
        grown(make("Range", "a b c", "z"), a=np.int64(0), b=np.int64(1 << 40), c=np.int64(1)), ""),
    "BlackmanWindow without end": (grown(make("BlackmanWindow", "n", "z"), n=np.int64(1 << 40)), ""),
    "Pad without end": (altered(padded(1 << 61)), ""),
    "Pad of two long axes": (altered(padded(1 << 14)), ""),
    "Gather without end": (
        grown(make("Expand", "i big", "j"), make("Gather", "i j", "z"), i=np.zeros(1, np.int64), big=BIG), ""),
    **{f"a long vector: {name}": (laid_out(nodes), "") for name, nodes in LAID_OUT.items()},
    "doubled 40 times": (grown(*doubling(40), z0=np.ones(1, np.float32)), ""),
    "squared 7 times": (
        grown(*squaring(7), z0=np.ones(3, np.float32), column=np.array([-1, 1]), row=np.array([1, -1]),
              flat=np.array([-1])), ""),
    "many constants of 64 MB": (
        grown(*(n for i in range(64) for n in (make("Expand", "one big", f"e{i}"), make("Exp", f"e{i}", f"f{i}"))),
              make("Sum", " ".join(f"f{i}" for i in range(64)), "z"), one=np.float32(1),
              big=np.array([1 << 12, 1 << 11], np.int64)), ""),
    "many large constants": (
        grown(*(n for i in range(64) for n in (make("Expand", "one big", f"e{i}"), make("Exp", f"e{i}", f"f{i}"))),
              make("Sum", " ".join(f"f{i}" for i in range(64)), "z"), one=np.float32(1),
              big=np.array([1 << 13, 1 << 14], np.int64)), ""),
    **{
        f"64 million numbers of {TensorProto.DataType.Name(type_)}, summed": (
            grown(filled(type_, "big", "e"), make("Sum", "e e e e e e e e", "f"), make("ReduceMax", "f", "z"),
                  big=np.array([1 << 26])), "")
        for type_ in (TensorProto.FLOAT8E4M3FN, TensorProto.BFLOAT16)
    },
    "a Cast of 64 million numbers": (
        grown(filled(TensorProto.FLOAT16, "big", "e"), make("Cast", "e", "i", to=TensorProto.INT8),
              make("Cast", "i", "f", to=TensorProto.FLOAT), make("ReduceMax", "f", "z"), big=np.array([1 << 26])), ""),
    "a shape of 128 million numbers": (
        grown(filled(TensorProto.INT8, "big", "e"), make("Expand", "one e", "z"), one=np.float32(1),
              big=np.array([1 << 27])), ""),
    "a Max of 60 large ones": (
        grown(make("Expand", "one big", "e"), make("Max", " ".join(["e"] * 60), "f"), make("ReduceMax", "f", "z"),
              one=np.float32(1), big=np.array([1 << 12, 1 << 11])), ""),
    "8 million numbers read 2,000 times": (
        read_often(make("Expand", "one big", "e"), copies=2000, make_one=lambda i: make("ReduceMax", "e", f"f{i}"),
                   one=np.float32(1), big=np.array([1 << 12, 1 << 11])), ""),
    "8 million numbers laid out 40 times": (
        read_often(make("Expand", "column big", "e"), copies=40, make_one=lambda i: make("Reshape", "e flat", f"f{i}"),
                   column=np.arange(256, dtype=np.float32)[:, None], big=np.array([256, 1 << 15]),
                   flat=np.array([-1])), ""),
    "8 million numbers tiled 40 times": (
        read_often(copies=40, make_one=lambda i: make("Tile", "column repeats", f"f{i}"),
                   column=np.arange(256, dtype=np.float32), repeats=np.array([1 << 15])), ""),
    "10,000 axes": (beside(row("Relu", 3_000), f"float[{', '.join(['1'] * 10_000)}] v"), ""),
    "500 axes more, 1,000 times": (
        beside(row("Unsqueeze", 1_000, "axes"), "float[1] v", axes=np.arange(500)), ""),
    "an axis more, 6,000 times": (beside(row("Unsqueeze", 6_000, "axes"), "float[1] v", axes=np.arange(1)), ""),
    "axes doubled 40 times": (beside(row("Gather", 40, twice=True), "int64[1, 1, 1] v"), ""),
    "a size with a name of 500,000": (sizes_named("n" * 500_000), ""),
    "a Concat of 25,000": (many_inputs(25_000), ""),
    "a sum doubled 60 times": (doubled(60), ""),
    "3,000 convolutions added up": (added_up(3_000), ""),
    "100 depthwise convolutions of 30,000 channels": (depthwise(100, 30_000), ""),
    "two kernels of 30,000 taps": (long_kernels(30_000), ""),
    **{
        f"{op} without input": (left_out(op, domain, **attributes), "")
        for op, domain, attributes in [
            ("RegexFullMatch", "", {}), ("DictVectorizer", "ai.onnx.ml", {}),
            ("LabelEncoder", "ai.onnx.ml", {"keys_floats": [1.0], "values_floats": [1.0]}),
        ]
    },
    **{
        f"a scale along one axis and a shift along another, {name}": (
            affine("1, 8192, 1, 8192", f"m = Mul(x, a) d = Add(m, b) {nodes}", **DIAGONAL), "")
        for name, nodes in BOTH_WAYS.items()
    },
    "a Gather along 2^27": (
        affine(f"{1 << 27}, 4, 0", "d = Mul(x, a) e = Gather<axis = 0>(d, i) f = Add(e, a) y = Relu(f)",
               a=np.arange(1, 5, dtype=np.float32)[:, None], i=np.arange(3)), ""),
    "a Gather along 2^27 of what varies along it": (
        affine(f"{1 << 27}, 4, 0", "d = Mul(x, a) e = Gather<axis = 0>(d, i) f = Add(e, c) y = Relu(f)",
               a=np.arange(1, 5, dtype=np.float32)[:, None], i=np.arange(3),
               c=np.arange(3, dtype=np.float32)[:, None, None]), ""),
    "a Concat of 2^27": (
        affine(f"0, {1 << 27}", "d = Mul(x, a) e = Concat<axis = 1>(d, x) y = Relu(e)", a=np.float32(2)), ""),
    **{
        f"an image of 32 million places: {re.split('[(<]', node)[0]}": (
            affine("1, 64, 512, 1024", f"d = Mul(x, a) e = {node} f = Mul(e, b) y = Relu(f)", made=shape,
                   a=np.float32(2), b=np.float32(3), r=np.array(target), s=np.array([1, 1, 2, 2], np.float32)), "")
        for node, target, shape in [
            ("Tile(d, r)", [1, 1, 2, 2], "1, 64, 1024, 2048"), ("Reshape(d, r)", [1, 64, -1], "1, 64, 524288"),
            ("Pad(d, r)", [0, 0, 1, 1, 0, 0, 1, 1], "1, 64, 514, 1026"),
            ("Expand(d, r)", [2, 64, 1, 1], "2, 64, 512, 1024"),
            ("Transpose<perm = [0, 2, 3, 1]>(d)", [], "1, 512, 1024, 64"), ("Resize(d,, s)", [], "1, 64, 1024, 2048")]
    },
    "a Tile of 2,048 numbers, 2^16 times": (
        affine("1, 2048", "d = Mul(x, a) e = Tile(d, r) f = Mul(e, a) y = Relu(f)",
               a=np.arange(1, 2049, dtype=np.float32), r=np.array([1, 1 << 16])), ""),
    **{
        f"{times:,} affines of {size:,} numbers that they share": (
            affine(f"1, 4, {size // 4}", "y = Relu(x)",
                   "m{i} = Mul({before}, a) d{i} = Add(m{i}, a) y{i} = Relu(d{i})", times // 2,
                   a=np.linspace(0.5, 2, size, dtype=np.float32).reshape(4, -1)), "")
        for times, size in [(100, 1_000_000), (2_000, 16_000)]
    },
    "2,000 BatchNormalizations of 16,000 channels that they share": (
        affine("1, 16000, 4", "y = Relu(x)",
               "d{i} = BatchNormalization({before}, a, b, b, a) y{i} = Relu(d{i})", 2_000,
               a=np.linspace(0.5, 2, 16_000, dtype=np.float32), b=np.linspace(0, 1, 16_000, dtype=np.float32)), ""),
    "400 BatchNormalizations beside what they read": (
        affine("1, 4, 5, 5", "y = Relu(x)",
               "d{i} = BatchNormalization({before}, a, b, b, a) r{i} = LeakyRelu(d{i}) s{i} = Add({before}, r{i}) "
               "y{i} = BatchNormalization(s{i}, a, b, b, a)", 200,
               a=np.array([0.6, 0.8, 1.1, 1.3], np.float32), b=np.array([0.1, 0.0, -0.4, 0.3], np.float32)), ""),
    "200 sums of a convolution, twice": (
        affine("1, 4, 5, 5", "y = Conv(x, w)",
               "p{i} = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>({before}) "
               "d{i} = BatchNormalization(p{i}, a, b, b, a) e{i} = Add(d{i}, {before}) y{i} = Add(e{i}, {before})", 200,
               w=np.eye(4, dtype=np.float32)[:, :, None, None], a=np.array([0.6, 0.8, 1.1, 1.3], np.float32),
               b=np.array([0.1, 0.0, -0.4, 0.3], np.float32)), ""),
    "rows of a scale, columns of a shift": (
        affine("8192, 4", "n = Gemm(x, w) d = Add(n, a) e = Add(d, b) y = MatMul(e, v)",
               w=np.ones((4, 8192), np.float32), v=np.ones((8192, 4), np.float32),
               a=np.linspace(0, 1, 8192, dtype=np.float32)[:, None], b=np.linspace(0, 1, 8192, dtype=np.float32)), ""),
    "a scale of 8,192 rows and a matrix of 8,192 columns": (
        affine("8192, 4", "d = Mul(x, a) n = MatMul(d, w) y = MatMul(n, v)",
               w=np.ones((4, 8192), np.float32), v=np.ones((8192, 4), np.float32),
               a=np.linspace(1, 2, 8192, dtype=np.float32)[:, None]), ""),
    "a depthwise convolution of 16,384 channels in front of a small one": (
        affine("1, 16384, 1, 1", "n = Conv<group = 16384>(x, w) e = Conv(n, v) d = Mul(e, a) y = Expand(d, s)",
               w=np.ones((16384, 1, 1, 1), np.float32), v=np.ones((1, 16384, 1, 1), np.float32),
               a=np.full((1, 1, 1), 2, np.float32), s=np.array([1, 16384, 1, 1])), ""),
    "two convolutions of 16,384 channels to one, added": (
        affine("1, 16384, 1, 1", "n = Conv(x, v) m = Conv(x, v) e = Add(n, m) y = Expand(e, s)",
               v=np.ones((1, 16384, 1, 1), np.float32), s=np.array([1, 16384, 1, 1])), ""),
    "a Resize to 10^14": (
        affine("1, 4, 10, 10", "d = Mul(x, a) e = Resize(d, , s) f = Mul(e, a) g = ReduceMean<axes = [2, 3]>(f) "
               "h = Reshape(g, r) y = Expand(h, t)",
               a=np.array([1, 2, 3, 4], np.float32)[:, None, None], s=np.array([1, 1, 1e6, 1e6], np.float32),
               r=np.array([1, 4, 1, 1]), t=np.array([1, 4, 10, 10])), ""),
    "a Split into 20,000": (
        affine("1, 20000", f"d = Mul(x, a) {', '.join(f's{i}' for i in range(20_000))} = Split<axis = 1>(d) "
               f"e = Concat<axis = 1>({', '.join(f's{i}' for i in range(20_000))}) y = Relu(e)",
               a=np.linspace(1, 2, 20_000, dtype=np.float32)), ""),
    "a tensor that 2,000 affines read": (
        affine("1, 4", f"d = Mul(x, a) {' '.join(f'r{i} = Mul(d, a)' for i in range(2_000))} y = Add(r0, r1)",
               a=np.array([1, 2, 3, 4], np.float32)), ""),
    "4,000 affines, one behind the other": (
        affine("1, 4", "y = Mul(x, a)", "y{i} = Mul({before}, a)", 4_000,
               a=np.array([0.9999, 1.0001, 1, 0.99995], np.float32)), ""),
    **{
        f"a table moved by 2^31 numbers: {moved}": (
            beside(f"s = {moved} m = Mul(s, a) n = Add(m, a) z = Sigmoid(n)", "int64[2147483648] v",
                   t=np.arange(30, dtype=np.float32).reshape(5, 6), c=np.array([0]),
                   a=np.linspace(1, 2, 6, dtype=np.float32)), "")
        for moved in ("Slice(t, c, v, c)", "Slice(t, v, c, c)", "Gather(t, v)")
    },
    **{
        f"an image of 2^27 places in a {op}": (
            beside(f"m = Mul(v, a) z = {op}<strides = [2]>(m, k)", "float[1, 4, 134217728] v",
                   a=np.linspace(1, 2, 4, dtype=np.float32)[:, None], k=np.ones((4, 4, 3), np.float32)), "")
        for op in ("Conv", "ConvTranspose")
    },
    "LayerNormalization of the axis 2^31": (
        beside("z, mean, deviation = LayerNormalization <axis: int = 2147483648> (v, one)", "float v",
               one=np.ones(2, np.float32)), ""),
    "functions that stand for 980,000 nodes": (called(990), ""),
    "a circle": (altered(circle), "waits for its own result"),
    "a node that reads itself": (altered(own_input), "waits for its own result"),
    "constants in a circle": (altered(constants_in_a_circle), "waits for its own result"),
    "one tensor written twice": (
        altered(lambda m: m.graph.node.append(m.graph.node[0])), "two nodes write the tensor"),
    "one initializer twice": (altered(lambda m: m.graph.initializer.append(m.graph.initializer[0])), ""),
    "an input twice": (altered(lambda m: m.graph.input.append(m.graph.input[0])), ""),
    "an initializer that a node writes": (
        altered(lambda m: setattr(m.graph.initializer[0], "name", m.graph.node[0].output[0])),
        "is an initializer and"),
    "an output that nothing writes": (altered(lambda m: m.graph.output.append(value("nowhere", 1))), ""),
    "an input that nothing gives": (altered(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere")), ""),
    "a Conv without weights": (altered(lambda m: m.graph.node[0].input.pop()), ""),
    "nodes without inputs": (altered(lambda m: [n.ClearField("input") for n in m.graph.node]), ""),
    "a BatchNormalization with two inputs": (altered(lambda m: m.graph.node[1].input.__delitem__(slice(2, 5))), ""),
    "bodies in bodies, 20 deep": (nested(20), ""),
    "bodies in bodies, 30 deep": (nested(30), ""),
    "bodies in bodies, too deep for protobuf": (too_deep, "does not parse"),
    "5,000 nodes of one name": (same_names(5_000, outputs=True), ""),
    "5,000 nodes of one name without outputs": (same_names(5_000, outputs=False), ""),
    "a Concat of 200 that could leave": (wide("Concat", 200, axis=1), ""),
    "a Sum of 400 that could leave": (wide("Sum", 400), ""),
    "a Max of 200 that could leave": (wide("Max", 200), ""),
    "one weight for 500 nodes": (many_readers(500), ""),
    "sizes whose product is none": (huge_sizes, ""),
    "a number of channels that no memory holds": (huge_channels, ""),
    "a permutation of too few axes": (too_few_axes, ""),
    "100 axes": (ranks(100), ""),
    **{f"{rank} axes and a number": (ranks(rank, alike=False), "") for rank in (33, 64, 65)},
    "an opset of the far future": (altered(lambda m: setattr(m.opset_import[0], "version", 1 << 40)), "does not exist"),
    "an opset below 0": (altered(lambda m: setattr(m.opset_import[0], "version", -3)), ""),
    "an IR version of the far future": (altered(lambda m: setattr(m, "ir_version", 1 << 40)), ""),
    "a name of a megabyte": (altered(lambda m: setattr(m.graph.node[0], "name", "n" * (1 << 20))), ""),
    **{
        f"{op}.{name} = {str(given)[:20]!r}": (attribute(op, name, given, *shapes), "")
        for op, name, given, *shapes in ODD_ATTRIBUTES
    },
}  # fmt: skip
"""By name: how it is laid, and words of the error; '' where it may be refused, folded, or left as it is."""


def attempt(arguments: list[str]) -> dict[str, Any]:
    """Fold one hostile model with the program; run by `forks`, in a process of its own."""
    name, folder, *options = arguments
    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    path = ATTACKS[name][0](Path(folder))
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, soft))
    before = time.process_time()
    done = bnfold("optimize", path, *options)
    return {
        "seconds": time.process_time() - before,
        "code": done.code,
        "out": done.out,
        "err": done.err,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    for module in ("bnfold.api", "onnxruntime"):  # once, before the forks
        importlib.import_module(module)
    forks.serve(attempt)
