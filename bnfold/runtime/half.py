"""ONNX Runtime's converter to float16, which decides what of a graph is computed in float16."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from bnfold.errors import ProviderError
from bnfold.runtime.loading import CPU, INSTALL, import_onnxruntime


def blocked_operators() -> frozenset[str]:
    """The operators that the converter leaves in float32.

    Raises:
        ProviderError: onnxruntime is not installed.
    """
    _check()
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    return frozenset(DEFAULT_OP_BLOCK_LIST)


def to_half(model: onnx.ModelProto, kept: Sequence[str], ends: Sequence[str]) -> onnx.ModelProto:
    """The graph in float16, with a Cast wherever a float32 tensor meets it.

    Args:
        model: may be changed. Every float32 tensor that a node makes must be declared in `value_info`.
        kept: names of nodes that stay in float32, beside those that the converter itself leaves.
        ends: the inputs and outputs, which keep their types.

    Raises:
        ProviderError: onnxruntime is not installed.
    """
    _check()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=list(ends), disable_shape_infer=True, node_block_list=list(kept)
    )
    return made


def _check() -> None:
    if import_onnxruntime() is None:
        raise ProviderError(f"--precision needs onnxruntime's converter; {INSTALL[CPU]}")
