"""The bugs: each is one change of one function, with a small model that it folds wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.builder import Builder
from tests.seeded import CONDITION, CONSTANT, READING, ROUNDING, WIRING, Bug

POSITIVE = [0.5, 1.5, 2.0, 3.0]
SIGNED = [0.5, -1.5, 2.0, -3.0]
SHIFT = [1.0, 0.5, -2.0, 3.0]
IMAGE = (2, 4, 7, 6)


def conv_bn(b: Builder, **how: Any) -> None:
    """The fold that everyone makes."""
    b.bn(b.conv(b.input(2, 3, 7, 6), 4, 3), **how)


def behind_relu(b: Builder, x: str = "") -> str:
    """A BN whose shift can only go forward."""
    return b.bn(b.node("Relu", x or b.input(*IMAGE)), gamma=POSITIVE, beta=SHIFT)


def image(b: Builder, channels: int = 4, *sizes: int) -> str:
    return b.input(2, channels, *(sizes or (7, 6)))


def repvgg(b: Builder, group: int = 1) -> None:
    """3x3, 1x1 and the input itself, each with its BatchNormalization."""
    x = image(b)
    branches = b.bn(b.conv(x, 4, 3, group=group, pads=[1, 1, 1, 1])), b.bn(b.conv(x, 4, 1, group=group)), b.bn(x)
    b.node("Sum", *branches)


def concat(b: Builder) -> None:
    parts = [b.conv(b.input(2, 3, 7, 6), 2, 1), b.conv(b.input(2, 3, 7, 6, name="z"), 2, 1)]
    b.bn(b.node("Concat", *parts, axis=1))


def two_readers(b: Builder) -> None:
    y = b.bn(b.node("Relu", b.conv(b.input(2, 3, 7, 6), 4, 1)), gamma=POSITIVE, beta=SHIFT)
    b.conv(y, 3, 1), b.conv(y, 2, 3)


def gemm_c(b: Builder, **how: Any) -> None:
    b.bn(b.gemm(b.input(3, 6), 4, **how), gamma=SIGNED)


def rows_of_columns(b: Builder) -> None:
    """Rows and columns alike have weights that take up a scale."""
    x = b.node("MatMul", b.constant(b.normal(4, 3)), b.matmul(b.input(2, 3, 4), 4))
    b.per_channel("Mul", b.node("Transpose", x, perm=[2, 0, 1]), SIGNED, 0)


def resized(b: Builder) -> None:
    x = b.per_channel("Add", b.node("Relu", b.input(2, 4, 5, 6)), 0.75)
    how: dict[str, Any] = {
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 0.5,
        "mode": "linear",
    }
    roi = b.constant(np.array([0, 0, -0.2, -0.2, 1, 1, 1.2, 1.2]), "roi")
    b.conv(b.node("Resize", x, roi, "", b.constant([2, 4, 7, 8], "sizes"), **how), 3, 1)


def clipped(b: Builder, *bounds: float) -> None:
    x = b.conv(b.input(2, 3, 7, 6), 4, 1)
    b.per_channel("Mul", b.node("Clip", x, *map(b.constant, bounds)), 0.5)


def relu_scale(b: Builder, gamma: Sequence[float], shift: bool) -> None:
    x = b.node("Relu", b.conv(b.input(2, 3, 7, 6), 4, 1))
    x = b.per_channel("Mul", x, gamma)
    if shift:
        b.per_channel("Add", x, SHIFT)


def captured(b: Builder) -> tuple[str, str]:
    x = b.conv(b.input(2, 3, 7, 6), 4, 1)
    y = b.per_channel("Add", x, np.zeros(4))
    z = b.per_channel("Add", y, np.zeros(4))
    flag = b.constant(np.array(True), "flag")
    bodies = {}
    for branch, op in (("then_branch", "Abs"), ("else_branch", "Neg")):
        out = helper.make_tensor_value_info(f"{op}.out", TensorProto.FLOAT, list(IMAGE))
        bodies[branch] = helper.make_graph([helper.make_node(op, [y], [out.name])], branch, [], [out])
    made = b.node("If", flag, **bodies)
    b.declare(made, *IMAGE)
    return made, b.conv(z, 2, 1)


def shared_weight(b: Builder) -> None:
    x, weight = b.input(2, 3, 7, 6), b.constant(b.normal(4, 3, 3, 3), "weight")
    b.bn(b.node("Conv", x, weight)), b.node("Relu", b.node("Conv", x, weight, name="other"))


def turned_weight(b: Builder) -> None:
    x = b.input(2, 3, 7, 6)
    b.bn(b.node("Conv", x, b.node("Transpose", b.constant(b.normal(3, 4, 3, 3)), perm=[1, 0, 2, 3])))


def output_inside(b: Builder) -> tuple[str, str]:
    x = b.conv(b.input(2, 3, 7, 6), 4, 1)
    return x, b.node("Relu", b.bn(x))


def lstm(b: Builder) -> None:
    x = b.per_channel("Add", b.per_channel("Mul", b.input(5, 2, 4), POSITIVE, 2), SHIFT, 2)
    weights = b.normal(1, 12, 4) / 4, b.normal(1, 12, 3) / 4, b.normal(1, 24)
    b.node("LSTM", x, *map(b.constant, weights), outputs=["y"], hidden_size=3)
    b.declare("y", 5, 1, 2, 3)


def from_the_left(b: Builder) -> str:
    """Two constant matrices times one tensor, the first with a bias."""
    x = b.input(3, 5, 5)
    one, other = (b.node("MatMul", b.constant(b.normal(5, 5)), x) for _ in range(2))
    return b.node("Add", b.node("Add", one, b.constant(b.normal(5, 1))), other)


def large_mean(b: Builder) -> None:
    """The BN subtracts what the Mul made large."""
    b.bn(b.per_channel("Mul", b.input(*IMAGE), 1e5), mean=314159.0, variance=1.7e10, beta=SHIFT, gamma=POSITIVE)


BUGS = (
    # ------------------------------------------------------------------------------------------- what a BN is
    Bug("epsilon left out", CONSTANT, "bnfold.rules.scaling:_batchnorm_source",
        'node.get_float("epsilon", float(np.float32(1e-5)))', "0.0",
        lambda b: conv_bn(b, variance=0.01)),
    Bug("the default epsilon as a double, not as the float32 that ONNX stores", CONSTANT,
        "bnfold.rules.scaling:_batchnorm_source", "float(np.float32(1e-5))", "1e-5",
        lambda b: conv_bn(b, variance=1e-6), "01",
        "off by 1e-8: a tenth of float32's own rounding"),
    Bug("the mean with the wrong sign", CONSTANT, "bnfold.rules.scaling:_batchnorm_source",
        "bias - scale * mean", "bias + scale * mean", conv_bn),
    Bug("the mean not scaled", CONSTANT, "bnfold.rules.scaling:_batchnorm_source",
        "bias - scale * mean", "bias - mean", conv_bn),
    Bug("1e-6 put in place of a gamma of zero", CONSTANT, "bnfold.rules.scaling:_batchnorm_source",
        "scale = gamma / np.sqrt(total)", "scale = np.where(gamma == 0, 1e-6, gamma) / np.sqrt(total)",
        lambda b: b.bn(b.conv(b.input(2, 3, 7, 6), 4, 3), gamma=[1.0, 0.0, 2.0, -1.0]),
        "01", "a millionth of a channel: what float32 rounds away"),
    Bug("batch statistics taken for constants", CONDITION, "bnfold.rules.scaling:_batchnorm_source",
        'node.get_int("training_mode", 0)', "False",
        lambda b: b.bn(b.conv(b.input(2, 3, 7, 6), 4, 3), training_mode=1),
        "012", "ONNX Runtime loads no such node that has one output only"),
    Bug("a divisor taken for a factor", CONSTANT, "bnfold.rules.scaling:_operand_source",
        '"Div": Affine(inverse, zero)', '"Div": Affine(value, zero)',
        lambda b: b.per_channel("Div", b.conv(b.input(2, 3, 7, 6), 4, 3), POSITIVE)),
    Bug("c - x taken for x - c", CONSTANT, "bnfold.rules.scaling:_operand_source",
        "Affine(one, -value) if slot == 0 else Affine(-one, value)", "Affine(one, -value)",
        lambda b: b.per_channel("Sub", b.conv(b.input(2, 3, 7, 6), 4, 3), SHIFT, left=True)),
    Bug("a BN that absorbs keeps the mean of what it no longer reads", ROUNDING, "bnfold.rules.scaling:batchnorm",
        "moves = (alpha != 0) &", "moves = (alpha == np.inf) &", large_mean, "1234",
        "every constant is right; a large number is subtracted from another, which only rounding shows"),
    # ------------------------------------------------------------------------------------------- convolutions
    Bug("scale on the wrong axis of square weights", CONSTANT, "bnfold.rules.convolution:conv",
        "a.reshape(-1, 1, *tail)", "a.reshape(1, -1, *tail)",
        lambda b: b.bn(b.conv(b.input(*IMAGE), 4, 3), gamma=SIGNED)),
    Bug("a shift pushed into a padded convolution", CONDITION, "bnfold.rules.convolution:conv",
        "(beta != 0).any() and _touches_padding(view, shape[2:])", "False",
        lambda b: b.conv(behind_relu(b), 3, 3, pads=[1, 1, 1, 1])),
    Bug("a border that is touched by one column only, taken for none", CONDITION,
        "bnfold.windows:Axis.touches_padding", "self.reach - self.begin >= size", "self.reach - self.begin > size",
        lambda b: b.conv(behind_relu(b), 3, 3, pads=[0, 0, 0, 1])),
    Bug("groups of input channels in the order of another framework", CONSTANT,
        "bnfold.rules.convolution:_group_rows", "np.repeat(parts, rows // group, axis=0)",
        "np.tile(parts, (rows // group, 1))", lambda b: b.conv(behind_relu(b), 6, 3, group=2)),
    Bug("bias of a ConvTranspose in the wrong order of groups", CONSTANT, "bnfold.rules.convolution:conv_transpose",
        ".transpose(0, 2, 1)).reshape(-1)", ".transpose(0, 2, 1)).T.reshape(-1)",
        lambda b: b.conv_transpose(behind_relu(b), 6, 1, group=2)),
    Bug("a shift pushed into a ConvTranspose that leaves gaps", CONDITION, "bnfold.rules.convolution:_pointwise",
        "all(stride == 1 for stride", "all(stride for stride",
        lambda b: b.conv_transpose(behind_relu(b), 3, 1, strides=[2, 2])),
    Bug("the old bias added without the new scale", CONSTANT, "bnfold.rules.convolution:bias_edit",
        "(a,) if old else ()", "()", conv_bn),
    # ------------------------------------------------------------------------------------------ Gemm, MatMul
    Bug("transB of a Gemm ignored, square weights", CONSTANT, "bnfold.rules.dense:gemm",
        '[:: -1 if node.get_int("transB", 0) else 1]', "[::1]",
        lambda b: b.bn(b.gemm(b.input(3, 4), 4, transB=1), gamma=SIGNED)),
    Bug("alpha of a Gemm ignored", CONSTANT, "bnfold.rules.dense:gemm", 'node.get_float("alpha", 1.0)', "1.0",
        lambda b: b.gemm(b.bn(b.node("Relu", b.input(3, 4)), gamma=POSITIVE, beta=SHIFT), 5, alpha=0.5)),
    Bug("beta of a Gemm ignored", CONSTANT, "bnfold.rules.dense:_new_addend", "q if used else 1.0", "1.0",
        lambda b: gemm_c(b, beta=0.5)),
    Bug("beta = 0 of a Gemm left at a C that is now needed", CONSTANT, "bnfold.rules.dense:_new_addend",
        "if not used and q != 1.0", "if False", lambda b: gemm_c(b, beta=0.0)),
    Bug("rows and columns of a square MatMul exchanged", CONSTANT, "bnfold.rules.dense:_matmul_labels",
        '("k", "n") if', '("n", "k") if',
        lambda b: b.per_channel("Mul", b.matmul(b.input(2, 3, 4), 4), SIGNED, 2)),
    Bug("the shift that a LSTM takes put into both of its biases", CONSTANT, "bnfold.rules.recurrent:recurrent",
        "np.zeros_like(own)", "own", lstm),
    # ------------------------------------------------------------------------------------------ what passes
    Bug("a shift through ReLU", CONDITION, "bnfold.rules.activation:homogeneous",
        "refuse_shift(view, storage, ~lost & (storage.off != 0))", "pass",
        lambda b: relu_scale(b, POSITIVE, shift=True)),
    Bug("a negative scale through ReLU", CONDITION, "bnfold.rules.activation:relu",
        "refuse_signs(view, storage)", "pass", lambda b: relu_scale(b, SIGNED, shift=False)),
    Bug("a negative scale through MaxPool", CONDITION, "bnfold.rules.pooling:max_pool",
        "refuse_signs(view, storage)", "pass",
        lambda b: b.bn(b.node("MaxPool", b.conv(b.input(2, 3, 7, 6), 4, 1), kernel_shape=[2, 2]), gamma=SIGNED)),
    Bug("count_include_pad of an AveragePool ignored", CONDITION, "bnfold.rules.pooling:average_counts_padding",
        "return counted and (padded or", "return False and (padded or",
        lambda b: b.bn(b.node("AveragePool", b.conv(b.input(2, 3, 7, 6), 4, 1), kernel_shape=[3, 3],
                              pads=[1, 1, 1, 1], count_include_pad=1))),
    Bug("the new slope of a PRelu", CONSTANT, "bnfold.rules.activation:prelu", "** -2.0", "** -1.0",
        lambda b: b.bn(b.prelu(b.conv(b.input(2, 3, 7, 6), 4, 1), POSITIVE), gamma=SIGNED, beta=0.0, mean=0.0)),
    Bug("bounds of a Clip that stay", CONSTANT, "bnfold.rules.extremes:clip", "(a, b) == (1.0, 0.0)", "True",
        lambda b: clipped(b, -1.0, 2.0)),
    Bug("bounds of a Clip that stay, where no input of the proof reaches them", CONSTANT,
        "bnfold.rules.extremes:clip", "(a, b) == (1.0, 0.0)", "True",
        lambda b: clipped(b, -1e4, 1e4),
        "0", "whole models on a few inputs show only what these inputs reach"),
    Bug("the shift of a constant of a Max left out, where no input of the proof reaches it", CONSTANT,
        "bnfold.rules.base:restored_constant", "lambda: b", "lambda: 0 * b",
        lambda b: b.bn(b.node("Max", b.conv(b.input(2, 3, 7, 6), 4, 1), b.constant([-1e4])), gamma=POSITIVE),
        "0", "as above"),
    Bug("epsilon of an InstanceNormalization that stays", CONSTANT, "bnfold.rules.normalization:_epsilon",
        "old / float(sizes.flat[0]) ** 2", "old",
        lambda b: b.node("InstanceNormalization", b.per_channel("Mul", b.input(*IMAGE), 0.01),
                         b.constant(b.normal(4)), b.constant(b.normal(4)))),
    Bug("the count of a ReduceSum left out", CONSTANT, "bnfold.rules.reduction:_added",
        "storage.off * count", "storage.off",
        lambda b: b.conv(b.node("ReduceSum", behind_relu(b), b.constant([2, 3])), 3, 1)),
    Bug("what a Sub subtracts taken for what it adds", CONSTANT, "bnfold.rules.sums:_weights",
        '-1.0 if node.op == "Sub" and slot == 1 else 1.0', "1.0",
        lambda b: b.conv(b.node("Sub", b.input(*IMAGE, name="z"),
                                b.per_channel("Add", b.node("Relu", b.input(*IMAGE)), SHIFT)), 3, 1)),
    Bug("parts of a Concat in reverse order", CONSTANT, "bnfold.rules.movement:concat",
        "ends = np.cumsum(sizes)", "ends = np.cumsum(sizes)[::-1]", concat),
    Bug("Flatten repeats every channel in the wrong order", CONSTANT, "bnfold.rules.movement:_reshaped",
        "np.broadcast_to(array, full).reshape(sizes)", 'np.broadcast_to(array, full).reshape(sizes, order="F")',
        lambda b: b.gemm(b.node("Flatten", behind_relu(b)), 5)),
    Bug("a permutation in place of its inverse", CONSTANT, "bnfold.rules.movement:_perm",
        'view.node.get_ints("perm") or', 'np.argsort(view.node.get_ints("perm") or [0]).tolist() or',
        rows_of_columns),
    Bug("the constant beside a cropping Resize that stays", CONSTANT, "bnfold.rules.border:resize",
        "new = one_border(view, storage, border)", "new = border", resized),
    # ------------------------------------------------------------------------------------------------- merges
    Bug("a branch laid into the corner of the kernel", CONSTANT, "bnfold.merges.terms:_laid",
        "first := (new.begin - own.begin) // new.dilation", "first := 0", repvgg),
    Bug("a branch of more groups laid into the first one", CONSTANT, "bnfold.merges.terms:_widened",
        "own % each", "0 * own", partial(repvgg, group=2)),
    Bug("the sign of a branch that is taken off, lost", CONSTANT, "bnfold.merges.evaluation:Evaluation._added",
        "other if sign > 0 else _times(other, -1.0)", "other",
        lambda b: b.node("Sub", x := image(b), b.conv(x, 4, 1))),
    Bug("the bias of all branches but one, lost", CONSTANT, "bnfold.merges.terms:added",
        "(one, other) if term.bias is not None]", "(one, other) if term.bias is not None][:1]", repvgg),
    Bug("a BatchNormalization among the branches without its shift", CONSTANT, "bnfold.merges.terms:_as_kernel",
        "bias = (lambda: shift) if np.any(shift) else None", "bias = None", repvgg),
    Bug("a shift in front of a padded branch", CONDITION, "bnfold.merges.terms:_behind_scale",
        "np.any(shift) and _pads(outer, sizes)", "False",
        lambda b: b.node("Add", b.conv(b.bn(x := b.node("Relu", image(b)), beta=SHIFT), 4, 3, pads=[1] * 4), x)),
    Bug("padding behind a shift, in a chain", CONDITION, "bnfold.merges.terms:chained",
        "inner.bias is not None and _pads(outer, inner_sizes(inner, sizes))", "False",
        lambda b: b.conv(b.conv(image(b), 8, 1), 3, 3, pads=[1] * 4)),
    Bug("padding behind a window, in a chain", CONDITION, "bnfold.merges.terms:_through",
        "outer.touches_padding(middle) and inner.taps > 1", "False",
        lambda b: b.conv(b.conv(image(b, 2), 16, 3, bias=False), 2, 3, pads=[1] * 4)),
    Bug("a stride in a chain that the padding behind does not feel", CONSTANT, "bnfold.merges.terms:joined_axis",
        "begin = outer.begin * inner.stride + inner.begin", "begin = outer.begin + inner.begin",
        lambda b: b.conv(b.conv(image(b, 2, 9, 9), 8, 1, bias=False, strides=[2, 2]), 2, 2, pads=[1] * 4)),
    Bug("an average of zeros around the tensor, put in front of a convolution", CONDITION,
        "bnfold.merges.swapping:_windows", "axis is not None and axis.begin == axis.end == 0", "axis is not None",
        lambda b: b.bn(b.node("AveragePool", b.conv(image(b, 8, 9, 9), 8, 1), kernel_shape=[3, 3], strides=[2, 2],
                              pads=[1] * 4, count_include_pad=1))),
    Bug("a branch that is read elsewhere, merged", WIRING, "bnfold.merges.search:members_of",
        "any(reader not in members for reader, _ in readers)", "False",
        lambda b: (b.node("Tanh", y := b.conv(x := image(b), 4, 1)), b.node("Add", y, x)), "0134",
        "a model that cannot be evaluated is left to the runtime"),
    Bug("branches of different strides, merged", CONDITION, "bnfold.merges.terms:_around",
        "one.stride != other.stride", "False",
        lambda b: b.node("Add", b.conv(x := image(b, 4, 5, 5), 4, 1, strides=[2, 2]), b.conv(x, 4, 3))),
    Bug("a branch that is taken off, added once sums are regrouped", WIRING, "bnfold.merges.trees:_Regrouping._group",
        '"Add" if own == sign else "Sub"', '"Add"',
        lambda b: b.node("Sub", b.node("Add", b.conv(x := image(b), 4, 3, pads=[1] * 4), b.node("Tanh", x)), x)),
    Bug("scales that become one BatchNormalization, without its mean", CONSTANT, "bnfold.merges.edits:scale_edits",
        "shift + scale * mean", "shift", lambda b: b.node("Sigmoid", b.node("Add", b.bn(x := image(b)), x))),
    Bug("a bias from the left along the wrong axis", CONSTANT, "bnfold.merges.edits:product_edits",
        "kernel.bias().reshape(-1, 1)", "kernel.bias()", from_the_left),
    Bug("convolutions side by side in another order", CONSTANT, "bnfold.merges.terms:stacked",
        "np.concatenate(parts) if parts", "np.concatenate(parts[::-1]) if parts",
        lambda b: b.node("Concat", b.conv(x := image(b), 4, 1), b.conv(x, 4, 1), axis=1)),
    # ---------------------------------------------------------------------------------------- the whole graph
    Bug("a second reader that is not told", WIRING, "bnfold.solver.state:State.neighbours",
        "self.graph.consumers.get(name, [])", "self.graph.consumers.get(name, [])[:1]", two_readers),
    Bug("an output of the graph stored otherwise", CONDITION, "bnfold.solver.state:pinned",
        "name in graph.output_set", "False", output_inside),
    Bug("a shared weight changed for its other reader too", WIRING, "bnfold.patch:_Editor._edit",
        "node.input[edit.slot] = self._new_constant(graph, index, edit)",
        "new = self._new_constant(graph, index, edit)\n"
        "            for other in self.graphs[graph.path].node:\n"
        "                other.input[:] = [new if old and n == old else n for n in other.input]\n"
        "            node.input[edit.slot] = new", shared_weight),
    Bug("a stale name in a body", WIRING, "bnfold.patch:rename_within", "stack.append((body, inner))", "pass",
        captured, "0134",
        "a model that cannot be evaluated is left to the runtime"),
    Bug("a reader that keeps the name of a tensor that is gone", WIRING, "bnfold.patch:rename_within",
        "node.input[i] = current[name]", "pass", captured, "0134",
        "a model that cannot be evaluated is left to the runtime"),
    # ------------------------------------------------------------------------------- rounding, and reading
    Bug("new constants rounded towards zero", ROUNDING, "bnfold.write:rounded",
        "return values.astype(dtype)",
        "return np.where(np.abs(values.astype(dtype)) > np.abs(values), "
        "np.nextafter(values.astype(dtype), dtype.type(0)), values.astype(dtype))",
        conv_bn, "0",
        "one unit in the last place is within the noise, and the algebra reads constants before they are rounded"),
    Bug("a constant that the graph computes, read wrong by all of bnfold", READING, "bnfold.constants:_transpose",
        "np.transpose(call.value(0), perm)", "np.transpose(call.value(0), perm)[::-1]",
        turned_weight,
        "1234", "it reads constants with the same code as the fold, which the others do not"),
)  # fmt: skip
