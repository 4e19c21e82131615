"""Writing: one rounding, streamed, complete or not at all, and nothing changed that the fold does not concern."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import ModelError, OutputError, UsageError
from bnfold.graph import Model
from bnfold.plan import NewConstant, Rewrite
from bnfold.solver import solve
from bnfold.source import read
from bnfold.stage import destination, staged
from bnfold.write import folded, rounded, write
from tests.builder import Builder

CHANNELS = 4


def conv_bn(*, extra: bool = False, ir_version: int = 8) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu; with `extra`, everything that a fold must leave alone."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(CHANNELS, 3, 3, 3)),
        "gamma": np.array([1.5, -0.5, 0.0, 2.0]),
        "beta": rng.normal(size=CHANNELS),
        "mean": rng.normal(size=CHANNELS),
        "var": rng.uniform(0.5, 2, size=CHANNELS),
    }
    inits = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 6])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in inits]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS, 8, 6])], inits
    )
    if extra:
        graph.doc_string = "a graph"
        graph.node[2].doc_string = "a node"
        graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "unused"))
        graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", CHANNELS, 8, 6]))
        graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", CHANNELS, 8, 6]))
    opset = 17 if ir_version >= 4 else 9
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("custom", 3)])
    model.ir_version = ir_version
    if extra:
        model.producer_name, model.doc_string = "somebody", "a model"
        helper.set_model_props(model, {"author": "me"})
    return model


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    given = Model(read(model))
    return folded(Rewrite.of(solve(given).plan))


def test_only_what_the_fold_concerns_changes() -> None:
    before = conv_bn(extra=True)
    copy = onnx.ModelProto()
    copy.CopyFrom(before)
    after = fold(before)
    assert before == copy, "the input was modified"

    assert [node.name for node in after.graph.node] == ["conv", "relu"]
    assert after.graph.node[1] == before.graph.node[2]
    assert [t.name for t in after.graph.initializer] == ["w.folded", "unused", "conv.bias.folded"]
    assert [v.name for v in after.graph.value_info] == ["b"], "c is gone, b keeps its meaning and its entry"
    for message in (before, after):
        for name in ("node", "initializer", "value_info"):
            message.graph.ClearField(name)
    assert before == after


def test_constants_are_exact_and_rounded_once() -> None:
    model = conv_bn()
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    scale = values["gamma"] / np.sqrt(values["var"] + np.float64(np.float32(1e-5)))
    after = {t.name: numpy_helper.to_array(t) for t in fold(model).graph.initializer}
    assert np.array_equal(after["w.folded"], (values["w"] * scale[:, None, None, None]).astype(np.float32))
    assert np.array_equal(after["conv.bias.folded"], (values["beta"] - scale * values["mean"]).astype(np.float32))


def test_before_ir_4_new_constants_are_inputs_too() -> None:
    after = fold(conv_bn(ir_version=3))
    assert [v.name for v in after.graph.input] == ["x", "w.folded", "conv.bias.folded"]
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("name", ["w.folded", "conv.bias.folded"])
def test_new_names_avoid_every_name_of_the_model(name: str) -> None:
    model = conv_bn()
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), name))
    model.graph.node.append(helper.make_node("Identity", [name], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    after = fold(model)
    assert len({t.name for t in after.graph.initializer}) == len(after.graph.initializer)
    assert f"{name}.2" in {t.name for t in after.graph.initializer}


@pytest.mark.parametrize(
    ("type_", "unit"),
    [(TensorProto.FLOAT16, 2.0**-11), (TensorProto.BFLOAT16, 2.0**-8), (TensorProto.FLOAT, 2.0**-24)],
)
def test_rounding_is_to_nearest_even_in_one_step(type_: int, unit: float) -> None:
    rng = np.random.default_rng(1)
    # Just above a tie between two neighbours, by less than float32 can hold: rounding twice falls back on the tie.
    odd = 1 + unit + np.arange(0, 64) * 2 * unit
    values = np.concatenate([odd + 2.0**-50, odd - 2.0**-50, odd, rng.normal(size=2000)])
    values = np.concatenate([values, -values])
    got = rounded(values, type_).astype(np.float64)
    spacing = 2 * unit * 2.0 ** np.floor(np.log2(np.abs(got)))
    assert np.all(np.abs(got - values) <= spacing / 2)
    up = got[: len(odd)] > odd
    down = got[len(odd) : 2 * len(odd)] < odd
    assert np.all(up) and np.all(down)


def test_bfloat16_keeps_infinity_and_subnormals() -> None:
    values = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-40, 3.4e38, 1e300])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32).astype(ml_dtypes.bfloat16)
    assert np.array_equal(rounded(values, TensorProto.BFLOAT16), expected)
    assert np.array_equal(np.signbit(rounded(values, TensorProto.BFLOAT16)), np.signbit(values))


def external(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(
        conv_bn(extra=True), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def save(path: Path, output: Path, *, force: bool = False) -> None:
    source = read(path)
    model = Model(source)
    with staged(destination(source, output, force)) as stage:
        write(Rewrite.of(solve(model).plan), stage)
        if any(stage.folder.glob("*.data")):
            assert onnx.load(str(stage.path)).graph.node, "a staged result can be loaded as it is"
        stage.keep()


def test_external_data_goes_to_a_file_of_its_own(tmp_path: Path) -> None:
    path, output = external(tmp_path), tmp_path / "out.onnx"
    before = {name: (tmp_path / name).read_bytes() for name in ("model.onnx", "weights.bin")}
    save(path, output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    inline = {t.name: numpy_helper.to_array(t) for t in fold(conv_bn(extra=True)).graph.initializer}
    loaded = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(output)).graph.initializer}
    assert inline.keys() == loaded.keys()
    assert all(np.array_equal(inline[name], loaded[name]) for name in inline)
    offsets = [
        int(entry.value)
        for tensor in onnx.load(str(output), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets and all(offset % 4096 == 0 for offset in offsets)


def test_streaming_in_pieces_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    save(path, tmp_path / "one.onnx")
    monkeypatch.setattr("bnfold.write.PIECE", 8 * 3 * 9)  # one row of the weights
    save(path, tmp_path / "many.onnx")
    assert (tmp_path / "one.onnx.data").read_bytes() == (tmp_path / "many.onnx.data").read_bytes()


def test_rows_of_a_constant_match_the_whole() -> None:
    base = numpy_helper.from_array(np.arange(24, dtype=np.float32).reshape(4, 3, 2), "w")
    from bnfold.constants import from_initializer

    factors = (np.arange(4.0).reshape(4, 1, 1), np.arange(3.0).reshape(1, 3, 1))
    edit = NewConstant(1, "weight", 1, (4, 3, 2), from_initializer(base, None), factors, lambda: np.ones((3, 2)))
    pieces = np.concatenate([edit.rows(i, i + 1) for i in range(4)])
    assert np.array_equal(pieces, edit.value())


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("model.onnx", UsageError),
        ("weights.bin", UsageError),
        ("exists.onnx", OutputError),
        ("missing/out.onnx", OutputError),
        (".", OutputError),
    ],
)
def test_outputs_that_are_refused(tmp_path: Path, output: str, error: type[Exception]) -> None:
    path = external(tmp_path)
    (tmp_path / "exists.onnx").write_bytes(b"mine")
    with pytest.raises(error):
        destination(read(path), tmp_path / output, force=output in ("model.onnx", "weights.bin"))
    assert (tmp_path / "exists.onnx").read_bytes() == b"mine"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bnfold.write._refer", full)
    with pytest.raises(OutputError, match="No space left"):
        save(path, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_symbolic_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "link.onnx").symlink_to(path)
    with pytest.raises(UsageError):
        destination(read(path), tmp_path / "link.onnx", force=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "weights.bin").unlink(), "is missing"),
        (lambda p: (p / "weights.bin").write_bytes(b"short"), "too short"),
        (lambda p: [(p / "weights.bin").unlink(), (p / "weights.bin").mkdir()], "not a regular file"),
    ],
)
def test_damaged_external_data_is_an_error(tmp_path: Path, damage: object, message: str) -> None:
    path = external(tmp_path)
    assert callable(damage)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        save(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_nothing_to_fold_gives_the_same_bytes(tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    save(external(tmp_path), once)
    save(once, twice)
    assert once.read_bytes() == twice.read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(once, elsewhere / "copy.onnx")
    assert (elsewhere / "copy.onnx").read_bytes() == once.read_bytes()
    assert onnx.load(str(elsewhere / "copy.onnx")) == onnx.load(str(once))


def test_what_protobuf_could_not_hold_goes_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    x = b.input("N", 20, 3, 4)
    weight = b.constant(b.normal(60, 20, 1, 1), "w")  # the copy that the second reader needs does not fit any more
    model = b.model(*(b.bn(b.node("Conv", x, weight)) for _ in range(2)))
    path, plain, output = (tmp_path / name for name in ("model.onnx", "plain.onnx", "out.onnx"))
    onnx.save(model, path)
    bnfold.optimize(path, plain)
    monkeypatch.setattr("bnfold.write.MAX_PROTO", path.stat().st_size)
    assert bnfold.optimize(path, output).status == "verified"
    assert output.stat().st_size < path.stat().st_size
    wanted, made = (onnx.load(each).graph for each in (plain, output))
    for tensor in made.initializer:
        tensor.ClearField("data_location")
    assert made == wanted
    output.unlink()
    with pytest.raises(OutputError, match=r"out\.onnx\.data exists"):
        bnfold.optimize(path, output)
