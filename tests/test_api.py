"""The library: what it takes, what it gives, what it never does."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold import api, attempt, folding, rules
from bnfold.api import Optimized
from bnfold.attempt import culprits
from bnfold.certificate import Certificate, Failure
from bnfold.errors import ModelError, NotEquivalentError, OutputError, ProviderError, UsageError
from bnfold.plan import Edit, NewConstant
from bnfold.rules import Accept, View
from bnfold.runtime import CUDA, unavailable
from bnfold.solver import solve
from tests.builder import Builder
from tests.program import foldable, listing, names, plain, saved, stubborn


def batchnorms(model: onnx.ModelProto | Path | None) -> int:
    proto = onnx.load(model) if isinstance(model, Path) else model
    assert proto is not None
    return sum(node.op_type == "BatchNormalization" for node in proto.graph.node)


# ----------------------------------------------------------------------------------------------------- in and out


def test_a_path_is_folded_into_a_file_beside_it(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    before = path.read_bytes()
    result = bnfold.optimize(path)
    assert result.output == tmp_path / "model.folded.onnx"
    assert (result.batchnorm.before, result.batchnorm.after, result.status) == (2, 0, "verified")
    assert batchnorms(result.output) == 0
    assert result.proto is None
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["model.onnx", "model", "model.v2.onnx"])
def test_the_default_output_ends_in_folded_onnx(name: str, tmp_path: Path) -> None:
    result = bnfold.optimize(str(saved(foldable(), tmp_path / name)), verify=False)
    assert result.output == tmp_path / f"{name.removesuffix('.onnx')}.folded.onnx"


def test_bytes_and_protos_stay_in_memory_and_are_not_modified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    proto = foldable()
    data = proto.SerializeToString()
    for model in (proto, data):
        result = bnfold.optimize(model)
        assert (result.output, batchnorms(result.proto), result.status) == (None, 0, "verified")
    assert proto.SerializeToString() == data
    assert names(tmp_path) == []


def test_the_three_forms_give_one_model(tmp_path: Path) -> None:
    proto = foldable()
    path = saved(proto, tmp_path / "model.onnx")
    made = [bnfold.optimize(model, verify=False).proto for model in (proto, path.read_bytes())]
    written = bnfold.optimize(path, verify=False).output
    assert written is not None
    assert made[0] == made[1] == onnx.load(written)


def test_a_proto_can_be_written(tmp_path: Path) -> None:
    result = bnfold.optimize(foldable(), tmp_path / "out.onnx", verify=False)
    assert (result.output, batchnorms(tmp_path / "out.onnx")) == (tmp_path / "out.onnx", 0)


def test_a_dry_run_proves_and_writes_nothing(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    result = bnfold.optimize(path, dry_run=True)
    assert (result.status, result.output, result.batchnorm.after) == ("verified", None, 0)
    assert names(tmp_path) == ["model.onnx"]


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    bnfold.optimize(path, verify=False)
    with pytest.raises(OutputError, match="--force"):
        bnfold.optimize(path, verify=False)
    bnfold.optimize(path, verify=False, force=True)


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    (tmp_path / "link.onnx").symlink_to(path)
    for output in (path, tmp_path / "link.onnx"):
        with pytest.raises(UsageError, match="overwrite the input"):
            bnfold.optimize(path, output, force=True)


def test_nothing_to_fold_gives_identical_bytes(tmp_path: Path) -> None:
    path = saved(plain(), tmp_path / "model.onnx")
    result = bnfold.optimize(path)
    assert result.output is not None
    assert result.output.read_bytes() == path.read_bytes()
    assert (result.affines, result.certificate, result.verification) == ((), None, None)


def test_external_data(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx", external=True)
    before = listing(tmp_path)
    out = tmp_path / "elsewhere" / "out.onnx"
    out.parent.mkdir()
    result = bnfold.optimize(path, out)
    assert (result.status, batchnorms(out)) == ("verified", 0)
    assert {name: data for name, data in listing(tmp_path).items() if name in before} == before
    assert bnfold.verify(path, out).status == "equivalent"


# ---------------------------------------------------------------------------------------------------------- choices


def test_keep_and_only_take_names_and_globs() -> None:
    model = stubborn()
    assert {a.node for a in bnfold.explain(model, keep=["fi*"]).affines if a.status == "kept"} >= {"first"}
    chosen = bnfold.explain(model, only=["first"]).affines
    assert [(a.node, a.status) for a in chosen] == [("first", "folded"), ("middle", "kept"), ("last", "kept")]
    assert chosen[1].reasons[0].code == "kept-by-user"


@pytest.mark.parametrize("pattern", ["layer[0].bn", "layer[[]0].*"])
def test_a_name_with_brackets_is_a_name_and_a_glob_can_still_find_it(pattern: str) -> None:
    b = Builder()
    b.bn(b.conv(b.input(2, 4, 5, 6), 4, 1), name="layer[0].bn")
    result = bnfold.explain(b.model(), keep=[pattern])
    assert [affine.reasons[0].code for affine in result.affines] == ["kept-by-user"]
    assert not result.warnings


def test_a_node_without_a_name_goes_by_its_first_output() -> None:
    model = foldable()
    for node in model.graph.node:
        node.name = ""
    names = [affine.node for affine in bnfold.explain(model).affines]
    assert [n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization"] == names
    kept = bnfold.explain(model, keep=names[:1])
    assert [affine.status for affine in kept.affines] == ["kept", "folded"]
    assert not kept.warnings


def test_a_kept_node_is_in_the_output() -> None:
    result = bnfold.optimize(foldable(), keep=iter(["bn"]))
    assert (result.batchnorm.after, batchnorms(result.proto)) == (1, 1)


def test_a_pattern_that_matches_nothing_warns() -> None:
    assert bnfold.explain(foldable(), keep=["bn", "bm"]).warnings == (
        "--keep 'bm' matches no node that could be folded",
    )
    assert bnfold.optimize(foldable(), only=["none*"], verify=False).warnings


def test_explain_says_what_optimize_does() -> None:
    model = stubborn()
    said, done = bnfold.explain(model), bnfold.optimize(model, verify=False)
    assert said.affines == done.affines
    assert (said.batchnorm, said.model.nodes) == (done.batchnorm, done.model.nodes)


def test_a_provider_that_is_not_there_is_an_error_before_the_work(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="unknown provider 'gpu'; choose from cpu, cuda, tensorrt"):
        bnfold.optimize(path, providers=["gpu"])
    if unavailable(CUDA) is not None:
        steps: list[str] = []
        with pytest.raises(ProviderError, match="onnxruntime-gpu"):
            bnfold.optimize(path, providers=["cuda"], progress=steps.append)
        assert steps == []


def test_your_own_inputs(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 420, dtype=np.float32).reshape(1, 3, 10, 14)
    result = bnfold.optimize(foldable(), inputs={"x": x}, samples=0)
    assert result.verification is not None
    assert (result.verification.samples, result.status) == (1, "verified")


# ---------------------------------------------------------------------------------------------------------- results


def test_results_are_typed_and_become_json(tmp_path: Path) -> None:
    assert (Path(bnfold.__file__).parent / "py.typed").exists()
    path = saved(stubborn(), tmp_path / "model.onnx")
    result = bnfold.optimize(path)
    assert isinstance(result, Optimized)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["affines"][0] == {
        "node": "first", "op": "BatchNormalization", "status": "folded", "way": "pull", "into": ["conv"],
    }  # fmt: skip
    (kept,) = (entry for entry in json.loads(text)["affines"] if entry["status"] == "kept")
    assert set(kept) >= {"node", "op", "status", "code", "reason", "at", "unlock"}
    for other in (bnfold.explain(path), bnfold.verify(path, path), bnfold.bench(path, path, seconds=0)):
        json.dumps(other.to_json(), allow_nan=False)


def test_the_functions_are_functions_whatever_was_imported() -> None:
    import bnfold.benchmark
    import bnfold.equivalence  # no module of the package may be named like one of its functions

    assert callable(bnfold.verify)
    assert callable(bnfold.bench)
    assert all(hasattr(bnfold, name) for name in bnfold.__all__)


def test_progress_is_told() -> None:
    steps: list[str] = []
    bnfold.optimize(foldable(), verify=False, progress=steps.append)
    assert steps == ["reading", "solving", "writing", "certifying"]


@pytest.mark.parametrize("model", [b"", b"no model", onnx.ModelProto(), "nowhere.onnx"])
def test_what_is_no_model_is_a_model_error(model: bytes | onnx.ModelProto | str) -> None:
    for function in (bnfold.optimize, bnfold.explain):
        with pytest.raises(ModelError):
            function(model)


# ----------------------------------------------------------------------------------------------- folds that go wrong


@pytest.fixture
def wrong_rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the Conv rule wrong for some nodes: their new biases are off."""

    def break_it(*labels: str) -> None:
        right = rules.RULES["Conv"]

        def wrong(view: View) -> list[Accept]:
            accepts = right(view)
            return [spoilt(accept) for accept in accepts] if view.node.label in labels else accepts

        monkeypatch.setitem(rules.RULES, "Conv", wrong)

    return break_it


