"""Many models, many threads, many runs: memory stays, and the output is the same to the byte."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold import mapped
from bnfold.graph import _Labels
from tests.accidents import ROOT
from tests.features import FEATURES, with_feature
from tests.large import MODELS
from tests.load import grown, models
from tests.program import foldable, saved, stubborn


def output(model: bytes) -> bytes:
    result = bnfold.optimize(model, verify=False)
    assert result.proto is not None
    return bytes(result.proto.SerializeToString())


def test_memory_stays() -> None:
    assert grown(120, verify_every=30) < 12e6


def test_threads_do_not_disturb_each_other() -> None:
    given = [*models(24), *(with_feature(name, fold=True).SerializeToString() for name in list(FEATURES)[::8])]
    alone = [output(model) for model in given]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(output, given * 2)) == alone * 2


def test_threads_may_verify(tmp_path: Path) -> None:
    paths = [saved(foldable(seed), tmp_path / f"{seed}.onnx", external=seed % 2 == 0) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(bnfold.optimize, paths))
    assert [result.status for result in results] == ["verified"] * 4


def test_threads_may_write_to_one_place(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx", external=True)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(bnfold.optimize, path, verify=False, force=True) for _ in range(8)]
    assert all(run.result().batchnorm.after == 0 for run in runs)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "model.bin", "model.folded.onnx", "model.folded.onnx.data", "model.folded.onnx.manifest.json", "model.onnx",
    ]  # fmt: skip


@pytest.mark.parametrize("external", [False, True])
def test_the_output_is_the_same_in_every_run(external: bool, tmp_path: Path) -> None:
    path = saved(stubborn(), tmp_path / "model.onnx", external)
    found = set()
    for number in ("0", "1", "4242"):
        out = tmp_path / number / "out.onnx"
        out.parent.mkdir()
        command = [sys.executable, "-m", "bnfold", "optimize", str(path), "-o", str(out), "--no-verify"]
        environment = os.environ | {"PYTHONHASHSEED": number}
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
        found.add(tuple(each.read_bytes() for each in sorted(out.parent.iterdir())))
    assert len(found) == 1 and len(found.pop()) == 2 + external


@pytest.mark.parametrize("name", MODELS)
def test_nothing_recurses_with_the_size_of_a_model(name: str) -> None:
    """With room for few calls in each other, models of more nodes than that."""
    make, _ = MODELS[name]
    data, limit = make(600).SerializeToString(), sys.getrecursionlimit()
    bnfold.optimize(make(12).SerializeToString(), verify=False)  # imports and compiles, which recurses too
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        result = bnfold.optimize(data, verify=False)
    finally:
        sys.setrecursionlimit(limit)
    assert result.batchnorm.after == 0


def test_one_name_for_all_nodes_takes_no_longer() -> None:
    labels, node = _Labels(), onnx.NodeProto(name="same")
    start = time.process_time()
    assert len({labels.unique(node) for _ in range(20_000)}) == 20_000
    assert time.process_time() - start < 5


def test_maps_are_opened_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    original = mapped.open_map

    def watched(path: Path) -> mapped.Bytes:
        opened.append(path.suffix == ".onnx" or mapped._looking.locked())
        return original(path)

    path = saved(foldable(), tmp_path / "model.onnx", external=True)
    monkeypatch.setattr(mapped, "open_map", watched)
    bnfold.optimize(path, verify=False)
    assert opened and all(opened)
