"""The op algebra: how each operator meets a demand on a tensor at one of its ports.

Adding an operator is one function and one line here, and its rows in the case table of ``tests/``.
"""

from __future__ import annotations

from bnfold.rules import (
    convolution,
    dense,
    einsum,
    elementwise,
    indexing,
    movement,
    normalization,
    quantization,
    recurrent,
    reduction,
    scaling,
)
from bnfold.rules.base import Accept, Refused, Rule, View
from bnfold.rules.scaling import Source, as_source

RULES: dict[str, Rule] = {
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "Gemm": dense.gemm,
    "MatMul": dense.matmul,
    "Einsum": einsum.einsum,
    "BatchNormalization": scaling.batchnorm,
    "Add": elementwise.add,
    "Sub": elementwise.add,
    "Sum": elementwise.add,
    "Relu": elementwise.relu,
    "LeakyRelu": elementwise.leaky_relu,
    "PRelu": elementwise.prelu,
    "MaxPool": elementwise.max_pool,
    "AveragePool": elementwise.average_pool,
    "GlobalAveragePool": elementwise.global_average_pool,
    "GlobalMaxPool": elementwise.global_max_pool,
    "Identity": elementwise.identity,
    "Transpose": movement.transpose,
    "Reshape": movement.reshape,
    "Flatten": movement.reshape,
    "Squeeze": movement.reshape,
    "Unsqueeze": movement.reshape,
    "Concat": movement.concat,
    "Split": indexing.split,
    "Slice": indexing.slice_,
    "Gather": indexing.gather,
    "Tile": indexing.tile,
    "Expand": indexing.expand,
    "DepthToSpace": indexing.depth_to_space,
    "SpaceToDepth": indexing.space_to_depth,
    "Resize": reduction.resize,
    "Upsample": reduction.resize,
    "ReduceMean": reduction.reduce_mean,
    "ReduceSum": reduction.reduce_sum,
    "ReduceMax": reduction.reduce_extreme,
    "ReduceMin": reduction.reduce_extreme,
    "Neg": reduction.negate,
    "Cast": reduction.cast,
    "Clip": reduction.clip,
    "Pad": reduction.pad,
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

_ALL_INPUTS = frozenset({"Add", "Sub", "Sum", "Mul", "Concat"})

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})

_QUANTIZED = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize", "QAttention", "QGemm")
"""How the names of operators on integers begin, in ONNX's domain and in ONNX Runtime's."""


def apply(view: View) -> list[Accept]:
    """Ask the node's rule.

    Raises:
        Refused: no rule, or the rule refuses.
    """
    node = view.node
    if all(node.graph.constant(name) is not None for name in node.outputs if name):
        return [Accept()]  # CastLike(constant, x) and the like: no value of x matters
    rule = RULES.get(node.op)
    if node.op in ("Mul", "Div"):
        constant = any(node.constant(slot) is not None for slot in (0, 1))
        rule = scaling.constant_factor if constant else elementwise.mul if node.op == "Mul" else None
    if node.op == "Dropout":
        rule = elementwise.identity if _drops_nothing(view) else None
    moving = set(range(len(node.inputs))) if node.op in _ALL_INPUTS else {0}
    if node.op in _WEIGHTED or rule is scaling.constant_factor:
        moving = {slot for slot in range(len(node.inputs)) if node.constant(slot) is None}
    for key, port in view.ports.items():
        if key >= 0 and key not in moving and not port.storage.is_identity:
            raise view.refuse("opaque-op", f"{port.name!r} steers {node.op}; only its data may be stored differently")
    if rule is None and node.proto.op_type.startswith(_QUANTIZED):
        raise quantization.quantized(view, f"{node.op} computes with integers")
    if rule is None:
        raise view.refuse("opaque-op", f"{node.op} is not affine in this tensor, or has no rule")
    return rule(view)


def _drops_nothing(view: View) -> bool:
    """Dropout at inference: training_mode absent or a constant false; before opset 7, is_test."""
    node = view.node
    if len([name for name in node.outputs if name]) > 1 and node.graph.consumers.get(node.outputs[1]):
        return False
    if node.version < 7:
        return bool(node.get_int("is_test", 0))
    if not node.input(2):
        return True
    mode = node.constant(2)
    return mode is not None and not bool(mode.load().any())


__all__ = ["RULES", "Accept", "Refused", "Rule", "Source", "View", "apply", "as_source"]
