"""Random graphs under the one law: whatever is put together from the op table, nothing may be wrong or crash."""

from __future__ import annotations

import os
import random
import secrets
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from onnx import TensorProto

from bnfold.rules import RULES
from tests.builder import KINDS, Builder
from tests.law import law

EXAMPLES = int(os.environ.get("BNFOLD_FUZZ", "150"))
"""How many graphs; `make fuzz` runs thousands."""

SEED = int(os.environ.get("BNFOLD_SEED") or secrets.randbelow(1 << 32)) if "BNFOLD_FUZZ" in os.environ else None
"""Of `make fuzz`; None makes the same graphs in every run of the tests."""

Draw = Callable[[st.SearchStrategy[int]], int]
Step = Callable[[Builder, "Choices", str], str | None]
"""Adds an operator behind a value; None where it does not apply to its shape."""


class Choices:
    """What a graph is made of, drawn one by one, so that a failure shrinks."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.values: list[str] = []

    def below(self, n: int) -> int:
        return self.draw(st.integers(0, n - 1))

    def of(self, options: str) -> str:
        return options[self.below(len(options))]

    def another(self, b: Builder, fits: Callable[[tuple[int, ...]], bool]) -> str | None:
        """One of the values so far whose shape fits."""
        found = [name for name in self.values if fits(b.shape(name))]
        return found[self.below(len(found))] if found else None


def conv(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    if len(shape) < 3:
        return b.gemm(x, 2 + c.below(3), transB=c.below(2)) if len(shape) == 2 else None
    kernel = 1 + c.below(3)
    pads = [c.below(2) for _ in range(2 * (len(shape) - 2))]
    if any(size + pads[i] + pads[i + len(shape) - 2] < kernel for i, size in enumerate(shape[2:])):
        return None
    group = shape[1] if c.below(3) == 0 else 1
    strides = [1 + c.below(2) for _ in shape[2:]]
    out = group * (1 + c.below(2)) if group > 1 else 2 + c.below(3)
    if max(pads) == 0 and c.below(4) == 0:
        return b.conv(x, out, kernel, group=group, bias=False, strides=strides, auto_pad="SAME_LOWER", scale=0.5)
    return b.conv(x, out, kernel, group=group, bias=bool(c.below(2)), strides=strides, pads=pads, scale=0.5)


def deconv(b: Builder, c: Choices, x: str) -> str | None:
    if len(b.shape(x)) < 3 or max(b.shape(x)[2:]) > 8:
        return None
    return b.conv_transpose(x, 2 + c.below(3), 1 + c.below(2), strides=[1 + c.below(2)] * (len(b.shape(x)) - 2))


def affine(b: Builder, c: Choices, x: str) -> str | None:
    kind, rank = c.of(KINDS), len(b.shape(x))
    if rank < 2:
        return None
    return b.affine(x, kind, axis=1 if kind in "bn" or c.below(4) else c.below(rank))


def constant_operand(b: Builder, c: Choices, x: str) -> str | None:
    """Mul or Add by a scalar, or by a whole array."""
    op = ("Mul", "Add", "Sub", "Div")[c.below(4)]
    if c.below(2):
        return b.per_channel(op, x, 1.0 + c.below(3), left=op == "Sub" and b.opset >= 7)
    return b.node(op, x, b.constant(1.5 + b.rng.uniform(0, 1, b.shape(x))))


def unary(op: str, **attributes: Any) -> Step:
    return lambda b, c, x: b.node(op, x, **attributes)


def matmul(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    if len(shape) < 2:
        return None
    if c.below(3) == 0:
        return b.node("MatMul", b.constant(0.5 * b.normal(2 + c.below(3), shape[-2])), x)
    return b.matmul(x, 2 + c.below(3), bias=b.opset >= 7 and bool(c.below(2)))


def sum_of_two(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    other = c.another(b, lambda s: s == shape)
    if b.opset >= 7 and c.below(3) == 0:  # one that is broadcast
        small = c.another(b, lambda s: s == (*shape[:2], *(1,) * (len(shape) - 2)))
        other = small or other
    op = ("Add", "Sub", "Mul", "Sum" if b.opset >= 8 or other is None or b.shape(other) == shape else "Add")[c.below(4)]
    return None if other is None else b.node(op, *((x, other) if c.below(2) or b.opset < 7 else (other, x)))


def concat(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    axis = c.below(len(shape)) if c.below(3) == 0 else min(1, len(shape) - 1)
    other = c.another(
        b, lambda s: len(s) == len(shape) and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
    )
    if other is None or shape[axis] > 12:
        return None
    return b.node("Concat", x, other, axis=axis)


def pool(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    if len(shape) < 3 or min(shape[2:]) < 2:
        return None
    space = len(shape) - 2
    pads = [c.below(2) for _ in range(2 * space)]
    kernel, strides = [2] * space, [1 + c.below(2)] * space
    if c.below(2):
        return b.node("MaxPool", x, kernel_shape=kernel, pads=pads, strides=strides)
    counted: dict[str, Any] = {"count_include_pad": c.below(2)} if b.opset >= 7 else {}
    return b.node("AveragePool", x, kernel_shape=kernel, pads=pads, strides=strides, **counted)


def global_pool(b: Builder, c: Choices, x: str) -> str | None:
    op = ("GlobalAveragePool", "GlobalMaxPool")[c.below(2)]
    return b.node(op, x) if len(b.shape(x)) > 2 else None


def transpose(b: Builder, c: Choices, x: str) -> str | None:
    perm = list(range(len(b.shape(x))))
    for i in range(len(perm) - 1, 0, -1):
        j = c.below(i + 1)
        perm[i], perm[j] = perm[j], perm[i]
    return b.node("Transpose", x, perm=perm)


def reshape(b: Builder, c: Choices, x: str) -> str | None:
    shape = list(b.shape(x))
    way = c.below(5)
    if way == 0 and len(shape) > 2:  # merge two axes
        at = c.below(len(shape) - 1)
        return b.reshape(x, *shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
    if way == 1:  # split one
        at = c.below(len(shape))
        if shape[at] % 2 == 0 and len(shape) < 5:
            return b.reshape(x, *shape[:at], 2, shape[at] // 2, *shape[at + 1 :])
    if way == 2 and len(shape) < 5:
        return b.unsqueeze(x, c.below(len(shape) + 1))
    if way == 3 and 1 in shape and len(shape) > 2:
        return b.squeeze(x, shape.index(1))
    if way == 4 and len(shape) > 2:
        return b.node("Flatten", x, axis=1 + c.below(2))
    return None


def slice_(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    axis = c.below(len(shape))
    if b.opset < 10 or shape[axis] < 2:
        return None
    start, end, step = ((0, 1, 1), (1, 100, 1), (-1, -100, -1), (0, 100, 2))[c.below(4)]
    return b.node("Slice", x, *(b.constant([value], "slice") for value in (start, end, axis, step)))


def split(b: Builder, c: Choices, x: str) -> str | None:
    size = b.shape(x)[1] if len(b.shape(x)) > 1 else 0
    if size < 2 or b.opset < 13:
        return None
    made = [b.name("part"), b.name("part")]
    c.values.append(made[1])
    return b.node("Split", x, b.constant([1, size - 1], "sizes"), outputs=made, axis=1)


def gather(b: Builder, c: Choices, x: str) -> str | None:
    axis = c.below(len(b.shape(x)))
    size = b.shape(x)[axis]
    indices = [c.below(size) for _ in range(1 + c.below(3))]
    return b.node("Gather", x, b.constant(indices, "indices"), axis=axis)


def repeat(b: Builder, c: Choices, x: str) -> str | None:
    shape = list(b.shape(x))
    axis = c.below(len(shape))
    if shape[axis] > 4 or b.opset < 8:
        return None
    if shape[axis] == 1:
        return b.node("Expand", x, b.constant([3 if i == axis else 1 for i in range(len(shape))], "shape"))
    return b.node("Tile", x, b.constant([2 if i == axis else 1 for i in range(len(shape))], "repeats"))


def blocks(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    if len(shape) != 4 or b.opset < 11:
        return None
    if c.below(2) and shape[1] % 4 == 0:
        return b.node("DepthToSpace", x, blocksize=2, mode=("DCR", "CRD")[c.below(2)])
    return b.node("SpaceToDepth", x, blocksize=2) if shape[2] % 2 == 0 and shape[3] % 2 == 0 else None


def combine(b: Builder, c: Choices, x: str) -> str | None:
    """Resize, Clip, Pad or a reduction."""
    shape, way = b.shape(x), c.below(4)
    if way == 0 and b.opset >= 13 and max(shape) < 9:
        scales = [2.0 if axis > 1 and c.below(2) else 1.0 for axis in range(len(shape))]
        return b.node(
            "Resize", x, "", b.constant(scales, "scales", TensorProto.FLOAT), mode=("nearest", "linear")[c.below(2)]
        )
    if way == 1 and b.opset >= 11:
        return b.node("Clip", x, b.constant(-0.6), b.constant(1.0 + c.below(2)))
    if way == 2 and b.opset >= 11 and max(shape) < 9:
        pads = [c.below(2) for _ in range(2 * len(shape))]
        return b.node("Pad", x, b.constant(pads, "pads"), mode=("constant", "edge")[c.below(2)])
    if b.opset >= 13 and len(shape) > 2:
        return b.node("ReduceSum", x, b.constant([c.below(len(shape))], "axes"), keepdims=c.below(2))
    return b.node("ReduceMax", x, axes=[c.below(len(shape))]) if b.opset < 18 else None


def special_affine(b: Builder, c: Choices, x: str) -> str | None:
    """Signs alone, one scale and shift for all, or constant channels among channels that stay."""
    shape, way = b.shape(x), c.below(3)
    if len(shape) < 2:
        return None
    signs = np.where(np.arange(shape[1]) % 2 == c.below(2), -1.0, 1.0)
    if way == 0:
        return b.per_channel("Mul", x, signs)
    if way == 1:
        return b.per_channel("Add", b.per_channel("Mul", x, (-2.0, -0.5, 0.5)[c.below(3)]), 0.25 * c.below(3))
    return b.bn(x, gamma=(signs + 1) / 2, beta=0.3 - 0.3 * signs, mean=0.0, variance=1.0, epsilon=0.0)


FUNCTIONS = {
    6: ("Tanh", "Abs", "Elu", "Selu", "Softsign", "Softplus", "HardSigmoid", "Ceil", "Floor"),
    9: ("Erf", "Sin", "Cos", "Atan", "Asinh", "Sign", "Shrink"),
    17: ("HardSwish", "Round", "Cosh"),
    22: ("Gelu", "Mish"),
}


def function(b: Builder, c: Choices, x: str) -> str | None:
    known = [op for since, ops in FUNCTIONS.items() if since <= b.opset for op in ops]
    if c.below(4) == 0:
        return b.node("Pow", x, b.constant(2.0 + c.below(2))) if b.opset >= 7 else None
    return b.node(known[c.below(len(known))], x)


def extreme(b: Builder, c: Choices, x: str) -> str | None:
    """Max, Min or Where with a constant or another tensor."""
    shape, op = b.shape(x), ("Max", "Min", "Where")[c.below(3)]
    other = c.another(b, lambda s: s == shape) if c.below(3) == 0 else None
    if other is None and b.opset >= 8 and len(shape) > 1 and c.below(2):
        other = b.constant(b.normal(shape[1], *(1,) * (len(shape) - 2)) if c.below(2) else 0.5, "operand")
    other = other or b.constant(b.normal(*shape), "operand")
    if op == "Where":
        return b.node(op, b.constant(b.normal(shape[-1]) > 0, "side"), other, x) if b.opset >= 9 else None
    several = [b.constant(np.full(shape if b.opset < 8 else (), -0.3), "operand")] if c.below(2) else []
    return b.node(op, other, x, *several)


def quotient(b: Builder, c: Choices, x: str) -> str | None:
    if b.opset < 7:
        return None
    gate = b.node("Sigmoid", b.node("Tanh", x))  # not near zero
    other = c.another(b, lambda s: s == b.shape(x)) or x
    return b.node("Div", *((b.constant(b.normal(1)), gate) if c.below(3) == 0 else (other, gate)))


def sum_with_constants(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    if b.opset < 8:
        return b.node("Mean", x, b.constant(b.normal(*shape)))
    operands = [b.constant(b.normal(1)), x, b.constant(b.normal(*shape)), c.another(b, lambda s: s == shape) or x]
    return b.node(("Sum", "Mean")[c.below(2)], *operands[c.below(2) : 3 + c.below(2)])


def norm(b: Builder, c: Choices, x: str) -> str | None:
    shape, way = b.shape(x), c.below(4)
    if way == 0 and len(shape) > 2 and min(shape[2:]) > 1:
        return b.node("LpPool", x, kernel_shape=[2] * (len(shape) - 2), p=1 + c.below(3))
    if way == 1 and len(shape) > 2:
        return b.node("GlobalLpPool", x, p=1 + c.below(3))
    if way == 2 and b.opset >= 11:
        b.node(("ArgMax", "ArgMin")[c.below(2)], x, axis=c.below(len(shape)))
        return None
    op = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceMin")[c.below(5)]
    keep = 1 if len(shape) < 3 else c.below(2)
    axis = c.below(len(shape))
    return (
        b.node(op, x, axes=[axis], keepdims=keep) if b.opset < 18 else b.node(op, x, b.constant([axis]), keepdims=keep)
    )


def border(b: Builder, c: Choices, x: str) -> str | None:
    """Pad with a number, also of channels; a Clip by attributes; a Resize that crops."""
    shape, way = b.shape(x), c.below(3)
    if max(shape) >= 9:
        return None
    pads = [c.below(2) for _ in range(2 * len(shape))]
    number = (0.0, 0.5, -1.0)[c.below(3)]
    if way == 0:
        if b.opset < 11:
            return b.node("Pad", x, pads=pads, value=number)
        return b.node("Pad", x, b.constant(pads, "pads"), b.constant(number, "border"))
    if way == 1 and b.opset < 11:
        return b.node("Clip", x, min=-0.5, max=1.0 + c.below(2))
    if way == 2 and b.opset >= 11 and len(shape) == 4:
        roi = b.constant([0.0, 0.0, -0.25, 0.0, 1.0, 1.0, 0.75, 1.0], "roi", TensorProto.FLOAT)
        scales = b.constant([1.0, 1.0, 2.0, 1.0], "scales", TensorProto.FLOAT)
        mode = "tf_crop_and_resize"
        return b.node("Resize", x, roi, scales, coordinate_transformation_mode=mode, extrapolation_value=number)
    return None


def rearranged(b: Builder, c: Choices, x: str) -> str | None:
    """Gather of one index or a table, CumSum, Trilu, CastLike."""
    shape, way = b.shape(x), c.below(4)
    axis = c.below(len(shape))
    if way == 0 and len(shape) > 2:
        return b.node("Gather", x, b.constant(np.array(c.below(shape[axis])), "index"), axis=axis)
    if way == 1 and len(shape) < 4:
        table = [[c.below(shape[axis]) for _ in range(2)] for _ in range(2)]
        return b.node("Gather", x, b.constant(table, "table"), axis=axis)
    if way == 2 and b.opset >= 11:
        return b.node("CumSum", x, b.constant(np.array(axis), "axis"))
    if way == 3 and b.opset >= 15:
        return b.node("Trilu", b.node("CastLike", x, c.values[0])) if len(shape) > 1 else None
    return None


def normalization(b: Builder, c: Choices, x: str) -> str | None:
    shape, rank = b.shape(x), len(b.shape(x))
    way = c.below(6)
    if way == 0 and rank > 2:
        return b.node("InstanceNormalization", x, b.constant(b.normal(shape[1])), b.constant(b.normal(shape[1])))
    if way == 1 and rank > 2 and b.opset >= 21 and shape[1] % 2 == 0:
        parameters = (b.constant(b.normal(shape[1])) for _ in range(2))
        return b.node("GroupNormalization", x, *parameters, num_groups=2)
    if way == 2 and b.opset >= 17:
        axis = c.below(rank)
        parameters = (b.constant(b.normal(*shape[axis:])) for _ in range(1 + c.below(2)))
        return b.node("LayerNormalization", x, *parameters, axis=axis)
    if way == 3 and b.opset >= 23:
        return b.node("RMSNormalization", x, b.constant(b.normal(shape[-1])), axis=-1)
    if way == 4:
        return b.node("LpNormalization", x, axis=c.below(rank), p=1 + c.below(2)) if c.below(3) == 0 else None
    return b.node(("Softmax", "LogSoftmax")[c.below(2)], x, axis=c.below(rank))


def recurrent(b: Builder, c: Choices, x: str) -> str | None:
    shape, size = b.shape(x), 2
    if len(shape) != 3 or b.opset < 7:
        return None
    op, gates = (("RNN", 1), ("GRU", 3), ("LSTM", 4))[c.below(3)]
    weights = (b.constant(0.5 * b.normal(1, gates * size, n)) for n in (shape[2], size))
    bias = [b.constant(b.normal(1, 2 * gates * size))] if c.below(2) else []
    made = b.node(op, x, *weights, *bias, hidden_size=size)
    return b.squeeze(made, 1) if b.shape(made)[1] == 1 else made


def einsum(b: Builder, c: Choices, x: str) -> str | None:
    shape = b.shape(x)
    if b.opset < 12 or len(shape) < 2:
        return None
    labels = "abcdef"[: len(shape)]
    at = c.below(len(shape))
    weights = b.constant(0.5 * b.normal(shape[at], 3))
    return b.node("Einsum", x, weights, equation=f"{labels},{labels[at]}z->{labels.replace(labels[at], 'z')}")


def bounded(b: Builder, c: Choices, x: str) -> str | None:
    """Functions that are finite on a part of the numbers only, behind one that stays there."""
    op = ("Sqrt", "Reciprocal", "Asin", "Atanh", "Tan", "Sinh")[c.below(6)]
    if op in ("Sqrt", "Reciprocal"):
        return b.node(op, b.node("Sigmoid", b.node("Tanh", x)))
    return b.node(op, b.node("Sin", b.node("Softsign", x))) if b.opset >= 9 else None


def rare(b: Builder, c: Choices, x: str) -> str | None:
    """Cast there and back, Compress, Upsample, ReduceMean, Shape, Size, ThresholdedRelu, Swish."""
    shape, way = b.shape(x), c.below(7)
    axis = c.below(len(shape))
    if way == 0:
        return b.node("Cast", b.node("Cast", x, to=TensorProto.FLOAT), to=TensorProto.DOUBLE)
    if way == 1 and b.opset >= 9:
        kept = np.arange(shape[axis]) % 3 != 1
        made = b.node("Compress", x, b.constant(kept), axis=axis)
        b.declare(made, *shape[:axis], int(np.count_nonzero(kept)), *shape[axis + 1 :])
        return made  # inference does not look at the condition
    if way == 2 and b.opset == 9 and max(shape) < 9:
        scales = [2.0 if axis > 1 else 1.0 for axis in range(len(shape))]
        return b.node("Upsample", x, b.constant(scales, "scales", TensorProto.FLOAT))
    if way == 3 and len(shape) > 2:
        if b.opset < 18:
            return b.node("ReduceMean", x, axes=[axis], keepdims=c.below(2))
        return b.node("ReduceMean", x, b.constant([axis]), keepdims=c.below(2))
    if way == 4:
        b.node(("Shape", "Size")[c.below(2)], x)
        return None
    if way == 5 and b.opset >= 10:
        return b.node("ThresholdedRelu", x, alpha=0.3)
    return b.node("Swish", x, alpha=1.5) if b.opset >= 24 else None


def prelu(b: Builder, c: Choices, x: str) -> str | None:
    if len(b.shape(x)) < 2:
        return None
    return b.prelu(x, b.rng.uniform(0.2, 2.0, b.shape(x)[1]) if c.below(2) else None)


def dropout(b: Builder, c: Choices, x: str) -> str | None:
    return b.dropout(x, training=False)


STEPS: list[Step] = [
    *[affine] * 12, *[conv] * 4, *[sum_of_two] * 3, *[matmul] * 2, *[pool] * 2, *[reshape] * 2, *[concat] * 2,
    unary("Relu"), unary("Relu"), unary("LeakyRelu", alpha=0.3), unary("Sigmoid"), unary("Identity"), unary("Neg"),
    constant_operand, deconv, global_pool, transpose, slice_, split, gather, repeat, blocks, prelu, dropout,
    combine, combine, special_affine, special_affine, special_affine, function, function, extreme, extreme, quotient,
    sum_with_constants, norm, border, border, rearranged, unary("LeakyRelu", alpha=0.5),
    normalization, normalization, recurrent, einsum, bounded, rare, rare,
]  # fmt: skip
OPSETS = (6, 9, 13, 17, 22, 24)
SHAPES = [(3, 4, 5, 4), (2, 4, 4, 6), (1, 3, 3, 3), (3, 4), (2, 3, 5)]


def build(c: Choices) -> tuple[Builder, tuple[str, ...]]:
    """A random graph, and the names of its outputs."""
    b = Builder(OPSETS[c.below(len(OPSETS))], seed=c.below(1000))
    x = b.input(*SHAPES[c.below(len(SHAPES))])
    c.values.append(b.absorber(x, out=b.shape(x)[1]) if c.below(4) else x)
    if c.below(3) == 0:
        other = b.input(*b.shape(x))
        c.values.append(b.absorber(other, out=b.shape(x)[1]) if c.below(4) else other)
    for _ in range(3 + c.below(10)):
        behind = c.values[-1 - c.below(len(c.values)) if c.below(3) == 0 else -1]
        made = STEPS[c.below(len(STEPS))](b, c, behind)
        if made is not None and np.prod(b.shape(made)) <= 4000:
            c.values.append(made)
    for leaf in _leaves(b):  # absorbers at the ends too, else every demand would end at a graph output
        if len(b.shape(leaf)) > 1 and leaf in c.values and c.below(4):
            b.absorber(leaf, out=2)
    also = [name for name in c.values if name not in ("x", "x2") and c.below(40) == 0]
    return b, tuple(dict.fromkeys([*_leaves(b), *also]))


def _leaves(b: Builder) -> list[str]:
    read = {name for node in b.nodes for name in node.input}
    return [name for node in b.nodes for name in node.output if name not in read]


class Numbers(Choices):
    """Choices by a generator of random numbers, without hypothesis: quick, for what is only built."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.values = []

    def below(self, n: int) -> int:
        return self.random.randrange(n)


NEVER = {
    "Celu": "knows float32 only, and these graphs are float64",
    "QuantizeLinear": "knows float32 and smaller types only",
    "DequantizeLinear": "its scale is float32 at most",
}
"""Operators with a rule of which no random graph is made, and why."""


def test_every_operator_with_a_rule_is_drawn() -> None:
    drawn = {node.op_type for number in range(3000) for node in build(Numbers(number))[0].nodes}
    assert RULES.keys() - drawn == NEVER.keys()


@settings(max_examples=EXAMPLES, derandomize=SEED is None, database=None, deadline=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.data())
def test_a_random_graph_keeps_its_meaning(data: st.DataObject) -> None:
    b, outputs = build(Choices(data.draw))
    if b.nodes:
        law(b.model(*outputs), tolerance=1e-10, rounded=1e-7)


if SEED is not None:
    sys.stderr.write(f"{EXAMPLES} graphs, BNFOLD_SEED={SEED}\n")
    test_a_random_graph_keeps_its_meaning = seed(SEED)(test_a_random_graph_keeps_its_meaning)
