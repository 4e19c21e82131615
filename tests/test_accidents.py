"""Accidents: whatever happens, the input is intact, the output whole or not there, and the next run cleans up.

Most of them are real and happen in processes of their own: see tests/accidents.py.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold import temporary
from bnfold.errors import ModelError, OutputError
from tests.accidents import ROOT
from tests.program import foldable, listing, model_files, names, plain, saved, stubborn

PROGRAM = [sys.executable, "-m", "tests.accidents"]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("what", "times", "least"), [("steps", 0, 100), ("kills", 4, 4), ("races", 10, 10), ("deployments", 0, 40)]
)
def test_accidents_do_no_harm(what: str, times: int, least: int) -> None:
    said = run(*PROGRAM, what, str(times))
    assert int(said.split()[1]) >= least, said


def test_a_full_disk(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=300k tmpfs {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("no file system can be mounted here, not even in a namespace of one's own")
    said = run("unshare", "-rm", "sh", "-c", f"{mount} && exec {sys.executable} -m tests.accidents full {tmp_path}")
    assert int(said.split()[1]) >= 20, said


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx", external=True)
    before = listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            bnfold.optimize(path, verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == before


def test_a_process_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    command = [sys.executable, "-m", "bnfold", "optimize", str(path), "-v", "--samples", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        while "certifying" not in (line := process.stderr.readline()):
            assert line
        assert len(names(tmp_path)) == 2, "it has begun to write"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1] == "bnfold: terminated"
    assert names(tmp_path) == ["model.onnx"]


DEAF = """
import click, contextlib, hashlib, time
from bnfold import temporary
from bnfold.cli import program
from pathlib import Path

program.GRACE = {}

@click.group(cls=program.Program, invoke_without_command=True)
def deaf() -> None:
    with temporary.file(Path("model.onnx").resolve()):
        with contextlib.suppress(SystemExit):  # as in a destructor
            print("asleep", flush=True)
            {}
        time.sleep(60)

