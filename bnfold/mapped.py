"""Data that stays in its file: looked at through maps, never loaded as a whole.

A *mapped* tensor is an initializer whose data was left in the model file when that was read. Its one entry of external
data says where: key of the map, offset, length, and whether the tensor says of itself that its data is inside.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold import wire

Bytes = NDArray[np.uint8]

LOOKS = 32
"""Times that a file beside the model is looked at through one map: what was read need not stay in memory."""

_ENTRY = "bnfold.mapped"

_models: WeakValueDictionary[str, Bytes] = WeakValueDictionary()
"""Model files, for as long as somebody holds the map; by a key that no file can guess."""

FILES = 2
"""Files beside a model that are looked at by turns: a model's and its copy's."""

_looking = threading.Lock()

_beside: dict[tuple[str, int, int, int], tuple[Bytes, int]] = {}
"""Maps of the files that were last looked at, and how often each may still be."""


def open_map(path: Path) -> Bytes:
    """The bytes of a file. Raises `OSError`, or `ValueError` where it is empty."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def register(whole: Bytes) -> Callable[[wire.Payload, bool], bytes]:
    """What makes the marks of a model file's mapped tensors; these live as long as the map."""
    key = secrets.token_hex(8)
    _models[key] = whole

    def mark(payload: wire.Payload, says: bool) -> bytes:
        tensor = TensorProto(data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key=_ENTRY, value=f"{key} {payload.offset} {payload.length} {says:d}")
        return bytes(tensor.SerializeToString())

    return mark


def mapped_data(tensor: TensorProto) -> Bytes | None:
    """The data of a mapped tensor; None for any other."""
    found = _find(tensor)
    return found and found[0]


def _find(tensor: TensorProto) -> tuple[Bytes, bool] | None:
    entries = tensor.external_data
    if len(entries) != 1 or entries[0].key != _ENTRY:
        return None
    key, *numbers = entries[0].value.split(" ")
    whole = _models.get(key)
    if whole is None:
        return None
    offset, length, says = map(int, numbers)
    return whole[offset : offset + length], bool(says)


def hollow(tensor: TensorProto) -> Bytes:
    """Make a mapped tensor one of the model file again, whose data is still missing; returns the data."""
    found = _find(tensor)
    assert found is not None
    data, says = found
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    if says:
        tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = b""
    return data


def attach(model: onnx.ModelProto) -> None:
    """Put the data of all mapped tensors back into a model."""
    for tensor in model.graph.initializer:
        if _find(tensor) is not None:
            tensor.raw_data = hollow(tensor).tobytes()


def look(path: str, offset: int, length: int, check: Callable[[], Path]) -> Bytes:
    """Bytes of a file beside the model.

    Args:
        path: the file.
        offset: where they begin.
        length: how many.
        check: gives the path once it has made sure that these bytes may be read; asked for every new map.
    """
    try:
        stat = os.stat(path)  # noqa: PTH116 - a Path takes longer to make than to ask
        key = path, stat.st_ino, stat.st_size, stat.st_mtime_ns
    except (OSError, ValueError):
        return open_map(check())[offset : offset + length]
    with _looking:
        whole, left = _beside.pop(key, (None, 0))
        if whole is None or not left or offset < 0 or offset + length > whole.size:
            whole, left = open_map(check()), LOOKS
        while len(_beside) >= FILES:
            del _beside[next(iter(_beside))]
        _beside[key] = whole, left - 1
        return whole[offset : offset + length]
