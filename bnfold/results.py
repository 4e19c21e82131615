"""What `optimize` and `explain` give back: typed results that the command line renders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from bnfold.benchmark import BenchRow
from bnfold.certificate import Certificate
from bnfold.equivalence.check import finite
from bnfold.equivalence.result import Verification
from bnfold.precision import Kept
from bnfold.reasons import Reason
from bnfold.regions import Region
from bnfold.witness import Witness

SCHEMA = 1
"""Version of the JSON that `optimize` and `explain` give."""


@dataclass(frozen=True)
class Affine:
    """What became of one affine node of the original."""

    node: str
    op: str
    status: str
    """`folded` or `kept`."""
    way: str = ""
    into: tuple[str, ...] = ()
    """The nodes whose constants took it up."""
    into_ops: tuple[str, ...] = ()
    """Their operators."""
    reasons: tuple[Reason, ...] = ()
    """Why it was kept; the most telling reason first."""
    note: str = ""
    """What else the reader must know, where something is."""
    region: Region | None = None
    """The part of the graph that its fold concerns, for a picture; not in the JSON."""

    def to_json(self) -> dict[str, Any]:
        """The entry of the report's `affines` list."""
        entry: dict[str, Any] = {"node": self.node, "op": self.op, "status": self.status}
        if self.status == "folded":
            return entry | {"way": self.way, "into": list(self.into)} | ({"note": self.note} if self.note else {})
        first, *others = (_reason_json(reason) for reason in self.reasons)
        return entry | first | ({"also": others} if others else {})


def _reason_json(reason: Reason) -> dict[str, Any]:
    entry: dict[str, Any] = {"code": reason.code, "reason": reason.text, "at": reason.at, "unlock": reason.unlock}
    lists = {"channels": reason.channels, "values": map(finite, reason.values), "because": reason.because}
    return entry | {name: found for name, values in lists.items() if (found := list(values))}


@dataclass(frozen=True)
class Merged:
    """Nodes that became one, or almost did; or a convolution and a pool that changed places."""

    status: str
    """`merged`, `kept` or `swapped`."""
    root: str
    """The node whose output the merged node makes: a sum of branches, or the second of two nodes."""
    nodes: tuple[str, ...] = ()
    """All that became one; the two that changed places."""
    into: str = ""
    """The one of them that took the others up; the one that is behind now."""
    op: str = ""
    """Its operator."""
    reason: str = ""
    """Why they stayed."""

    def to_json(self) -> dict[str, Any]:
        """The entry of the report's `merges` list."""
        entry: dict[str, Any] = {"node": self.root, "status": self.status}
        if self.status != "kept":
            return entry | {"op": self.op, "into": self.into, "nodes": list(self.nodes)}
        return entry | {"reason": self.reason}


@dataclass(frozen=True)
class Count:
    """How many before and after."""

    before: int
    after: int

    def to_json(self) -> dict[str, int]:
        """As the report has it."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class Facts:
    """What the model is."""

    path: str | None
    output: str | None
    ir_version: int
    opset: int
    producer: str
    nodes: Count
    bytes: Count
    """Model file and external data together."""

    def to_json(self) -> dict[str, Any]:
        """The report's `model`."""
        return {
            "path": self.path,
            "output": self.output,
            "ir_version": self.ir_version,
            "opset": self.opset,
            "producer": self.producer,
            "nodes": self.nodes.to_json(),
            "bytes": self.bytes.to_json(),
        }


@dataclass(frozen=True)
class Explained:
    """What can be folded, and why the rest stays."""

    model: Facts
    batchnorm: Count
    affines: tuple[Affine, ...]
    merges: tuple[Merged, ...] = ()
    timing: Mapping[str, float] = field(default_factory=dict)
    """Seconds by step."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, a line each."""

    def to_json(self) -> dict[str, Any]:
        """The whole report; docs/json.md has its fields."""
        return {
            "schema": SCHEMA,
            "bnfold": version("bnfold"),
            "model": self.model.to_json(),
            "batchnorm": self.batchnorm.to_json(),
            "affines": [affine.to_json() for affine in self.affines],
            "merges": [merge.to_json() for merge in self.merges],
            "timing": {step: round(seconds, 4) for step, seconds in self.timing.items()},
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Precision:
    """A conversion to a smaller float type."""

    type: str
    """`fp16` or `bf16`."""
    nodes: int
    """Nodes that compute in it."""
    casts: int
    """Casts that were put between nodes."""
    kept: tuple[Kept, ...]
    """Nodes that stay in float32, and why."""
    certificate: Certificate | None
    """Of the fold before it was converted; None where nothing folds."""
    verification: Verification | None
    """The same."""
    speed: tuple[BenchRow, ...] = ()
    """How fast the result is beside the original, by provider; empty where nothing ran, or `bnfold bench` is to say."""

    def to_json(self) -> dict[str, Any]:
        """The report's `precision`."""
        return {
            "type": self.type,
            "nodes": self.nodes,
            "casts": self.casts,
            "kept": [kept.to_json() for kept in self.kept],
            "fold": {
                "certificate": self.certificate.to_json() if self.certificate else {},
                "verify": self.verification.to_json() if self.verification else {},
            },
            "speed": [row.to_json() for row in self.speed],
        }


@dataclass(frozen=True)
class Optimized(Explained):
    """The result of :func:`optimize`."""

    certificate: Certificate | None = None
    verification: Verification | None = None
    witness: Witness = field(default_factory=Witness)
    output: Path | None = None
    """The file that was written; None where the result is only in memory, or for a dry run."""
    proto: onnx.ModelProto | None = None
    """The folded model, where it was asked for in memory."""
    precision: Precision | None = None
    """The conversion, where one was asked for: certificate and verification above are then of its result."""

    @property
    def status(self) -> str:
        """`verified`, `certified-only` (no runtime here ran the original) or `certified` (not asked to verify)."""
        if self.verification is None:
            return "certified"
        return "verified" if self.verification.status == "equivalent" else self.verification.status

    def to_json(self) -> dict[str, Any]:
        """The whole report; docs/json.md has its fields."""
        return super().to_json() | {
            "status": self.status,
            "precision": self.precision and self.precision.to_json(),
            "certificate": self.certificate.to_json() if self.certificate else {},
            "verify": self.verification.to_json() if self.verification else {},
        }
