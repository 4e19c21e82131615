"""The zoo's bench: a free batch, what is timed again and what not, what it calls a problem, its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

import bnfold
from tests.builder import Builder
from tests.zoo import batch, speed, speed_results, speed_tables, tables
from tests.zoo.speed import Races
from tests.zoo.speed_results import Created, Race, Row, Speed, Timed
from tests.zoo.tools import Tools


def network(kind: str = "plain", size: int | str = 1) -> onnx.ModelProto:
    """Conv and BN on a fixed batch, and behind them what keeps samples apart or does not."""
    b = Builder(17, TensorProto.FLOAT)
    y = b.bn(b.conv(b.input(size, 3, 8, 8), 4, 3))
    if kind == "flat":
        y = b.node("Reshape", y, b.node("Constant", value_ints=[1, -1]))
        y = b.node("Reshape", y, b.constant([1, 4, -1], "shape", TensorProto.INT64))
        axis, one = b.constant([0], "axis", TensorProto.INT64), b.node("Constant", value_int=1)
        rest = b.constant([2, -1], "rest", TensorProto.INT64)
        y = b.node("Reshape", y, b.node("Concat", b.node("Unsqueeze", one, axis), rest, axis=0), allowzero=1)
    if kind == "built in":
        y = b.node("Reshape", y, b.constant([4, -1], "shape", TensorProto.INT64))
    if kind == "mixed":
        y = b.node("Sub", y, b.node("ReduceMean", y, axes=[0], keepdims=1))
    return b.model(y)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("plain", ""),
        ("flat", ""),
        ("built in", "the batch is built in"),
        ("mixed", "samples of one batch change each other"),
    ],
)
def test_a_batch_is_free_where_samples_do_not_touch(kind: str, said: str, tmp_path: Path) -> None:
    model = network(kind)
    kept = model.SerializeToString()
    freed = batch.free(model)
    assert batch.is_fixed(model) and not batch.is_fixed(freed)
    assert model.SerializeToString() == kept
    original = saved(model, tmp_path / "model.onnx")
    assert batch.trouble(saved(freed, tmp_path / "freed.onnx"), original, 4) == said


def test_a_fixed_batch_is_trouble(tmp_path: Path) -> None:
    path = saved(network(), tmp_path / "model.onnx")
    assert batch.trouble(path, path, 4) == "its inputs have no common batch"


def test_a_model_keeps_its_own_batch_where_it_has_no_other(races: Races, tmp_path: Path) -> None:
    path = saved(network("mixed", 2), tmp_path / "m.onnx")
    row = races.prepared(path, "")
    assert (row.batches, row.fixed) == ((2,), "samples of one batch change each other")
    assert onnx.load(tmp_path / "scratch" / "original.onnx") == onnx.load(path)
    assert races.prepared(saved(network("plain", 2), path), "").batches == (1, 8)


@pytest.fixture
def races(tmp_path: Path) -> Any:
    """bnfold alone, measured for no time; what was timed is written down."""
    tools = Tools(tmp_path / "no rivals", 60)
    (tmp_path / "scratch").mkdir()
    races = Races(tools, tmp_path / "scratch", threads=1, seconds=0.0)
    yield races
    races.close()
    tools.close()


def test_only_what_changed_is_timed_again(
    races: Races, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models, kept, rows = tmp_path / "models", tmp_path / "speed", dict[str, Row]()
    saved(network(), models / "m.onnx")
    timm = onnx.load(models / "m.onnx")
    timm.graph.output[0].name = timm.graph.node[-1].output[0] = "another name"
    saved(timm, models / "reparam" / "m.onnx")
    pairs: list[str] = []
    plain = races.race

    def counted(row: Row, original: Path, changed: Path, tool: str) -> Race:
        pairs.append(f"{original.stem} {changed.stem}")
        return plain(row, original, changed, tool)

    def again() -> Row:
        pairs.clear()
        speed.run(races, rows, models, "m", ("timm", "bnfold"), kept)
        return rows["m"]

    monkeypatch.setattr(races, "race", counted)
    row = again()
    assert pairs == ["original timm", "original bnfold", "timm bnfold"]
    assert (row.batches, row.fixed, row.bn, row.tools["bnfold"].bn, row.tools["timm"].bn) == ((1, 8), "", 1, 0, 1)
    assert [(one.level, one.batch) for one in row.tools["bnfold"].race.timed] == [
        ("all", 1), ("all", 8), ("none", 1), ("none", 8)
    ]  # fmt: skip
    assert speed_results.load(kept) == rows
    assert "bnfold against timm" in capsys.readouterr().err
    again()
    assert pairs == []
    row.tools["bnfold"] = replace(row.tools["bnfold"], key="of another release")
    assert again().tools["bnfold"].key != "of another release"
    assert pairs == [], "another release wrote the same bytes"
    monkeypatch.setattr(races, "measuring", "otherwise")
    again()
    assert pairs == ["original timm", "original bnfold", "timm bnfold"]
    speed.run(races, rows, models, "none", ("bnfold",), kept)
    assert "none: there is no such model" in capsys.readouterr().err


def test_what_seems_slower_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = bnfold.bench, list[float]()

    def slower(*models: Path, seconds: float, **options: Any) -> Any:
        asked.append(seconds)
        found = plain(*models, seconds=0, runs=1, **options)
        if seconds == 0.5:
            return replace(found, rows=(replace(found.rows[0], verdict="1.10x slower"),))
        return found

    monkeypatch.setattr(bnfold, "bench", slower)
    model = str(saved(network(), tmp_path / "m.onnx"))
    found = speed_results.race(speed.timed(model, model, "1", "0.5", "1"))
    assert asked == [0.5, 1.5, 0.5, 1.5]
    assert {one.verdict for one in found.timed} == {"too few to tell"}


def timed(ratio: float, verdict: str = "", level: str = "all", size: int = 1) -> Timed:
    said = verdict or (f"{ratio:.2f}x faster" if ratio > 1 else f"{1 / ratio:.2f}x slower")
    return Timed(level, size, 3.0, 3.0 / ratio, ratio, ratio - 0.01, ratio + 0.01, said)


def raced(*rows: Timed) -> Speed:
    return Speed("", "right", "", "", 900_000, 7, 0, Race(rows, (Created("all", 4.0, 3.0, 1.3, "1.30x quicker"),)))


def row(name: str = "m", **tools: Speed) -> Row:
    return Row(name, "", 3, 10, 1_000_000, (1, 8), tools=tools)


def test_what_is_a_problem() -> None:
    assert row().problems() == ["was not measured"]
    assert row(bnfold=Speed("", "wrong", "off")).problems() == ["wrong: off"]
    ours = row(bnfold=raced(timed(1.2), timed(0.9, "no difference", size=8)))
    assert ours.problems() == []
    assert row(bnfold=raced(timed(0.8, level="none"))).problems() == [
        "batch 1, optimisations none: 1.25x slower (0.79 to 0.81)"
    ]
    ours.against = "", Race((timed(0.96), timed(0.9, "no difference", size=8)))
    assert ours.problems() == []
    ours.against = "", Race((timed(0.94),))
    assert ours.problems() == ["batch 1, optimisations all: 0.94 of the speed of timm's form"]


def test_the_tables() -> None:
    rows = [
        row("m", bnfold=raced(timed(2.0), timed(1.5, size=8)), a=raced(timed(1.1)), b=Speed("", "wrong")),
        row("n", bnfold=raced(timed(1.0, "no difference")), a=raced(timed(0.5)), timm=raced(timed(1.2))),
    ]
    rows[1].batches, rows[1].fixed = (1,), "it is built in"
    rows[1].against = "", Race((timed(0.97), timed(0.5, level="none")))
    versions = {"a": "a 1.0", "b": "b 2.0"}
    assert speed_tables.mean(rows, "bnfold", "all", 1) == pytest.approx(2.0**0.5)
    assert speed_tables.mean(rows, "b", "all", 1) == 1, "one keeps the original"
    said = speed_tables.summary(rows, versions)
    assert "Optimisations on, batch 1: bnfold 1.41 times as fast" in said
    assert "over 2 models: 1 faster, 0 slower, 1 no difference (a 1.0 0.74, b 2.0 1.00)" in said
    times = speed_tables.times(rows, versions, "all")
    assert "| m | 1 | 3 | 2.00 (1.99 to 2.01) | 1.10 | wrong |" in times
    assert "| n | 1 | 3 | no difference (0.99 to 1.01) | 0.50 |  |" in times
    assert times.endswith("Only with the batch that it has: n (it is built in).")
    opposed = "| n | 1 | 3 | 1.20 | no difference | 0.97 (0.96 to 0.98) | 10 | 7 | 7 |"
    assert speed_tables.opposed(rows).splitlines()[2:] == [opposed]
    assert "| m | 3 → 0 | 10 → 7 | 1.0 → 0.9 | 4.0 → 3.0 | 1.30x quicker |" in speed_tables.sessions(rows)
    assert speed_tables.first(rows, versions).splitlines()[2:] == [
        "| m | 3 → 0 | 3 | 2.00 | 1.50 | 1.10 (a) |",
        "| n | 3 → 0 | 3 | no difference | its batch is fixed | 0.50 (a) |",
    ]


def test_the_pages_have_a_place_for_the_tables(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    root = Path(__file__).parent.parent
    for page in ("README.md", "docs/speed.md"):
        (tmp_path / page).write_text((root / page).read_text())
    speed_tables.write(tmp_path, [row("m", bnfold=raced(timed(2.0)))], {}, 1)
    for page in ("README.md", "docs/speed.md"):
        text = (tmp_path / page).read_text()
        assert "| m | " in text and "Not measured yet" not in text
        assert tables.machine() in text


def test_the_names_are_a_pattern_for_the_builder(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--names", "_mlp_"]) == 0
    assert capsys.readouterr().out == "^(reparam/)?(my_mlp_gemm|my_mlp_matmul)$\n"
