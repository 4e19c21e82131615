"""What was timed for each model, kept in one JSON file each, so that only what changed is timed again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAMED = "timm"
"""The form that timm re-parameterised, where a tool stands."""

ENOUGH = 0.95
"""Of the speed of timm's form: what bnfold must reach."""

LEVELS = {"all": True, "none": False}
"""ONNX Runtime's own optimisations."""


@dataclass(frozen=True)
class Timed:
    """Original and changed model in turns, at one level and batch size: milliseconds, ratio, its 95% interval."""

    level: str
    batch: int
    original: float
    changed: float
    ratio: float
    low: float | None
    high: float | None
    verdict: str

    @property
    def interval(self) -> str:
        """In words, in brackets."""
        return "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"

    @property
    def differs(self) -> bool:
        """Whether a difference may be claimed."""
        return self.verdict.endswith(("faster", "slower"))


@dataclass(frozen=True)
class Created:
    """The making of sessions at one level: milliseconds of both, and the verdict."""

    level: str
    original: float
    changed: float
    ratio: float
    verdict: str


@dataclass(frozen=True)
class Race:
    """What was measured of one pair of models."""

    timed: tuple[Timed, ...] = ()
    created: tuple[Created, ...] = ()

    def at(self, level: str, batch: int) -> Timed | None:
        """The row, if it was measured."""
        return next((one for one in self.timed if (one.level, one.batch) == (level, batch)), None)


@dataclass(frozen=True)
class Speed:
    """One tool on one model."""

    key: str
    """What its result depends on: while that is the same, it is not made again."""
    verdict: str
    """That of tests/zoo/judge.py, or `crash` or `timeout`, or `not timed`."""
    detail: str = ""
    output: str = ""
    """Digest of what it wrote, and of how that was measured: while that is the same, it is not timed again."""
    size: int = 0
    nodes: int = 0
    bn: int = 0
    race: Race = Race()

    @property
    def is_model(self) -> bool:
        """Whether its times count."""
        return self.verdict in ("right", "unchecked")

    def ratio(self, level: str, batch: int) -> float:
        """How much faster than the original: 1 where there is no right model, since one keeps the original then."""
        found = self.race.at(level, batch)
        return found.ratio if found and self.is_model else 1.0


@dataclass
class Row:
    """Everything about one model; `fixed` says why only its own batch was measured."""

    name: str
    sha256: str
    bn: int
    nodes: int
    size: int
    batches: tuple[int, ...]
    fixed: str = ""
    tools: dict[str, Speed] = field(default_factory=dict)
    against: tuple[str, Race] | None = None
    """bnfold's result after timm's form: digests of both, and how much faster bnfold's is."""

    def problems(self) -> list[str]:
        """What must not be."""
        ours = self.tools.get("bnfold")
        if ours is None:
            return ["was not measured"]
        if not ours.is_model:
            return [f"{ours.verdict}: {ours.detail}"]
        found = [
            f"batch {one.batch}, optimisations {one.level}: {one.verdict}{one.interval}"
            for one in ours.race.timed
            if one.verdict.endswith("slower")
        ]
        opposed = self.against[1].timed if self.against else ()
        return found + [
            f"batch {one.batch}, optimisations {one.level}: {one.ratio:.2f} of the speed of timm's form"
            for one in opposed
            if one.ratio < ENOUGH and one.differs
        ]


def load(folder: Path) -> dict[str, Row]:
    """The rows by name."""
    return {path.stem: _row(json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))}


def save(folder: Path, row: Row) -> None:
    """Replace the file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{row.name}.partial"
    partial.write_text(json.dumps(asdict(row), indent=1) + "\n")
    partial.replace(folder / f"{row.name}.json")


def race(entry: dict[str, Any]) -> Race:
    """Out of JSON."""
    return Race(tuple(Timed(**one) for one in entry["timed"]), tuple(Created(**one) for one in entry["created"]))


def _row(entry: dict[str, Any]) -> Row:
    tools = {tool: Speed(**{**found, "race": race(found["race"])}) for tool, found in entry["tools"].items()}
    against = entry["against"] and (entry["against"][0], race(entry["against"][1]))
    return Row(**{**entry, "batches": tuple(entry["batches"]), "tools": tools, "against": against})
