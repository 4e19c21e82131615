"""Results that protobuf could not hold: limits are lowered here, so that a small model crosses them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto

import bnfold
from bnfold.attempt import runnable
from bnfold.certificate import certify
from bnfold.errors import ModelError
from bnfold.folding import Folder
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import patch, witness_of
from bnfold.source import read, read_lean
from bnfold.write import folded, rounded, unwritten
from tests import program
from tests.builder import Builder
from tests.law import law
from tests.program import listing, saved

ROWS, COLUMNS = 60, 80


def shared(rows: int = ROWS, columns: int = COLUMNS) -> onnx.ModelProto:
    """Two Gemm with one weight, which two folds make two of."""
    b = Builder(type_=TensorProto.FLOAT)
    x, weight = b.input("N", rows), b.constant(b.normal(rows, columns) / rows**0.5, "w")
    return b.model(*(b.node("Relu", b.bn(b.node("Gemm", x, weight))) for _ in range(2)))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, where no file of a model may be larger, and nothing is held in memory that can stay on disk."""
    path = saved(shared(), tmp_path / "model.onnx")
    monkeypatch.setattr("bnfold.write.MAX_PROTO", path.stat().st_size)
    monkeypatch.setattr("bnfold.source.HEAVY", 0)
    monkeypatch.setattr("bnfold.write.KEPT", 0)
    monkeypatch.setattr("bnfold.attempt.folded", None)
    return path


def test_it_is_verified_audited_and_explained(model: Path) -> None:
    result = bnfold.optimize(model)
    assert result.status == "verified"
    assert result.batchnorm.after == 0
    assert result.verification is not None
    algebra = result.verification.algebra
    assert algebra is not None and algebra.status == "float64" and algebra.compared == 6
    output = model.with_name("model.folded.onnx")
    assert output.with_name("model.folded.onnx.data").stat().st_size >= 2 * 4 * ROWS * COLUMNS
    assert bnfold.verify(model, output).status == "equivalent"
    audited = bnfold.audit(output.with_name("model.folded.onnx.manifest.json")).certificate
    assert audited is not None and audited.ok
    explained = bnfold.explain(model)
    assert explained.model.bytes.after >= 2 * 4 * ROWS * COLUMNS
    assert bnfold.optimize(model, verify=False, force=True).status == "certified"


def test_a_dry_run_leaves_nothing_and_says_the_same(model: Path) -> None:
    before = listing(model.parent)
    dry = bnfold.optimize(model, dry_run=True)
    assert listing(model.parent) == before
    assert dry.status == "verified"
    assert dry.model.bytes.after >= 2 * 4 * ROWS * COLUMNS


