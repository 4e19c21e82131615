"""The comparison with other tools: its corner cases, its counting, its judge, and what it calls a problem."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from tests.builder import Builder
from tests.zoo import hand, noise, results, sensitivity, tables
from tests.zoo.count import Count, count
from tests.zoo.forks import Worker
from tests.zoo.judge import judge
from tests.zoo.results import Outcome, Report, Row


@pytest.mark.parametrize("name", hand.CASES)
def test_corner_cases_fold_as_far_as_is_possible(name: str) -> None:
    model = hand.CASES[name].model()
    folded = bnfold.optimize(model, verify=False).proto
    assert folded is not None
    assert count(folded).left_of(count(model)) == hand.ideal(name)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", ["hand_conv_bias_bn", "hand_bn_in_loop_body", "hand_gemm_beta0_bn", "hand_fp16"])
def test_the_judge_accepts_a_fold_and_sees_a_wrong_channel(name: str, tmp_path: Path) -> None:
    model = hand.CASES[name].model()
    original = saved(model, tmp_path / "model.onnx")
    folded = bnfold.optimize(model, verify=False).proto
    assert folded is not None
    found = judge(original, saved(folded, tmp_path / "folded.onnx"))
    assert (found.verdict, found.bn, found.left) == ("right", 0, 0), found
    graph = folded.graph
    constants = list(graph.initializer)
    for node in graph.node:
        constants += [tensor for a in node.attribute for tensor in a.g.initializer]
    weight = max(constants, key=lambda tensor: int(np.prod(tensor.dims)))
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    assert judge(original, saved(folded, tmp_path / "wrong.onnx")).verdict == "wrong"


def test_the_judge_overrides_inputs_that_have_a_default(tmp_path: Path) -> None:
    model = hand.CASES["hand_weight_is_overridable_input_ir8"].model()
    original = saved(model, tmp_path / "model.onnx")
    constant = onnx.ModelProto()
    constant.CopyFrom(model)
    del constant.graph.input[1]
    assert "can no longer be given" in judge(original, saved(constant, tmp_path / "gone.onnx")).detail
    ignored = onnx.ModelProto()
    ignored.CopyFrom(model)
    weight = ignored.graph.initializer[0]
    ignored.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight), "copy"))
    ignored.graph.node[0].input[1] = "copy"
    assert judge(original, saved(ignored, tmp_path / "ignored.onnx")).verdict == "wrong"
    assert judge(original, original).verdict == "right"


def test_the_judge_of_what_does_not_run(tmp_path: Path) -> None:
    original = saved(hand.CASES["hand_conv_bias_bn"].model(), tmp_path / "model.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff")
    assert judge(original, tmp_path / "bad.onnx").verdict == "does not load"
    broken = hand.CASES["hand_conv_bias_bn"].model()
    broken.graph.node[0].input[1] = "nowhere"
    assert judge(original, saved(broken, tmp_path / "broken.onnx")).verdict == "does not load"
    old = saved(hand.CASES["hand_opset6_training"].model(), tmp_path / "old.onnx")
    assert judge(old, old).verdict == "unchecked"


def test_a_batchnorm_written_as_mul_and_add_counts_as_left() -> None:
    b = Builder()
    b.affine(b.affine(b.conv(b.input(1, 4, 5, 6), 8, 3), "s"), "t")
    assert count(b.model()) == Count(bn=0, scale_shift=2)
    assert count(b.model()).left_of(Count(bn=1, scale_shift=0)) == 2
    b = Builder()
    b.node("Mul", b.matmul(b.input(3, 6), 8, bias=True), b.constant(0.5))
    assert count(b.model()) == Count(bn=0, scale_shift=0), "the bias of a MatMul, and a single number"


def job(arguments: list[str]) -> str:
    """What the worker of the next test runs."""
    if arguments[0] == "crash":
        raise ValueError("no")
    if arguments[0] == "die":
        os.abort()
    if arguments[0] == "hang":
        time.sleep(60)
    sys.stdout.write("chatter")
    return arguments[0] * 2


def test_workers_survive_their_jobs() -> None:
    code = "from tests.test_zoo import job; from tests.zoo.forks import serve; serve(job)"
    worker = Worker([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    assert worker.ask(60, "a")["result"] == "aa"
    assert worker.ask(60, "crash")["detail"] == "ValueError: no"
    assert worker.ask(60, "die")["failure"] == "crash"
    assert worker.ask(0.5, "hang")["failure"] == "timeout"
    assert worker.ask(60, "b" * 100_000)["result"] == "b" * 200_000
    worker.close()


def row(ours: int, rivals: dict[str, int], verdict: str = "right", status: str = "verified") -> Row:
    found = {name: Outcome("", "right", 1.0, bn=left, left=left) for name, left in rivals.items()}
    report = Report(status, "", (0, 0), (1e-6, 2e-6), 0.5, 0.1, {"graph-input": ours})
    return Row("model", "", Count(5, 0), None, Outcome("", verdict, 1.0, bn=ours, left=ours), report, found)


def test_what_is_a_problem() -> None:
    assert row(1, {"a": 1, "b": 3}).problems() == []
    assert row(2, {"a": 1, "b": 3}).problems() == ["bnfold leaves 2, the best rival 1"]
    assert row(1, {"a": 2}, status="different").problems() == ["different: "]
    wrong = row(1, {"a": 2}, verdict="wrong")
    assert wrong.left("bnfold") == 5, "a wrong result has folded nothing"
    assert wrong.problems() == ["wrong: ", "bnfold leaves 5, the best rival 2"]
    rival = row(1, {"a": 0})
    rival.rivals["a"] = Outcome("", "wrong", 1.0, bn=0, left=0)
    assert rival.best() == 5 and rival.problems() == []
    rival.ideal = 0
    assert rival.problems() == ["bnfold leaves 1, and 0 is possible"]
    assert Row("model", "", Count(5, 0)).problems() == ["was not measured"]


def test_rows_are_kept(tmp_path: Path) -> None:
    rows = {"model": row(1, {"a": 2}), "other": Row("other", "", Count(1, 0), 1)}
    results.save(tmp_path / "results.json", rows)
    assert results.load(tmp_path / "results.json") == rows
    assert results.load(tmp_path / "none.json") == {}


def test_the_tables_are_put_between_their_marks(tmp_path: Path) -> None:
    for page in ("models.md", "rivals.md"):
        (tmp_path / page).write_text(f"before\n{tables.BEGIN}\nEARLIER\n{tables.END}\nafter\n")
    rows = [row(1, {"a": 2, "b": 4}), row(3, {"a": 3, "b": 2})]
    tables.write(tmp_path, rows, {"a": "a 1.0", "b": "b 2.0"})
    text = (tmp_path / "rivals.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "EARLIER" not in text
    assert "| model | 5 |  | 1 | 2 | 4 |" in text
    assert "2 models with 10 BatchNormalization: bnfold leaves 4." in text
    assert "The best single rival (a 1.0) leaves 5, the best rival for each model 4." in text
    assert "bnfold leaves fewer than every rival on 1 models, more than one on model." in text
    assert (
        "| model | 5 → 3 | 0 → 0 | 1.0e-06 | 2.0e-06 | 2.00 | 0.50 | 1.0 | 0.10 | verified |"
        in (tmp_path / "models.md").read_text()
    )


def test_corrupted_constants_are_seen_or_it_is_said_how_far_they_move(tmp_path: Path) -> None:
    b = Builder(type_=onnx.TensorProto.FLOAT)
    x = b.node("Relu", b.bn(b.conv(b.input(2, 3, 8, 9), 4, 3)))
    dead = b.node("Conv", x, b.constant(b.normal(2, 4, 1, 1)), b.constant([-1e4, -2e4]), name="dead")
    found = sensitivity.measure("model", saved(b.model(x, b.node("Relu", dead)), tmp_path / "model.onnx"))
    assert found.problem == "" and 0 < found.noise < sensitivity.WELL
    first, second = [tries for name, tries in sensitivity.constants(found).items() if name.startswith("Conv.W")]
    assert first[0].seen_by == "float64" and first[0].needed > 8 and first[0].moved > 8 * found.noise
    assert [one.seen_by for one in second] == ["", ""] and {one.moved for one in second} == {0.0}
    cells = sensitivity.table([found]).splitlines()[-1].split(" | ")
    assert cells[2] == "1 of 2" and cells[4] == "1 of 2" and cells[-1].startswith("0.0e+00 (Conv.")


def test_what_cannot_be_folded_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    assert sensitivity.measure("model", path).problem


def test_measured_corruptions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "KEPT", tmp_path / "sensitivity.json")
    assert sensitivity.load() == {}
    tried = sensitivity.Try("Conv.W", "w", 1, 1e-4, 900.0, 800.0, "float64")
    rows = {"model": sensitivity.Row("model", 1e-7, (tried,), 1.0)}
    sensitivity.save(rows)
    assert sensitivity.load() == rows
    assert "| more than 8 times the noise | 1 | 1 |" in sensitivity.table(list(rows.values()))
    assert "| model | 1.1e-07 | 1 of 1 | 1e-05 |  |  |  |" in sensitivity.table(list(rows.values()))


def test_the_noise_that_right_folds_need() -> None:
    text = noise.table([row(1, {}), Row("other", "", Count(1, 0))])
    assert "1 folded models were compared on a runtime. 0 of them" in text
    assert "K = 8 is 16.0 times" in text
    assert "| error after / error before (1 models) | 2.00 |" in text
