"""Writing the folded model: rounded once, streamed, complete or not at all.

External data is never loaded whole: what did not change is copied range by range, what changed goes through the
factors in pieces. Everything is staged beside the output, synced, then moved into place (see `stage`).
"""

from __future__ import annotations

import filecmp
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold import wire
from bnfold.affine import Array
from bnfold.errors import ModelError
from bnfold.mapped import attach, hollow, mapped_data
from bnfold.patch import Patched, patch, tensors
from bnfold.plan import NewConstant, Rewrite
from bnfold.source import (
    FLOATS,
    LARGE,
    MAX_PROTO,
    ExternalRange,
    Source,
    external_range,
    is_beside,
    is_mapped,
    tensor_nbytes,
)
from bnfold.stage import Staged, external_data
from bnfold.written import Written

PIECE = 1 << 19
"""Bytes of float64 that one piece of a streamed constant may take: few enough for a processor's cache."""

COPIED = 1 << 22
"""Bytes that are copied at once."""

KEPT = 1 << 26
"""Bytes of a constant that is not made twice."""

ALIGNMENT = 4096
"""External tensors start at multiples of this many bytes, so that they can be mapped."""


def rounded(values: Array, type_: int) -> NDArray[np.generic]:
    """Float64 values in the stored type, rounded once to nearest even; or whole numbers in theirs."""
    dtype = FLOATS.get(type_) or np.dtype(onnx.helper.tensor_dtype_to_np_dtype(type_))
    with np.errstate(over="ignore", under="ignore"):
        if type_ != TensorProto.BFLOAT16:
            return values.astype(dtype)
        # ml_dtypes goes through float32 and so rounds twice: round to odd on the way, which rounds right in the end.
        half = values.astype(np.float32)
        away = np.abs(half.astype(np.float64)) > np.abs(values)
        half = np.where(away & np.isfinite(half), np.nextafter(half, np.float32(0)), half)
        inexact = half.astype(np.float64) != values
        bits = half.view(np.uint32) | (inexact & np.isfinite(half)).astype(np.uint32)
        return np.asarray(bits.view(np.float32).astype(ml_dtypes.bfloat16))


def folded(rewrite: Rewrite, exact: bool = False, patched: Patched | None = None) -> onnx.ModelProto:
    """The folded model in memory, new constants inline; external data stays where the original has it.

    `exact` leaves new constants in float64, for an evaluator that does not look at types. `patched` is what the plan
    made, where it has been carried out already; it is used up.
    """
    patched = patched or patch(rewrite.model, rewrite.plan)
    attach(patched.proto)
    for tensor, edit in patched.pending:
        if exact and edit.type in FLOATS:
            tensor.data_type = TensorProto.DOUBLE
        _fill(tensor, edit)
    return patched.proto


def unwritten(patched: Patched, exact: bool = False) -> dict[int, Callable[[], NDArray[np.generic]]]:
    """What makes the values of a plan's new constants, by the id of their tensor; `exact` as for `folded`.

    Large ones are made anew each time, so that only those are in memory that are in use.
    """

    def maker(edit: NewConstant, type_: int) -> Callable[[], NDArray[np.generic]]:
        dtype = rounded(np.zeros(0), type_).dtype

        def make() -> NDArray[np.generic]:
            values, at = np.empty(edit.shape or (1,), dtype), 0
            for piece in _pieces(edit, type_):
                rows = np.atleast_1d(piece)
                values[at : at + len(rows)] = rows
                at += len(rows)
            return values.reshape(edit.shape)

        return make if math.prod(edit.shape) * dtype.itemsize > KEPT else cache(make)

    double = TensorProto.DOUBLE
    return {id(t): maker(edit, double if exact and edit.type in FLOATS else t.data_type) for t, edit in patched.pending}


def _fill(tensor: TensorProto, edit: NewConstant) -> None:
    tensor.ClearField("data_location")
    tensor.raw_data = b"".join(_data(edit, tensor.data_type))


def _data(edit: NewConstant, type_: int) -> Iterator[wire.Buffer]:
    return (_little_endian(piece) for piece in _pieces(edit, type_))


