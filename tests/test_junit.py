"""JUnit XML: a case for all that was compared, failures with their problem, and the form that CI systems read."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import pytest

from bnfold import junit
from bnfold.certificate.result import Certificate, Failure
from bnfold.documents import Failed, Pair
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT
from tests.program import bnfold, different, foldable, plain, saved
from tests.test_report import CHECK, PLACED, RUN, VERIFIED, bn, result

SUITE = {
    "name", "package", "id", "timestamp", "hostname", "tests", "failures", "errors", "skipped", "time",
}  # fmt: skip
"""What Ant's schema asks of a suite in a list of suites, and what Jenkins' allows."""


def valid(text: str) -> list[ET.Element]:
    """The suites of a document, whose form is checked."""
    root = ET.fromstring(text)
    assert (root.tag, root.attrib) == ("testsuites", {})
    for number, suite in enumerate(root):
        assert (suite.tag, set(suite.attrib), suite.get("id")) == ("testsuite", SUITE, str(number))
        assert suite[0].tag == "properties"
        assert [child.tag for child in suite][-2:] == ["system-out", "system-err"]
        cases = suite.findall("testcase")
        assert len(cases) == len(suite) - 3 == int(suite.get("tests", ""))
        assert len({case.get("name") for case in cases}) == len(cases)
        for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert len(suite.findall(f"testcase/{tag}")) == int(suite.get(count, ""))
        for case in cases:
            assert set(case.attrib) == {"name", "classname", "time"}
            assert len(case) <= 1
        for problem in (*suite.findall("testcase/failure"), *suite.findall("testcase/error")):
            assert set(problem.attrib) == {"type", "message"}
    return list(root)


def suite_of(found: object, command: str = "verify") -> ET.Element:
    (suite,) = valid(junit.render([junit.suite(found, command)]))  # type: ignore[arg-type]
    return suite


def outcomes(suite: ET.Element) -> dict[str, str]:
    return {case.get("name", ""): case[0].tag if len(case) else "passed" for case in suite.findall("testcase")}


def test_a_fold_has_a_case_for_every_check(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    assert bnfold("optimize", model, "--junit", tmp_path / "junit.xml").code == 0
    (suite,) = valid((tmp_path / "junit.xml").read_text())
    (output,) = (value.name for value in onnx.load(model).graph.output)
    assert outcomes(suite) == dict.fromkeys(
        ["certificate", "algebra", f"float64, as stored: {output}", f"cpu, optimisations off: {output}",
         f"cpu, optimisations on: {output}", "cpu, placement"],
        "passed",
    )  # fmt: skip
    assert suite.get("name") == str(model)
    assert {case.get("classname") for case in suite.findall("testcase")} == {"bnfold.optimize"}


def test_a_difference_is_a_failure_with_its_problem(tmp_path: Path) -> None:
    model = foldable()
    other = saved(different(model), tmp_path / "b.onnx")
    done = bnfold("verify", saved(model, tmp_path / "a.onnx"), other, "--junit", tmp_path / "junit.xml")
    assert done.code == 3
    (suite,) = valid((tmp_path / "junit.xml").read_text())
    assert [case.rsplit(":")[0] for case, outcome in outcomes(suite).items() if outcome == "failure"] == [
        "float64, as stored",
        "cpu, optimisations off",
        "cpu, optimisations on",
    ]
    assert all("8 are allowed" in str(each.text) for each in suite.findall("testcase/failure"))


def test_other_interfaces_are_a_failure_of_their_own(tmp_path: Path) -> None:
    a, b = saved(foldable(), tmp_path / "a.onnx"), saved(plain(), tmp_path / "b.onnx")
    assert bnfold("verify", a, b, "--junit", tmp_path / "junit.xml").code == 3
    (suite,) = valid((tmp_path / "junit.xml").read_text())
    assert outcomes(suite) == {"models": "failure"}


def test_no_problem_is_lost() -> None:
    said = "cpu, optimisations on: the optimized model fails: no kernel"
    broken = replace(RUN, passed=False, problems=(said,))
    suite = suite_of(Pair("a", "b", replace(VERIFIED, status=DIFFERENT, problems=(said,), runtime=(broken,))))
    assert outcomes(suite)["models"] == "failure"
    assert [each.text for each in suite.findall("testcase/failure")] == [said]


def test_a_node_on_another_provider_is_a_failure() -> None:
    problem = "Conv 'c' ran on CPUExecutionProvider; the original ran it on CUDAExecutionProvider"
    run = replace(RUN, passed=False, problems=(problem,), placement=replace(PLACED, passed=False, problems=(problem,)))
    suite = suite_of(Pair("a", "b", replace(VERIFIED, status=DIFFERENT, problems=(problem,), runtime=(run,))))
    assert {case for case, outcome in outcomes(suite).items() if outcome == "failure"} == {"cpu, placement"}


def test_what_was_not_run_is_skipped() -> None:
    assert outcomes(suite_of(result(bn(1), verification=None), "optimize")) == {
        "certificate": "passed",
        "verification": "skipped",
    }
    alone = replace(VERIFIED, status=CERTIFIED_ONLY, runtime=(), notes=("opset 1 is too old for it",))
    suite = suite_of(Pair("a", "b", alone))
    assert outcomes(suite) == {"runtime": "skipped"}
    assert suite.findtext("system-out") == "opset 1 is too old for it"
    assert outcomes(suite_of(result(certificate=None, verification=None))) == {"certificate": "skipped"}


def test_a_certificate_that_fails_names_its_nodes() -> None:
    failed = Certificate(3, 2, 1, (Failure("conv_1", "node", "it computes something else"),))
    suite = suite_of(result(bn(1), certificate=failed), "optimize")
    assert [each.text for each in suite.findall("testcase/failure")] == ["conv_1: it computes something else"]


@pytest.mark.parametrize(("code", "outcome"), [(1, "error"), (2, "error"), (3, "failure")])
def test_a_model_that_could_not_be_done(code: int, outcome: str) -> None:
    suite = suite_of(Failed("a.onnx", "it is no model\ntry another", code))
    assert outcomes(suite) == {"verify": outcome}
    (problem,) = suite.findall(f"testcase/{outcome}")
    assert (problem.get("message"), problem.text) == ("it is no model", "it is no model\ntry another")


def test_several_models_and_one_is_bad(tmp_path: Path) -> None:
    saved(foldable(), tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_text("no model")
    assert bnfold("optimize", tmp_path, "-o", tmp_path / "out", "--junit", tmp_path / "junit.xml").code == 1
    one, two = valid((tmp_path / "junit.xml").read_text())
    assert (one.get("errors"), two.get("errors")) == ("0", "1")


def test_any_name_is_well_formed_and_two_of_one_name_are_told_apart() -> None:
    name = "<a>&\"'\x00\x1b\ud800\uffff]]>"
    check = replace(CHECK, output=name, passed=False, problem=name)
    run = replace(RUN, outputs={"off": (check, check)})
    suite = suite_of(
        Pair(name, name, replace(VERIFIED, status=DIFFERENT, problems=(name,), notes=(name,), runtime=(run,)))
    )
    shown = "<a>&\"'????]]>"
    assert list(outcomes(suite)) == [
        f"cpu, optimisations off: {shown}",
        f"cpu, optimisations off: {shown} (2)",
        "cpu, placement",
    ]
    assert suite.findtext("system-out") == suite.get("name") == shown
