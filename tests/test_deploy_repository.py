"""A version in a repository of Triton: whole or not at all, never over another, whatever happens."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnfold
from bnfold.deployment import files
from bnfold.deployment.repository import Repository
from bnfold.errors import ModelError, NotEquivalentError, OutputError
from tests.program import foldable, listing, names, plain, saved

CONFIG = "name: 'm'\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(plain(), tmp_path / "net.onnx")


def add(root: Path, config: str = CONFIG, shared: dict[str, bytes] | None = None, **options: Any) -> int:
    """A version that holds one file."""
    return Repository(root, "m", **options).add(
        config, {"warmup/a.raw": b"a"} if shared is None else shared, lambda folder: files.put(folder / "model", "new")
    )


# ------------------------------------------------------------------------------------------------------------ versions


def test_the_first_version_makes_the_model_and_the_repository(model: Path, tmp_path: Path) -> None:
    result = bnfold.deploy(model, triton=tmp_path / "models")
    assert (result.version, result.output) == (1, tmp_path / "models" / "net" / "1")
    assert (result.output / "model.onnx").read_bytes() == model.read_bytes()
    assert names(tmp_path / "models") == ["net"]
    assert names(tmp_path / "models" / "net") == ["1", "config.pbtxt", "warmup"]
    assert names(tmp_path) == ["models", "net.onnx"]


def test_the_next_version_is_one_more_than_the_highest(tmp_path: Path) -> None:
    assert add(tmp_path / "r") == 1
    (tmp_path / "r" / "m" / "9").mkdir()
    (tmp_path / "r" / "m" / "nine").mkdir()
    before = listing(tmp_path)
    assert [add(tmp_path / "r") for _ in range(2)] == [10, 11]
    assert before.items() <= listing(tmp_path).items()


def test_the_same_model_again_changes_nothing_but_the_version(model: Path, tmp_path: Path) -> None:
    bnfold.deploy(model, triton=tmp_path / "r")
    before = listing(tmp_path)
    (data,) = (tmp_path / "r" / "net" / "warmup").iterdir()
    stamp = data.stat()
    assert bnfold.deploy(model, triton=tmp_path / "r").version == 2
    assert (data.stat().st_ino, data.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    assert set(listing(tmp_path)) - set(before) == {"r/net/2/model.onnx"}
    assert before.items() <= listing(tmp_path).items()


def test_a_fold_of_a_model_is_its_next_version(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "net.onnx")
    folded = bnfold.optimize(model).output
    assert folded is not None
    results = [bnfold.deploy(each, triton=tmp_path / "r") for each in (model, folded)]
    assert [(each.name, each.version) for each in results] == [("net", 1), ("net", 2)]
    assert results[0].notes == ("2 of 2 BatchNormalization would fold: run bnfold optimize first",)
    assert results[1].notes == ()


def test_a_manifest_goes_with_the_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx.manifest.json").write_text("{}")
    result = bnfold.deploy(model, triton=tmp_path / "r")
    assert result.files == ("model.onnx", "model.onnx.manifest.json")
    assert (result.output / "model.onnx.manifest.json").read_text() == "{}"


def test_external_data_goes_with_the_model(tmp_path: Path) -> None:
    model = saved(plain(), tmp_path / "net.onnx", external=True)
    result = bnfold.deploy(model, triton=tmp_path / "r", backend="python")
    assert result.files == ("model.onnx", "model.py", "net.bin", "serve.py", "settings.json")
    assert (result.output / "net.bin").read_bytes() == (tmp_path / "net.bin").read_bytes()
    assert onnx.load(result.output / "model.onnx") == onnx.load(model)


def test_external_data_of_a_name_that_is_taken(tmp_path: Path) -> None:
    proto = plain()
    onnx.save_model(proto, tmp_path / "net.onnx", save_as_external_data=True, location="model.onnx", size_threshold=0)
    with pytest.raises(OutputError, match="would take the name of another file"):
        bnfold.deploy(tmp_path / "net.onnx", triton=tmp_path / "r")
    assert not (tmp_path / "r" / "net").exists()


# ------------------------------------------------------------------------------------------------------ configurations


def test_a_configuration_that_differs_stays(tmp_path: Path) -> None:
    add(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=re.escape("'name: 'm'' there, 'name: 'n'' here")):
        add(tmp_path, "name: 'n'\n")
    assert listing(tmp_path) == before
    assert add(tmp_path, "name: 'n'\n", {"warmup/b.raw": b"b"}, force_config=True) == 2
    assert (tmp_path / "m" / "config.pbtxt").read_text() == "name: 'n'\n"
    assert names(tmp_path / "m" / "warmup") == ["a.raw", "b.raw"]


def test_that_is_said_before_the_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bnfold.deploy(model, triton=tmp_path / "r")
    monkeypatch.setattr(Repository, "add", None)
    with pytest.raises(OutputError, match=r"differs from what this model needs.*\n.*--force-config replaces it"):
        bnfold.deploy(model, triton=tmp_path / "r", instances=2)


def test_versions_without_a_configuration_get_none_unasked(tmp_path: Path) -> None:
    (tmp_path / "m" / "3").mkdir(parents=True)
    with pytest.raises(OutputError, match="Triton makes one up"):
        Repository(tmp_path, "m").check_config(CONFIG)
    assert add(tmp_path, force_config=True) == 4


def test_an_empty_folder_is_a_new_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert (add(tmp_path), names(tmp_path / "m")) == (1, ["1", "config.pbtxt", "warmup"])


# -------------------------------------------------------------------------------------------------------- what can fail


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda place: (place / "r").write_text(""), "is not a folder"),
        (lambda place: ((place / "r").mkdir(), (place / "r" / "net").write_text("")), "is not a folder"),
        (lambda place: place.rename(place.with_name("gone")), "does not exist; make it first"),
    ],
)
def test_places_that_are_none(spoil: Any, problem: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    spoil(place)
    with pytest.raises(OutputError, match=problem):
        bnfold.deploy(plain(), triton=place / "r", name="net")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        bnfold.deploy(plain(), triton=tmp_path, name="net")


def test_a_full_disk_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bnfold.deploy(model, triton=tmp_path / "r")
    before = listing(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("net", "other"):
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            bnfold.deploy(model, triton=tmp_path / "r", name=name)
    assert listing(tmp_path) == before


def test_a_copy_that_computes_something_else_is_not_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = files._copy

    def damaged(path: Path, target: Path) -> None:
        copy(path, target)
        proto = onnx.load(target)
        weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
        proto.graph.initializer[0].raw_data = (weight * 1.001).tobytes()
        onnx.save(proto, target)

    monkeypatch.setattr(files, "_copy", damaged)
    with pytest.raises(NotEquivalentError, match="as it would be served differs: output 'relu'"):
        bnfold.deploy(model, triton=tmp_path / "r")
    monkeypatch.setattr(files, "_copy", lambda path, target: target.write_text("no model"))
    with pytest.raises(NotEquivalentError, match="was copied and does not run"):
        bnfold.deploy(model, triton=tmp_path / "r")
    assert listing(tmp_path) == {"net.onnx": model.read_bytes()}


def test_a_model_that_changes_meanwhile(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = files._copy

    def changing(path: Path, target: Path) -> None:
        copy(path, target)
        path.write_bytes(path.read_bytes() + b"\0")

    monkeypatch.setattr(files, "_copy", changing)
    with pytest.raises(ModelError, match="changed while it was copied"):
        bnfold.deploy(model, triton=tmp_path / "r")
    assert not (tmp_path / "r" / "net").exists()


def test_a_configuration_that_cannot_be_replaced_takes_its_version_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path)
    before = listing(tmp_path)

    def refused(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OutputError, match="Operation not permitted"):
        add(tmp_path, "name: 'n'\n", force_config=True)
    assert listing(tmp_path) == before


# -------------------------------------------------------------------------------------------------- others, and the end


def test_many_at_once_get_a_number_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    versions = Repository._versions

    def slowly(repository: Repository) -> list[int]:
        there = versions(repository)
        time.sleep(0.02)
        return there

    monkeypatch.setattr(Repository, "_versions", slowly)
    threads = [threading.Thread(target=lambda: found.append(add(tmp_path / "r"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 9))
    assert names(tmp_path / "r" / "m") == [*map(str, range(1, 9)), "config.pbtxt", "warmup"]
    assert names(tmp_path) == ["r"]


def test_another_configuration_that_came_first_wins(tmp_path: Path) -> None:
    def late(folder: Path) -> None:
        files.put(folder / "model", "late")
        assert add(tmp_path / "r", "name: 'other'\n") == 1

    with pytest.raises(OutputError, match="differs"):
        Repository(tmp_path / "r", "m").add(CONFIG, {}, late)
    assert names(tmp_path / "r" / "m") == ["1", "config.pbtxt", "warmup"]


def test_what_is_staged_for_a_new_model_is_not_in_the_repository(tmp_path: Path) -> None:
    """A server takes every folder of the repository for a model, a hidden one too."""
    seen: list[list[str]] = []
    root = tmp_path / "r"
    root.mkdir()
    Repository(root, "m").add(CONFIG, {}, lambda folder: seen.append(names(root)))
    assert seen == [[]]
    Repository(root, "m").add(CONFIG, {}, lambda folder: seen.append(names(root)))
    assert seen[1] == ["m"]


def test_another_disk_is_staged_where_the_model_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    seen: list[str] = []
    Repository(tmp_path / "r", "m").add(CONFIG, {}, lambda folder: seen.extend(names(tmp_path / "r")))
    (staged,) = seen
    assert re.fullmatch(r"\.m\.\d+\.[0-9a-f]{8}\.tmp", staged)
    assert names(tmp_path / "r") == ["m"]


def test_an_interrupted_run_ends_in_order(model: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from bnfold.deployment import checking; from bnfold.cli import main\n"
        "checking.check = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "deploy", str(model), "--triton", str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert names(tmp_path / "r") == [] and names(tmp_path) == ["net.onnx", "r"]
