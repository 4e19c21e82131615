"""Float64 kernels of ONNX operators, for the oracle: what onnx.reference has slow, wrong or in float32."""

from bnfold.kernels import (
    activation,
    arithmetic,
    convolution,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
    shape,
)
from bnfold.kernels.base import KERNELS, Array, Call, Kernel, Unsupported, is_float, numpy_type, to_float64

__all__ = [
    "KERNELS",
    "Array",
    "Call",
    "Kernel",
    "Unsupported",
    "activation",
    "arithmetic",
    "convolution",
    "is_float",
    "normalization",
    "numpy_type",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resize",
    "shape",
    "to_float64",
]
