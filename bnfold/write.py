"""Writing the folded model: rounded once, streamed, complete or not at all.

External data is never loaded whole: what did not change is copied range by range, what changed goes through the
factors in pieces. Everything is written to temporary files beside the output, synced, then renamed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold import wire
from bnfold.affine import Array
from bnfold.errors import ModelError, OutputError, UsageError
from bnfold.mapped import attach, hollow
from bnfold.patch import patch, tensors
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

PIECE = 1 << 19
"""Bytes of float64 that one piece of a streamed constant may take: few enough for a processor's cache."""

COPIED = 1 << 24
"""Bytes that are copied at once."""

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


def folded(rewrite: Rewrite, exact: bool = False) -> onnx.ModelProto:
    """The folded model in memory, new constants inline; external data stays where the original has it.

    `exact` leaves new constants in float64, for an evaluator that does not look at types.
    """
    patched = patch(rewrite.model, rewrite.plan)
    attach(patched.proto)
    for tensor, edit in patched.pending:
        if exact and edit.type in FLOATS:
            tensor.data_type = TensorProto.DOUBLE
        _fill(tensor, edit)
    return patched.proto


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


@dataclass(frozen=True)
class Destination:
    """Where the result goes: the model file, and the one file for external data beside it."""

    path: Path

    @property
    def sidecar(self) -> Path:
        """File for external data."""
        return self.path.with_name(self.path.name + ".data")


def destination(source: Source, output: Path, force: bool) -> Destination:
    """Check that the output may be written, before any work is done.

    Raises:
        UsageError: it is the input, or a file that the input needs.
        OutputError: it exists and `force` is not given, or its folder is missing or read-only.
    """
    found = Destination(output)
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name with -o")
    needed = {source.path.resolve()} if source.path else set()
    needed |= {place.path.resolve() for _, place in _external(source.proto, source.base_dir)}
    if {found.path.resolve(), found.sidecar.resolve()} & needed:
        raise UsageError(f"{output} would overwrite the input; choose another name with -o")
    if output.exists() and not force:
        raise OutputError(f"{output} exists; use --force to overwrite it, or another name with -o")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist; make it first")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the folder {output.parent} cannot be written to; choose another place with -o")
    return found


class Staged:
    """A result on disk that is not yet the output: a hidden folder beside it, in which every file has its final name.

    So it can be loaded and verified as it will be, then moved into place or thrown away.
    """

    def __init__(self, where: Destination) -> None:
        self.where = where
        self.folder = where.path.with_name(f".{where.path.name}.{os.getpid()}.tmp")
        self._files: list[Path] = []

    @property
    def path(self) -> Path:
        """The staged model file."""
        return self.folder / self.where.path.name

    @contextlib.contextmanager
    def create(self, name: Path | str) -> Iterator[IO[bytes]]:
        """A new file, `name` relative to the output's folder; synced when closed."""
        staged = self.folder / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        self._files.append(Path(name))
        with staged.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def keep(self) -> None:
        """Move everything into place: external data first, the model last."""
        parent = self.where.path.parent
        for name in sorted(self._files, key=lambda name: name == Path(self.where.path.name)):
            (parent / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).replace(parent / name)
        with contextlib.suppress(OSError):  # not every file system lets a folder be synced
            handle = os.open(parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def discard(self) -> None:
        """Remove what was not moved into place."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def staged(where: Destination) -> Iterator[Staged]:
    """Write a result; whatever is not kept when the block ends is removed.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    stage = Staged(where)
    try:
        stage.discard()
        yield stage
    except OSError as error:
        raise OutputError(f"{where.path} cannot be written: {error.strerror or error}") from error
    finally:
        stage.discard()


def write(rewrite: Rewrite, stage: Staged) -> onnx.ModelProto:
    """Write the folded model into the stage, where it can be loaded as it is; return it, without its external data."""
    where, model = stage.where, rewrite.model
    if rewrite.is_empty and model.source.path is not None:
        _copy_unchanged(model.source, stage)
        return model.proto
    patched = patch(model, rewrite.plan)
    external = [tensor for tensor in tensors(patched.proto) if is_beside(tensor)]
    pending = {id(tensor): edit for tensor, edit in patched.pending}
    payloads = _hollow(patched.proto, pending)
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
    size = sum(lengths[piece] if isinstance(piece, int) else len(piece) for piece in pieces)
    if size > MAX_PROTO:
        raise OutputError(
            f"the folded model would hold {size} bytes inline, more than protobuf allows; "
            "save the original with external data first (onnx.save_model(..., save_as_external_data=True))"
        )
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


def _stream(
    file: IO[bytes],
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
                for piece in _pieces(edit, edit.type):
                    file.write(_little_endian(piece))
            elif place is not None:
                _copy_range(place, file)
            if key is not None:
                placed[key] = offset
        _refer(tensor, name, offset, length)


def _copy_range(place: ExternalRange, file: IO[bytes]) -> None:
    with place.path.open("rb") as source:
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


def _copy_unchanged(source: Source, stage: Staged) -> None:
    """Nothing to fold: the same bytes; external data too, where the output stands in another folder."""
    assert source.path is not None and source.base_dir is not None
    folder = stage.where.path.resolve().parent
    if folder != source.base_dir:
        for place in {place.path for _, place in _external(source.proto, source.base_dir)}:
            name = place.relative_to(source.base_dir)
            if not (folder / name).exists():
                with stage.create(name) as file, place.open("rb") as data:
                    shutil.copyfileobj(data, file, COPIED)
    with stage.create(stage.where.path.name) as file, source.path.open("rb") as given:
        shutil.copyfileobj(given, file, COPIED)


def _external(proto: onnx.ModelProto, base_dir: Path | None) -> Iterator[tuple[TensorProto, ExternalRange]]:
    for tensor in tensors(proto):
        if is_beside(tensor):
            yield tensor, external_range(tensor, base_dir)
