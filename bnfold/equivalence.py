"""Is the optimized model the original? Noise against float64, and both on every asked provider.

The rule is that of `bnfold.noise`: an output passes when its error is at most K times the original's own rounding
noise. Nothing is written and neither model is modified.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from bnfold import algebra, evidence, samples, source
from bnfold.algebra import Algebra
from bnfold.answers import Answers, answers
from bnfold.errors import BnfoldError, ModelError
from bnfold.evidence import Feeds, Progress, Reference, Runs
from bnfold.graph import Model
from bnfold.inputs import InputsLike, Own
from bnfold.kernels.base import Array, is_float_type
from bnfold.labels import Given, LabelsLike
from bnfold.noise import Evidence, K, OutputCheck, deviation, is_float, judge, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.parting import find_parting
from bnfold.patch import witness_of
from bnfold.placement import Placement, combined, judge_placement
from bnfold.plan import Plan
from bnfold.runtime import ORT_NAMES, CannotRun, Session, resolve_providers
from bnfold.sensitivity import sensitivity
from bnfold.source import ModelLike
from bnfold.spread import Layer, Sketch, layers
from bnfold.verification import (
    CERTIFIED_ONLY,
    DIFFERENT,
    EQUIVALENT,
    NoiseCheck,
    RuntimeCheck,
    Verification,
    interface_problems,
    worst_samples,
)

__all__ = [
    "CERTIFIED_ONLY",
    "DIFFERENT",
    "EQUIVALENT",
    "NoiseCheck",
    "OutputCheck",
    "RuntimeCheck",
    "Verification",
    "verify",
]

# Where a runtime is this many times further from float64 than rounding explains, and that far, its own approximations
# (or an oracle that is wrong) would make the rule toothless: the runtime's result is then the reference.
_UNEXPLAINED, _FAR = 100.0, 1e-3

# Noise of this share of an output's own size drowns all but gross differences, and the reader must know.
_DROWNED = 0.05


def verify(
    original: ModelLike,
    optimized: ModelLike,
    *,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    inputs: InputsLike | None = None,
    preprocess: str | Mapping[str, Any] | None = None,
    labels: LabelsLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    tf32: bool = False,
    locate: bool = True,
    self_test: bool = False,
    progress: Progress | None = None,
    fold: tuple[Model, Plan] | None = None,
) -> Verification:
    """Compare two models. Nothing that is found to differ raises: it is in the result.

    Args:
        original: path, bytes or ModelProto of the model that is right by definition.
        optimized: the model to judge.
        providers: "cuda", "tensorrt", "cpu"; each is a verification of its own. Default: the best one here.
        provider_options: options by provider name, passed on to ONNX Runtime.
        inputs: the user's own samples: a dict of arrays or several, an .npz, an .npy for a model with one input, the
            JSON of `polygraphy run --save-inputs`, or a folder of images.
        preprocess: how images become what the model reads (`bnfold.preprocess`); what the model's metadata say by
            default.
        labels: the class of each image or row of `inputs`, for the accuracy of both models (`bnfold.labels`).
        shapes: sizes by input name, where the model leaves them free.
        samples: how many random samples to make (at least one, unless `inputs` is given).
        seed: of the random samples.
        tf32: let NVIDIA's TF32 round float32 products to 10 bits.
        locate: where the two differ, look for the first tensor that does (`bnfold.parting`).
        self_test: where the two agree, say how small a corruption of each kind of constant would have been seen
            (`bnfold.sensitivity`).
        progress: called with a line of text as the work goes on.
        fold: what `optimized` was made from and by which plan: how inner tensors are stored, and unrounded constants.

    Raises:
        UsageError: shapes, inputs or labels that do not fit the model; an unknown provider.
        ModelError: a model that cannot be read, or runs on no size that was tried.
        ProviderError: a provider that is not available here, or silently fell back to another.
    """
    return _Verifier(
        source.read(original),
        source.read(optimized),
        resolve_providers(providers, provider_options),
        provider_options or {},
        seed,
        tf32,
        progress or (lambda text: None),
        fold,
    ).verify(Given(inputs, preprocess, labels), shapes, samples, locate, self_test)


class _Verifier:
    """One verification as it goes on."""

    def __init__(
        self,
        original: source.Source,
        optimized: source.Source,
        providers: list[str],
        options: Mapping[str, Mapping[str, str]],
        seed: int,
        tf32: bool,
        say: Progress,
        fold: tuple[Model, Plan] | None,
    ) -> None:
        self.original, self.optimized, self.fold = original, optimized, fold
        self.providers, self.options = providers, options
        self.seed, self.tf32, self.say = seed, tf32, say
        self.start = time.perf_counter()
        self.oracle = Oracle(original.proto, base_dir=original.base_dir)
        self.notes: list[str] = []
        self.feeds: list[Feeds] = []
        self.algebra: Algebra | None = None
        self.layers: tuple[Layer, ...] = ()
        self.reference: Reference | None = None
        self.runs: Runs | None = None
        self.own: Own | None = None
        self.labels: Array | None = None

    def verify(
        self,
        given: Given,
        shapes: Mapping[str, Sequence[int]] | None,
        count: int,
        locate: bool,
        self_test: bool,
    ) -> Verification:
        """All layers, and where the two part if they do, or what would have been seen if they do not."""
        found = self._verified(given, shapes, count)
        if not found.passed:
            return self._located(found) if locate else found
        if not self_test or self.reference is None:
            return found
        rows = sensitivity(self.optimized, self._seen, self.say)
        return replace(found, sensitivity=rows, seconds=time.perf_counter() - self.start)

    def _seen(self, wrong: source.Source) -> str:
        """Who sees that this model differs: float64, or the first provider with its optimisations off."""
        assert self.reference is not None
        if self.reference.status == "float64" and _said(self._stored(self.reference, wrong), ""):
            return "float64"
        provider = self.providers[0]
        if self.runs is None or any(map(source.is_external, wrong.proto.graph.initializer)):
            return ""
        try:
            session = Session(evidence.runnable(wrong), optimize=False, **self._settings())
            after = [session.run(sample) for sample in self.feeds]
        except CannotRun:
            return provider
        return provider if _said(self._judge_level("off", self.runs, after, self.reference), "") else ""

    def _located(self, found: Verification) -> Verification:
        """Where the two part, on the sample that shows it most."""
        self.say("looking for the first tensor that differs")
        at = found.worst.sample if found.worst is not None else 0
        try:
            feeds = self.feeds[at] if self.feeds else evidence.any_sample(self.original, self.oracle, self.seed)
            return replace(found, parting=find_parting(self.original, self.optimized, feeds, self.seed))
        except BnfoldError as error:
            return replace(found, notes=(*found.notes, f"where the two part was not found: {error}"))

    def _verified(self, given: Given, shapes: Mapping[str, Sequence[int]] | None, count: int) -> Verification:
        """All layers."""
        skipped = NoiseCheck("not run: the interfaces differ", self.providers[0], K, False)
        problems = interface_problems(self.original.proto, self.optimized.proto)
        if problems:
            return self._result(problems, skipped, [])
        specs = samples.input_specs(self.original.proto)
        self.own, self.labels = given.load(specs, self.original.proto)
        own = self._own_samples()
        session, reason = self._session()
        self.say("choosing inputs")
        try:
            self.feeds = evidence.choose_samples(
                session, self.oracle, specs, shapes=shapes, own=own, count=max(count, not own), seed=self.seed
            )
        except ModelError:
            if session is not None:
                raise
            return self._uncompared(reason, f"not run: {reason}, nor can the float64 evaluator")
        if session is None:
            return self._certified_only(reason)
        return self._compared()

    def _own_samples(self) -> list[Feeds]:
        """Those of the user's samples that are judged."""
        if self.own is None:
            return []
        self.notes += self.own.notes
        judged = evidence.affordable(self.oracle, self.own)
        if len(judged) < self.own.count:
            self.notes.append(f"the first {len(judged)} of your {self.own.count} samples were judged")
        return judged

    def _session(self) -> tuple[Session | None, str]:
        """The original on the first asked provider, or why it cannot run there."""
        try:
            return Session(evidence.runnable(self.original), optimize=False, **self._settings()), ""
        except CannotRun as error:
            return None, str(error)

    def _compared(self) -> Verification:
        """Both models ran: judge the noise on the first provider, then each provider and level."""
        every: dict[str, Runs] = {}
        for provider in self.providers:
            try:
                every[provider] = self._run(provider)
            except CannotRun as error:
                self.notes.append(f"{provider}: the original does not run there, so nothing was compared: {error}")
        first = every.get(self.providers[0])
        if first is None:
            return self._certified_only(self.notes.pop())
        reference = self._reference(first)
        self.reference, self.runs = reference, first
        checks = [self._judge_provider(provider, runs, reference) for provider, runs in every.items()]
        at_noise = checks[0].outputs.get("off", ())
        self.notes += [
            f"output '{check.output}' is mostly rounding noise ({check.noise.norm:.1e} of its size): little can be "
            "seen there; give real inputs with --inputs"
            for check in at_noise
            if check.noise is not None and check.noise.norm > _DROWNED
        ]
        exact = self._judge_algebra(reference)
        stored = self._stored(reference, self.optimized) if reference.status == "float64" else ()
        passed = bool(at_noise) and all(check.passed for check in at_noise + stored)
        noise = NoiseCheck(reference.status, self.providers[0], K, passed, at_noise, stored, self.layers)
        problems = [problem for check in checks for problem in check.problems] + _said(stored, "in float64, ")
        return self._result(exact + problems, noise, checks, answers=self._answers())

    def _answers(self) -> Answers | None:
        """Both models on every labelled sample, as they are deployed: on the first provider, with optimisations."""
        if self.own is None or self.labels is None:
            return None
        self.say(f"answers to {len(self.labels)} labelled samples")
        models = evidence.runnable(self.original), evidence.runnable(self.optimized)
        try:
            return answers(self.own, self.labels, *models, **self._settings())
        except CannotRun as error:
            self.notes.append(f"the labels were not used: {error}")
            return None

    def _settings(self) -> dict[str, Any]:
        """Of sessions on the first provider."""
        provider = self.providers[0]
        return {"provider": provider, "tf32": self.tf32, "options": self.options.get(provider)}

    def _run(self, provider: str) -> Runs:
        return evidence.run_both(
            evidence.runnable(self.original),
            evidence.runnable(self.optimized),
            self.feeds,
            provider,
            tf32=self.tf32,
            options=self.options.get(provider),
            say=self.say,
        )

    def _reference(self, runs: Runs) -> Reference:
        """Float64 where it can be had and the runtime agrees with it, else the runtime itself."""
        try:
            reference = evidence.float64_reference(self.oracle, self.feeds, self.seed, self.say)
        except BnfoldError as error:
            return self._weaker(runs, str(error))
        far = _unexplained(reference, runs.original["off"])
        return reference if far is None else self._weaker(runs, far)

    def _weaker(self, runs: Runs, why: str) -> Reference:
        self.notes.append(f"compared with ONNX Runtime's own result instead of float64: {why}")
        plain, tuned = runs.original["off"], runs.original["on"]
        return evidence.runtime_reference(self.original, plain, tuned, self.feeds, self.seed, why)

    def _judge_provider(self, provider: str, runs: Runs, reference: Reference) -> RuntimeCheck:
        problems = list(runs.problems)
        outputs = {}
        for level, after in runs.optimized.items():
            checks = self._judge_level(level, runs, after, reference)
            outputs[level] = checks
            problems += _said(checks, f"{provider}, optimisations {level}: ")
        placed = {
            level: judge_placement(
                runs.placements[f"original {level}"], runs.placements[f"optimized {level}"], ORT_NAMES[provider]
            )
            for level in runs.optimized
        }
        problems += [
            f"{provider}, optimisations {level}: {problem}"
            for level, each in placed.items()
            for problem in each.problems
        ]
        plain = runs.placements.get("optimized off", Placement(()))
        return RuntimeCheck(
            provider,
            not problems,
            tuple(problems),
            outputs,
            combined(placed.values()),
            tuple(plain.table()),
            runs.settings,
        )

    def _judge_level(
        self, level: str, runs: Runs, after: Sequence[Mapping[str, Any]], reference: Reference
    ) -> tuple[OutputCheck, ...]:
        """What the optimized model computed with optimisations "off" or "on"."""
        other = "on" if level == "off" else "off"
        return worst_samples(
            judge(
                Evidence(
                    name,
                    index,
                    reference.truth[index][name],
                    runs.original[level][index][name],
                    after[index][name],
                    # Optimisations on may round otherwise; off is the plain arithmetic and gets no such allowance.
                    [run[name] for run in reference.noisy[index] + runs.nudged[index]]
                    + ([runs.original["off"][index][name]] if level == "on" else []),
                    runs.original[other][index][name],
                )
            )
            for index in range(len(self.feeds))
            for name in after[index]
        )

    def _certified_only(self, reason: str) -> Verification:
        """No runtime runs the original: both models in float64, under the noise that Monte Carlo rounding shows."""
        try:
            reference = evidence.float64_reference(self.oracle, self.feeds, self.seed, self.say)
        except BnfoldError as error:
            return self._uncompared(reason, f"not run: {error}")
        self.reference = reference
        checks = self._stored(reference, self.optimized)
        problems = self._judge_algebra(reference) + _said(checks, "in float64, ")
        noise = NoiseCheck("float64, both models", "float64", K, not problems, (), checks, self.layers)
        self.notes.append(f"no runtime here runs the original ({reason}): both models were compared in float64")
        return self._result(problems, noise, [], CERTIFIED_ONLY)

    def _judge_algebra(self, reference: Reference) -> list[str]:
        """Original and unrounded fold in float64, as far apart as the original's conditioning explains."""
        if self.fold is None or reference.status != "float64":
            return []
        self.say("float64, unrounded constants")
        self.algebra = algebra.compare(*self.fold, self.feeds[0], _conditioning(reference))
        return [self.algebra.problem] if self.algebra.problem else []

    def _stored(self, reference: Reference, optimized: source.Source) -> tuple[OutputCheck, ...]:
        """Both models in float64, under the noise that storing the weights makes: no arithmetic hides anything here."""
        oracle = Oracle(optimized.proto, base_dir=optimized.base_dir)
        units = _output_units(self.original.proto)
        inside = Sketch()
        checks = []
        for index, (truth, rounded) in enumerate(zip(reference.truth, reference.stored, strict=True)):
            if not rounded:
                continue
            self.say(f"float64, the optimized model, sample {index + 1} of {len(self.feeds)}")
            try:
                after = oracle.run(self.feeds[index], watch=None if index else inside)
            except BnfoldError as error:
                self.notes.append(f"the optimized model was not evaluated in float64: {error}")
                break
            checks += [
                judge(
                    Evidence(
                        name, index, value, value, after[name], [run[name] for run in rounded], unit=units.get(name)
                    )
                )
                for name, value in truth.items()
            ]
        witness = None if self.fold is None else witness_of(self.fold[1])
        self.layers = layers(self.original.proto, reference.inside, reference.inside_stored, inside, witness)
        return worst_samples(checks)

    def _uncompared(self, reason: str, status: str) -> Verification:
        self.notes.append(f"nothing here can run the original, so nothing was compared: {reason}")
        return self._result([], NoiseCheck(status, self.providers[0], K, True), [], CERTIFIED_ONLY)

    def _result(
        self,
        problems: Sequence[str],
        noise: NoiseCheck,
        runtime: Sequence[RuntimeCheck],
        status: str = EQUIVALENT,
        answers: Answers | None = None,
    ) -> Verification:
        facts = [
            {"name": name, "type": str(array.dtype), "shape": list(array.shape)}
            for name, array in (self.feeds[0].items() if self.feeds else ())
        ]
        return Verification(
            DIFFERENT if problems else status,
            tuple(problems),
            tuple(self.notes),
            tuple(facts),
            len(self.feeds),
            self.seed,
            self.tf32,
            noise,
            tuple(runtime),
            time.perf_counter() - self.start,
            self.algebra,
            answers,
        )


