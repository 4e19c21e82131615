"""What is asked of a conversion, what stays in float32 and why, and how large tensors get on the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from bnfold.graph import Graph

_SUMS = frozenset({"ReduceMean", "GlobalAveragePool"})
_SQUARES = frozenset({"ReduceL2"})


CODES: dict[str, str] = {
    "kept-by-user": "`--keep-fp32` asked for it",
    "operator": "ONNX Runtime's converter leaves this operator in float32, or its result has a type of its own",
    "type": "ONNX does not have the operator in this type, in the model's opset",
    "domain": "ONNX does not define the operator",
    "unknown-type": "it reads or makes a sequence, or something whose type is not known",
    "body": "it has bodies (If, Loop, Scan), and the converter puts the casts of a body outside of it",
    "function": "it calls a function of the model that cannot be inlined",
    "quantized": "it quantizes or dequantizes, or stands between the two: scales stay as they were calibrated",
    "constant-overflow": "one of its constants is beyond the type's range",
    "constant-lost": "one of its constants is so small that the type holds little of it",
    "epsilon": "its epsilon is below the smallest number of the type",
    "overflow": "a tensor that it reads or makes comes within a factor of two of an overflow on the inputs that ran",
    "sizes": "it computes sizes or indices in floats, which have to be exact",
}
"""Why a node stays in float32, by code."""


@dataclass(frozen=True)
class Kept:
    """A node that stays in float32."""

    node: str
    op: str
    code: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """The entry of the report's `precision.kept`."""
        return {"node": self.node, "op": self.op, "code": self.code, "reason": self.reason}


@dataclass(frozen=True)
class Wanted:
    """What is asked of a conversion."""

    type: int
    """ONNX element type."""
    keep: tuple[str, ...] = ()
    """Labels or globs of nodes that stay in float32."""
    peaks: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """By tensor: the largest magnitude, or that of a sum that a node takes on the way, on the inputs that were run."""


def peaks(graph: Graph, run: Callable[[Callable[[str, object], None]], object]) -> dict[str, float]:
    """The largest magnitude of every float tensor of the main graph.

    Args:
        graph: where reductions are looked up: what they add up on the way counts too.
        run: evaluates the graph, and calls what it is given with each tensor's name and value.
    """
    found: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def watch(name: str, value: object) -> None:
        array = np.asarray(value)
        sizes[name] = array.size
        if array.dtype.kind != "f":
            return
        peak = float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))
        node = graph.producers.get(name)
        if node is not None and node.op in _SUMS:
            peak *= sizes.get(node.inputs[0], array.size) / max(1, array.size)
        elif node is not None and node.op in _SQUARES:
            peak *= peak
        found[name] = max(found.get(name, 0.0), peak)

    run(watch)
    return found
