"""One plan, carried out and proved; and the search for the folds at fault where the proof fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from bnfold.certificate import Certificate
from bnfold.equivalence import DIFFERENT, Progress, Verification
from bnfold.graph import Model
from bnfold.patch import tensors
from bnfold.plan import Plan
from bnfold.solver import Solution
from bnfold.source import ModelLike, is_external
from bnfold.write import Staged, folded, write


class Clock:
    """Seconds by step; a step that comes again adds up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """Book the time since the last lap on this step."""
        now = time.perf_counter()
        self.laps[step] = self.laps.get(step, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True)
class Proof:
    """What was found: None where there was nothing to prove, or nobody asked."""

    certificate: Certificate | None
    verification: Verification | None

    @property
    def certified(self) -> bool:
        """Whether no certificate speaks against the fold."""
        return self.certificate is None or self.certificate.ok

    @property
    def exact(self) -> bool:
        """Whether only rounding may speak against the fold: certificate and algebra do not."""
        algebra = None if self.verification is None else self.verification.algebra
        return self.certified and (algebra is None or algebra.passed)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the fold."""
        return self.certified and (self.verification is None or self.verification.status != DIFFERENT)


Prove = Callable[[ModelLike, Path | None, Model, Plan], Proof]
"""Proves a folded model: (the model, where its external data is, the original with calls replaced, the plan)."""


@dataclass(frozen=True)
class Result:
    """A folded model, and what was found about it."""

    proto: onnx.ModelProto
    proof: Proof


@dataclass(frozen=True)
class Attempt:
    """One plan, carried out and proved, in memory or on disk."""

    model: Model
    solution: Solution
    prove: Prove
    clock: Clock
    say: Progress

    @property
    def folded(self) -> list[str]:
        """Labels of the nodes that leave."""
        return [outcome.node.label for outcome in self.solution.outcomes if outcome.folded]

    def in_memory(self) -> Result:
        """Fold and prove; nothing stays on disk."""
        if self.solution.plan.is_empty:
            return Result(self.model.proto, Proof(None, None))
        self.say("writing")
        proto = folded(self.model, self.solution.plan)
        self.clock.lap("write")
        if any(is_external(tensor) for tensor in tensors(proto)) and self.model.source.path is not None:
            return Result(proto, self._beside(proto))
        return Result(proto, self.prove(proto, self.model.source.base_dir, self.model, self.solution.plan))

    @property
    def passes(self) -> bool:
        """Whether the proof holds. Without folds the model is compared with itself: failing that is no fold's fault."""
        if not self.solution.plan.is_empty:
            return self.in_memory().proof.ok
        source = self.model.source
        return self.prove(source.path or source.proto, source.base_dir, self.model, self.solution.plan).ok

    def _beside(self, proto: onnx.ModelProto) -> Proof:
        """Prove a model whose external data is the original's: from a temporary file in the original's folder."""
        assert self.model.source.path is not None
        temporary = self.model.source.path.with_name(f".{self.model.source.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(proto.SerializeToString())
            return self.prove(temporary, None, self.model, self.solution.plan)
        finally:
            temporary.unlink(missing_ok=True)

    def on_disk(self, stage: Staged) -> Result:
        """Fold into the stage and prove what lies there."""
        self.say("writing")
        proto = write(self.model, self.solution.plan, stage)
        self.clock.lap("write")
        if self.solution.plan.is_empty:
            return Result(proto, Proof(None, None))
        proof = self.prove(stage.path, None, self.model, self.solution.plan)
        return Result(proto, proof)


def culprits(fold: Callable[[set[str]], Attempt], say: Progress) -> tuple[str, ...]:
    """The folds at fault: a smallest set without which the rest passes. Empty where none is found.

    By halves (U. Junker, "QuickXplain", 2004): n folds of which k are guilty take about 2k*(log2(n/k) + 1) proofs.

    Args:
        fold: makes an attempt without the folds of these labels.
        say: told what goes on.
    """

    def guilty(suspects: Sequence[str], dropped: set[str]) -> tuple[str, ...]:
        """Those of the suspects that must go as well; without all of them the rest is known to pass."""
        say(f"looking for the folds at fault among {len(suspects)}")
        if fold(dropped).passes:
            return ()
        return halves(suspects, dropped)

    def halves(suspects: Sequence[str], dropped: set[str]) -> tuple[str, ...]:
        """The same, where something must go."""
        if len(suspects) == 1:
            return tuple(suspects)
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        later = guilty(second, dropped | set(first))
        earlier = guilty(first, dropped | set(later)) if later else halves(first, dropped)
        return earlier + later

    folds = fold(set()).folded
    return halves(folds, set()) if folds and fold(set(folds)).passes else ()
