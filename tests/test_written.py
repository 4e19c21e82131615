"""Files on their way to the disk: digests and syncs behind the writer, and nothing kept before both are done."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold import written
from bnfold.errors import OutputError
from bnfold.stage import BEHIND
from bnfold.written import LARGE, Written
from tests.program import foldable, listing, plain, saved

SIZES = {
    "nothing": [0],
    "small": [10, 0, 3000],
    "up to the limit": [LARGE - 1, 1],
    "over the limit at once": [LARGE + 1],
    "over the limit in the end": [LARGE, 1],
    "many": [100_000, 7] * 60,
}


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bnfold-written"]


@pytest.fixture(params=[True, False], ids=["behind", "at once"])
def behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether every file that is not empty gets its thread, or none."""
    monkeypatch.setattr(written, "LARGE", 0 if request.param else 1 << 40)
    return bool(request.param)


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_content_and_digest(sizes: list[int], hashed: bool, tmp_path: Path) -> None:
    draw = random.Random(len(sizes))
    pieces = [draw.randbytes(size) for size in sizes]
    file = Written(tmp_path / "file", hashed)
    file.write(pieces[0])
    file.writelines(memoryview(piece) for piece in pieces[1:])
    assert file.tell() == sum(sizes)
    file.finish()
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    if hashed:
        assert file.digest == (sum(sizes), hashlib.sha256(b"".join(pieces)).hexdigest())
    file.wait()
    file.close()
    assert not workers()


@pytest.mark.parametrize("command", ["fold", "copy"])
def test_a_disk_that_fails_in_the_end(
    command: str, behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = saved(foldable() if command == "fold" else plain(), tmp_path / "model.onnx")
    before = listing(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        bnfold.optimize(path, verify=False)
    assert listing(tmp_path) == before
    assert not workers()


def test_nothing_moves_before_all_is_on_the_disk(behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, move = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        time.sleep(0.1)
        sync(handle)
        events.append(f"sync {name}")

    def replace(self: Path, target: Path) -> Path:
        events.append(f"move {target.name}")
        return move(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("what a handle stands for cannot be seen here")
    path = saved(foldable(), tmp_path / "model.onnx", external=True)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    bnfold.optimize(path, tmp_path / "folded.onnx", verify=False)
    files = {"folded.onnx", "folded.onnx.data", "folded.onnx.manifest.json"}
    assert {event.removeprefix("sync ") for event in events[:3]} == files, events
    assert {event.removeprefix("move ") for event in events[3:6]} == files, events


def test_a_writer_that_stops_midway(tmp_path: Path) -> None:
    file = Written(tmp_path / "file", hashed=True)
    file.write(bytes(LARGE + 1))
    assert len(workers()) == 1
    file.close()
    assert not workers()


def test_few_files_are_on_their_way_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "LARGE", 0)
    most, sync = 0, os.fsync

    def fsync(handle: int) -> None:
        nonlocal most
        most = max(most, len(workers()))
        time.sleep(0.05)
        sync(handle)

    model = plain()
    for index in range(3 * BEHIND):
        tensor = model.graph.initializer.add(name=f"idle{index}", dims=[2], data_type=onnx.TensorProto.FLOAT)
        (tmp_path / f"idle{index}.bin").write_bytes(bytes(8))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"idle{index}.bin")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "fsync", fsync)
    bnfold.optimize(tmp_path / "model.onnx", tmp_path / "out/model.onnx", verify=False)
    assert len(listing(tmp_path / "out")) == 3 * BEHIND + 2
    assert 1 < most <= BEHIND
