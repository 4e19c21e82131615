"""What was deployed, as a typed result."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnfold.deployment.checking import Check
from bnfold.deployment.interface import Interface
from bnfold.deployment.settings import Settings


@dataclass(frozen=True)
class Batching:
    """Whether a server may put requests behind each other, and how many rows that may make.

    `reason` says why not, where it may not.
    """

    max_batch: int
    dynamic: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"max_batch": self.max_batch, "dynamic": self.dynamic, "reason": self.reason}


@dataclass(frozen=True)
class Deployed:
    """The result of :func:`bnfold.deploy`."""

    model: str | None
    """Its path, where it has one."""
    output: Path
    """The folder that was written: the version's, or the one with model, settings and program."""
    interface: Interface
    settings: Settings
    check: Check
    files: tuple[str, ...]
    """In that folder, below it."""
    name: str | None = None
    backend: str | None = None
    version: int | None = None
    """Those of Triton, None for a folder."""
    batching: Batching | None = None
    warm_up: int = 0
    """How many requests an instance runs before it is ready."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The whole report; docs/json.md has its schema."""
        return {
            "schema": 1,
            "bnfold": version("bnfold"),
            "model": {"path": self.model},
            "output": str(self.output),
            "files": list(self.files),
            "name": self.name,
            "backend": self.backend,
            "version": self.version,
            "inputs": [tensor.to_json() for tensor in self.interface.inputs],
            "outputs": [tensor.to_json() for tensor in self.interface.outputs],
            "batching": None if self.batching is None else self.batching.to_json(),
            "warm_up": self.warm_up,
            "settings": self.settings.to_json(),
            "check": self.check.to_json(),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 4),
        }
