"""For every reason code a small model in which it is the reason, and that model with what `unlock` says done to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper

from bnfold.folding import Folder, Wishes
from bnfold.graph import Model
from bnfold.reasons import Reason
from bnfold.source import read
from tests.builder import Builder
from tests.text import build

SHAPE = (3, 4, 5, 6)
SCALE = [0.5, 1.5, 2.0, 3.0]
SIGNED = [0.5, -1.5, 2.0, 3.0]
SHIFT = [1.0, 0.5, -2.0, 3.0]
PADS = [1, 1, 1, 1]

Make = Callable[[bool], onnx.ModelProto]


@dataclass(frozen=True, eq=False)
class Example:
    """`make(False)` is the model that the drawing shows, `make(True)` the unlocked one."""

    code: str
    drawing: str
    node: str
    """The affine that stays."""
    make: Make
    unlocked: str
    """What was done to the drawing; '' where nothing unlocks."""
    keep: tuple[str, ...] = ()
    unlocked_keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    """Nodes whose fold counts as one that failed verification."""


@dataclass(frozen=True)
class Told:
    """What is said of one affine."""

    op: str
    folded: bool
    reasons: tuple[Reason, ...]


@cache
def told(example: Example, unlocked: bool = False) -> dict[str, Told]:
    """What bnfold says of every affine of an example, by name."""
    folder = Folder(Model(read(example.make(unlocked))))
    keep = example.unlocked_keep if unlocked else example.keep
    found = folder.solve(Wishes(keep, drop=dict.fromkeys(example.drop, False)))
    outcomes = {o.node.label: Told(o.node.op, o.folded, o.reasons) for o in found.outcomes}
    return outcomes | {label: Told(op, False, (reason,)) for label, op, reason in folder.hidden()}


EXAMPLES: list[Example] = []


def example(code: str, drawing: str, node: str, unlocked: str, **options: tuple[str, ...]) -> Callable[[Make], Make]:
    """Note a builder as an example; `options` are those of :class:`Example`."""

    def add(make: Make) -> Make:
        EXAMPLES.append(Example(code, drawing, node, make, unlocked, **options))
        return make

    return add


def relu(b: Builder, x: str) -> str:
    return b.node("Relu", x)


@example("training-mode", "x -> Conv -> BatchNormalization(training_mode=1)", "bn", "training_mode=0")
def training_mode(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.bn(b.conv(b.input(*SHAPE), 4, 1), training_mode=int(not unlocked))
    return b.model("bn")


@example("dynamic-parameters", "x -> Conv -> BatchNormalization(scale: an input)", "bn", "the scale is a constant")
def dynamic_parameters(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    scale = b.constant(SCALE) if unlocked else b.input(4, name="scale")
    rest = [b.constant(SCALE) for _ in range(3)]
    b.node("BatchNormalization", b.conv(b.input(*SHAPE), 4, 1), scale, *rest, name="bn")
    return b.model()


@example(
    "overridable-parameter", "x -> Conv -> BatchNormalization(scale: an input with a default)", "bn",
    "the scale is no input any more",
)  # fmt: skip
def overridable_parameter(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.bn(b.conv(b.input(*SHAPE), 4, 1))
    if not unlocked:
        b.inputs.append(helper.make_tensor_value_info("bn.gamma", TensorProto.DOUBLE, [4]))
    return b.model()


@example("invalid-statistics", "x -> Conv -> BatchNormalization(a variance of -1)", "bn", "all variances are 1")
def invalid_statistics(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.bn(b.conv(b.input(*SHAPE), 4, 1), variance=[1.0, 1.0 if unlocked else -1.0, 1.0, 1.0])
    return b.model()


@example("unsupported-form", "x -> Conv -> BatchNormalization(spatial=0)", "bn", "spatial=1")
def unsupported_form(unlocked: bool) -> onnx.ModelProto:
    b = Builder(7)
    b.bn(b.conv(b.input(*SHAPE), 4, 1), spatial=int(unlocked))
    return b.model()


@example(
    "unknown-shape", "x -> Conv -> Reshape(to a computed shape of unknown rank) -> Mul", "mul", "Reshape(to [3, 4, 30])"
)
def unknown_shape(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.input(*SHAPE), 4, 1)
    shape = b.constant([3, 4, 30]) if unlocked else b.input("rank", name="shape", type_=TensorProto.INT64)
    b.node("Mul", b.node("Reshape", y, shape), b.constant([2.0]), name="mul")
    return b.model()


@example(
    "changes-shape",
    "x[1, 4, 5, 6] -> Conv -> Mul([3, 4, 1, 1])",
    "mul",
    "an Expand in front of the Mul",
)
def changes_shape(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.input(1, 4, 5, 6), 4, 1)
    if unlocked:
        y = b.node("Expand", y, b.constant([3, 4, 5, 6]))
    b.node("Mul", y, b.constant(np.tile(np.reshape(SCALE, (1, 4, 1, 1)), (3, 1, 1, 1))), name="mul")
    return b.model()


@example("graph-input", "x -> BatchNormalization -> y", "bn", "a Conv between x and the BatchNormalization")
def graph_input(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input(*SHAPE)
    b.bn(b.conv(x, 4, 1) if unlocked else x)
    return b.model()


@example("graph-output", "x -> Conv -> v -> BatchNormalization -> y, with v an output too", "bn", "v is no output")
def graph_output(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    v = b.conv(b.input(*SHAPE), 4, 1)
    b.bn(v)
    return b.model(*([] if unlocked else [v]), "bn")


@example(
    "captured", "x -> Conv -> v -> BatchNormalization -> y, with v read by a branch of an If", "bn",
    "the branch reads another Conv of x",
)  # fmt: skip
def captured(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input(*SHAPE)
    v = b.conv(x, 4, 1)
    read_inside = b.conv(x, 4, 1) if unlocked else v
    b.bn(v)
    output = [helper.make_tensor_value_info("z", TensorProto.DOUBLE, SHAPE)]
    branches = [
        helper.make_graph([helper.make_node(op, [read_inside], ["z"])], op, [], output) for op in ("Tanh", "Identity")
    ]
    condition = b.input(name="condition", type_=TensorProto.BOOL)
    b.node("If", condition, then_branch=branches[0], else_branch=branches[1])
    return b.model("bn", "if")


@example("annotated", "x -> Conv -> v -> BatchNormalization, with an annotation of v", "bn", "no annotation yet")
def annotated(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    v = b.conv(b.input(*SHAPE), 4, 1)
    b.bn(v)
    model = b.model()
    if not unlocked:
        model.graph.quantization_annotation.add(tensor_name=v)
    return model


@example("opaque-op", "x -> Elu -> Mul -> Elu -> Conv", "mul", "a LeakyRelu in place of the second Elu")
def opaque_op(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.per_channel("Mul", b.node("Elu", b.input(*SHAPE)), SCALE)
    b.conv(b.node("LeakyRelu" if unlocked else "Elu", y), 2, 1)
    return b.model()


@example("dynamic-weight", "x -> Conv(weights: an input) -> BatchNormalization", "bn", "the weights are a constant")
def dynamic_weight(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    weight = b.constant(b.normal(4, 4, 1, 1)) if unlocked else b.input(4, 4, 1, 1, name="weight")
    b.bn(b.node("Conv", b.input(*SHAPE), weight))
    return b.model()


@example(
    "overridable-weight", "x -> Conv(weights: an input with a default) -> BatchNormalization", "bn",
    "the weights are no input any more",
)  # fmt: skip
def overridable_weight(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.bn(b.conv(b.input(*SHAPE), 4, 1))
    if not unlocked:
        b.inputs.append(helper.make_tensor_value_info("conv.weight", TensorProto.DOUBLE, [4, 4, 1, 1]))
    return b.model()


@example("padded-shift", "x -> Relu -> BatchNormalization -> Conv(3x3, padded)", "bn", "Conv(3x3), not padded")
def padded_shift(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.conv(b.bn(relu(b, b.input(*SHAPE)), gamma=SCALE), 2, 3, pads=[0] * 4 if unlocked else PADS)
    return b.model()


@example("negative-scale", "x -> Relu -> Mul(one negative) -> Relu -> Conv", "mul", "all scales positive")
def negative_scale(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.per_channel("Mul", relu(b, b.input(*SHAPE)), SCALE if unlocked else SIGNED)
    b.conv(relu(b, y), 2, 1)
    return b.model()


@example("shift-through-nonlinear", "x -> Relu -> Add -> Relu -> Conv", "add", "Add(zeros)")
def shift_through_nonlinear(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.per_channel("Add", relu(b, b.input(*SHAPE)), [0.0] * 4 if unlocked else SHIFT)
    b.conv(relu(b, y), 2, 1)
    return b.model()


@example("not-uniform", "x -> Mul(by column) -> GlobalAveragePool -> Conv", "mul", "Mul(by channel)")
def not_uniform(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input(3, 4, 5, 4)
    y = b.per_channel("Mul", x, SCALE, axis=1 if unlocked else 3)
    b.conv(b.node("GlobalAveragePool", y), 2, 1)
    return b.model()


@example(
    "lacks-axis", "Add(x -> Conv to 4 channels, x -> Conv to 1 channel) -> Mul(by channel)", "mul",
    "Mul(one number for all channels)",
)  # fmt: skip
def lacks_axis(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input(*SHAPE)
    b.per_channel("Mul", b.node("Add", b.conv(x, 4, 1), b.conv(x, 1, 1)), 2.0 if unlocked else SCALE)
    return b.model()


@example("zero-scale", "x -> Conv -> {Mul(one zero), Conv}", "mul", "Mul(no zero)")
def zero_scale(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.per_channel("Mul", y, [0.5, 1.0 if unlocked else 0.0, 2.0, 3.0]), b.conv(y, 2, 1)
    return b.model()


@example("conflict", "x -> Conv -> y; Concat(y, y) -> Mul", "mul", "Concat(x -> Conv, x -> Conv) -> Mul")
def conflict(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input(*SHAPE)
    y = b.conv(x, 4, 1)
    b.per_channel("Mul", b.node("Concat", y, b.conv(x, 4, 1) if unlocked else y, axis=1), [*SCALE, *SIGNED])
    return b.model()


@example(
    "opaque-op", "x -> Conv -> {Mul -> Tanh, Mul -> Tanh}", "mul2", "the same with --keep mul", unlocked_keep=("mul",)
)  # fmt: skip
def rivals(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.input(*SHAPE), 4, 1)
    for scale in (SCALE, [2.0, 0.7, 1.2, 0.4]):
        b.node("Tanh", b.per_channel("Mul", y, scale))
    return b.model()


@example("shift-refused", "x -> Einsum(mk,kn->mn, by a constant) -> Add", "add", "a Gemm in place of the Einsum")
def shift_refused(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x, weight = b.input(3, 5), b.constant(b.normal(5, 4))
    y = b.node("Gemm", x, weight) if unlocked else b.node("Einsum", x, weight, equation="mk,kn->mn")
    b.per_channel("Add", y, SHIFT)
    return b.model()


@example("would-only-move", "x -> Add -> MatMul", "add", "x -> Add -> MatMul -> Add")
def would_only_move(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.matmul(b.per_channel("Add", b.input(3, 4), SHIFT), 5, bias=unlocked)
    return b.model()


@example("quantized", "x -> Conv -> QuantizeLinear -> DequantizeLinear -> Mul -> y", "mul", "not quantized yet")
def quantized(unlocked: bool) -> onnx.ModelProto:
    b = Builder(type_=TensorProto.FLOAT)
    y, scale = b.conv(b.input(*SHAPE), 4, 1), b.constant(0.1)
    if not unlocked:
        y = b.node("DequantizeLinear", b.node("QuantizeLinear", y, scale), scale)
    b.per_channel("Mul", y, SCALE)
    return b.model()


@example("row-axis", "x -> Conv -> Mul(by column)", "mul", "Mul(by channel)")
def row_axis(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.per_channel("Mul", b.conv(b.input(3, 4, 5, 4), 4, 1), SCALE, axis=1 if unlocked else 3)
    return b.model()


@example("out-of-range", "x -> Conv(weights around 200) -> Mul(by 1000), in float16", "mul", "the model in float32")
def out_of_range(unlocked: bool) -> onnx.ModelProto:
    b = Builder(type_=TensorProto.FLOAT if unlocked else TensorProto.FLOAT16)
    b.per_channel("Mul", b.conv(b.input(*SHAPE), 4, 1, scale=200), [1000.0] * 4)
    return b.model()


@example("part-of-operator", "x -> Conv -> GELU written out -> Mul", "scale", "with 0.6 in place of the GELU's 0.5")
def part_of_operator(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.conv(b.input(*SHAPE), 4, 1)
    erf = b.node("Erf", b.node("Div", x, b.constant(2.0**0.5)))
    product = b.node("Mul", x, b.node("Add", erf, b.constant(1.0)))
    half = b.node("Mul", product, b.constant(0.6 if unlocked else 0.5))
    b.per_channel("Mul", half, SCALE, name="scale")
    return b.model()


@example("precision-loss", "x -> Conv -> {BatchNormalization(gammas of 1e-14) -> Tanh, Conv}", "bn", "gammas of 1")
def precision_loss(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.input(*SHAPE), 4, 1)
    b.node("Tanh", b.bn(y, gamma=1.0 if unlocked else 1e-14, beta=1.0)), b.conv(y, 2, 1)
    return b.model()


@example(
    "inside-function", "x -> Conv -> call of a function { BatchNormalization }, of opset 13 in a model of opset 18",
    "call/o", "x -> Conv -> BatchNormalization",
)  # fmt: skip
def inside_function(unlocked: bool) -> onnx.ModelProto:
    if unlocked:
        return build('a = Conv(x, w) ["call/o"] y = BatchNormalization(a, s, b, m, v)')
    function = """<domain: "f", opset_import: ["" : 13]> norm (a, s, b, m, v) => (o) {
        o = BatchNormalization(a, s, b, m, v)
    }"""
    return build("a = Conv(x, w) [call] y = f.norm(a, s, b, m, v)", function)


def plain(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    b.bn(b.conv(b.input(*SHAPE), 4, 1))
    return b.model()


example("kept-by-user", "x -> Conv -> BatchNormalization, --keep bn", "bn", "no --keep", keep=("bn",))(plain)
example("verification-failed", "x -> Conv -> BatchNormalization, the proof fails", "bn", "", drop=("bn",))(plain)


@example("search-limit", "x -> Conv -> Relu, 5,100 times -> Mul", "mul", "100 times")
def search_limit(unlocked: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.conv(b.input(*SHAPE), 4, 1)
    for _ in range(100 if unlocked else 5100):
        y = relu(b, y)
    b.per_channel("Mul", y, SCALE)
    return b.model()
