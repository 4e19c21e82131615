"""What one provider computes for both models, with ONNX Runtime's optimisations off and on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold.equivalence.settings import Progress, Settings
from bnfold.kernels.base import Array, is_float_type, unit_roundoff
from bnfold.placement import Placement
from bnfold.runtime import CannotRun, Session
from bnfold.samples import Feeds
from bnfold.source import Source

Outputs = dict[str, Array]

NUDGES = 6
"""Runs of the original on inputs moved by up to an ULP: each draws the rounding errors anew. One draw alone may by luck
be several times smaller than the next, where a few outputs are far more sensitive than the others."""


@dataclass
class Runs:
    """What one provider computed: by level ("off", "on"), each model's outputs for every sample.

    `placements` has, by model and level ("original off"), where each node ran; `settings` what the sessions were told.
    `nudged` has, for every sample, the original's outputs for inputs that differ by rounding alone (optimisations off).
    """

    provider: str
    original: dict[str, list[Outputs]] = field(default_factory=dict)
    nudged: list[list[Outputs]] = field(default_factory=list)
    optimized: dict[str, list[Outputs]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    placements: dict[str, Placement] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    truth: list[Outputs] = field(default_factory=list)
    """What the model computes that both come from, where that is another one than the original here."""


def run_both(
    original: Source, optimized: Source, feeds: Sequence[Feeds], provider: str, settings: Settings, say: Progress
) -> Runs:
    """Both models on one provider.

    Raises:
        CannotRun: the original does not run there.
        ProviderError: the provider is not really there.
    """
    runs = Runs(provider)
    for level in ("off", "on"):
        say(f"{provider}, optimisations {level}")
        told = settings.session(provider) | {"optimize": level == "on", "profile": True}
        session = Session(original.runnable, **told)
        runs.settings = session.settings
        runs.original[level] = [session.run(sample) for sample in feeds]
        if level == "off":
            runs.nudged = [[session.run(nudged(sample, turn)) for turn in range(NUDGES)] for sample in feeds]
        runs.placements[f"original {level}"] = session.placement()
        del session  # a large model is not held twice
        try:
            session = Session(optimized.runnable, **told)
            runs.optimized[level] = [session.run(sample) for sample in feeds]
        except CannotRun as error:
            runs.problems.append(f"{provider}, optimisations {level}: the optimized model fails: {error}")
            continue
        runs.placements[f"optimized {level}"] = session.placement()
        del session
    return runs


def nudged(feeds: Feeds, seed: int, by: float | None = None) -> Feeds:
    """The inputs, each element moved by up to one ULP, or by up to this share of itself."""
    random = np.random.default_rng(seed)
    return {name: moved(array, random, by) if is_float_type(array.dtype) else array for name, array in feeds.items()}


def moved(array: Array, random: np.random.Generator, by: float | None = None) -> Array:
    """Floats, each moved by up to one ULP, or by up to a share."""
    ulp = 2 * unit_roundoff(array.dtype) if by is None else by
    wide = array.astype(np.float64) * (1 + ulp * random.uniform(-1, 1, array.shape))
    return np.asarray(wide).astype(array.dtype)  # without axes NumPy gives a number
