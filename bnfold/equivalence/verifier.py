"""One verification from beginning to end: what runs, in which order, and what is left out where something cannot."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold import samples
from bnfold.equivalence import algebra
from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.answers import Answers, Both, answers
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.choosing import affordable, any_sample, choose_samples
from bnfold.equivalence.interface import interface_problems
from bnfold.equivalence.judging import (
    Stored,
    drowned,
    judge_level,
    judge_provider,
    judge_rounded,
    judge_stored,
    overflows,
    said,
)
from bnfold.equivalence.noise import K
from bnfold.equivalence.parting import find_parting
from bnfold.equivalence.reference import Reference, drawn_again, float64_reference, reference_of
from bnfold.equivalence.result import (
    CERTIFIED_ONLY,
    DIFFERENT,
    EQUIVALENT,
    NoiseCheck,
    RuntimeCheck,
    Verification,
)
from bnfold.equivalence.runs import Outputs, Runs, run_both
from bnfold.equivalence.sensitivity import sensitivity
from bnfold.equivalence.settings import Progress, Settings
from bnfold.errors import BnfoldError, ModelError
from bnfold.inputs import Own
from bnfold.kernels.base import Array
from bnfold.malformed import deadly
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.runtime import CannotRun, Session, resolve_providers
from bnfold.samples import Feeds
from bnfold.source import Source, is_external
from bnfold.witness import Witness


@dataclass(frozen=True)
class _Judged:
    """What every layer found."""

    runtime: list[RuntimeCheck]
    stored: Stored
    rounded: tuple[OutputCheck, ...]
    problems: list[str]

    @property
    def is_beyond(self) -> bool:
        """Whether an output is further off than the noise allows."""
        ran = [check for found in self.runtime for checks in found.outputs.values() for check in checks]
        return not all(check.passed for check in (*ran, *self.stored.checks, *self.rounded))


class Verifier:
    """One verification as it goes on. Makes no promise after `verify` has returned."""

    def __init__(
        self,
        original: Source,
        optimized: Source,
        settings: Settings,
        say: Progress,
        fold: Rewrite | None = None,
        truth: Source | None = None,
        unit: float = 0.0,
        witness: Witness | None = None,
    ) -> None:
        """One verification.

        `truth` is the model that both come from, where `original` was converted to a smaller type too: it says what is
        right, and the original how much noise that type makes, whose unit roundoff is `unit`. `witness` says how
        tensors are stored; by default it is that of the fold.
        """
        self.start = time.perf_counter()
        self.original, self.optimized, self.fold = original, optimized, fold
        self.settings, self.say = settings, say
        self.providers = resolve_providers(settings.providers, settings.provider_options)
        self.truth, self.unit = truth or original, unit
        self.witness = witness if fold is None else witness_of(fold)
        self.oracle = Oracle(self.truth)
        self.rounds = None if truth is None else Oracle(original)
        self.notes: list[str] = []
        self.feeds: list[Feeds] = []
        self.own: Own | None = None
        self.labels: Array | None = None
        self.unjudged = False
        self.runs: Runs | None = None
        self.reference: Reference | None = None
        self.algebra: Algebra | None = None

    def verify(self) -> Verification:
        """All layers, and where the two part if they do, or what would have been seen if they do not."""
        found = self._verified()
        if not found.passed:
            return self._located(found) if self.settings.locate else found
        if not self.settings.self_test or self.reference is None:
            return found
        rows = sensitivity(self.optimized, self._seen, self.say)
        return replace(found, sensitivity=rows, seconds=time.perf_counter() - self.start)

    @np.errstate(over="ignore", invalid="ignore")  # weights that are not finite
    def _verified(self) -> Verification:
        """All layers."""
        problems = interface_problems(self.original.proto, self.optimized.proto)
        if problems:
            skipped = NoiseCheck("not run: the interfaces differ", self.providers[0], K, False)
            return self._result(problems, skipped)
        specs = samples.input_specs(self.original.proto)
        self.own, self.labels = self.settings.own(specs, self.original.proto)
        session, reason = self._session()
        try:
            self._choose(session, specs)
        except ModelError:
            if session is not None:
                raise
            return self._uncompared(reason, f"not run: {reason}, nor can the float64 evaluator")
        runs, session = session is not None, None  # what runs next makes its own
        return self._compared() if runs else self._certified_only(reason)

    def _session(self) -> tuple[Session | None, str]:
        """The original on the first asked provider, or why it cannot run there."""
        if trouble := deadly(self.original.proto) or deadly(self.optimized.proto):
            return None, trouble
        try:
            return Session(self.original.runnable, optimize=False, **self._told()), ""
        except CannotRun as error:
            return None, str(error)

    def _told(self) -> dict[str, Any]:
        """What sessions on the first provider are told."""
        return self.settings.session(self.providers[0])

    def _choose(self, session: Session | None, specs: Sequence[samples.InputSpec]) -> None:
        """The samples: those of the user that are judged, and random ones."""
        judged = [] if self.own is None else affordable(self.oracle, self.own)
        if self.own is not None:
            self.notes += self.own.notes
            if len(judged) < self.own.count:
                self.unjudged = True
                self.notes.append(f"the first {len(judged)} of your {self.own.count} samples were judged")
        self.say("choosing inputs")
        count = max(self.settings.samples, not judged)
        self.feeds = choose_samples(
            session, self.oracle, specs, shapes=self.settings.shapes, own=judged, count=count, seed=self.settings.seed
        )

    # ------------------------------------------------------------------------------------------------- the three ends

    def _compared(self) -> Verification:
        """Both models ran: judge the noise on the first provider, then each provider and level."""
        every: list[Runs] = []
        for provider in self.providers:
            try:
                every.append(run_both(self.original, self.optimized, self.feeds, provider, self.settings, self.say))
            except CannotRun as error:
                self.notes.append(f"{provider}: the original does not run there, so nothing was compared: {error}")
        if not every or every[0].provider != self.providers[0]:
            return self._certified_only(self.notes.pop())
        self.runs = every[0]
        self.runs.truth = self._run_truth()
        self.reference = reference = reference_of(
            self.original, self.oracle, self.feeds, self.runs, self.settings.seed, self.say, self.rounds
        )
        if reference.weakness:
            self.notes.append(f"compared with ONNX Runtime's own result instead of float64: {reference.weakness}")
        found = self._judged(every, reference)
        answered = self._answers()
        problems = found.problems + ([answered.problem] if answered is not None and answered.problem else [])
        at_noise = found.runtime[0].outputs.get("off", ())
        noise = NoiseCheck(
            reference.status,
            self.providers[0],
            K,
            bool(at_noise) and all(check.passed for check in (*at_noise, *found.stored.checks, *found.rounded)),
            at_noise,
            found.stored.checks,
            found.stored.layers,
            found.rounded,
        )
        return self._result(problems, noise, found.runtime, answers=answered)

    def _certified_only(self, reason: str) -> Verification:
        """No runtime runs the original: both models in float64, under the noise that Monte Carlo rounding shows."""
        try:
            reference = float64_reference(self.oracle, self.feeds, self.settings.seed, self.say, self.rounds)
        except BnfoldError as error:
            return self._uncompared(reason, f"not run: {error}")
        self.reference = reference
        found = self._judged([], reference)
        noise = NoiseCheck(
            "float64, both models", "float64", K, not found.problems, stored=found.stored.checks,
            layers=found.stored.layers, rounded=found.rounded,
        )  # fmt: skip
        self.notes.append(f"no runtime here runs the original ({reason}): both models were compared in float64")
        self.notes += [] if self.labels is None else ["the labels were not used: no runtime here runs the original"]
        return self._result(found.problems, noise, status=CERTIFIED_ONLY)

    def _uncompared(self, reason: str, status: str) -> Verification:
        self.notes.append(f"nothing here can run the original, so nothing was compared: {reason}")
        return self._result([], NoiseCheck(status, self.providers[0], K, True), status=CERTIFIED_ONLY)

    def _result(
        self,
        problems: Sequence[str],
        noise: NoiseCheck,
        runtime: Sequence[RuntimeCheck] = (),
        *,
        status: str = EQUIVALENT,
        answers: Answers | None = None,
    ) -> Verification:
        fed: Mapping[str, Array] = self.feeds[0] if self.feeds else {}
        return Verification(
            DIFFERENT if problems else status,
            tuple(problems),
            tuple(dict.fromkeys(self.notes)),
            tuple({"name": name, "type": str(each.dtype), "shape": list(each.shape)} for name, each in fed.items()),
            len(self.feeds),
            self.settings.seed,
            self.settings.tf32,
            noise,
            tuple(runtime),
            time.perf_counter() - self.start,
            self.algebra,
            answers,
        )

    # ----------------------------------------------------------------------------------------------------- the layers

    def _judged(self, every: Sequence[Runs], reference: Reference) -> _Judged:
        """All layers. What is beyond the noise is judged once more, by more of it: a few draws may all be small."""
        problems, told = self._algebra_problems(reference), len(self.notes)
        found = self._judged_once(every, reference)
        own = self.rounds or self.oracle, self.feeds, self.settings.seed, self.say
        if found.is_beyond and not problems and drawn_again(reference, *own):
            del self.notes[told:]
            found = self._judged_once(every, reference)
        return replace(found, problems=problems + found.problems)

    def _judged_once(self, every: Sequence[Runs], reference: Reference) -> _Judged:
        runtime = [judge_provider(runs, reference) for runs in every]
        stored = self._stored(reference) if reference.is_float64 else Stored()
        rounded, lost = self._rounded(reference)
        self.notes += drowned(runtime[0].outputs.get("off", ())) if runtime else []
        self.notes += drowned(rounded)
        problems = [problem for check in runtime for problem in check.problems]
        problems += said(stored.checks, "in float64, ") + said(rounded, "with every tensor rounded, ") + lost
        return _Judged(runtime, stored, rounded, problems)

    def _algebra_problems(self, reference: Reference) -> list[str]:
        """Original and unrounded fold in float64, as far apart as the original's own rounding explains."""
        if self.fold is None or not reference.is_float64:
            return []
        self.say("float64, unrounded constants")
        self.algebra = algebra.compare(self.fold, self.feeds[0], reference.inside)
        return [self.algebra.problem] if self.algebra.problem else []

    def _stored(self, reference: Reference) -> Stored:
        stored = self._stored_as(self.optimized, reference)
        self.notes += [stored.trouble] if stored.trouble else []
        return stored

    def _stored_as(self, optimized: Source, reference: Reference) -> Stored:
        return judge_stored(self.truth, optimized, self.feeds, reference, self.witness, self.say, self.rounds)

    def _rounded(self, reference: Reference) -> tuple[tuple[OutputCheck, ...], list[str]]:
        """Of a conversion: both models with every result rounded, and what overflows, there or at a runtime."""
        if self.rounds is None:
            return (), []
        lost = []
        for level, after in (self.runs.optimized if self.runs is not None else {}).items():
            lost += overflows(after, reference.truth, f"optimisations {level}, ")
        if not reference.is_float64:
            return (), lost
        try:
            checks, beyond = judge_rounded(self.rounds, self.optimized, self.feeds, reference, self.unit, self.say)
            return checks, lost + beyond
        except BnfoldError as error:
            self.notes.append(f"the model was not evaluated with every tensor rounded: {error}")
            return (), lost

    def _run_truth(self) -> list[Outputs]:
        """What the model that both come from computes here; nothing where that is the original."""
        if self.rounds is None:
            return []
        try:
            session = Session(self.truth.runnable, optimize=False, **self._told())
            return [session.run(sample) for sample in self.feeds]
        except CannotRun:
            return []

    def _answers(self) -> Answers | None:
        """Both models on every input of the user, as they are deployed: on the first provider, with optimisations.

        Where all were judged, and there are no labels, that would say nothing new.
        """
        settings = self.settings
        if self.own is None or settings.few or not (self.unjudged or self.labels is not None or settings.ray):
            return None
        self.say(f"all {self.own.rows} inputs")
        try:
            work = Both(self.truth.runnable, self.optimized.runnable, self.settings, self.providers[0])
            return answers(work, self.own, self.labels)
        except CannotRun as error:
            self.notes.append(f"not all inputs were run: {error}")
            return None

    def _located(self, found: Verification) -> Verification:
        """Where the two part, on the sample that shows it most."""
        self.say("looking for the first tensor that differs")
        at, seed = found.worst.sample if found.worst is not None else 0, self.settings.seed
        try:
            feeds = self.feeds[at] if self.feeds else any_sample(self.original, self.oracle, seed)
            return replace(found, parting=find_parting(self.original, self.optimized, feeds, seed))
        except BnfoldError as error:
            return replace(found, notes=(*found.notes, f"where the two part was not found: {error}"))

    def _seen(self, wrong: Source) -> str:
        """Who sees that this model differs: float64, or the first provider with its optimisations off."""
        assert self.reference is not None
        if self.reference.is_float64 and said(self._stored_as(wrong, self.reference).checks):
            return "float64"
        provider = self.providers[0]
        if self.runs is None or any(map(is_external, wrong.proto.graph.initializer)):
            return ""
        try:
            session = Session(wrong.runnable, optimize=False, **self._told())
            after = [session.run(sample) for sample in self.feeds]
        except CannotRun:
            return provider
        return provider if said(judge_level("off", self.runs, after, self.reference)) else ""


def sampled(original: Source, settings: Settings, say: Progress) -> list[Feeds]:
    """The samples that a verification of this model would feed; raises as that does."""
    verifier = Verifier(original, original, settings, say)
    specs = samples.input_specs(original.proto)
    verifier.own, verifier.labels = settings.own(specs, original.proto)
    verifier._choose(verifier._session()[0], specs)
    return verifier.feeds