@pytest.mark.parametrize("dry", [False, True])
def test_it_is_converted(dry: bool, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.write.MAX_PROTO", model.stat().st_size // 2)
    result = bnfold.optimize(model, precision="fp16", dry_run=dry)
    assert result.status == "verified"
    assert result.precision is not None and result.precision.nodes == 4
    assert len(listing(model.parent)) == (1 if dry else 4)


def test_what_differs_and_what_would_be_seen_is_found(model: Path) -> None:
    bnfold.optimize(model, verify=False)
    output = model.with_name("model.folded.onnx")
    found = bnfold.verify(model, output, self_test=True)
    assert found.sensitivity and all(row.seen_by for row in found.sensitivity)
    data = output.with_name("model.folded.onnx.data")
    data.write_bytes(data.read_bytes()[: -4 * COLUMNS] + np.ones(COLUMNS, np.float32).tobytes())
    wrong = bnfold.verify(model, output)
    assert wrong.status == "different"
    assert wrong.parting is not None and wrong.parting.tensor


def test_it_is_timed_and_deployed(model: Path) -> None:
    bnfold.optimize(model, verify=False)
    output = model.with_name("model.folded.onnx")
    assert program.bnfold("bench", model, output, "--seconds", "0.2").code == 0
    assert program.bnfold("deploy", output, "-o", model.with_name("served")).code == 0
    assert any(path.endswith(".data") for path in listing(model.with_name("served")))


def test_a_model_in_memory_needs_a_place_for_it(model: Path) -> None:
    proto = onnx.load(model)
    with pytest.raises(ModelError, match="give the path of the model's file, and an output"):
        bnfold.optimize(proto)
    assert bnfold.optimize(proto, model.with_name("out.onnx")).status == "verified"


def test_what_cannot_be_serialised_is_told_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr("bnfold.attempt.fits", too_large)
    with pytest.raises(ModelError, match="larger than 2 GB: give the path of its file"):
        bnfold.optimize(onnx.load(model))


def test_new_constants_are_made_one_at_a_time_and_weights_are_rounded_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = 1500, 1400
    lean = Model(read_lean(saved(shared(rows, columns), tmp_path / "model.onnx")))
    rewrite = Folder(lean).solve().rewrite
    patched, weight = patch(rewrite.model, rewrite.plan), 8 * rows * columns
    monkeypatch.setattr("bnfold.write.KEPT", 0)
    exact = Oracle(replace(lean.source, proto=patched.proto), constants=unwritten(patched, exact=True))
    feeds = {"x": np.ones((2, rows), np.float32)}
    random_numbers = 3 * 8 << 20
    for run, spare in (
        (partial(exact.run, feeds), 0),
        (partial(Oracle(lean.source).run, feeds, rounding_seed=1), random_numbers),
    ):
        tracemalloc.start()
        run()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.2 * weight + spare


IN_FRONT: dict[str, Callable[[Builder, str], str]] = {
    "Gemm": lambda b, x: b.gemm(x, 12),
    "Gemm, turned": lambda b, x: b.gemm(x, 12, transB=1),
    "MatMul": lambda b, x: b.matmul(x, 12, True),
    "Conv": lambda b, x: b.conv(b.unsqueeze(x, 2), 12, 1),
    "Conv in groups": lambda b, x: b.conv(b.unsqueeze(x, 2), 12, 1, group=2),
}


@pytest.mark.parametrize("name", IN_FRONT)
def test_a_shift_goes_into_a_weight_that_is_read_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> list[onnx.TensorProto]:
        b = Builder()
        return list(law(b.model(IN_FRONT[name](b, b.bn(b.input(3, 8)))), left=0).model.graph.initializer)

    whole = made()
    monkeypatch.setattr("bnfold.rules.contraction.PIECE", 20)
    monkeypatch.setattr("bnfold.rules.convolution.PIECE", 20)
    assert made() == whole


def test_a_shift_moves_in_little_memory() -> None:
    rows, columns = 1200, 1100
    b = Builder(type_=TensorProto.FLOAT)
    model = b.model(b.node("Gemm", b.bn(b.input(2, rows)), b.constant(b.normal(rows, columns))))
    with pytest.MonkeyPatch.context() as low:
        low.setattr("bnfold.rules.contraction.PIECE", 1 << 14)
        tracemalloc.start()
        assert Folder(Model(read(model))).solve().rewrite.plan.graphs[0].removed
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * rows * columns


def test_the_bias_of_a_large_gemm_along_its_rows_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.certificate.nodes.LARGE", 100)
    b = Builder()
    model = b.model(b.bn(b.gemm(b.input(70, 20), 70)))
    rewrite = Folder(Model(read(model))).solve().rewrite
    made = folded(rewrite)
    assert certify(Model(read(model)), Model(read(made)), witness_of(rewrite)).ok
    next(tensor for tensor in made.graph.initializer if list(tensor.dims) == [70]).dims[:] = [70, 1]
    found = certify(Model(read(model)), Model(read(made)), witness_of(rewrite))
    assert any("along other axes" in failure.text for failure in found.failures)


def test_what_is_made_is_what_would_be_written(tmp_path: Path) -> None:
    lean = Model(read_lean(saved(shared(), tmp_path / "model.onnx")))
    rewrite = Folder(lean).solve().rewrite
    patched = patch(rewrite.model, rewrite.plan)
    made = unwritten(patched)
    for tensor, edit in patched.pending:
        np.testing.assert_array_equal(made[id(tensor)](), rounded(edit.value(), edit.type))
    with runnable(rewrite) as (proto, _):
        assert not any(tensor.external_data for tensor in proto.graph.initializer)
