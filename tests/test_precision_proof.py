"""What speaks against a conversion: certificate and noise, each seen to fail; and what the program says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold import conversion
from bnfold.certificate import Certificate
from bnfold.equivalence import DIFFERENT, EQUIVALENT, Settings
from bnfold.equivalence.verifier import Verifier
from bnfold.errors import NotEquivalentError
from bnfold.oracle import Oracle
from bnfold.precision.types import TYPES
from bnfold.source import read
from bnfold.witness import Narrowed
from tests.halves import BRAIN, CASES, FLOAT, HALF, Made, builder, casts, constants, made, residual
from tests.program import bnfold as program
from tests.program import complaint, foldable, names, saved

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast the result is does not matter here."""
    monkeypatch.setattr(conversion, "MEASURED", 0.01)


# ----------------------------------------------------------------------------------------------------- the certificate


def kinds(certificate: Certificate) -> set[str]:
    return {failure.kind for failure in certificate.failures}


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def put(model: onnx.ModelProto, name: str, values: object) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(np.asarray(values), name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", TYPES)
def test_the_certificate_of_a_conversion_holds(case: str, precision: str) -> None:
    result = made(CASES[case](), precision)
    assert result.certificate().failures == ()


def next_to(values: Any, place: int) -> Any:
    """One value moved to its neighbour."""
    moved = values.copy()
    moved.flat[place] = np.nextafter(moved.flat[place], np.array(np.inf, values.dtype))
    return moved


def test_each_constant_that_is_off_by_one_unit_is_seen() -> None:
    """Those of the fold, and those that were only rounded."""
    result = made(residual())
    for name, values in constants(result.proto).items():
        wrong = result.copy()
        put(wrong, name, next_to(values, values.size // 2))
        assert kinds(result.certificate(wrong)) == {"constant"}, name


def test_a_constant_that_was_rounded_twice_is_seen() -> None:
    result = made(CASES["branches"]())
    seen = 0
    for name, exact in result.exact.items():
        once, twice = constants(result.proto)[name], exact.astype(np.float32).astype(np.float16)
        if np.array_equal(once, twice):
            continue
        wrong = result.copy()
        put(wrong, name, twice)
        (failure,) = result.certificate(wrong).failures
        assert failure.kind == "constant" and 0.5 <= failure.error < 0.501
        seen += 1
    assert seen


Corruption = Callable[[onnx.ModelProto], Narrowed | None]


def without(place: int, tell: bool) -> Corruption:
    """A cast is missing; the witness knows, or does not."""

    def corrupt(model: onnx.ModelProto) -> Narrowed | None:
        cast = casts(model)[place]
        model.graph.node.remove(cast)
        for node in model.graph.node:
            node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
        kept = {node.output[0]: node.input[0] for node in casts(model)}
        carries = {"flat.fp16": "flat", "gemm.fp16": "gemm"} if place == 0 else {}
        assert kept
        return Narrowed(HALF, carries) if tell else None

    return corrupt


def cast_to(type_: int) -> Corruption:
    def corrupt(model: onnx.ModelProto) -> None:
        casts(model)[0].attribute[0].i = type_

    return corrupt


def cast_of_another(model: onnx.ModelProto) -> None:
    """The classifier's output is cast from the features."""
    casts(model)[-1].input[0] = "flat.fp16"


def one_more(model: onnx.ModelProto) -> None:
    node = helper.make_node("Cast", ["x.fp16"], ["more"], name="x.cast_to_more", to=HALF)
    model.graph.node.insert(1, node)


def an_output_of_another_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = HALF


def a_lie(new: str, old: str) -> Corruption:
    """The witness says that a tensor is another one."""

    def corrupt(model: onnx.ModelProto) -> Narrowed:
        return Narrowed(HALF, {"x.fp16": "x", "flat.fp16": "flat", "gemm.fp16": "gemm", new: old})

    return corrupt


def a_rescaled_input(model: onnx.ModelProto) -> Narrowed:
    """A node that is no cast between two names that the witness says are one tensor."""
    node = casts(model)[0]
    node.CopyFrom(helper.make_node("Neg", ["x"], ["x.fp16"], name=node.name))
    return Narrowed(HALF, {"x.fp16": "x", "flat.fp16": "flat", "gemm.fp16": "gemm"})


CORRUPTIONS: dict[str, Corruption] = {
    "a missing cast": without(0, tell=False),
    "a missing cast, and the witness knows": without(0, tell=True),
    "a cast to float64": cast_to(onnx.TensorProto.DOUBLE),
    "a cast to an integer": cast_to(onnx.TensorProto.INT32),
    "a cast of another tensor": cast_of_another,
    "one more cast": one_more,
    "an output of another type": an_output_of_another_type,
    "a witness that calls a constant the input": a_lie("gemm.weight", "x"),
    "a witness that calls one tensor another": a_lie("relu", "x"),
    "a witness that speaks of nothing": a_lie("nothing", "x"),
    "a negation instead of a cast": a_rescaled_input,
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_whatever_is_no_cast_between_the_two_types_is_seen(what: str) -> None:
    result = made(residual())
    wrong = result.copy()
    told = CORRUPTIONS[what](wrong)
    witness = result.witness if told is None else replace(result.witness, narrowed=told)
    assert not result.certificate(wrong, witness).ok


def test_a_cast_there_and_back_through_integers_is_seen() -> None:
    """All types fit, for a Transpose moves whatever it is given; the numbers lose their fractions."""
    b = builder()
    result = made(b.model(b.node("Transpose", b.input(2, 3))))
    wrong = result.copy()
    casts(wrong)[0].attribute[0].i = onnx.TensorProto.INT32
    assert result.certificate().ok
    assert "wiring" in kinds(result.certificate(wrong))


def test_a_model_that_was_not_to_be_converted_is_not() -> None:
    result = made(residual())
    assert not result.certificate(witness=replace(result.witness, narrowed=Narrowed())).ok


def test_a_cast_of_the_model_itself_may_make_the_smaller_type_only_instead_of_float32() -> None:
    result = made(CASES["casts and integers"]())
    wide = next(node for node in result.proto.graph.node if node.name == "wide")
    back = next(node for node in result.proto.graph.node if node.name == "back")
    assert (wide.attribute[0].i, back.attribute[0].i) == (onnx.TensorProto.DOUBLE, HALF)
    wrong = result.copy()
    next(node for node in wrong.graph.node if node.name == "wide").attribute[0].i = HALF
    assert not result.certificate(wrong).ok


# ----------------------------------------------------------------------------------------------------------- the noise


def judged(result: Made, optimized: onnx.ModelProto) -> Verifier:
    plain = made_plain(result)
    unit = float(2.0**-11)
    truth = read(result.original)
    return Verifier(read(plain), read(optimized), Settings(locate=False), lambda text: None, truth=truth, unit=unit)


def made_plain(result: Made) -> onnx.ModelProto:
    """The original in the smaller type, unfolded."""
    from bnfold.graph import Model
    from bnfold.patch import patch
    from bnfold.plan import Plan, Rewrite
    from bnfold.precision import Wanted, converted
    from bnfold.write import folded

    model = Model(read(result.original))
    plain = Rewrite(model, model, Plan([]))
    done = converted(patch(model, plain.plan), model.source, Wanted(HALF))
    return folded(plain, patched=done.patched)


def test_a_fold_is_judged_by_what_the_original_is_off_by_in_that_type() -> None:
    result = made(residual())
    found = judged(result, result.proto).verify()
    assert found.status == EQUIVALENT
    for check in found.noise.rounded:
        assert check.before is not None and check.after is not None and check.noise is not None
        assert 1e-4 < check.before.norm < 3e-3
        assert check.noise.norm < 4 * check.before.norm, "no tolerance but the model's own error"
        assert check.k_needed < 4


@pytest.mark.parametrize("name", ["gemm.weight", "conv.weight.folded", "conv.weight2.merged"])
def test_a_constant_that_is_a_tenth_off_is_seen_where_every_tensor_is_rounded(name: str) -> None:
    result = made(residual())
    wrong = result.copy()
    put(wrong, name, (constants(wrong)[name].astype(np.float32) * 1.1).astype(np.float16))
    found = judged(result, wrong).verify()
    assert found.status == DIFFERENT
    assert any(not check.passed for check in found.noise.rounded)


def test_what_overflows_is_no_noise() -> None:
    """In both models: a tensor that is infinite where it should not be is told, whatever the original makes of it."""
    b = builder()
    y = b.bn(b.conv(b.input(2, 3, 8, 8), 4, 3), gamma=300.0)
    model = b.model(b.node("Sqrt", b.node("Mul", y, y)))
    result = made(model)
    found = judged(result, result.proto).verify()
    assert found.status == DIFFERENT
    assert any("overflow" in problem for problem in found.problems)


def test_an_overflow_that_nobody_looked_for_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    b = builder()
    y = b.bn(b.conv(b.input(2, 3, 8, 8), 4, 3), gamma=300.0)
    path = saved(b.model(b.node("Sqrt", b.node("Mul", y, y))), tmp_path / "model.onnx")
    monkeypatch.setattr(conversion, "peaks", lambda graph, run: {})
    with pytest.raises(NotEquivalentError, match="overflow"):
        bnfold.optimize(path, precision="fp16")
    assert names(tmp_path) == ["model.onnx"]


def test_every_result_is_rounded_to_its_type() -> None:
    """The evaluator's rounded run is what numpy computes in float16, operation by operation."""
    b = builder()
    x = b.input(4, 5)
    y = b.node("Relu", b.node("Add", b.node("Mul", x, x), b.constant(b.normal(5), "c")))
    proto = made(b.model(b.node("Exp", y))).proto
    given = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    half = given.astype(np.float16)
    product = (half.astype(float) ** 2).astype(np.float16)
    total = (product.astype(float) + constants(proto)["c"].astype(float)).astype(np.float16)
    expected = np.exp(np.maximum(total, 0).astype(float)).astype(np.float16)
    assert np.array_equal(Oracle(proto).run({"x": given}, nearest=True)["exp"], expected.astype(float))
    large = Oracle(proto).run({"x": np.full((4, 5), 4.0)}, nearest=True)["exp"]
    assert np.isinf(large).all(), "e^16 is beyond float16"


def test_bfloat16_is_certified_and_evaluated_with_every_tensor_rounded() -> None:
    """ONNX Runtime's CPU has no Conv in bfloat16."""
    result = bnfold.optimize(residual(builder(22)), precision="bf16")
    assert result.status == "certified-only" and result.verification is not None
    assert result.precision is not None and result.precision.verification is not None
    assert result.precision.verification.status == EQUIVALENT
    checks = result.verification.noise.rounded
    assert [check.output for check in checks] == ["gemm", "flat"]
    assert all(check.before is not None and 1e-3 < check.before.norm < 3e-2 for check in checks)
    assert {array.dtype.name for array in constants(result.proto).values()} == {"bfloat16"}  # type: ignore[arg-type]
    wrong = made(residual(builder(22)), "bf16")
    assert {tensor.data_type for tensor in wrong.proto.graph.initializer} == {BRAIN}


# --------------------------------------------------------------------------------------------------------- the program


def test_the_speed_is_measured_where_both_ran(tmp_path: Path) -> None:
    """On every provider, on the sizes asked for or those of the inputs given; not without a run."""
    path = saved(foldable(), tmp_path / "model.onnx")
    result = bnfold.optimize(path, precision="fp16", shapes={"x": (5, 3, 10, 14)})
    assert result.precision is not None
    (row,) = result.precision.speed
    assert (row.provider, row.batch, row.shapes) == ("cpu", 5, {"x": (5, 3, 10, 14)})
    assert row.ratio > 0 and row.original.median > 0 and row.blocks >= 6
    told = result.to_json()["precision"]["speed"]
    assert [(each["provider"], each["ratio"]) for each in told] == [("cpu", row.ratio)]
    inputs = {"x": np.zeros((3, 3, 10, 14), np.float32)}
    given = bnfold.optimize(path, precision="fp16", inputs=inputs, dry_run=True, force=True)
    assert given.precision is not None
    assert [row.shapes for row in given.precision.speed] == [{"x": (3, 3, 10, 14)}]
    unrun = bnfold.optimize(path, precision="fp16", verify=False, force=True)
    assert unrun.precision is not None and unrun.precision.speed == ()


def test_the_program_converts_says_so_and_skips_its_outputs(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    done = program("optimize", path, "--precision", "fp16", "--keep-fp32", "relu*", "--keep-fp32", "no", "-v")
    output = tmp_path / "model.folded.fp16.onnx"
    assert (done.code, done.out) == (0, f"{output}\n")
    assert "precision           fp16: 2 nodes, 4 casts; 2 nodes in float32" in done.err
    assert re.search("  speed               cpu, batch 1: .*ratio .* ms", done.err)
    unrun = program("optimize", path, "--precision", "fp16", "--no-verify", "--force")
    assert f"  speed               not measured, for nothing ran here: bnfold bench {path} {output}" in unrun.err
    assert "the fold before     " in done.err
    assert "relu   Relu: kept-by-user: --keep-fp32 asked for it" in done.err.replace("  Relu", "   Relu", 1)
    assert "warning: --keep-fp32 'no' matches no node of the folded model" in done.err
    assert program("optimize", path, "--precision", "bf16", "--keep-fp32", "relu*").code == 1  # Conv is opset 22's
    again = program("optimize", tmp_path, "-o", tmp_path / "out", "--precision", "fp16")
    assert again.out == f"{tmp_path / 'out' / 'model.onnx'}\n"


def test_wishes_without_a_precision_are_wrong_usage(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    done = program("optimize", path, "--keep-fp32", "conv")
    assert (done.code, complaint(done)) == (2, "--keep-fp32 is for --precision fp16 and bf16")
    assert names(tmp_path) == ["model.onnx"]


def test_the_documents_have_the_conversion(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    files = [tmp_path / f"report.{kind}" for kind in ("json", "html", "xml")]
    asked = ["--json", files[0], "--html", files[1], "--junit", files[2]]
    assert program("optimize", path, "--precision", "fp16", "--keep-fp32", "relu", *asked).code == 0
    found = json.loads(files[0].read_text())["precision"]
    assert (found["type"], found["nodes"], found["casts"]) == ("fp16", 3, 4)
    assert [kept["node"] for kept in found["kept"]] == ["relu"]
    assert found["fold"]["verify"]["status"] == "equivalent" and found["fold"]["certificate"]["ok"]
    page, suite = files[1].read_text(), files[2].read_text()
    assert "What stays in float32, and why" in page and "kept-by-user" in page and "every tensor rounded" in page
    assert 'name="the fold before: algebra"' in suite and 'name="every tensor rounded: relu2"' in suite


def test_labels_say_what_the_type_costs() -> None:
    """Before is the original as it is, after the fold in float16."""
    data = ROOT / "models" / "trained" / "mnist_test_1000.npz"
    model = ROOT / "models" / "trained" / "mnist_mlp.onnx"
    result = bnfold.optimize(model, precision="fp16", inputs=data, labels=data, dry_run=True)
    assert result.verification is not None and result.verification.answers is not None
    answers = result.verification.answers
    assert answers.samples == 1000 and answers.top1 is not None and answers.top1.before > 0.9
    assert 1e-4 < answers.difference / answers.largest < 0.02
    assert abs(answers.top1.after - answers.top1.before) <= 0.005
    assert result.precision is not None and result.precision.verification is not None
    assert result.precision.verification.answers is None
    assert FLOAT in {value.type.tensor_type.elem_type for value in onnx.load(model).graph.input}