def _said(checks: Sequence[OutputCheck], where: str) -> list[str]:
    return [f"{where}output '{check.output}': {check.problem}" for check in checks if not check.passed]


def _conditioning(reference: Reference) -> float:
    """How many times its own rounding an evaluation may be off: 64 times what Monte Carlo rounding shows."""
    moved = [
        deviation(run[name], truth[name], truth[name]).norm
        for truth, noisy in zip(reference.truth, reference.noisy, strict=True)
        for run in noisy
        for name in truth
        if is_float(truth[name].dtype) and np.isfinite(truth[name]).all()
    ]
    return 64 * max((move for move in moved if np.isfinite(move)), default=0.0) / unit_roundoff(np.dtype(np.float32))


def _unexplained(reference: Reference, runs: Sequence[Mapping[str, Any]]) -> str | None:
    """Where the runtime is further from float64 than rounding explains, in words."""
    for truth, noisy, ran in zip(reference.truth, reference.noisy, runs, strict=True):
        for name, expected in truth.items():
            if expected.shape != ran[name].shape:
                return f"the float64 evaluator disagrees with the runtime on the shape of '{name}'"
            if not is_float(ran[name].dtype) or not np.isfinite(expected).all():
                continue
            before = deviation(ran[name].astype(np.float64), expected, expected).norm
            moved = max((deviation(run[name], expected, expected).norm for run in noisy), default=0.0)
            if np.isfinite(before) and before > _FAR and before > _UNEXPLAINED * moved:
                return f"the runtime's '{name}' is {before:.1e} from float64 and rounding explains {moved:.1e}"
    return None


def _output_units(model: onnx.ModelProto) -> dict[str, float]:
    """The unit roundoff of each float output's declared type."""
    units = {}
    for value in model.graph.output:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if is_float_type(dtype):
            units[value.name] = unit_roundoff(dtype)
    return units
