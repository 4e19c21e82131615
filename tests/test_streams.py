"""Streams that are closed, full or gone; pipes and devices in place of files; reports that would fall on models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accidents import ROOT
from tests.program import bnfold, complaint, foldable, listing, names, saved

COMMANDS = {
    "optimize": "optimize m.onnx --no-verify",
    "optimize, JSON": "optimize m.onnx --no-verify --json -",
    "explain": "explain m.onnx",
    "verify": "verify m.onnx m.onnx --samples 1",
    "deploy": "deploy m.onnx -o served --no-verify",
    "help": "explain --help",
}
NO_ROOM = "bnfold: stdout cannot be written: No space left on device"


def shell(arguments: str, redirect: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m bnfold {arguments} {redirect}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )


@pytest.mark.parametrize("redirect", [">&-", "<&- >&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_stream_that_is_closed_or_a_log_that_is_full_stops_nothing(
    command: str, redirect: str, tmp_path: Path
) -> None:
    saved(foldable(), tmp_path / "m.onnx")
    done = shell(COMMANDS[command], redirect, tmp_path)
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout) == (">&-" not in redirect.split())
    made = {"optimize": "m.folded.onnx", "deploy": "served"}.get(COMMANDS[command].split()[0], "m.onnx")
    assert (tmp_path / made).exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_stdout_is_one_line(command: str, tmp_path: Path) -> None:
    saved(foldable(), tmp_path / "m.onnx")
    done = shell(COMMANDS[command], ">/dev/full", tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, NO_ROOM)


def test_several_models_are_done_whatever_becomes_of_the_log(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        saved(foldable(), tmp_path / name)
    done = shell("optimize a.onnx b.onnx --no-verify -v", "2>/dev/full", tmp_path)
    assert (done.returncode, done.stdout) == (0, "a.folded.onnx\nb.folded.onnx\n")


# ------------------------------------------------------------------------------------------------ pipes and devices

READING = ["optimize {} -o x.onnx", "explain {}", "verify {} m.onnx", "verify m.onnx {}", "bench {} m.onnx"]
READING += ["deploy {} -o served"]


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("special", ["a pipe", "/dev/zero"])
def test_a_model_is_no_pipe_and_no_device(
    command: str, special: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(foldable(), tmp_path / "m.onnx")
    os.mkfifo("a pipe")
    done = bnfold(*(special if each == "{}" else each for each in command.split()))
    assert done.code == 1
    assert complaint(done).startswith(f"{special} is a pipe or a device, and a model is read more than once")
    assert set(names(tmp_path)) <= {"m.onnx", "a pipe"}


@pytest.mark.parametrize("special", ["pipe", "/dev/null", "/dev/stdout", "/dev/nothing"])
def test_a_pipe_or_a_device_is_not_replaced(special: str, tmp_path: Path) -> None:
    path = saved(foldable(), tmp_path / "m.onnx")
    os.mkfifo(tmp_path / "pipe")
    output = tmp_path / special
    before = output.lstat() if output.exists() else None
    for options in ([], ["--force"]):
        done = bnfold("optimize", path, "-o", output, "--no-verify", *options)
        assert done.code == 1
        assert complaint(done).startswith(f"{output} is a pipe or a device, and would be replaced")
        assert (output.lstat() if output.exists() else None) == before


# --------------------------------------------------------------------------------------- reports in the wrong place

FALLS = [
    ("optimize m.onnx --no-verify --json m.bin", "the external data of a model"),
    ("optimize m.onnx --no-verify --html link", "the external data of a model"),
    ("optimize m.onnx --no-verify --junit m.folded.onnx", "the output"),
    ("optimize m.onnx --no-verify --html m.folded.onnx.manifest.json", "the output"),
    ("optimize m.onnx --no-verify --json m.folded.onnx.data", "the output"),
    ("optimize m.onnx --no-verify --precision fp16 --json m.folded.fp16.onnx.data", "the output"),
    ("optimize m.onnx --no-verify -o out.onnx --json out.onnx.manifest.json", "the output"),
    ("explain m.onnx --json m.bin", "the external data of a model"),
    ("verify m.onnx m.onnx --junit m.bin", "the external data of a model"),
    ("bench m.onnx m.onnx --html m.bin", "the external data of a model"),
    ("deploy m.onnx -o served --json m.bin", "the external data of a model"),
]


@pytest.mark.parametrize(("command", "what"), FALLS)
def test_a_report_falls_on_nothing(command: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(foldable(), tmp_path / "m.onnx", external=True)
    (tmp_path / "link").symlink_to("m.bin")
    before = listing(tmp_path)
    done = bnfold(*command.split())
    assert done.code == 2
    assert f"would overwrite {what}; choose another name" in complaint(done)
    assert listing(tmp_path) == before


def test_a_report_of_before_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(foldable(), tmp_path / "m.onnx", external=True)
    (tmp_path / "notes.json").write_text("mine")
    for _ in range(2):
        assert bnfold("explain", "m.onnx", "--json", "notes.json", "--html", "page.html").code == 0


@pytest.mark.parametrize(
    "command",
    ["explain {loop}", "optimize {loop}", "verify {model} {loop}", "optimize {model} -o {loop}"]
    + ["optimize {model} -o {folder}/x.onnx", "optimize {folder}/x.onnx"],
)
def test_links_in_a_circle(command: str, tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    (loop := tmp_path / "loop.onnx").symlink_to(loop)
    (folder := tmp_path / "folder").symlink_to(folder)
    before = names(tmp_path)
    done = bnfold(*command.format(loop=loop, model=model, folder=folder).split())
    assert done.code in (1, 2), done.err
    assert len(done.err.splitlines()) == 1 and "internal error" not in done.err, done.err
    assert names(tmp_path) == before
