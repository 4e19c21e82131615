"""Many models: the same results whoever works, what is up to date is passed over, what dies takes one model with it.

What needs a Ray cluster is in tests/cluster.py, `make ray`.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnfold
from bnfold.documents import Failed, UpToDate
from bnfold.equivalence.answers import Tally
from bnfold.errors import ClusterError, UsageError
from bnfold.fleet import processes
from bnfold.fleet.work import Task
from bnfold.jobs import Job, jobs_of
from bnfold.kernels.base import Array
from bnfold.results import Optimized
from tests.accidents import ROOT
from tests.program import bnfold as program
from tests.program import complaint, foldable, listing, model_files, plain, saved, stubborn

PROGRAM = [sys.executable, "-m", "bnfold"]

WITHOUT_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A dozen models, of which one is none."""
    folder = tmp_path / "zoo"
    (folder / "inner").mkdir(parents=True)
    for seed in range(8):
        saved(foldable(seed), folder / f"m{seed}.onnx", external=seed == 3)
    saved(plain(), folder / "n.onnx")
    saved(stubborn(), folder / "inner" / "o.onnx")
    saved(stubborn(1), folder / "inner" / "p.onnx")
    (folder / "k.onnx").write_text("no model")
    return folder


def steady(report: Path) -> Any:
    """A report without what differs from run to run."""
    content = json.loads(report.read_text())
    for entry in content["models"]:
        entry.pop("timing", None)
        entry.get("verify", {}).pop("seconds", None)
    return content


# ---------------------------------------------------------------------------------------------------------- who works


def test_processes_do_what_one_does(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = {}
    for name, more in (("one", ()), ("three", ("--jobs", "3"))):
        report = tmp_path / f"{name}.json"
        command = ("optimize", "zoo", "-o", "out", "--json", report, "--junit", f"{report}.xml", *more)
        done[name] = program(*command), listing(tmp_path / "out"), steady(report)
        for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    (one, files, report_of_one), (three, others, report_of_three) = done.values()
    assert one.code == three.code == 1
    assert one.out == three.out and len(one.out.splitlines()) == 11
    assert files == others and sum(name.endswith(".onnx") for name in files) == 11
    assert report_of_one == report_of_three
    for said in (one.err, three.err):
        assert said.endswith("bnfold: 11 of 12 models done\n")
        assert said.count("zoo/k.onnx is not an ONNX model") == 2, "when it failed, and in the table"


def test_the_table(zoo: Path, tmp_path: Path) -> None:
    lines = program("optimize", zoo, "-o", tmp_path / "out", "--no-verify").err.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["model", "BatchNormalization"])
    rows = lines[start + 1 :]
    assert len(rows) == 14 and [row.split()[0].rsplit("/", 1)[-1] for row in rows[:2]] == ["o.onnx", "p.onnx"]
    assert rows[0].split()[1:5] == ["3", "->", "1", "certified"]
    assert rows[-2].split()[:5] == ["12", "models", "22", "->", "2"]
    assert rows[-1] == "bnfold: 11 of 12 models done"


def test_one_model_has_no_table(tmp_path: Path) -> None:
    done = program("optimize", saved(foldable(), tmp_path / "model.onnx"), "--no-verify", "--jobs", "2")
    assert done.code == 0 and "models done" not in done.err


def task(index: int, path: Path, **options: Any) -> Task:
    return Task(index, Job(path), {"verify": False, **options})


def test_a_process_that_is_killed_takes_one_model_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes._Worker.give

    def kill(worker: processes._Worker, given: Task) -> None:
        whole(worker, given)
        if given.index == 2:
            worker.process.kill()

    monkeypatch.setattr(processes._Worker, "give", kill)
    tasks = [task(i, saved(foldable(i), tmp_path / f"{i}.onnx")) for i in range(6)]
    results = {done.index: done.result for done in processes.run(tasks, 2)}
    assert [index for index, result in results.items() if isinstance(result, Failed)] == [2]
    assert isinstance(failed := results[2], Failed) and "its process was killed (SIGKILL)" in failed.message
    assert len(results) == 6 and sum(isinstance(result, Optimized) for result in results.values()) == 5


