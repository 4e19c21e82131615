"""Corner cases: BatchNormalization on the far side of another operator, written out, or of an old operator set."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.builder import Builder
from tests.zoo.bodies import IMAGE, SAME, C
from tests.zoo.cases import Case, conv, conv_bn, then


def bn_conv(b: Builder, kernel: int = 3, group: int = 1, **attributes: Any) -> str:
    return b.conv(b.bn(b.input(1, C, 12, 11)), 16, kernel, group=group, **attributes)


def bn_gemm(b: Builder, bias: tuple[int, ...] | None = (-1,), **attributes: Any) -> str:
    return b.gemm(b.bn(b.input(3, C)), 5, bias, **attributes)


def gemm_bn(b: Builder, bias: tuple[int, ...] | None = (-1,), out: int = 5, **attributes: Any) -> str:
    x = b.input(6, 3) if attributes.get("transA") else b.input(3, 6)
    return b.bn(b.gemm(x, out, bias, **attributes))


def two_convs(b: Builder, pads: list[int]) -> str:
    x = b.bn(b.input(1, C, 12, 11))
    b.conv(x, 16, 1)
    return b.conv(x, 16, 3, pads=pads)


def shuffle(b: Builder) -> str:
    y = b.node("Transpose", b.reshape(conv(b), 1, 2, C // 2, 12, 11), perm=[0, 2, 1, 3, 4])
    return b.bn(b.reshape(y, 1, C, 12, 11))


def full_statistics(b: Builder) -> str:
    y, shape = conv(b), (C, 12, 11)
    values = (b.normal(*shape), b.normal(*shape), b.normal(*shape), b.rng.uniform(0.5, 2, shape))
    return b.node("BatchNormalization", y, *(b.constant(value) for value in values), spatial=0)


def written_out(b: Builder) -> str:
    """BatchNormalization in primitive operators, its statistics as constants."""
    ones = (1, C, 1, 1)
    deviation = b.node("Sqrt", b.node("Add", b.constant(b.rng.uniform(0.5, 2, ones)), b.constant(1e-5)))
    centred = b.node("Sub", conv(b), b.constant(b.normal(*ones)))
    scaled = b.node("Mul", b.node("Div", centred, deviation), b.constant(b.normal(*ones)))
    return b.node("Add", scaled, b.constant(b.normal(*ones)))


def channels_last(b: Builder) -> str:
    y = b.node("Transpose", conv(b), perm=[0, 2, 3, 1])
    y = b.node("Add", b.node("Mul", y, b.constant(b.normal(C))), b.constant(b.normal(C)))
    return b.node("Transpose", b.node("Relu", y), perm=[0, 3, 1, 2])


def scale_shift(b: Builder, ops: tuple[str, str] = ("Mul", "Add"), left: bool = False, rank: int = 4) -> str:
    y = conv(b)
    for op in ops:
        constant = b.constant(b.rng.uniform(0.5, 2, (C, 1, 1) if rank == 3 else (1, C, 1, 1)))
        y = b.node(op, *((constant, y) if left else (y, constant)))
    return y


def times(b: Builder, *shape: int) -> str:
    return b.node("Mul", conv(b, b.input(1, 4, 12, C)), b.constant(b.normal(*shape)))


def pair(b: Builder, op: str, **attributes: Any) -> str:
    x = b.input(*IMAGE)
    return b.bn(b.node(op, conv(b, x), conv(b, x), **attributes))


def beside_the_input(b: Builder, op: str, **attributes: Any) -> str:
    x = b.input(1, C, 12, 11)
    return b.bn(b.node(op, conv(b, x), x, **attributes))


def taken_names(b: Builder) -> str:
    y = b.bn(b.node("Conv", b.input(*IMAGE), b.constant(b.normal(C, 4, 3, 3), "W"), **SAME))
    for name in ("W_bn", "W.folded", "W_bias"):
        y = b.node("Mul", b.node("Tanh", y), b.constant(b.normal(1, 1, 12, 11), name))
    for node in b.nodes:
        node.name = ""
    return y


CASES: dict[str, Case] = {
    "bn_conv_pad0": Case(0, bn_conv),
    "bn_conv_pad0_grouped": Case(0, partial(bn_conv, group=4)),
    "bn_conv_pad0_depthwise": Case(0, partial(bn_conv, group=C)),
    "bn_conv_1x1": Case(0, partial(bn_conv, kernel=1)),
    "bn_conv_auto_pad_valid": Case(0, partial(bn_conv, auto_pad="VALID")),
    "bn_conv_1x1_same_upper": Case(0, partial(bn_conv, kernel=1, auto_pad="SAME_UPPER")),
    "bn_conv_pad1": Case(1, partial(bn_conv, **SAME)),
    "bn_two_convs": Case(0, partial(two_convs, pads=[0] * 4)),
    "bn_two_convs_one_padded": Case(1, partial(two_convs, **SAME)),
    "bn_relu_conv": Case(1, lambda b: b.conv(b.node("Relu", b.bn(b.input(1, C, 12, 11))), 16, 1)),
    "bn_gemm_transb0": Case(0, bn_gemm),
    "bn_gemm_transb1": Case(0, partial(bn_gemm, transB=1)),
    "bn_gemm_noc_alpha": Case(0, partial(bn_gemm, bias=None, transB=1, alpha=0.5)),
    "bn_gemm_alpha_beta": Case(0, partial(bn_gemm, alpha=0.5, beta=2.0)),
    "bn_matmul_add": Case(0, lambda b: b.matmul(b.bn(b.input(3, C)), 5, bias=True)),
    "bn_reshape_gemm": Case(0, lambda b: b.gemm(b.reshape(b.bn(b.input(1, C, 4, 3)), 1, -1), 5)),
    "bn_gap_flatten_gemm": Case(
        0, lambda b: b.gemm(b.node("Flatten", b.node("GlobalAveragePool", b.bn(b.input(1, C, 4, 3)))), 5)
    ),
    "gemm_transb1_bn": Case(0, partial(gemm_bn, transB=1)),
    "gemm_transb0_bn": Case(0, gemm_bn),
    "gemm_noc_bn": Case(0, partial(gemm_bn, bias=None, transB=1)),
    "gemm_beta0_bn": Case(0, partial(gemm_bn, beta=0.0)),
    "gemm_row_c_bn": Case(0, partial(gemm_bn, bias=(1, -1))),
    "gemm_square_transb0_bn": Case(0, partial(gemm_bn, out=6)),
    "gemm_transa_bn": Case(0, partial(gemm_bn, transA=1)),
    "matmul_3d_bn_on_tokens": Case(1, lambda b: b.bn(b.matmul(b.input(2, C, 6), C))),
    "matmul_3d_transpose_bn": Case(
        0, lambda b: b.bn(b.node("Transpose", b.matmul(b.input(2, 7, 6), C), perm=[0, 2, 1]))
    ),
    "matmul_reshape_bn": Case(1, lambda b: b.bn(b.reshape(b.matmul(b.input(4, 16), 16), 1, 16, 4))),
    "concat_conv_and_input_bn": Case(1, partial(beside_the_input, op="Concat", axis=1)),
    "concat_axis2_bn": Case(0, partial(pair, op="Concat", axis=2)),
    "conv_maxpool_bn_negative": Case(1, then("MaxPool", kernel_shape=[2, 2], strides=[2, 2])),
    "conv_maxpool_bn_positive": Case(
        0, lambda b: b.bn(b.node("MaxPool", conv(b), kernel_shape=[2, 2], strides=[2, 2]), gamma=b.rng.uniform(1, 2, C))
    ),
    "conv_avgpool_bn": Case(0, then("AveragePool", kernel_shape=[2, 2], strides=[2, 2])),
    "conv_relu_bn": Case(1, then("Relu")),
    "add_conv_conv_bn": Case(0, partial(pair, op="Add")),
    "add_conv_input_bn": Case(0, partial(beside_the_input, op="Add")),
    "conv_resize_bn": Case(
        0, lambda b: b.bn(b.node("Resize", conv(b), "", b.constant([1.0, 1.0, 2.0, 2.0]), mode="nearest"))
    ),
    "conv_reshape_bn1d": Case(0, lambda b: b.bn(b.reshape(conv(b), 1, C, -1))),
    "conv_shuffle_bn": Case(0, shuffle),
    "conv_depth_to_space_bn": Case(0, then("DepthToSpace", blocksize=2)),
    "conv_mul_add": Case(0, scale_shift),
    "conv_mul_add_c11": Case(0, partial(scale_shift, rank=3)),
    "conv_mul_add_operands_swapped": Case(0, partial(scale_shift, left=True)),
    "conv_sub_div": Case(0, partial(scale_shift, ops=("Sub", "Div"))),
    "conv_mul_scalar": Case(0, lambda b: b.node("Mul", conv(b), b.constant(0.37))),
    "conv_add": Case(0, lambda b: b.node("Add", conv(b), b.constant(b.normal(1, C, 1, 1)))),
    "conv_mul_width_is_channels": Case(0, lambda b: times(b, C)),
    "conv_mul_plane": Case(0, lambda b: times(b, 1, 1, 12, C)),
    "conv_mul_rank5": Case(0, lambda b: times(b, 1, 1, C, 1, 1)),
    "conv_transpose_mul_add_nhwc": Case(0, channels_last),
    "matmul_mul_add": Case(0, lambda b: b.affine(b.affine(b.matmul(b.input(3, 6), C), "s"), "t")),
    "conv_decomposed_bn_full": Case(0, written_out),
    "opset1": Case(0, conv_bn, 1, 3),
    "opset6_training": Case(1, partial(conv_bn, is_test=0), 6, 3),
    "opset7": Case(0, conv_bn, 7),
    "opset7_spatial0": Case(1, full_statistics, 7),
    "opset8": Case(0, conv_bn, 8),
    "opset9": Case(0, conv_bn, 9),
    "opset15": Case(0, conv_bn, 15),
    "opset22": Case(0, conv_bn, 22, 10),
    "unnamed_nodes_name_collision": Case(0, taken_names),
}
