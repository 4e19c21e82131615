"""The benchmark: what is measured, and when it may claim a difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import benchmark
from bnfold.benchmark import bench
from bnfold.benchmark.results import timing
from bnfold.benchmark.turns import Raced
from bnfold.errors import ModelError, UsageError
from bnfold.runtime import Session


def chain(length: int, shape: Sequence[int | str] = ("n", 3, 64, 96)) -> onnx.ModelProto:
    """`length` convolutions one after another."""
    names = ["x", *[f"t{index}" for index in range(1, length)], "y"]
    nodes = [helper.make_node("Conv", [one, "w"], [two], pads=[1] * 4) for one, two in pairwise(names)]
    weight = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_much_larger_model_is_slower() -> None:
    said: list[str] = []
    found = bench(chain(16), chain(1), providers=["cpu"], runs=24, threads=1, memory=False, progress=said.append)
    (row,) = found.rows
    assert row.ratio > 2
    assert row.low is not None and row.low > 1
    assert row.verdict.endswith("x faster")
    assert (row.pairs, row.blocks) == (24, 12)
    assert row.create is not None and row.create.pairs == 11
    assert row.original.create == row.create.original > 0
    assert found.size_original > found.size_optimized
    assert said == ["cpu: making two sessions", "cpu: measuring, block 1 of 12"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"][0]["provider"] == "cpu"
    assert bench(chain(1), chain(16), runs=12, threads=1, memory=False).rows[0].verdict.endswith("x slower")


@pytest.mark.parametrize("optimisations", [True, False])
def test_onnx_runtime_optimises_unless_asked_not_to(optimisations: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def session(model: bytes, *, optimize: bool, **settings: Any) -> Session:
        asked.append(optimize)
        return Session(model, optimize=optimize, **settings)

    monkeypatch.setattr(benchmark, "Session", session)
    (row,) = bench(chain(1), chain(1), runs=1, memory=False, optimisations=optimisations).rows
    assert asked == [optimisations] * 2
    assert ("graph_optimization_level" not in row.settings) is optimisations


def test_a_row_has_percentiles_throughput_and_settings() -> None:
    (row,) = bench(chain(2), chain(2), batches=(4,), runs=20, threads=1, memory=False).rows
    for one in (row.original, row.optimized):
        assert one.p90 is not None and one.p95 is not None
        assert one.low <= one.median <= one.high <= one.p90 <= one.p95
        assert one.p99 is None
    assert row.settings == {"use_deterministic_compute": "0"}
    assert row.memory is None


def test_a_row_is_made_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = np.array([[0.004, 0.002], [0.004, 0.002]])
    raced = Raced([(0.3, 0.1)] * 6, [[pairs] * 6])
    monkeypatch.setattr("bnfold.benchmark.race", lambda *arguments, **options: raced)
    (row,) = bench(chain(2), chain(2), batches=(4,), memory=False).rows
    assert (row.pairs, row.blocks, row.ratio, row.verdict) == (12, 6, 2, "2.00x faster")
    assert (row.original.median, row.optimized.median) == pytest.approx((4, 2))
    assert (row.original.throughput, row.optimized.throughput) == pytest.approx((1000, 2000))
    assert (row.original.create, row.optimized.create) == pytest.approx((300, 100))
    assert row.create is not None and row.create.verdict == "3.00x quicker"


def test_percentiles_and_throughput_of_known_times() -> None:
    found = timing(np.arange(1, 101) / 1000, 8, 0.5)
    assert (found.median, found.low, found.high) == pytest.approx((50.5, 25.75, 75.25))
    assert (found.p90, found.p95, found.p99) == pytest.approx((90.1, 95.05, 99.01))
    assert found.throughput == pytest.approx(8 / 0.0505)
    assert found.create == 500
    assert timing(np.ones(99), 1, 0).p99 is None
    assert (timing(np.ones(9), 1, 0).p90, timing(np.ones(19), 1, 0).p95) == (None, None)


def test_each_batch_is_a_row_and_fixed_shapes_are_measured_once() -> None:
    rows = bench(chain(1), chain(1), batches=(1, 2), runs=3, memory=False).rows
    assert [(row.batch, row.shapes["x"]) for row in rows] == [(1, (1, 3, 64, 96)), (2, (2, 3, 64, 96))]
    assert {row.verdict for row in rows} == {"too few to tell"}
    fixed = bench(chain(1, (2, 3, 8, 8)), chain(1, (2, 3, 8, 8)), batches=(1, 4), runs=3, memory=False)
    assert [row.batch for row in fixed.rows] == [2]
    assert "fixed" in fixed.notes[0]


def test_batches_differ_by_any_input() -> None:
    """The first input is fixed and the second is not: two rows, not one that hides the other."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["a"], ["p"]), helper.make_node("Abs", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info(*each) for each in (("a", 1, [2, 5]), ("x", 1, ["n", 5]))],
        [helper.make_tensor_value_info("p", 1, None), helper.make_tensor_value_info("y", 1, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert [row.shapes["x"][0] for row in bench(model, model, batches=(1, 4), runs=1, memory=False).rows] == [1, 4]


def test_the_time_is_bounded() -> None:
    found = bench(chain(4), chain(4), seconds=0.2, memory=False)
    assert found.rows[0].pairs >= 6
    assert found.seconds < 5


def test_the_memory_of_every_row_is_measured_and_a_failure_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench(chain(1), chain(1), runs=1, seconds=0)
    memory = found.rows[0].memory
    assert memory is not None and memory.process.original > 0 and memory.base > 2**20
    assert memory.device is None
    assert found.notes == ()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    failed = bench(chain(1), chain(1), batches=(3,), runs=1)
    assert failed.rows[0].memory is None
    assert failed.notes[0].startswith("cpu, batch 3: the peak memory was not measured: original: ")
    assert "/nowhere/python" in failed.notes[0]


def test_options_of_a_provider_that_is_not_used_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match="add --provider cuda"):
        bench(chain(1), chain(1), providers=["cpu"], provider_options={"cuda": {"device_id": "1"}})


def test_sizes_count_external_data(tmp_path: Path) -> None:
    model = chain(1)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = bench(tmp_path / "m.onnx", tmp_path / "m.onnx", runs=2, memory=False)
    assert found.size_original == (tmp_path / "m.onnx").stat().st_size + 3 * 3 * 9 * 4


def test_wrong_usage_is_said() -> None:
    for arguments in ({"batches": ()}, {"batches": (0,)}, {"runs": 0}):
        with pytest.raises(UsageError):
            bench(chain(1), chain(1), **arguments)


def test_a_model_that_runs_on_no_size_asks_for_one() -> None:
    model = chain(1, ("n", 3, "h", "w"))
    model.graph.node.append(helper.make_node("Add", ["y", "c"], ["z"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 77, 91), np.float32), "c"))
    model.graph.output[0].name = "z"
    with pytest.raises(ModelError, match="--shape x="):
        bench(model, model)
    assert bench(model, model, shapes={"x": (1, 3, 77, 91)}, runs=2, memory=False).rows[0].pairs == 2