def _pieces(edit: NewConstant, type_: int) -> Iterator[NDArray[np.generic]]:
    rows = edit.shape[0] if edit.shape else 1
    per_row = max(1, int(np.prod(edit.shape[1:], dtype=np.int64))) * 8
    step = max(1, PIECE // per_row)
    for start in range(0, rows, step):
        yield rounded(edit.rows(start, min(rows, start + step)), type_)


def _little_endian(values: NDArray[np.generic]) -> wire.Buffer:
    values = np.ascontiguousarray(values if np.little_endian else values.byteswap())
    return values.reshape(-1).view(np.uint8).data


def fits(patched: Patched) -> bool:
    """Whether protobuf could hold the new model, with the data that it has in the model file."""
    held = sum(data.size for tensor in patched.proto.graph.initializer if (data := mapped_data(tensor)) is not None)
    return int(patched.proto.ByteSize()) + held + patched.missing_bytes <= MAX_PROTO


def write(rewrite: Rewrite, stage: Staged, patched: Patched | None = None) -> onnx.ModelProto:
    """Write the folded model into the stage, where it can be loaded as it is; return it, without its external data.

    `patched` is as for `folded`.
    """
    where, model = stage.where, rewrite.model
    if patched is None and rewrite.is_empty and model.source.path and _copied_unchanged(model.source, stage):
        return model.proto
    patched = patched or patch(model, rewrite.plan)
    external = [tensor for tensor in tensors(patched.proto) if is_beside(tensor)]
    pending = {id(tensor): edit for tensor, edit in patched.pending}
    payloads = _hollow(patched.proto, pending)
    if patched.proto.ByteSize() + sum(length for length, _ in payloads.values()) > MAX_PROTO:
        external += _moved_out(patched.proto, payloads, pending)
    large = {id(patched.proto.graph.initializer[index]) for index in payloads}
    for tensor, edit in patched.pending:
        if not is_beside(tensor) and id(tensor) not in large:
            _fill(tensor, edit)
    if external:
        with stage.create(where.sidecar.name) as file:
            _stream(file, external, lambda tensor: pending.get(id(tensor)), model.source.base_dir, where.sidecar.name)
    lengths = {index: length for index, (length, _) in payloads.items()}
    lean = patched.proto.SerializeToString()
    pieces = list(wire.spliced(lean, lengths)) if lengths else [lean]
    with stage.create(where.path.name) as file:
        for piece in pieces:
            if isinstance(piece, int):
                file.writelines(payloads[piece][1])
            else:
                file.write(piece)
    return patched.proto


def _hollow(model: onnx.ModelProto, pending: Mapping[int, NewConstant]) -> dict[int, tuple[int, Iterable[wire.Buffer]]]:
    """Take out of a model what need not go through it: its large initializers, by index their length and their data."""
    payloads: dict[int, tuple[int, Iterable[wire.Buffer]]] = {}
    for index, tensor in enumerate(model.graph.initializer):
        edit = pending.get(id(tensor))
        if edit is None and is_mapped(tensor):
            data = hollow(tensor)
            payloads[index] = data.size, [data.data]
        elif edit is not None and not is_beside(tensor) and (length := tensor_nbytes(tensor)) > LARGE:
            tensor.raw_data = b""
            payloads[index] = length, _data(edit, tensor.data_type)
    return payloads


def _moved_out(
    model: onnx.ModelProto, payloads: dict[int, tuple[int, Iterable[wire.Buffer]]], pending: Mapping[int, NewConstant]
) -> list[TensorProto]:
    """Take new constants out of a model that protobuf could not hold: they get a file of their own beside it."""
    moved = [index for index in payloads if id(model.graph.initializer[index]) in pending]
    for index in moved:
        del payloads[index]
        model.graph.initializer[index].data_location = TensorProto.EXTERNAL
    return [model.graph.initializer[index] for index in moved]


def _stream(
    file: Written,
    external: list[TensorProto],
    edit_of: Callable[[TensorProto], NewConstant | None],
    base_dir: Path | None,
    name: str,
) -> None:
    placed: dict[tuple[Path, int, int], int] = {}
    for tensor in external:
        edit = edit_of(tensor)
        place = None if edit is not None else external_range(tensor, base_dir)
        key = None if place is None else (place.path, place.offset, place.length)
        offset = placed.get(key) if key is not None else None
        length = tensor_nbytes(tensor)
        if offset is None:
            offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.write(bytes(offset - file.tell()))
            if edit is not None:
                file.writelines(_data(edit, edit.type))
            elif place is not None:
                _copy_range(place, file)
            if key is not None:
                placed[key] = offset
        _refer(tensor, name, offset, length)


def _copy_range(place: ExternalRange, file: Written) -> None:
    with _reading(place.path) as source:
        source.seek(place.offset)
        left = place.length
        while left:
            piece = source.read(min(left, COPIED))
            if not piece:
                raise ModelError(f"{place.path} became shorter while it was read; try again")
            file.write(piece)
            left -= len(piece)


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    kept = [(e.key, e.value) for e in tensor.external_data if e.key not in ("location", "offset", "length", "checksum")]
    del tensor.external_data[:]
    for key, value in [("location", location), ("offset", str(offset)), ("length", str(length)), *kept]:
        tensor.external_data.add(key=key, value=value)


def _copied_unchanged(source: Source, stage: Staged) -> bool:
    """Nothing to fold: the same bytes; external data too, where the output stands in another folder.

    False where that folder has other data under such a name, so that the output needs a file of its own.
    """
    assert source.path is not None and source.base_dir is not None
    folder = stage.where.path.resolve().parent
    if folder != source.base_dir:
        names = {place.path: place.path.relative_to(source.base_dir) for place in external_data(source)}
        there = {name for name in names.values() if os.path.lexists(folder / name)}
        if any(not _same_content(place, folder / name) for place, name in names.items() if name in there):
            return False
        for place, name in names.items():
            if name not in there:
                with stage.create(name) as file, _reading(place) as data:
                    shutil.copyfileobj(data, file, COPIED)
    with stage.create(stage.where.path.name) as file, _reading(source.path) as given:
        shutil.copyfileobj(given, file, COPIED)
    return True


def _reading(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelError(f"{path} cannot be read any more: {error.strerror}; try again") from error


def _same_content(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
