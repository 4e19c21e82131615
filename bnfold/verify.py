"""Is the optimized model the original? Noise against float64, and both on every asked provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.noise import OutputCheck
from bnfold.placement import PlacementVerdict
from bnfold.source import ModelLike

Progress = Callable[[str], None]

EQUIVALENT, DIFFERENT, CERTIFIED_ONLY = "equivalent", "different", "certified-only"


@dataclass(frozen=True)
class NoiseCheck:
    """The noise layer. `status` is "float64", "weaker: ..." or "not run: ..."; `outputs` has the worst sample of each."""

    status: str
    provider: str
    k: float
    passed: bool
    outputs: tuple[OutputCheck, ...]

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RuntimeCheck:
    """Both models on one provider, with optimisations off and on ("off", "on" in `outputs`)."""

    provider: str
    passed: bool
    problems: tuple[str, ...]
    outputs: Mapping[str, tuple[OutputCheck, ...]]
    placement: PlacementVerdict
    nodes: tuple[Mapping[str, Any], ...]

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Verification:
    """What was found. `status` is "equivalent", "different" or "certified-only"; `problems` says why not equivalent."""

    status: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...]
    samples: int
    seed: int
    noise: NoiseCheck
    runtime: tuple[RuntimeCheck, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Nothing was found to differ (also true of certified-only)."""
        return self.status != DIFFERENT

    def to_json(self) -> dict[str, Any]: ...


def verify(
    original: ModelLike,
    optimized: ModelLike,
    *,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    inputs: str | Path | Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    tf32: bool = False,
    progress: Progress | None = None,
) -> Verification: ...
