"""The files of a model in another folder: the model byte for byte, its external data, its manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

from bnfold.errors import ModelError, OutputError
from bnfold.source import Source, stamp_of
from bnfold.stage import external_data

MODEL = "model.onnx"
MANIFEST = ".manifest.json"
"""What the name of a manifest adds to that of its model."""

_COPIED = 1 << 24


def copy_model(source: Source, folder: Path) -> None:
    """Copy a model into a new folder, as `model.onnx`, with its external data where it expects it.

    Raises:
        ModelError: external data is missing, or the model changed meanwhile.
        OutputError: its external data has the name of a file that is there already.
    """
    if source.path is None:
        put(folder / MODEL, _serialized(source))
        copy_data(source, folder)
        return
    stamps = {source.path: source.stamp or stamp_of(source.path)}
    _copy(source.path, folder / MODEL)
    stamps |= copy_data(source, folder)
    manifest = source.path.with_name(source.path.name + MANIFEST)
    if manifest.is_file():
        _copy(manifest, folder / (MODEL + MANIFEST))
    for path, stamp in stamps.items():
        if stamp != stamp_of(path):
            raise ModelError(f"{path} changed while it was copied, or is gone; nothing was written, try again")


def copy_data(source: Source, folder: Path) -> dict[Path, tuple[int, int, int, int] | None]:
    """Copy external data; returns the stamps of its files, as they were before."""
    stamps = {place.path: stamp_of(place.path) for place in external_data(source)}
    for path in stamps:
        assert source.base_dir is not None
        target = folder / path.relative_to(source.base_dir)
        if os.path.lexists(target):
            raise OutputError(f"the external data {target.name} would take the name of another file; rename it first")
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, target)
    return stamps


def put(path: Path, content: str | bytes) -> None:
    """Write a new file, and have it on the disk."""
    with path.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        _sync(file)


def template(name: str) -> str:
    """The text of a program that goes with a model."""
    return (Path(__file__).parent / "templates" / f"{name}.txt").read_text(encoding="utf-8")


def _serialized(source: Source) -> bytes:
    found = source.runnable
    assert isinstance(found, bytes)
    return found


def _copy(path: Path, target: Path) -> None:
    try:
        given = path.open("rb")
    except OSError as error:
        raise ModelError(f"{path} cannot be read any more: {error.strerror}; try again") from error
    with given, target.open("xb") as file:
        shutil.copyfileobj(given, file, _COPIED)
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
