"""Accuracy, algebra, the first tensor that differs and the self-test: on the page, and in JUnit XML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bnfold.documents import Pair
from bnfold.equivalence.algebra import Algebra, TensorError
from bnfold.equivalence.answers import Answers, Share
from bnfold.equivalence.parting import Parting
from bnfold.equivalence.result import DIFFERENT, Verification
from bnfold.equivalence.sensitivity import Sensitivity
from tests.program import bnfold, different, foldable, saved
from tests.test_junit import outcomes, suite_of, valid
from tests.test_page import FULL, HOSTILE, Page, shown
from tests.test_report import bn, result

ANSWERS = Answers("scores", "cpu", 1200, 10, Share(0.915, 0.9175), Share(0.99, 0.99), 3, 1e-6, 12.5)
ALGEBRA = Algebra("float64", 1e-12, 40, (TensorError("late", 3e-15, 1e-12), TensorError("early", 1e-15, 1e-12)))
APART = replace(ALGEBRA, worst=(TensorError("late", 2e-9, 1e-12),), errors=(TensorError("late", 2e-9, 1e-12),))
PARTING = Parting("name", 9, 4, "sum", "sum_1", "add_3", "Add", "its error is 1", 2, "conv")
SEEN = Sensitivity("Conv.W", 53, "conv_7", "w_7", 5, 0.01, 1.9e-6, "float64", 16.0)
UNSEEN = Sensitivity("Conv.B", 12, "conv_9", "b_9", 2, 0.01)


def page_of(run: Verification) -> str:
    return shown(Pair("a.onnx", "b.onnx", run), "verify").text


def junit_of(run: Verification) -> ET.Element:
    return suite_of(Pair("a.onnx", "b.onnx", run))


def properties(suite: ET.Element) -> dict[str, str]:
    return {each.get("name", ""): each.get("value", "") for each in suite.findall("properties/property")}


def failures(suite: ET.Element) -> list[str]:
    return [str(each.text) for each in suite.findall("testcase/failure")]


def test_accuracy_before_and_after() -> None:
    run = replace(FULL, answers=ANSWERS)
    moved = "3 answers changed, largest difference of a score 1.0e-06 of 12.5"
    said = page_of(run)
    assert f"top-1 of 1,200 91.50% → 91.75% {moved}" in said
    assert "top-5 of 1,200 99.00% → 99.00%" in said
    assert said.count(moved) == 1
    told = properties(junit_of(run))
    assert (told["top-1"], told["top-5"], told["all inputs"]) == ("91.50% -> 91.75%", "99.00% -> 99.00%", "1200")
    assert told["answers"] == moved
    few = replace(run, answers=replace(ANSWERS, top5=None))
    assert "top-5" not in page_of(few)
    assert "top-5" not in properties(junit_of(few))


@pytest.mark.parametrize(("changed", "tone"), [(0, "plain"), (3, "loud")])
def test_changed_answers_are_loud(changed: int, tone: str) -> None:
    found = shown(Pair("a", "b", replace(FULL, answers=replace(ANSWERS, changed=changed))), "verify")
    assert sum(each == ("div", "class", f"figure {tone}") for each in found.attributes) == 2


def test_the_algebra_of_a_fold() -> None:
    run = replace(FULL, algebra=ALGEBRA)
    said = page_of(run)
    assert "algebra holds 40 tensors, 3.0e-15 apart at most, 1e-12 allowed" in said
    assert "the furthest apart tensor error allowed late 3.0e-15 1e-12 early 1.0e-15 1e-12" in said
    assert outcomes(junit_of(run))["algebra"] == "passed"


def test_an_algebra_that_fails_is_a_failure_of_its_own() -> None:
    run = replace(FULL, status=DIFFERENT, problems=(APART.problem,), algebra=APART)
    found = shown(Pair("a", "b", run), "verify")
    assert "algebra FAILS" in found.text
    assert ("details", "open", "") in found.attributes
    suite = junit_of(run)
    assert {case for case, outcome in outcomes(suite).items() if outcome == "failure"} == {"algebra"}
    assert failures(suite) == [APART.problem]


def test_a_folded_model_that_cannot_be_evaluated_is_a_failure() -> None:
    broken = Algebra("broken: no tensor 'y'")
    run = replace(FULL, status=DIFFERENT, problems=(broken.problem,), algebra=broken)
    assert "algebra FAILS broken: no tensor 'y'" in page_of(run)
    assert outcomes(junit_of(run))["algebra"] == "failure"


def test_an_algebra_that_was_not_run_says_why() -> None:
    run = replace(FULL, algebra=Algebra("not run: no kernel for Magic"))
    said = page_of(run)
    assert "algebra not run no kernel for Magic" in said
    assert "Before anything was rounded" not in said
    (skipped,) = junit_of(run).findall("testcase/skipped")
    assert skipped.get("message") == "not run: no kernel for Magic"


def test_where_the_two_part() -> None:
    before = "4 of 9 tensors matched by name agree, 2 of them up to scale and shift, the first 'conv'"
    run = replace(FULL, status=DIFFERENT, problems=("cpu: wrong",), parting=PARTING)
    said = page_of(run)
    assert "Where the two part sum output of Add add_3 in the other sum_1 how its error is 1" in said
    assert f"before it {before}" in said
    assert failures(junit_of(run)) == [f"cpu: wrong\nthey part at {PARTING}"]


def test_a_difference_that_no_inner_tensor_shows() -> None:
    nowhere = Parting("position", 9, 9)
    run = replace(FULL, status=DIFFERENT, problems=("cpu: wrong",), parting=nowhere)
    words = "9 of 9 tensors matched by position agree: in float64 no difference was found in the main graph"
    assert f"Where the two part where {words}" in page_of(run)
    assert failures(junit_of(run)) == [f"cpu: wrong\nthey part: {words}"]


def test_the_self_test() -> None:
    run = replace(FULL, sensitivity=(SEEN, UNSEEN))
    said = page_of(run)
    assert "Conv.W 1.9e-06 16 float64 5 of w_7 , conv_7 53" in said
    assert "Conv.B none up to 1e-02 - nobody 2 of b_9 , conv_9 12" in said
    suite = junit_of(run)
    assert {case: outcome for case, outcome in outcomes(suite).items() if case.startswith("self-test")} == {
        "self-test: Conv.W": "passed",
        "self-test: Conv.B": "skipped",
    }
    assert str(suite.findtext("system-out")).splitlines() == [
        "self-test: Conv.W: 1.9e-06, 16 ULP, by float64",
        "self-test: Conv.B: not seen, up to 1e-02",
    ]


def test_what_was_not_asked_is_not_there() -> None:
    said = page_of(FULL)
    for words in ("top-1", "algebra", "Where the two part", "Before anything", "How small a mistake"):
        assert words not in said
    assert not {case for case in outcomes(junit_of(FULL)) if case.startswith(("algebra", "self-test"))}


def test_no_name_leaves_its_place() -> None:
    changes: dict[str, Any] = {
        "answers": replace(ANSWERS, provider=HOSTILE),
        "algebra": replace(APART, worst=(TensorError(HOSTILE, 1.0, 1e-12),)),
        "parting": Parting("name", 9, 4, HOSTILE, HOSTILE + "2", HOSTILE, HOSTILE, HOSTILE, 2, HOSTILE),
        "sensitivity": (Sensitivity(HOSTILE, 1, HOSTILE, HOSTILE, 0, 0.01, 1e-3, HOSTILE, 3.0),),
    }
    run = replace(FULL, status=DIFFERENT, problems=(HOSTILE,), **changes)
    found = shown(Pair("a", "b", run), "verify")
    assert "script" not in found.tags
    assert found.text.count("<script>alert(1)</script>") == 12
    assert junit_of(run) is not None


def test_the_commands_show_them(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "a.onnx")
    documents = ["--html", tmp_path / "p.html", "--junit", tmp_path / "j"]
    assert bnfold("optimize", model, *documents).code == 0
    assert "algebra holds" in Page((tmp_path / "p.html").read_text()).text
    assert bnfold("verify", model, tmp_path / "a.folded.onnx", "--self-test", *documents).code == 0
    assert "How small a mistake would have been seen" in Page((tmp_path / "p.html").read_text()).text
    (suite,) = valid((tmp_path / "j").read_text())
    assert outcomes(suite)["self-test: Conv.W"] == "passed"
    other = saved(different(foldable()), tmp_path / "b.onnx")
    assert bnfold("verify", model, other, *documents).code == 3
    assert "Where the two part" in Page((tmp_path / "p.html").read_text()).text
    (suite,) = valid((tmp_path / "j").read_text())
    assert all("\nthey part at '" in text for text in failures(suite))


def test_the_algebra_of_a_folded_model_is_on_its_page() -> None:
    assert "algebra holds 40 tensors" in shown(result(bn(1), verification=replace(FULL, algebra=ALGEBRA))).text
