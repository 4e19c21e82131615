"""The op algebra: how each operator meets a demand on a tensor at one of its ports.

Adding an operator is one function and one line here, and its rows in the case table of ``tests/``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bnfold.affine import together
from bnfold.graph import Node
from bnfold.plan import NewConstant
from bnfold.rules import (
    activation,
    border,
    convolution,
    dense,
    einsum,
    elementwise,
    extremes,
    functions,
    gathering,
    indexing,
    moved,
    movement,
    normalization,
    pooling,
    products,
    quantization,
    recurrent,
    reduction,
    scaling,
    sums,
)
from bnfold.rules.base import Accept, Refused, Rule, View
from bnfold.rules.scaling import Source, as_source
from bnfold.rules.unlocks import LAYER_BETWEEN

RULES: dict[str, Rule] = {
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "Gemm": dense.gemm,
    "MatMul": dense.matmul,
    "Einsum": einsum.einsum,
    "BatchNormalization": scaling.batchnorm,
    "Add": sums.add,
    "Sub": sums.add,
    "Sum": sums.add,
    "Mean": sums.add,
    "Mul": products.mul,
    "Div": products.div,
    "Pow": products.power,
    "Sqrt": products.power,
    "Reciprocal": products.power,
    "Max": extremes.extreme,
    "Min": extremes.extreme,
    "Clip": extremes.clip,
    "Where": extremes.where,
    "Relu": activation.relu,
    "LeakyRelu": activation.leaky_relu,
    "PRelu": activation.prelu,
    "Abs": activation.absolute,
    "Sigmoid": activation.sigmoid,
    "HardSigmoid": activation.hard_sigmoid,
    **{op: activation.odd(function) for op, function in functions.ODD.items()},
    **{op: activation.even(function) for op, function in functions.EVEN.items()},
    **{op: activation.opaque(op) for op in functions.OPAQUE},
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "LpPool": pooling.lp_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "GlobalLpPool": pooling.lp_pool,
    "Identity": elementwise.identity,
    "Neg": elementwise.negate,
    "Cast": elementwise.cast,
    "CastLike": elementwise.cast,
    "Trilu": movement.triangle,
    "Transpose": movement.transpose,
    "Reshape": movement.reshape,
    "Flatten": movement.reshape,
    "Squeeze": movement.reshape,
    "Unsqueeze": movement.reshape,
    "Concat": movement.concat,
    "Split": indexing.split,
    "Slice": indexing.slice_,
    "Gather": gathering.gather,
    "Compress": gathering.compressed,
    "Tile": indexing.tile,
    "Expand": indexing.expand,
    "DepthToSpace": indexing.depth_to_space,
    "SpaceToDepth": indexing.space_to_depth,
    "Resize": border.resize,
    "Upsample": border.resize,
    "Pad": border.pad,
    "ReduceMean": reduction.reduce_mean,
    "ReduceSum": reduction.reduce_sum,
    "ReduceMax": reduction.reduce_extreme,
    "ReduceMin": reduction.reduce_extreme,
    "ReduceL1": reduction.reduce_norm,
    "ReduceL2": reduction.reduce_norm,
    "ReduceSumSquare": reduction.reduce_squares,
    "ReduceLogSumExp": reduction.reduce_log_sum_exp,
    "ArgMax": reduction.arg_extreme,
    "ArgMin": reduction.arg_extreme,
    "CumSum": reduction.cumulative_sum,
    "InstanceNormalization": normalization.instance_norm,
    "GroupNormalization": normalization.group_norm,
    "LayerNormalization": normalization.layer_norm,
    "RMSNormalization": normalization.rms_norm,
    "LpNormalization": normalization.lp_norm,
    "Softmax": normalization.softmax,
    "LogSoftmax": normalization.softmax,
    "LSTM": recurrent.recurrent,
    "GRU": recurrent.recurrent,
    "RNN": recurrent.recurrent,
    "DequantizeLinear": quantization.dequantize,
    "QuantizeLinear": quantization.quantize,
    "Shape": elementwise.indifferent,
    "Size": elementwise.indifferent,
}

_ALL_INPUTS = frozenset({"Add", "Sub", "Sum", "Mean", "Mul", "Div", "Max", "Min", "Concat"})
_SOME_INPUTS = {"Where": {1, 2}, "CastLike": {0, 1}}
"""Inputs that are data, where these are not the first one, or all."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})

_BROADCASTING = frozenset({"Add", "Sub", "Sum", "Mean", "Mul", "Div", "Pow", "Max", "Min", "Where", "PRelu"})

