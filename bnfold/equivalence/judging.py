"""What is judged: every output of the optimized model, on a provider and in float64, by the rule of `noise`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.noise import Evidence, judge
from bnfold.equivalence.reference import Reference
from bnfold.equivalence.result import RuntimeCheck, worst_samples
from bnfold.equivalence.runs import Outputs, Runs, nudged
from bnfold.equivalence.settings import Progress
from bnfold.equivalence.spread import Layer, Sketch, layers
from bnfold.errors import BnfoldError
from bnfold.kernels.base import is_float_type, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.placement import Placement, combined, judge_placement
from bnfold.runtime import ORT_NAMES
from bnfold.samples import Feeds
from bnfold.source import Source
from bnfold.witness import Witness

# Noise of this share of an output's own size drowns all but gross differences, and the reader must know.
_DROWNED = 0.05


def said(checks: Sequence[OutputCheck], where: str = "") -> list[str]:
    """The problems, a line each, behind the words that say where they were seen."""
    return [f"{where}output '{check.output}': {check.problem}" for check in checks if not check.passed]


def drowned(checks: Sequence[OutputCheck]) -> list[str]:
    """A note for every output in which little can be seen."""
    return [
        f"output '{check.output}' is mostly rounding noise ({check.noise.norm:.1e} of its size): little can be "
        "seen there; give real inputs with --inputs"
        for check in checks
        if check.noise is not None and check.noise.norm > _DROWNED
    ]


def judge_provider(runs: Runs, reference: Reference) -> RuntimeCheck:
    """Both levels of optimisation, and where the nodes ran."""
    problems = list(runs.problems)
    outputs, placed = {}, {}
    for level, after in runs.optimized.items():
        outputs[level] = judge_level(level, runs, after, reference)
        problems += said(outputs[level], f"{runs.provider}, optimisations {level}: ")
    for level in runs.optimized:
        before, after_placed = (runs.placements[f"{model} {level}"] for model in ("original", "optimized"))
        placed[level] = judge_placement(before, after_placed, ORT_NAMES[runs.provider])
        problems += [f"{runs.provider}, optimisations {level}: {problem}" for problem in placed[level].problems]
    plain = runs.placements.get("optimized off", Placement(()))
    return RuntimeCheck(
        runs.provider,
        not problems,
        tuple(problems),
        outputs,
        combined(placed.values()),
        tuple(plain.table()),
        runs.settings,
    )


def judge_level(level: str, runs: Runs, after: Sequence[Outputs], reference: Reference) -> tuple[OutputCheck, ...]:
    """What the optimized model computed with optimisations "off" or "on"; each output's worst sample."""
    other = "on" if level == "off" else "off"
    return worst_samples(
        judge(
            Evidence(
                name,
                index,
                reference.truth[index][name],
                runs.original[level][index][name],
                value,
                # Optimisations on may round otherwise; off is the plain arithmetic and gets no such allowance.
                [run[name] for run in reference.noisy[index] + runs.nudged[index]]
                + ([runs.original["off"][index][name]] if level == "on" else []),
                runs.original[other][index][name],
            )
        )
        for index, outputs in enumerate(after)
        for name, value in outputs.items()
    )


@dataclass(frozen=True)
class Stored:
    """Both models in float64: each output's worst sample, the inner tensors, and why not every sample was evaluated."""

    checks: tuple[OutputCheck, ...] = ()
    layers: tuple[Layer, ...] = ()
    trouble: str = ""


def judge_stored(
    original: Source,
    optimized: Source,
    feeds: Sequence[Feeds],
    reference: Reference,
    witness: Witness | None,
    say: Progress,
    rounds: Oracle | None = None,
) -> Stored:
    """Both models in float64, under the noise that storing the weights makes: no arithmetic hides anything here.

    `rounds` is the model that the other one is allowed as much noise as, where its weights are not those of the truth.
    """
    oracle = Oracle(optimized)
    units = _output_units(original.proto)
    inside, trouble = Sketch(), ""
    checks: list[OutputCheck] = []
    for index, (sample, truth, rounded) in enumerate(zip(feeds, reference.truth, reference.stored, strict=True)):
        if not rounded:
            continue
        say(f"float64, the optimized model, sample {index + 1} of {len(feeds)}")
        try:
            after = oracle.run(sample, watch=None if index else inside)
        except BnfoldError as error:
            trouble = f"the optimized model was not evaluated in float64: {error}"
            break
        before = truth if rounds is None else rounds.run(sample)
        checks += [
            judge(
                Evidence(
                    name,
                    index,
                    value,
                    before[name],
                    after[name],
                    [run[name] for run in rounded],
                    unit=units.get(name),
                )
            )
            for name, value in truth.items()
        ]
    found = layers(original.proto, reference.inside, reference.inside_stored, inside, witness)
    return Stored(worst_samples(checks), found, trouble)


def judge_rounded(
    rounds: Oracle, optimized: Source, feeds: Sequence[Feeds], reference: Reference, unit: float, say: Progress
) -> tuple[tuple[OutputCheck, ...], list[str]]:
    """Both models with every result rounded to the type that it is stored in, whatever a runtime here makes of it.

    What the other model is allowed is a multiple of what this one is off by, also on inputs that are moved by one
    rounding: no Monte Carlo rounding on top, for nothing is left to chance here.

    Returns what was judged, and the outputs that overflow. Raises what the oracle raises.
    """
    oracle, units = Oracle(optimized), _output_units(optimized.proto)
    checks: list[OutputCheck] = []
    lost: list[str] = []
    for index, (sample, truth) in enumerate(zip(feeds, reference.truth, strict=True)):
        if not reference.stored[index]:
            continue
        say(f"every tensor rounded, sample {index + 1} of {len(feeds)}")
        before, after = (each.run(sample, nearest=True) for each in (rounds, oracle))
        draws = range(len(reference.stored[index]))
        noisy = [rounds.run(nudged(sample, turn, unit), nearest=True) for turn in draws]
        lost += overflows([after], [truth], "with every tensor rounded, ")
        checks += [
            judge(
                Evidence(
                    name, index, value, before[name], after[name], [run[name] for run in noisy], unit=units.get(name)
                )
            )
            for name, value in truth.items()
        ]
    return worst_samples(checks), lost


def overflows(after: Sequence[Outputs], truth: Sequence[Outputs], where: str) -> list[str]:
    """The outputs that are not finite although they should be: no noise explains that."""
    found = []
    for outputs, expected in zip(after, truth, strict=False):
        for name, value in outputs.items():
            if not is_float_type(value.dtype) or value.shape != expected[name].shape:
                continue
            count = int(np.count_nonzero(~np.isfinite(value.astype(np.float64)) & np.isfinite(expected[name])))
            if count:
                found.append(f"{where}output '{name}': {count} of {value.size} elements overflow")
    return list(dict.fromkeys(found))


def _output_units(model: onnx.ModelProto) -> dict[str, float]:
    """The unit roundoff of each float output's declared type."""
    types = {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in model.graph.output
        if value.type.tensor_type.elem_type
    }
    return {name: unit_roundoff(dtype) for name, dtype in types.items() if is_float_type(dtype)}