def spoilt(accept: Accept) -> Accept:
    """The same verdict, with a bias that is off by 0.5."""
    return accept._replace(edits=tuple(map(shifted, accept.edits)))


def shifted(edit: Edit) -> Edit:
    if not isinstance(edit, NewConstant) or edit.hint != "bias" or edit.shift is None:
        return edit
    right = edit.shift
    return replace(edit, shift=lambda: right() + 0.5)


def test_the_certificate_sees_a_wrong_fold_and_it_alone_is_dropped(
    wrong_rule: Callable[..., None], tmp_path: Path
) -> None:
    wrong_rule("conv2")
    path = saved(foldable(), tmp_path / "model.onnx")
    result = bnfold.optimize(path)
    assert [(a.node, a.status) for a in result.affines] == [("bn", "folded"), ("bn2", "kept")]
    assert result.affines[1].reasons[0].code == "verification-failed"
    assert result.warnings == ("the fold of bn2 failed verification and was dropped; please report it",)
    assert (result.status, batchnorms(result.output)) == ("verified", 1)


def test_the_runtime_sees_what_a_blind_certificate_lets_through(
    wrong_rule: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "certify", lambda original, optimized, witness: Certificate(1, 1, 1))
    wrong_rule("conv")
    result = bnfold.optimize(foldable())
    assert [(a.node, a.status) for a in result.affines] == [("bn", "kept"), ("bn2", "folded")]
    assert result.status == "verified"


