"""What was measured for each model, kept in one JSON file, so that only what changed runs again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.zoo.count import Count


@dataclass(frozen=True)
class Outcome:
    """One tool on one model."""

    key: str
    """What it depends on: while that is the same, it is not run again."""
    verdict: str
    """That of tests/zoo/judge.py, or `crash` or `timeout`."""
    seconds: float
    detail: str = ""
    error: float | None = None
    bn: int | None = None
    left: int | None = None
    """BatchNormalization, and per-channel Mul, Div, Add and Sub that the original did not have."""

    @property
    def is_model(self) -> bool:
        """Whether it counts: anything but a right model has folded nothing."""
        return self.verdict in ("right", "unchecked") and self.left is not None


@dataclass(frozen=True)
class Report:
    """What bnfold says of itself."""

    status: str
    message: str
    """Its last line where it did not end with 0."""
    scale_shift: tuple[int, int]
    deviation: tuple[float, float] | None
    """Error against float64, before and after: the worst output and sample."""
    noise: float | None
    """The folded model's error in units of the original's noise; 0 within a few units in the last place."""
    solve: float
    codes: dict[str, int]
    """Why BatchNormalization nodes stay."""
    algebra: float | None = None
    """The largest difference in float64 with unrounded constants, relative to its tensor."""
    changed: tuple[str, ...] = ()
    """What differs from the original although no fold asks for it."""

    @property
    def is_sound(self) -> bool:
        """Verified, or nothing to verify, or no runtime here that could."""
        return not self.message and self.status in ("verified", "certified-only", "nothing to fold")


@dataclass
class Row:
    """Everything about one model."""

    name: str
    sha256: str
    before: Count
    ideal: int | None = None
    bnfold: Outcome | None = None
    report: Report | None = None
    rivals: dict[str, Outcome] = field(default_factory=dict)

    def left(self, tool: str) -> int:
        """What a tool leaves: all of it where it gave no right model."""
        outcome = self.bnfold if tool == "bnfold" else self.rivals.get(tool)
        if outcome is None or not outcome.is_model or outcome.left is None:
            return self.before.bn
        return outcome.left

    def best(self) -> int:
        """What the best of the rivals leaves; fewer than possible is no merit where nothing here can run the model."""
        return max(min((self.left(rival) for rival in self.rivals), default=self.before.bn), self.ideal or 0)

    def problems(self) -> list[str]:
        """What must not be."""
        if self.bnfold is None or self.report is None:
            return ["was not measured"]
        found = []
        if not self.bnfold.is_model:
            found.append(f"{self.bnfold.verdict}: {self.bnfold.detail}")
        if not self.report.is_sound:
            found.append(f"{self.report.status}: {self.report.message}")
        found += self.report.changed
        if self.left("bnfold") > self.best():
            found.append(f"bnfold leaves {self.left('bnfold')}, the best rival {self.best()}")
        if self.ideal is not None and self.left("bnfold") > self.ideal:
            found.append(f"bnfold leaves {self.left('bnfold')}, and {self.ideal} is possible")
        return found


def load(path: Path) -> dict[str, Row]:
    """The rows by name; none where there is no file yet."""
    return {entry["name"]: _row(entry) for entry in json.loads(path.read_text())} if path.exists() else {}


def save(path: Path, rows: dict[str, Row]) -> None:
    """Replace the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(rows[name]) for name in sorted(rows)], indent=1) + "\n")
    partial.replace(path)


def _row(entry: dict[str, Any]) -> Row:
    bnfold, report = entry["bnfold"], entry["report"]
    if report:
        pair = report["deviation"]
        report |= {"scale_shift": tuple(report["scale_shift"]), "deviation": tuple(pair) if pair else None}
        report["changed"] = tuple(report.get("changed", ()))
    return Row(
        entry["name"],
        entry["sha256"],
        Count(**entry["before"]),
        entry["ideal"],
        Outcome(**bnfold) if bnfold else None,
        Report(**report) if report else None,
        {name: Outcome(**outcome) for name, outcome in entry["rivals"].items()},
    )
