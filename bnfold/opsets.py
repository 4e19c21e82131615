"""Operators that mean the same in two opsets: nodes of a function that is written in another opset than the model.

New versions mostly admit more element types. The table says since which version an operator's meaning has not changed
for the float and integer types that were there before; attributes that came later have the old behaviour by default.

Source: ONNX operator changelog.
"""

from __future__ import annotations

import onnx

UNCHANGED_SINCE: dict[str, int] = {
    **dict.fromkeys(("Identity", "Shape", "Size", "Transpose", "GlobalAveragePool", "GlobalMaxPool"), 1),
    "Concat": 4,
    **dict.fromkeys(("Abs", "Ceil", "Elu", "Exp", "Floor", "HardSigmoid", "InstanceNormalization", "LeakyRelu"), 6),
    **dict.fromkeys(("Log", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Tanh", "Tile"), 6),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "And", "Or", "Xor"), 7),
    **dict.fromkeys(("Expand", "Max", "Min", "Mean", "Sum"), 8),
    **dict.fromkeys(("ConstantOfShape", "Erf", "Greater", "Less", "MatMul", "PRelu", "Sign", "Where"), 9),
    **dict.fromkeys(("Conv", "ConvTranspose", "Equal", "Flatten", "Gather", "Gemm", "If", "Loop", "Range"), 11),
    **dict.fromkeys(("DepthToSpace", "Slice"), 11),
    **dict.fromkeys(("Clip", "Dropout", "MaxPool", "Pow"), 12),
    **dict.fromkeys(("Cast", "Constant", "Reshape", "ReduceSum", "Softmax", "Squeeze", "Unsqueeze"), 13),
    **dict.fromkeys(("BatchNormalization", "HardSwish"), 14),
    "CastLike": 15,
    "LayerNormalization": 17,
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "Split", "Mish"), 18),
    **dict.fromkeys(("AveragePool", "Pad", "Resize"), 19),
    "Gelu": 20,
}
"""By operator of ONNX's own domain; one that is not here must have the very same version in both opsets."""


def means_the_same(node: onnx.NodeProto, one: int, other: int) -> bool:
    """Whether a node of ONNX's own domain, written in opset `one`, is the same node in opset `other`."""
    since = UNCHANGED_SINCE.get(node.op_type)
    try:
        written, read = (onnx.defs.get_schema(node.op_type, version) for version in (one, other))
    except onnx.defs.SchemaError:
        return False
    if written.since_version == read.since_version:
        return True
    known = set(read.attributes)
    return since is not None and min(one, other) >= since and all(a.name in known for a in node.attribute)