def test_no_more_processes_than_models_and_their_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    whole = subprocess.Popen

    def watched(command: list[str], **how: Any) -> Any:
        started.append([*command, how["env"]["OMP_NUM_THREADS"]])
        return whole(command, **how)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(subprocess, "Popen", watched)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    list(processes.run([task(i, saved(foldable(i), tmp_path / f"{i}.onnx")) for i in range(2)], 5))
    assert [command[-2:] for command in started] == [["4", "4"]] * 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_told_to_end_ends_all(number: signal.Signals, code: int, zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*PROGRAM, "optimize", str(zoo), "-o", str(out), "--jobs", "2", "--samples", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        while not (out.exists() and list(out.rglob(".*"))):
            assert process.poll() is None
            time.sleep(0.05)
        children = _children(process.pid)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code and children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not out.exists() or not [path for path in out.rglob("*") if path.name.startswith(".")]


def _children(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


# ---------------------------------------------------------------------------------------------------------- passed over


def states(zoo: Path, *more: object) -> list[str]:
    """What became of each model: its status, or its error."""
    report = zoo.parent / "report.json"
    program("optimize", zoo, "-o", zoo.parent / "out", "--no-verify", "--json", report, *more)
    return [entry.get("status") or "failed" for entry in json.loads(report.read_text())["models"]]


def test_a_second_run_does_nothing(zoo: Path, tmp_path: Path) -> None:
    (zoo / "k.onnx").unlink()
    assert states(zoo) == ["certified"] * 11
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for more in ((), ("--jobs", "3"), ("--junit", tmp_path / "x.xml", "--html", tmp_path / "x.html")):
        done = program("optimize", zoo, "-o", tmp_path / "out", "--no-verify", *more)
        assert (done.code, done.out) == (0, "")
        assert done.err.endswith("bnfold: 11 of 11 models done, 11 of them before\n")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert states(zoo) == ["up-to-date"] * 11


def test_what_is_missing_is_made(zoo: Path, tmp_path: Path) -> None:
    states(zoo)
    (tmp_path / "out" / "m1.onnx").unlink()
    assert states(zoo).count("certified") == 1 and (tmp_path / "out" / "m1.onnx").exists()


def _touch(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


OUTDATED: dict[str, tuple[Callable[[Path, Path], object], tuple[str, ...], str]] = {
    "another input": (lambda zoo, _: saved(foldable(9), zoo / "m1.onnx"), (), "made from another model"),
    "other external data": (
        lambda zoo, _: (zoo / "m3.bin").write_bytes((zoo / "m3.bin").read_bytes()[::-1]), (), "from another model",
    ),
    "another output": (lambda _, out: _touch(out / "m1.onnx"), (), "has changed since it was made"),
    "no manifest": (lambda _, out: (out / "m1.onnx.manifest.json").unlink(), (), "has no manifest"),
    "another bnfold": (
        lambda _, out: (path := out / "m1.onnx.manifest.json").write_text(
            path.read_text().replace('"bnfold": "0.', '"bnfold": "9.')
        ),
        (),
        "another version of bnfold made it",
    ),
    "other options": (lambda *_: None, ("--keep", "bn"), "made with other options"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTDATED)
def test_what_is_not_up_to_date_is_in_the_way(name: str, zoo: Path, tmp_path: Path) -> None:
    change, more, words = OUTDATED[name]
    (zoo / "k.onnx").unlink()
    states(zoo)
    change(zoo, tmp_path / "out")
    report = tmp_path / "report.json"
    done = program("optimize", zoo, "-o", tmp_path / "out", "--no-verify", "--json", report, *more)
    failed = [entry["error"]["message"] for entry in json.loads(report.read_text())["models"] if "error" in entry]
    assert done.code == 1 and len(failed) == (11 if more else 1)
    assert all(words in message and "use --force to overwrite it" in message for message in failed)
    assert states(zoo, "--force", *more) == ["certified"] * 11
    assert states(zoo, *more) == ["up-to-date"] * 11


def _encoded(array: Array) -> str:
    np.save(data := io.BytesIO(), array)
    return base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize("folder", [False, True])
def test_inputs_count_by_what_is_in_them(folder: bool, tmp_path: Path) -> None:
    models, inputs = tmp_path / "models", tmp_path / "inputs.npz"
    models.mkdir()
    one, _ = (saved(foldable(), models / name) for name in ("one.onnx", "two.onnx"))
    if folder:
        (inputs := tmp_path / "inputs").mkdir()
        polygraphy = {"x": {"array": _encoded(np.zeros((2, 3, 10, 14), np.float32)), "polygraphy_class": "ndarray"}}
        (inputs / "a.json").write_text(json.dumps([polygraphy]))
    else:
        np.savez(inputs, x=np.zeros((2, 3, 10, 14), np.float32))
    asked = ("optimize", models, "-o", tmp_path / "out", "--inputs", inputs)
    assert program(*asked).code == 0 and program(*asked).err.endswith("2 of 2 models done, 2 of them before\n")
    if folder:
        (inputs / "a.json").rename(inputs / "b.json")
    else:
        np.savez(inputs, x=np.ones((2, 3, 10, 14), np.float32))
    done = program(*asked)
    assert done.code == 1 and "made with other options or inputs" in done.err
    given = {"x": np.zeros((2, 3, 10, 14), np.float32)}
    (failed,) = bnfold.optimize_many(one, tmp_path / "out", inputs=given)
    assert isinstance(failed, Failed) and "exists; use --force" in failed.message


@pytest.mark.parametrize("option", ["--force", "--dry-run"])
def test_nothing_is_passed_over_where_all_is_asked_for(option: str, zoo: Path) -> None:
    states(zoo)
    assert "up-to-date" not in states(zoo, option)


def test_options_are_the_same_however_they_are_spelt(zoo: Path, tmp_path: Path) -> None:
    """Those of the command line are those of the library."""
    (zoo / "k.onnx").unlink()
    assert states(zoo) == ["certified"] * 11
    results = bnfold.optimize_many(zoo, tmp_path / "out", verify=False)
    assert all(isinstance(result, UpToDate) and result.before >= result.after for result in results)


def test_a_single_model_is_as_ever(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    assert program("optimize", model, "--no-verify").code == 0
    assert "exists; use --force" in complaint(program("optimize", model, "--no-verify"))


# -------------------------------------------------------------------------------------------------------------- lists


def test_lists(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text(f"# models\n\n{zoo / 'm1.onnx'}\n  {zoo / 'm[23].onnx'}  \n{zoo / 'inner'}\n")
    jobs, several = jobs_of([f"@{tmp_path / 'list.txt'}", str(zoo / "n.onnx")], f"{tmp_path}/out")
    assert several and [job.model.name for job in jobs] == [
        "m1.onnx", "m2.onnx", "m3.onnx", "o.onnx", "p.onnx", "n.onnx",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{zoo / 'm4.onnx'}\n"))
    (job,), several = jobs_of(["@-"], str(tmp_path / "out"))
    assert several and job.output == tmp_path / "out" / "m4.onnx"


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read: No such file"), ("# no\n", "names no model")])
def test_lists_that_are_none(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "list").write_text(text)
    with pytest.raises(UsageError, match=words):
        jobs_of([f"@{tmp_path / 'list'}"], None)


def test_a_file_may_begin_with_that_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(foldable(), tmp_path / "@model.onnx")
    assert jobs_of(["@model.onnx"], None) == ([Job(Path("@model.onnx"))], False)


# ---------------------------------------------------------------------------------------------------- library, and Ray


def test_the_library(zoo: Path, tmp_path: Path) -> None:
    results = bnfold.optimize_many([zoo / "m0.onnx", zoo / "k.onnx", zoo / "inner"], tmp_path / "out", verify=False)
    assert [type(result) for result in results] == [Optimized, Failed, Optimized, Optimized]
    assert set(model_files(tmp_path / "out")) == {"m0.onnx", "o.onnx", "p.onnx"}


@WITHOUT_RAY
def test_without_ray_the_way_to_it_is_told(zoo: Path, tmp_path: Path) -> None:
    done = program("optimize", zoo, "-o", tmp_path / "out", "--ray", "auto")
    assert (done.code, complaint(done)) == (1, "--ray needs Ray; install it: pip install 'bnfold[ray]'")
    assert not (tmp_path / "out").exists()
    model, inputs, labels = saved(foldable(), tmp_path / "model.onnx"), tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(inputs, np.zeros((2, 3, 10, 14), np.float32))
    np.save(labels, np.zeros(2, np.int64))
    with pytest.raises(ClusterError, match="install it: pip install"):
        bnfold.verify(model, model, inputs=inputs, labels=labels, ray="auto")


def test_ray_is_for_inputs_of_ones_own(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    done = program("verify", model, model, "--ray", "auto")
    assert (done.code, complaint(done)) == (2, "--ray is for your own inputs; give them with --inputs")


def tallies() -> Iterator[Tally]:
    for i in range(5):
        yield Tally("y", 7, i + 1, (i, 1, i + 1, i + 1), i % 2, 0.1 * i, 3.0 - i)


def test_counts_add_up_in_any_order() -> None:
    one, *others = tallies()
    forward, *others = [sum(others, start=one), *tallies()]
    last, *rest = reversed(others)
    backward = sum(rest, start=last)
    assert forward == backward and forward.samples == 15 and forward.hits == (10, 5, 15, 15)
    assert np.isnan((forward + Tally("y", 7, 1, (0, 0, 0, 0), 0, float("nan"), 0.0)).difference)
