"""The files beside the models: refused before the work, whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from bnfold.documents import Document, check
from bnfold.errors import OutputError, UsageError
from tests.program import bnfold, complaint, foldable, names, saved

OPTIONS = ("--json", "--html", "--junit")


def test_a_file_is_new_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    document = Document("--html", str(path))
    document.write("one")
    path.chmod(0o640)
    document.write("tschüß")
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) == ("tschüß", 0o640)
    assert names(tmp_path) == ["report.html"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        Document("--html", str(path)).write("after")
    assert (path.read_text(), names(tmp_path)) == ("before", ["report.html"])


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real.json")
    Document("--json", str(tmp_path / "link")).write("{}")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.json").read_text() == "{}"


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    document = Document("--json", str(tmp_path / "pipe"))
    check([document], [])
    document.write("{}")
    reader.join()
    assert (read, names(tmp_path)) == (["{}"], ["pipe"])


@pytest.mark.parametrize("option", OPTIONS)
def test_what_cannot_be_written_is_said_before_the_work(option: str, tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    for bad, code, words in (
        (tmp_path / "nowhere" / "x", 1, f"nowhere of {option} does not exist; make it first"),
        (tmp_path, 1, f"is a folder; give a file name to {option}"),
        (model, 2, "would overwrite a model; choose another name"),
    ):
        done = bnfold("optimize", model, option, bad)
        assert done.code == code
        assert words in complaint(done)
    assert names(tmp_path) == ["model.onnx"]


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match="cannot be written to; choose another place for --junit"):
        check([Document("--junit", str(tmp_path / "new.xml"))], [])


def test_two_reports_in_one_file_are_refused(tmp_path: Path) -> None:
    both = [Document(option, str(tmp_path / "report")) for option in OPTIONS[:2]]
    with pytest.raises(UsageError, match=r"--html .* would overwrite the file of --json"):
        check(both, [])


@pytest.mark.parametrize("option", OPTIONS[1:])
def test_only_json_goes_to_stdout(option: str, tmp_path: Path) -> None:
    done = bnfold("optimize", saved(foldable(), tmp_path / "model.onnx"), option, "-")
    assert done.code == 2
    assert f"{option} needs the name of a file" in complaint(done)
