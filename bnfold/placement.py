"""Which execution provider ran each node, and whether folding moved one off the provider that was asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ONNX Runtime's own casts and copies between devices are not nodes of the model.
_INSERTED_CAST = "InsertedPrecisionFreeCast_"
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
# A part of the model that TensorRT runs as one kernel.
_FUSED = "TRTKernel_"
_FLOATS = frozenset({"float", "float16", "bfloat16", "double"})


@dataclass(frozen=True)
class PlacedNode:
    """A node that ran: `is_float` where it made a floating-point tensor."""

    name: str
    op: str
    provider: str
    is_float: bool


@dataclass(frozen=True)
class Placement:
    """Every node that ran, once, in the order of the profile."""

    nodes: tuple[PlacedNode, ...]

    def table(self) -> list[dict[str, Any]]:
        """Rows of op, provider and count, the most frequent first."""
        counts = Counter((node.op, node.provider) for node in self.nodes)
        return [{"op": op, "provider": provider, "nodes": count} for (op, provider), count in counts.most_common()]

    def to_json(self) -> dict[str, Any]:
        """The table, for a report."""
        return {"table": self.table()}


def read_profile(path: Path) -> Placement:
    """The placement recorded in an ONNX Runtime profile (one event per node and run; a node counts once)."""
    found: dict[tuple[str, str], PlacedNode] = {}
    for event in json.loads(path.read_text()):
        facts = event.get("args", {})
        if event.get("cat") != "Node" or "provider" not in facts or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        op = facts["op_name"]
        if op in _COPIES or (op == "Cast" and name.startswith(_INSERTED_CAST)):
            continue
        is_float = any(kind in _FLOATS for shape in facts.get("output_type_shape", []) for kind in shape)
        node = PlacedNode(name, op, facts["provider"], is_float)
        found.setdefault((name, str(facts.get("node_index"))), node)
    return Placement(tuple(found.values()))


@dataclass(frozen=True)
class PlacementVerdict:
    """Whether the optimized model stayed on the asked provider. `elsewhere` lists what ran on another one."""

    provider: str
    passed: bool
    problems: tuple[str, ...]
    elsewhere: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "provider": self.provider,
            "passed": self.passed,
            "problems": list(self.problems),
            "elsewhere": list(self.elsewhere),
        }


def combined(verdicts: Iterable[PlacementVerdict]) -> PlacementVerdict | None:
    """The verdict on several runs of one model on one provider, each line once; None where there was no run."""
    every = list(verdicts)
    if not every:
        return None
    problems = dict.fromkeys(problem for each in every for problem in each.problems)
    elsewhere = dict.fromkeys(line for each in every for line in each.elsewhere)
    return PlacementVerdict(every[0].provider, not problems, tuple(problems), tuple(elsewhere))


def judge_placement(original: Placement, optimized: Placement, provider: str) -> PlacementVerdict:
    """Fails where a floating-point node of `optimized` left `provider` (ONNX Runtime's name) though it had it before.

    "Had it before" is asked of the node of the same name, and of the op type for a node with a new name. A profile
    names no node inside TensorRT's kernels: where the original had any, an op that it ran nowhere else was in one.
    Integer nodes (shape arithmetic that ONNX Runtime keeps on the CPU on purpose) are only listed.
    """
    by_name = {node.name: node.provider for node in original.nodes if node.name}
    ops_there = {node.op for node in original.nodes if node.provider == provider and node.is_float}
    ops_elsewhere = {node.op for node in original.nodes if node.provider != provider}
    fused = any(op.startswith(_FUSED) for op in ops_there)
    problems, elsewhere = [], []
    for node in optimized.nodes:
        if node.provider == provider:
            continue
        line = f"{node.op} '{node.name}' ran on {node.provider}"
        elsewhere.append(line)
        was_there = node.op in ops_there or (fused and node.op not in ops_elsewhere)
        if node.name in by_name:
            was_there = by_name[node.name] == provider
        if node.is_float and was_there:
            problems.append(f"{line}; the original ran it on {provider}")
    floats = [node for node in optimized.nodes if node.is_float]
    if floats and not any(node.provider == provider for node in floats):
        problems.append(f"no floating-point node ran on {provider}")
    return PlacementVerdict(provider, not problems, tuple(problems), tuple(elsewhere))
