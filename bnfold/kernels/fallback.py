"""Ops without a kernel of our own, through onnx.reference (which is imported only here, and only when needed)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from bnfold.kernels.base import Call, is_float, to_float64

# Random, or known to be wrong or in float32 inside: better no answer than a false one.
_REFUSED = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "BlackmanWindow",
        "HannWindow",
        "HammingWindow",
        "MelWeightMatrix",
    }
)


def by_reference(call: Call, node: onnx.NodeProto, opset: int, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Run one node in onnx.reference. Raises `Unsupported` where it has no implementation or fails."""
    if node.op_type in _REFUSED or call.domain not in ("", "ai.onnx.ml"):
        raise call.refuse("")
    from onnx.reference import ReferenceEvaluator

    names = [name for name in node.input if name]
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(graph, opsets={call.domain: opset})
            results = evaluator.run(None, feeds)
    except Exception as error:  # onnx.reference raises anything at all
        reason = str(error).splitlines()[0] if str(error) else ""
        raise call.refuse(f"onnx.reference: {type(error).__name__}: {reason}"[:200]) from error
    assert isinstance(results, list)
    found = iter(results)
    outputs = tuple(next(found) if name else None for name in node.output)
    if any(value is not None and is_float(value) and value.dtype != np.float64 for value in outputs):
        raise call.refuse("onnx.reference computes it in float32")
    return tuple(to_float64(value) for value in outputs)
