"""What is asked of a conversion, what stays in float32 and why, and how large tensors get on the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from bnfold.graph import Graph

_SUMS = frozenset({"ReduceMean", "GlobalAveragePool"})
_SQUARES = frozenset({"ReduceL2"})


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