WIDE = 128
"""Inputs, or outputs, of a node that demands pass: to ask it for each of them takes time that grows with their square,
and more."""

_QUANTIZED = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention", "QGemm")
"""How the names of operators on integers begin, in ONNX's domain and in ONNX Runtime's."""


TOO_LARGE = "the demand has too many values, or more than there is memory for"
"""Why a node is not asked for an answer."""


@dataclass(frozen=True, eq=False)
class _Manner:
    """What an operator does with demands, whatever these are."""

    rule: Rule | None
    moving: frozenset[int]
    """The input slots that may be stored differently."""
    constant: bool
    """Whether every output is known before the model runs."""


def apply(view: View) -> list[Accept]:
    """Ask the node's rule.

    Raises:
        Refused: no rule, or the rule refuses.
    """
    node = view.node
    if all(port.storage.is_identity for port in view.ports.values()):
        return [Accept()]  # as when a fold is taken back
    manner = node.memo.get("manner")
    if manner is None:
        manner = node.memo["manner"] = _manner(node)
    assert isinstance(manner, _Manner)
    if manner.constant:
        return [Accept()]  # CastLike(constant, x) and the like: no value of x matters
    for key, port in view.ports.items():
        if key >= 0 and key not in manner.moving and not port.storage.is_identity:
            text = f"{port.name!r} steers {node.op}; only its data may be stored differently"
            raise view.refuse("opaque-op", text, f"compute {port.name!r} from something else")
    if manner.rule is None and node.proto.op_type.startswith(_QUANTIZED):
        raise quantization.quantized(view, f"{node.op} computes with integers")
    if manner.rule is None:
        raise view.refuse(
            "opaque-op",
            f"{node.op} is not affine in this tensor, or has no rule",
            LAYER_BETWEEN,
        )
    if max(len(node.inputs), len(node.outputs)) > WIDE:
        verb, count = ("reads", len(node.inputs)) if len(node.inputs) > WIDE else ("makes", len(node.outputs))
        text = f"{node.op} {verb} {count} tensors, and the search goes through {WIDE} at most"
        raise view.refuse("search-limit", text, LAYER_BETWEEN)
    try:
        if node.op in _BROADCASTING:
            _look_at(view)
        accepts = manner.rule(view)
        if node.op in moved.MOVES:
            accepts = [moved.stored_anew(view, accept) for accept in accepts]
    except MemoryError:
        raise view.refuse("search-limit", TOO_LARGE, LAYER_BETWEEN) from None
    for accept in accepts:
        _refuse_lost(view, accept)
    return accepts


def _look_at(view: View) -> None:
    """The ports of a node that works element by element, before their storages meet.

    Raises:
        TooLargeError: they may not.
    """
    ports = view.ports.values()
    constants = (port.constant.shape for port in ports if port.constant is not None)
    with contextlib.suppress(ValueError):  # before opset 7 they need not stand under each other
        together(*(shape for port in ports for shape in port.storage.shapes), *constants)


def _refuse_lost(view: View, accept: Accept) -> None:
    """Refuse where a constant would have to be stored differently, and nothing in the node does that."""
    lost = [key for key, port in view.ports.items() if port.constant is not None and not port.storage.is_identity]
    if not lost or accept.assign:
        return
    edited = {edit.slot for edit in accept.edits if isinstance(edit, NewConstant)}
    for key in lost:
        if key not in edited:
            text = f"the demand reaches {view.node.inputs[key]!r}, a constant of {view.node.op}"
            raise view.refuse("opaque-op", text, "store what this node computes as an initializer")


def _manner(node: Node) -> _Manner:
    rule = RULES.get(node.op)
    if node.op in ("Mul", "Div") and scaling.is_factor(node):
        rule = scaling.constant_factor
    if node.op == "Dropout":
        rule = elementwise.identity if elementwise.drops_nothing(node) else None
    moving = set(range(len(node.inputs))) if node.op in _ALL_INPUTS else _SOME_INPUTS.get(node.op, {0})
    if node.op in _WEIGHTED or rule is scaling.constant_factor:
        moving = {slot for slot in range(len(node.inputs)) if node.constant(slot) is None}
    constant = all(node.graph.constant(name) is not None for name in node.outputs if name)
    return _Manner(rule, frozenset(moving), constant)


__all__ = ["RULES", "TOO_LARGE", "Accept", "Refused", "Rule", "Source", "View", "apply", "as_source"]