deaf()
"""


@pytest.mark.parametrize(
    ("grace", "deaf"),
    [(60, "time.sleep(60)"), (0.2, "time.sleep(60)"), (0.2, 'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)')],
    ids=["asked again", "suppressed", "in one long call"],
)
def test_a_process_that_loses_the_exception_ends_all_the_same(grace: float, deaf: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEAF.format(grace, deaf)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        assert len(names(tmp_path)) == 1
        time.sleep(0.3)  # until it is deaf
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "bnfold: terminated\n")
    assert names(tmp_path) == []


# -------------------------------------------------------------------------------------------- what others do meanwhile


def _other_model(folder: Path) -> None:
    saved(foldable(seed=3), folder / "model.onnx", external=True)


def _other_weights(folder: Path) -> None:
    data = folder / "model.bin"
    data.write_bytes(data.read_bytes()[::-1])


def _shorter_weights(folder: Path) -> None:
    data = folder / "model.bin"
    data.write_bytes(data.read_bytes()[:-4])


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "another model": _other_model,
    "other weights": _other_weights,
    "fewer weights": _shorter_weights,
    "no model": lambda folder: (folder / "model.onnx").unlink(),
    "no weights": lambda folder: (folder / "model.bin").unlink(),
}


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
@pytest.mark.parametrize("step", ["solving", "writing", "certifying"])
@pytest.mark.parametrize("what", MEANWHILE)
def test_an_input_that_changes_meanwhile(what: str, step: str, verify: bool, tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx", external=True)

    def progress(line: str) -> None:
        if line == step:
            MEANWHILE[what](tmp_path)

    with pytest.raises(ModelError):
        bnfold.optimize(path, verify=verify, progress=progress)
    assert set(names(tmp_path)) <= {"model.onnx", "model.bin"}


def test_an_output_that_comes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path, output = saved(foldable(), tmp_path / "model.onnx"), tmp_path / "out.onnx"

    def progress(line: str) -> None:
        output.write_text("mine")

    with pytest.raises(OutputError, match=r"out.onnx exists; use --force"):
        bnfold.optimize(path, output, verify=False, progress=progress)
    assert output.read_text() == "mine"


@pytest.mark.parametrize("model", [foldable(), plain()], ids=["folds", "plain"])
def test_data_of_others_is_not_overwritten(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "model.onnx", external=True)
    (tmp_path / "out.onnx.data").write_text("mine")
    with pytest.raises(OutputError, match=r"out.onnx.data exists; use --force"):
        bnfold.optimize(path, tmp_path / "out.onnx", verify=False)
    assert (tmp_path / "out.onnx.data").read_text() == "mine"


def test_data_of_another_model_in_the_folder_of_the_output(tmp_path: Path) -> None:
    """Nothing folds, and the name of the external data is taken there: the output gets a file of its own."""
    path = saved(plain(), tmp_path / "model.onnx", external=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.bin").write_text("another's")
    result = bnfold.optimize(path, tmp_path / "out" / "model.onnx")
    assert result.output is not None and onnx.load(result.output).graph == onnx.load(path).graph
    assert (tmp_path / "out" / "model.bin").read_text() == "another's"
    assert model_files(tmp_path / "out") == ["model.bin", "model.onnx", "model.onnx.data"]


# -------------------------------------------------------------------------------------------------------------- links


def test_links_to_the_input_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = saved(foldable(), tmp_path / "real" / "model.onnx")
    (tmp_path / "link.onnx").symlink_to(real)
    result = bnfold.optimize(tmp_path / "link.onnx", verify=False)
    assert result.output == tmp_path / "link.folded.onnx" and names(tmp_path / "real") == ["model.onnx"]


@pytest.mark.parametrize("dangling", [False, True], ids=["a file", "nothing"])
def test_a_link_at_the_output_is_replaced_and_its_target_left_alone(dangling: bool, tmp_path: Path) -> None:
    path, target, link = saved(foldable(), tmp_path / "m.onnx"), tmp_path / "target", tmp_path / "out.onnx"
    if not dangling:
        target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(OutputError, match="exists; use --force"):
        bnfold.optimize(path, link, verify=False)
    bnfold.optimize(path, link, verify=False, force=True)
    assert not link.is_symlink() and onnx.load(link).graph.node
    assert target.exists() != dangling and (dangling or target.read_text() == "precious")


# -------------------------------------------------------------------------------------- what died and what lives


def test_what_a_run_that_died_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    dead = tmp_path / ".model.folded.onnx.1.01234567.tmp"
    dead.mkdir()
    (dead / "model.folded.onnx").write_text("half")
    others = [".model.folded.onnx.tmp", ".model.folded.onnx.1.mine.tmp", ".other.onnx.1.01234567.tmp"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    bnfold.optimize(path, verify=False)
    assert model_files(tmp_path) == sorted([*others, "model.folded.onnx", "model.onnx"])


def test_what_lives_is_left_alone(tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "model.onnx")
    with temporary.folder(tmp_path / "model.folded.onnx") as folder, temporary.file(path) as file:
        bnfold.optimize(path, verify=False)
        assert folder.is_dir() and file.is_file()
    assert model_files(tmp_path) == ["model.folded.onnx", "model.onnx"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []
    lock = fcntl.flock

    def slow(handle: int, operation: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].rmdir()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    with temporary.folder(tmp_path / "out.onnx") as folder:
        assert folder.is_dir() and [folder] != swept


def test_results_are_moved_into_place_one_after_the_other(tmp_path: Path) -> None:
    path, output = saved(foldable(), tmp_path / "model.onnx"), tmp_path / "model.folded.onnx"
    waiting = threading.Event()

    def progress(line: str) -> None:
        if line == "certifying":
            waiting.set()

    thread = threading.Thread(target=lambda: bnfold.optimize(path, verify=False, progress=progress))
    with temporary.alone(tmp_path):
        thread.start()
        assert waiting.wait(20)
        thread.join(0.5)
        assert thread.is_alive() and not output.exists()
    thread.join(20)
    assert output.exists()


def test_links_are_not_swept_and_pipes_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".m.onnx.2.01234567.tmp")
    (tmp_path / "precious").mkdir()
    (tmp_path / ".m.onnx.1.01234567.tmp").symlink_to(tmp_path / "precious")
    temporary.sweep(tmp_path / "m.onnx")
    assert names(tmp_path) == [".m.onnx.1.01234567.tmp", "precious"]


@pytest.mark.parametrize("external", [True, False])
def test_a_dry_run_sweeps_and_leaves_nothing(external: bool, tmp_path: Path) -> None:
    path = saved(stubborn(), tmp_path / "model.onnx", external)
    before = listing(tmp_path)
    if external:
        (tmp_path / ".model.onnx.1.01234567.tmp").write_text("half")
    bnfold.optimize(path, dry_run=True)
    assert listing(tmp_path) == before
