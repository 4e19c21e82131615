"""The benchmark: what is measured, and when it may claim a difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.benchmark import bench, ratio_interval, verdict
from bnfold.errors import ModelError, UsageError


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
    found = bench(chain(16), chain(1), providers=["cpu"], runs=15, threads=1, progress=said.append)
    (row,) = found.rows
    assert row.ratio > 2
    assert row.low > 1
    assert row.verdict.endswith("x faster")
    assert row.pairs == 15
    assert row.original.low <= row.original.median <= row.original.high
    assert row.original.create > 0
    assert found.size_original > found.size_optimized
    assert said
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["rows"][0]["provider"] == "cpu"
    assert bench(chain(1), chain(16), runs=15, threads=1).rows[0].verdict.endswith("x slower")


def test_each_batch_is_a_row_and_fixed_shapes_are_measured_once() -> None:
    rows = bench(chain(1), chain(1), batches=(1, 2), runs=3).rows
    assert [(row.batch, row.shapes["x"]) for row in rows] == [(1, (1, 3, 64, 96)), (2, (2, 3, 64, 96))]
    fixed = bench(chain(1, (2, 3, 8, 8)), chain(1, (2, 3, 8, 8)), batches=(1, 4), runs=3)
    assert [row.batch for row in fixed.rows] == [2]
    assert "fixed" in fixed.notes[0]


def test_the_time_is_bounded() -> None:
    found = bench(chain(4), chain(4), seconds=0.2)
    assert found.rows[0].pairs >= 5
    assert found.seconds < 5


def test_sizes_count_external_data(tmp_path: Path) -> None:
    model = chain(1)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = bench(tmp_path / "m.onnx", tmp_path / "m.onnx", runs=2)
    assert found.size_original == (tmp_path / "m.onnx").stat().st_size + 3 * 3 * 9 * 4


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((1.32, 1.2, 1.4), "1.32x faster"),
        ((0.5, 0.4, 0.6), "2.00x slower"),
        ((1.3, 0.9, 1.6), "no difference"),
        ((1.01, 1.005, 1.015), "no difference"),
    ],
)
def test_verdict(interval: tuple[float, float, float], text: str) -> None:
    assert verdict(*interval) == text


def test_interval_of_equal_models_holds_one_and_shrinks_for_steady_ones() -> None:
    random = np.random.default_rng(0)
    ratio, low, high = ratio_interval(1 + 0.1 * random.uniform(0, 1, (60, 2)))
    assert low < 1 < high
    assert low < ratio < high
    _, near, far = ratio_interval(np.array([[2.0, 1.0]]) * (1 + 0.001 * random.uniform(0, 1, (60, 2))))
    assert near == pytest.approx(2, rel=2e-3)
    assert far == pytest.approx(2, rel=2e-3)


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
    assert bench(model, model, shapes={"x": (1, 3, 77, 91)}, runs=2).rows[0].pairs == 2
