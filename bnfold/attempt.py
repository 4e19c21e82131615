"""One plan, carried out and proved; and the search for the folds at fault where the proof fails."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import onnx

from bnfold import temporary
from bnfold.benchmark import BenchRow
from bnfold.calls import Functions
from bnfold.certificate import Certificate, certify
from bnfold.equivalence import DIFFERENT, Progress, Verification
from bnfold.errors import ModelError
from bnfold.folding import Folded
from bnfold.graph import Model
from bnfold.patch import Patched, patch, tensors
from bnfold.plan import Rewrite
from bnfold.precision import Converted
from bnfold.source import ModelLike, is_beside, read_lean
from bnfold.stage import Destination, Staged, staged
from bnfold.validity import check_valid
from bnfold.witness import Witness
from bnfold.write import fits, folded, write


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
    converted: Proof | None = None
    """What was found about the fold in a smaller type, where one was asked for."""
    speed: tuple[BenchRow, ...] = ()
    """The original and what is written in turns, where a conversion was verified: a row for every provider."""

    @property
    def certified(self) -> bool:
        """Whether no certificate speaks against the fold."""
        own = self.certificate is None or self.certificate.ok
        return own and (self.converted is None or self.converted.certified)

    @property
    def exact(self) -> bool:
        """Whether only rounding may speak against the fold: certificate and algebra do not."""
        algebra = None if self.verification is None else self.verification.algebra
        return self.certified and (algebra is None or algebra.passed)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the fold."""
        own = self.certified and (self.verification is None or self.verification.status != DIFFERENT)
        return own and (self.converted is None or self.converted.ok)

    @property
    def final(self) -> Proof:
        """What was found about what is written."""
        return self.converted or self

    @property
    def told(self) -> Proof:
        """The part that speaks against the fold, or else that of what is written."""
        own_fails = self.converted is None or not replace(self, converted=None).ok
        return self if own_fails or self.converted is None else self.converted


def certificate_of(given: Model, optimized: ModelLike, base_dir: Path | None, witness: Witness) -> Certificate:
    """The certificate of a folded model, read again from where it lies.

    Raises:
        ModelError: it does not hold, and the original breaks ONNX's rules.
    """
    made = read_lean(optimized)
    found = certify(given, Model(replace(made, base_dir=made.base_dir or base_dir), direct=True), witness)
    if not found.ok:
        check_valid(given.source)
    return found


@contextlib.contextmanager
def runnable(rewrite: Rewrite, patched: Patched | None = None) -> Iterator[tuple[onnx.ModelProto, ModelLike]]:
    """The folded model that nobody wants to keep: itself, without the data that stays on disk, and as it can be run.

    A file beside the original where its external data is needed too, or where protobuf could not hold it.

    Raises:
        ModelError: it is too large, and there is no place for a file.
        OutputError: the folder of the original cannot be written to.
    """
    source = rewrite.original.source
    patched = patched or patch(rewrite.model, rewrite.plan)
    if not fits(patched):
        if source.path is None:
            raise ModelError("the folded model is larger than 2 GB: give the path of the model's file, and an output")
        with staged(Destination(source.path)) as stage:
            yield write(rewrite, stage, patched), stage.path
        return
    proto = folded(rewrite, patched=patched)
    if source.path is None or not any(map(is_beside, tensors(proto))):
        yield proto, proto
        return
    with temporary.file(source.path) as beside:  # whose external data is the original's
        beside.write_bytes(proto.SerializeToString())
        yield proto, beside


Prove = Callable[[ModelLike, Path | None, Rewrite], Proof]
"""Proves a folded model: (the model, where its external data is, what became of the original)."""


class Conversion(Protocol):
    """To a smaller type: how folds are converted, and how the result is proved."""

    def convert(self, rewrite: Rewrite) -> Converted:
        """The folded model in the smaller type."""

    def prove(self, made: Converted, optimized: ModelLike, base_dir: Path | None, rewrite: Rewrite) -> Proof:
        """Prove what became of it."""


@dataclass(frozen=True)
class Result:
    """A folded model, and what was found about it."""

    proto: onnx.ModelProto
    proof: Proof
    converted: Converted | None = None

    @cached_property
    def functions(self) -> Functions:
        """Of the folded model."""
        return Functions(self.proto)


@dataclass(frozen=True)
class Attempt:
    """One plan, carried out and proved, in memory or on disk."""

    found: Folded
    prove: Prove
    clock: Clock
    say: Progress
    conversion: Conversion | None = None
    """To a smaller type, where one was asked for."""

    @property
    def changes(self) -> list[str]:
        """Labels of the nodes that leave, and of the last node of every merge."""
        return self.found.changes

    def carried_out(self, place: Destination | None, tell: Callable[[Staged, Attempt, Result], None]) -> Result:
        """Fold and prove; where the result is right, `tell` of it and move it into place. In memory for no place."""
        if place is None:
            return self.in_memory()
        with staged(place) as stage:
            result = self.on_disk(stage)
            if result.proof.ok:
                tell(stage, self, result)
                stage.keep()
            return result

    def in_memory(self) -> Result:
        """Fold and prove; nothing stays on disk."""
        rewrite = self.found.rewrite
        first = Result(rewrite.original.proto, Proof(None, None)) if rewrite.is_empty else self._in_memory(self.prove)
        if self.conversion is None or not first.proof.ok:
            return first
        made = self.conversion.convert(rewrite)
        last = self._in_memory(partial(self.conversion.prove, made), made.patched)
        return Result(last.proto, replace(first.proof, converted=last.proof), made)

    def _in_memory(self, prove: Prove, patched: Patched | None = None) -> Result:
        rewrite, source = self.found.rewrite, self.found.rewrite.original.source
        self.say("writing")
        with runnable(rewrite, patched) as (proto, made):
            self.clock.lap("write")
            return Result(proto, prove(made, source.base_dir, rewrite))

    @property
    def passes(self) -> bool:
        """Whether the proof holds. Without folds the model is compared with itself: failing that is no fold's fault."""
        rewrite, source = self.found.rewrite, self.found.rewrite.original.source
        if not rewrite.is_empty or self.conversion is not None:
            return self.in_memory().proof.ok
        return self.prove(source.path or source.proto, source.base_dir, rewrite).ok

    def on_disk(self, stage: Staged) -> Result:
        """Fold into the stage and prove what lies there."""
        if self.conversion is None:
            return self._on_disk(stage)
        with staged(stage.where) as other:  # proved, and never kept
            first = Result(onnx.ModelProto(), Proof(None, None))
            if not self.found.rewrite.is_empty:
                first = self._on_disk(other)
        if not first.proof.ok:
            return first
        made = self.conversion.convert(self.found.rewrite)
        last = self._on_disk(stage, partial(self.conversion.prove, made), made.patched)
        return Result(last.proto, replace(first.proof, converted=last.proof), made)

    def _on_disk(self, stage: Staged, prove: Prove | None = None, patched: Patched | None = None) -> Result:
        rewrite = self.found.rewrite
        self.say("writing")
        proto = write(rewrite, stage, patched)
        self.clock.lap("write")
        needless = rewrite.is_empty and prove is None
        proof = Proof(None, None) if needless else (prove or self.prove)(stage.path, None, rewrite)
        stage.where.check_unchanged()  # else what was found is not about this input
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

    folds = fold(set()).changes
    return halves(folds, set()) if folds and fold(set(folds)).passes else ()
