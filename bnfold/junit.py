"""JUnit XML for CI systems: a suite for each model, a test case for each thing that was proved or compared.

The form is the common ground of Apache Ant's schema and of the one that Jenkins' xUnit plugin checks.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from xml.etree import ElementTree as ET

from bnfold.auditing import Audit
from bnfold.documents import Failed, Pair, UpToDate
from bnfold.equivalence.algebra import Algebra
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.parting import Parting
from bnfold.equivalence.result import CERTIFIED_ONLY, RuntimeCheck, Verification
from bnfold.equivalence.sensitivity import Sensitivity
from bnfold.report import clean
from bnfold.results import Explained, Optimized
from bnfold.verify_text import fed, moved, smallest

PASSED, FAILURE, ERROR, SKIPPED = "passed", "failure", "error", "skipped"


@dataclass(frozen=True)
class Case:
    """One thing that was checked; `text` says what was found, and is shown where it did not pass."""

    name: str
    outcome: str = PASSED
    text: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Suite:
    """What was checked of one model."""

    name: str
    command: str
    cases: tuple[Case, ...]
    seconds: float = 0.0
    properties: dict[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    """Warnings and notes, a line each."""


def suite(result: Explained | Pair | Audit | UpToDate | Failed, command: str) -> Suite:
    """The suite of one result of `optimize` or `verify`."""
    if isinstance(result, Failed):
        outcome = FAILURE if result.exit_code == 3 else ERROR
        return Suite(result.model or "bnfold", command, (Case(command, outcome, result.message),))
    if isinstance(result, UpToDate):
        return Suite(result.model, command, (Case(command, SKIPPED, f"{result.output} is up to date"),))
    if isinstance(result, Audit):
        return _audited(result, command)
    if isinstance(result, Explained):
        assert isinstance(result, Optimized), "explain checks nothing"
        return _optimized(result, command)
    run = result.result
    assert isinstance(run, Verification), "bench checks nothing"
    properties = {"original": result.original, "optimized": result.optimized, **_properties(run)}
    return Suite(result.optimized, command, tuple(_verified(run)), run.seconds, properties, _said(run))


def _audited(result: Audit, command: str) -> Suite:
    """Hashes, and the certificate where the files are those of the manifest."""
    found, problems = result.certificate, "\n".join(result.problems)
    others = FAILURE if problems else PASSED
    cases = [Case("manifest", PASSED if found is not None and not found.ok else others, problems, result.seconds)]
    if found is not None:
        cases.append(Case("certificate", PASSED if found.ok else FAILURE, "\n".join(map(str, found.failures))))
    properties = {"manifest": str(result.manifest), "original": str(result.original)}
    return Suite(str(result.optimized), command, tuple(cases), result.seconds, properties)


def _optimized(result: Optimized, command: str) -> Suite:
    run, seconds = result.verification, result.timing
    left = result.batchnorm
    properties = {"status": result.status, "batchnorm": f"{left.before} -> {left.after}"}
    if result.precision is not None:
        properties["precision"] = result.precision.type
    if result.output is not None:
        properties["output"] = str(result.output)
    cases = [_certificate(result, seconds.get("certify", 0.0))]
    if result.precision is not None and result.precision.verification is not None:
        fold = _verified(result.precision.verification)
        cases += [replace(case, name=f"the fold before: {case.name}") for case in fold]
    if run is not None:
        cases += _verified(run)
    elif result.certificate is not None:
        cases.append(Case("verification", SKIPPED, "not run, as asked (--no-verify)"))
    said = result.warnings + (_said(run) if run else ())
    return Suite(
        result.model.path or "the model",
        command,
        tuple(cases),
        sum(seconds.values()),
        properties | (_properties(run) if run else {}),
        said,
    )


def _certificate(result: Optimized, seconds: float) -> Case:
    found = result.certificate
    if found is None:
        return Case("certificate", SKIPPED, "nothing was folded: the output is the input, byte for byte")
    problems = "\n".join(map(str, found.failures))
    return Case("certificate", PASSED if found.ok else FAILURE, problems, seconds)


def _said(run: Verification) -> tuple[str, ...]:
    """Notes, and what the self-test saw: the cases that pass have no text of their own."""
    return run.notes + tuple(f"self-test: {row.kind}: {smallest(row)}" for row in run.sensitivity)


def _properties(run: Verification) -> dict[str, str]:
    found = {"inputs": fed(run), "samples": str(run.samples), "seed": str(run.seed), "reference": run.noise.status}
    if run.answers is not None:
        shares = {name: f"{share.before:.2%} -> {share.after:.2%}" for name, share in run.answers.shares}
        found |= {"all inputs": str(run.answers.samples), **shares, "answers": moved(run.answers)}
    return found


def _verified(run: Verification) -> list[Case]:
    """Every comparison. What is a problem of none of them is one of its own, so that no problem is lost."""
    cases = [] if run.algebra is None else [_algebra(run.algebra)]
    cases += [_case(f"float64, as stored: {check.output}", check) for check in run.noise.stored]
    cases += [_case(f"every tensor rounded: {check.output}", check) for check in run.noise.rounded]
    for runtime in run.runtime:
        cases += _runtime(runtime)
    cases += map(_self_test, run.sensitivity)
    if run.status == CERTIFIED_ONLY:
        cases.append(Case("runtime", SKIPPED, "; ".join(run.notes)))
    told = tuple(line for case in cases if case.outcome == FAILURE for line in case.text.splitlines())
    lost = [problem for problem in run.problems if not problem.endswith(told)]
    if lost or not cases:
        cases.insert(0, Case("models", FAILURE if lost else PASSED, "\n".join(lost)))
    return [_parted(case, run.parting) for case in cases]


def _parted(case: Case, parting: Parting | None) -> Case:
    """A failure also says where the two part."""
    if case.outcome != FAILURE or parting is None:
        return case
    return replace(case, text=f"{case.text}\n{'they part at' if parting.tensor else 'they part:'} {parting}")


def _algebra(found: Algebra) -> Case:
    if not found.worst and found.passed:
        return Case("algebra", SKIPPED, found.status)
    return Case("algebra", PASSED if found.passed else FAILURE, found.problem)


def _self_test(row: Sensitivity) -> Case:
    """Passed where a corruption was seen; that none was is no difference of the models."""
    return Case(f"self-test: {row.kind}", SKIPPED if row.smallest is None else PASSED, smallest(row))


def _runtime(check: RuntimeCheck) -> Iterator[Case]:
    for level, outputs in check.outputs.items():
        for output in outputs:
            yield _case(f"{check.provider}, optimisations {level}: {output.output}", output)
    if check.placement is not None:
        problems = "\n".join(check.placement.problems)
        yield Case(f"{check.provider}, placement", FAILURE if problems else PASSED, problems)


def _case(name: str, check: OutputCheck) -> Case:
    return Case(name, PASSED if check.passed else FAILURE, check.problem)


# ----------------------------------------------------------------------------------------------------------------- XML


def render(suites: Iterable[Suite]) -> str:
    """The document; anything may stand in a name."""
    root = ET.Element("testsuites")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for number, each in enumerate(suites):
        _add(root, each, number, now)
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _add(root: ET.Element, each: Suite, number: int, now: str) -> None:
    count = Counter(case.outcome for case in each.cases)
    element = ET.SubElement(
        root, "testsuite", name=clean(each.name), package="bnfold", id=str(number), timestamp=now,
        hostname=platform.node() or "localhost", tests=str(len(each.cases)), failures=str(count[FAILURE]),
        errors=str(count[ERROR]), skipped=str(count[SKIPPED]), time=f"{each.seconds:.3f}",
    )  # fmt: skip
    properties = ET.SubElement(element, "properties")
    for name, value in {"bnfold": version("bnfold"), **each.properties}.items():
        ET.SubElement(properties, "property", name=name, value=clean(value))
    for case, name in zip(each.cases, _unique([case.name for case in each.cases]), strict=True):
        test = ET.SubElement(
            element, "testcase", name=name, classname=f"bnfold.{each.command}", time=f"{case.seconds:.3f}"
        )
        if case.outcome in (FAILURE, ERROR):
            lines = [clean(line) for line in case.text.splitlines()]
            problem = ET.SubElement(test, case.outcome, type=case.outcome, message=lines[0] if lines else "")
            problem.text = "\n".join(lines)
        elif case.outcome == SKIPPED:
            ET.SubElement(test, "skipped", message=clean(case.text))
    ET.SubElement(element, "system-out").text = "\n".join(map(clean, each.said))
    ET.SubElement(element, "system-err")


def _unique(names: Sequence[str]) -> list[str]:
    """The names, printable; a later one of the same name gets a number."""
    seen: Counter[str] = Counter()
    found = []
    for name in map(clean, names):
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
