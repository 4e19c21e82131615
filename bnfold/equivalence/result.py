"""What a verification found, as typed results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.answers import Answers
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.parting import Parting
from bnfold.equivalence.sensitivity import Sensitivity
from bnfold.equivalence.spread import Layer
from bnfold.placement import PlacementVerdict

EQUIVALENT, DIFFERENT, CERTIFIED_ONLY = "equivalent", "different", "certified-only"


@dataclass(frozen=True)
class NoiseCheck:
    """The noise layer: each output's worst sample. `status` is "float64", "weaker: ..." or "not run: ...".

    `outputs` has the models as the runtime computes them, `stored` both in float64 under the noise of storing weights.
    `layers` are the inner tensors of `stored`, first sample; they are shown, not judged.
    """

    status: str
    provider: str
    k: float
    passed: bool
    outputs: tuple[OutputCheck, ...] = ()
    stored: tuple[OutputCheck, ...] = ()
    layers: tuple[Layer, ...] = ()
    rounded: tuple[OutputCheck, ...] = ()
    """Of a conversion to a smaller type: every result rounded to the type that it is stored in."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "status": self.status,
            "provider": self.provider,
            "k": self.k,
            "passed": self.passed,
            "outputs": [check.to_json() for check in self.outputs],
            "stored": [check.to_json() for check in self.stored],
            "layers": [layer.to_json() for layer in self.layers],
            "rounded": [check.to_json() for check in self.rounded],
        }


@dataclass(frozen=True)
class RuntimeCheck:
    """Both models on one provider: `outputs` by level ("off", "on"), and which provider ran what.

    `nodes` is the optimized model's table of op, provider and count, optimisations off; `settings` is what ONNX
    Runtime was told.
    """

    provider: str
    passed: bool
    problems: tuple[str, ...]
    outputs: Mapping[str, tuple[OutputCheck, ...]]
    placement: PlacementVerdict | None
    nodes: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "provider": self.provider,
            "passed": self.passed,
            "problems": list(self.problems),
            "outputs": {level: [check.to_json() for check in checks] for level, checks in self.outputs.items()},
            "placement": self.placement and self.placement.to_json(),
            "nodes": [dict(row) for row in self.nodes],
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Verification:
    """What was found. `status` is "equivalent", "different" or "certified-only".

    `problems` says why not equivalent; `notes` what the reader should know. `inputs` has name, type and shape of what
    was fed.
    """

    status: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    inputs: tuple[Mapping[str, Any], ...]
    samples: int
    seed: int
    tf32: bool
    noise: NoiseCheck
    runtime: tuple[RuntimeCheck, ...]
    seconds: float
    algebra: Algebra | None = None
    """Of a fold; two files alone do not say what their constants were before they were rounded."""
    answers: Answers | None = None
    """Accuracy before and after, where labels were given."""
    parting: Parting | None = None
    """Where the two part, if they differ and it was looked for."""
    sensitivity: tuple[Sensitivity, ...] = ()
    """The smallest corruption seen of each kind of constant, where a self-test was asked for."""

    @property
    def passed(self) -> bool:
        """Nothing was found to differ (true of certified-only as well)."""
        return self.status != DIFFERENT

    @property
    def compared(self) -> bool:
        """Whether any output was compared at all."""
        return bool(self.noise.outputs or self.noise.stored or self.noise.rounded)

    @property
    def worst(self) -> OutputCheck | None:
        """The output closest to failing, or the first that failed."""
        return max(self.noise.outputs + self.noise.stored + self.noise.rounded, key=badness, default=None)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "status": self.status,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "inputs": [dict(entry) for entry in self.inputs],
            "samples": self.samples,
            "seed": self.seed,
            "tf32": self.tf32,
            "algebra": self.algebra and self.algebra.to_json(),
            "noise": self.noise.to_json(),
            "runtime": [check.to_json() for check in self.runtime],
            "answers": self.answers and self.answers.to_json(),
            "sensitivity": [row.to_json() for row in self.sensitivity],
            "parting": self.parting and self.parting.to_json(),
            "seconds": round(self.seconds, 3),
        }


def worst_samples(checks: Iterable[OutputCheck]) -> tuple[OutputCheck, ...]:
    """Each output's worst sample, in the order of the outputs."""
    worst: dict[str, OutputCheck] = {}
    for check in checks:
        if check.output not in worst or badness(check) > badness(worst[check.output]):
            worst[check.output] = check
    return tuple(worst.values())


def badness(check: OutputCheck) -> tuple[bool, float, float]:
    """How close to failing, for sorting."""
    return not check.passed, check.k_needed, check.ratio or 0.0