def deep(depth: int = 8) -> onnx.ModelProto:
    """Convolutions with a BatchNormalization each; all fold."""
    b = Builder(type_=TensorProto.FLOAT)
    y = b.input("N", 3, 10, 14)
    for _ in range(depth):
        y = b.node("Relu", b.bn(b.conv(y, 4, 3, pads=[1, 1, 1, 1], scale=0.2)))
    return b.model(y)


@pytest.mark.parametrize(
    "wrong", [("conv",), ("conv8",), ("conv2", "conv7"), ("conv3", "conv4"), ("conv", "conv5", "conv8")]
)
def test_only_the_folds_that_are_wrong_are_dropped(wrong: tuple[str, ...], wrong_rule: Callable[..., None]) -> None:
    wrong_rule(*wrong)
    result = bnfold.optimize(deep(), samples=1, shapes={"x": (1, 3, 10, 14)})
    kept = [name.replace("conv", "bn") for name in wrong]
    assert [affine.node for affine in result.affines if affine.status == "kept"] == kept
    assert {affine.reasons[0].code for affine in result.affines if affine.status == "kept"} == {"verification-failed"}
    assert [warning.split()[3] for warning in result.warnings] == kept
    assert result.status == "verified"


def test_two_folds_that_only_the_runtime_sees_are_dropped(
    wrong_rule: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "certify", lambda original, optimized, witness: Certificate(1, 1, 1))
    wrong_rule("conv", "conv3")
    result = bnfold.optimize(deep(4), samples=1, shapes={"x": (1, 3, 10, 14)})
    assert [affine.node for affine in result.affines if affine.status == "kept"] == ["bn", "bn3"]
    assert result.status == "verified"


@pytest.mark.parametrize("guilty", [{0}, {19}, {3, 4}, {0, 9, 19}, set(range(20))])
def test_the_search_by_halves_finds_all_and_nothing_else(guilty: set[int]) -> None:
    proofs: list[set[str]] = []
    folds = [str(index) for index in range(20)]

    def fold(without: set[str]) -> Any:
        proofs.append(without)
        return SimpleNamespace(changes=folds, passes=set(map(str, guilty)) <= without)

    assert culprits(fold, lambda line: None) == tuple(map(str, sorted(guilty)))
    assert len(proofs) <= 2 * len(guilty) * (math.log2(20 / len(guilty)) + 1) + 3
    assert culprits(lambda without: fold(set()), lambda line: None) == ()


def test_strict_raises_and_writes_nothing(wrong_rule: Callable[..., None], tmp_path: Path) -> None:
    wrong_rule("conv2")
    path = saved(foldable(), tmp_path / "model.onnx")
    with pytest.raises(NotEquivalentError, match=r"the fold of bn2 is at fault; .*nothing was written"):
        bnfold.optimize(path, strict=True)
    assert names(tmp_path) == ["model.onnx"]


def test_without_a_culprit_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Certificate(1, 0, 0, (Failure("conv", "node", "it is wrong"),))
    monkeypatch.setattr(attempt, "certify", lambda original, optimized, witness: failure)
    path = saved(foldable(), tmp_path / "model.onnx")
    with pytest.raises(NotEquivalentError, match="nothing was written"):
        bnfold.optimize(path)
    assert names(tmp_path) == ["model.onnx"]


def test_a_certified_fold_that_is_too_noisy_is_met_with_fewer_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on lost bits is lowered until verification passes, and the report says so."""
    asked: list[float] = []

    def solving(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[4])
        if math.isfinite(arguments[4]):
            arguments = (arguments[0], ("*",), *arguments[2:])
        return solve(*arguments, **options)

    def verifying(before: Any, after: Any, *settings: Any, **fold: Any) -> Any:
        found = bnfold.verify(before, after, samples=1)
        return replace(found, status="different", problems=("noise",))

    monkeypatch.setattr(folding, "solve", solving)
    monkeypatch.setattr(api, "verified", verifying)
    path = saved(foldable(), tmp_path / "model.onnx")
    result = bnfold.optimize(path)
    assert asked == [math.inf, 6.0]
    assert any("rounding noise" in warning for warning in result.warnings)
    with pytest.raises(NotEquivalentError):
        bnfold.optimize(path, strict=True, force=True)
