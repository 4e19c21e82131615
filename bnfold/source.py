"""Reading a model: a path, bytes or a ModelProto, with its external data left on disk.

The proto that is read here is never modified. External data is looked at through memory maps, one tensor at a time.
`read_lean` leaves the large initializers of the model file on disk too: their tensors are external, in a map of that
file, until `attach` or a writer puts their data back.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from bnfold import wire
from bnfold.errors import ModelError
from bnfold.mapped import Bytes, look, mapped_data, open_map, register
from bnfold.protos import bodies

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto

FLOATS: dict[int, np.dtype[np.generic]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
"""The element types whose constants bnfold folds, and how numpy spells them."""


class Limits(NamedTuple):
    """What a float type can hold."""

    max: float
    smallest_normal: float
    nmant: int
    """Bits of the significand behind the point."""


@cache
def limits_of(dtype: np.dtype[np.generic]) -> Limits:
    """The limits of a float type."""
    found = ml_dtypes.finfo(dtype)
    return Limits(float(found.max), float(found.smallest_normal), int(found.nmant))


_PLAIN = {type_: dtype for type_, dtype in FLOATS.items() if type_ != TensorProto.BFLOAT16} | {
    TensorProto.INT64: np.dtype(np.int64),
    TensorProto.INT32: np.dtype(np.int32),
}
"""Element types whose raw data is numpy's own."""

_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}

PACKED: dict[int, int] = {number: _BITS[name] for name, number in TensorProto.DataType.items() if name in _BITS}
"""Bits of one element, for the types of which a byte holds more than one. Older onnx knows fewer of them."""

_WITH_BODIES = frozenset({"If", "Loop", "Scan", "SequenceMap"})

_MAX_OPSET = 2**31 - 1

MOST_AXES = 32
"""Of a tensor: numpy 1 has no more, and numpy 2 broadcasts no more."""

_MOST_IN_A_BYTE = 4
"""Elements, of the smallest type."""

MAX_PROTO = 2**31 - 1
"""Protobuf's limit for one message, bytes."""

LARGE = 4096
"""Initializers of the model file with more bytes than this stay there when it is read lean."""


HEAVY = 1 << 29
"""Bytes of a model that is not copied without need."""

Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of change of a file: another one, or another content, has another stamp."""


@dataclass(frozen=True)
class Source:
    """A model as it was given: the proto without its external data, and where that data lies."""

    proto: onnx.ModelProto
    path: Path | None
    base_dir: Path | None
    raw: bytes | None = None
    """The bytes as given, where they were given as bytes."""
    mapped: Bytes | None = field(default=None, compare=False, repr=False)
    """The model file, where large initializers were left in it."""
    stamp: Stamp | None = None
    """That of the file when it was read."""

    @property
    def label(self) -> str:
        """How messages name this model."""
        return str(self.path) if self.path is not None else "the model"

    @property
    def runnable(self) -> bytes | Path:
        """The model as ONNX Runtime takes it: its path, or its bytes. Raises `ModelError` where these are too many."""
        if self.path is not None:
            return self.path
        if self.raw is not None:
            return self.raw
        try:
            return bytes(self.proto.SerializeToString())
        except (ValueError, EncodeError) as error:
            raise ModelError("the model is larger than 2 GB: give the path of its file") from error


def read(model: ModelLike) -> Source:
    """Read a model without its external data.

    Raises:
        ModelError: the file is missing, a folder, not ONNX or truncated.
    """
    if isinstance(model, onnx.ModelProto):
        return Source(_checked(model, "the model"), None, None)
    if isinstance(model, bytes):
        return Source(_parse(model, "the model"), None, None, model)
    path = Path(model)
    with _opened(path) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        data = file.read()
    return Source(_parse(data, str(path)), path, path.resolve().parent, stamp=stamp)


def read_lean(model: ModelLike) -> Source:
    """As `read`; of a file, the large initializers stay on disk too (see `is_mapped`).

    Raises:
        ModelError: the file is missing, a folder, not ONNX or truncated.
    """
    if isinstance(model, bytes | onnx.ModelProto):
        return read(model)
    path = Path(model)
    stamp = stamp_of(path)
    if not path.is_file():
        return read(model)  # which says what it is
    try:
        whole = open_map(path)
        lean, payloads = wire.detach(whole.data, LARGE, register(whole))
    except (OSError, ValueError, wire.UnusualError):  # not a file to map, or not one that writers of models make
        return read(model)
    proto = _parse(lean, str(path))
    tensors = proto.graph.initializer
    if any(nbytes_or_none(tensors[payload.index]) != payload.length for payload in payloads):
        return read(model)
    return Source(proto, path, path.resolve().parent, mapped=whole, stamp=stamp)


def read_sparing(model: ModelLike) -> Source:
    """As `read`, and of a file that is large as `read_lean`: few need its weights in memory all at once."""
    stamp = None if isinstance(model, bytes | onnx.ModelProto) else stamp_of(Path(model))
    return read_lean(model) if stamp is not None and stamp[2] > HEAVY else read(model)


def _opened(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the .onnx file inside it")
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is a pipe or a device, and a model is read more than once; save it to a file")
        return path.open("rb")
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file, None where there is none."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{label} is not an ONNX model, or it is truncated: it does not parse; export or copy it again"
        ) from None
    return _checked(proto, label)


def _checked(proto: onnx.ModelProto, label: str) -> onnx.ModelProto:
    if not proto.HasField("graph") or not (proto.graph.output or proto.graph.node):
        raise ModelError(f"{label} is not an ONNX model: it holds no graph; export or copy it again")
    for entry in (*proto.opset_import, *(entry for function in proto.functions for entry in function.opset_import)):
        if not 0 <= entry.version <= _MAX_OPSET:
            raise ModelError(f"{label} uses opset {entry.version}, which does not exist; export it again")
    if not any(entry.domain in ("", "ai.onnx") for entry in proto.opset_import) and proto.ir_version >= 3:
        domains = {node.domain for node in proto.graph.node}
        if domains & {"", "ai.onnx"}:
            raise ModelError(f"{label} does not say which ONNX opset it uses (opset_import); export it again")
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            check_size(tensor)
        for node in graph.node:
            if node.op_type in _WITH_BODIES:
                graphs += [body for _, body in bodies(node)]
    return proto


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's data is not in the proto."""
    return tensor.data_location == TensorProto.EXTERNAL


def is_mapped(tensor: TensorProto) -> bool:
    """Whether the tensor's data was left in the model file when that was read."""
    return is_external(tensor) and mapped_data(tensor) is not None


def is_beside(tensor: TensorProto) -> bool:
    """Whether the tensor's data lies in a file beside the model."""
    return is_external(tensor) and mapped_data(tensor) is None


@dataclass(frozen=True)
class ExternalRange:
    """Where one tensor's bytes lie."""

    path: Path
    offset: int
    length: int


def external_range(tensor: TensorProto, base_dir: Path | None) -> ExternalRange:
    """Find the bytes of an external tensor, and check that they are really there.

    Raises:
        ModelError: the file is missing, outside the model's folder, or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    shown = location if len(location) <= 80 else f"{location[:80]}..."
    what = f"tensor {tensor.name!r}: external data {shown!r}"
    if base_dir is None:
        raise ModelError(f"{what} cannot be found for a model without a path; give the path of the .onnx file")
    if tensor.data_type == TensorProto.STRING:
        raise ModelError(f"{what} would hold strings, which ONNX keeps inside the model; export the model again")
    path = _inside(location, base_dir, what)
    expected = tensor_nbytes(tensor)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", expected))
    except ValueError:
        raise ModelError(f"{what} has an offset or length that is no number; export the model again") from None
    if offset < 0 or length != expected or offset + length > path.stat().st_size:
        raise ModelError(f"{what} is too short or of another size than its shape says; copy or export it again")
    return ExternalRange(path, offset, length)


def _inside(location: str, base_dir: Path, what: str) -> Path:
    """The regular file at a location below the model's folder, wherever links lead."""
    try:
        base = base_dir.resolve()
        path = base / location
        if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(base):
            raise ModelError(f"{what} points outside the model's folder {base}; refusing to read it")
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelError(f"{what} is not a regular file; refusing to read it")
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"{what} is missing from {base_dir.resolve()}; copy it beside the model") from None
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, links in a circle
        why = getattr(error, "strerror", None) or str(error)[:80]
        raise ModelError(f"{what} is no usable name of a file: {why}") from None
    return path


def tensor_nbytes(tensor: TensorProto) -> int:
    """Bytes of the tensor's data when stored raw."""
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise ModelError(f"tensor {tensor.name!r} has a negative dimension; export the model again")
        count *= dim
    try:
        bits = _bits(tensor.data_type)
    except KeyError:
        raise ModelError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}") from None
    return (count * bits + 7) // 8


@cache
def _bits(type_: int) -> int:
    """Of one element. Raises KeyError where onnx does not know the type."""
    return PACKED.get(type_, 8 * int(onnx.helper.tensor_dtype_to_np_dtype(type_).itemsize))


def nbytes_or_none(tensor: TensorProto) -> int | None:
    """Bytes of its data as its shape says; None where it has none, or elements that are no whole bytes."""
    try:
        return None if tensor.data_type in PACKED else tensor_nbytes(tensor)
    except ModelError:
        return None


def check_size(tensor: TensorProto) -> None:
    """See that a tensor's shape claims no more than the tensor can hold, without a look at its data.

    Raises:
        ModelError: a size is negative, or so large that there cannot be data for it.
    """
    if min(tensor.dims, default=0) < 0:
        raise ModelError(f"tensor {tensor.name!r} has a negative dimension; export the model again")
    if not is_external(tensor) and math.prod(tensor.dims) > _MOST_IN_A_BYTE * tensor.ByteSize():
        what = f"{tensor.ByteSize()} bytes for the shape {list(tensor.dims)}"
        raise ModelError(f"tensor {tensor.name!r} does not hold what its shape says ({what}); export the model again")


def array_of(tensor: TensorProto, base_dir: Path | None) -> NDArray[np.generic]:
    """The tensor's values; external data comes as a read-only memory map.

    Raises:
        ModelError: the data is missing, or of another size than the shape says.
    """
    if is_external(tensor):
        return reader_of(tensor, base_dir)()
    if tensor.HasField("raw_data") and np.little_endian and (plain := _PLAIN.get(tensor.data_type)):
        raw, shape = tensor.raw_data, tuple(tensor.dims)
        if len(raw) == math.prod(shape) * plain.itemsize and len(shape) <= MOST_AXES:
            return np.frombuffer(raw, plain).reshape(shape)
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except KeyError:
        raise ModelError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}") from None
    except (ValueError, TypeError) as error:
        raise ModelError(f"tensor {tensor.name!r} does not hold what its shape says ({error})") from None


def reader_of(tensor: TensorProto, base_dir: Path | None) -> Callable[[], NDArray[np.generic]]:
    """Reads an external tensor as often as asked, each time through a map that is not older than need be."""
    data = mapped_data(tensor)
    look_at = _look_beside(tensor, base_dir) if data is None else lambda: data
    dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)

    def unpacked() -> NDArray[np.generic]:
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=look_at().tobytes())
        return np.asarray(numpy_helper.to_array(packed))

    return unpacked if tensor.data_type in PACKED else lambda: look_at().view(dtype).reshape(shape)


def _look_beside(tensor: TensorProto, base_dir: Path | None) -> Callable[[], Bytes]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = entries.get("offset", "0"), tensor_nbytes(tensor)
    plain = base_dir is not None and offset.isdecimal() and entries.get("length", str(length)) == str(length) and length
    if plain:
        path, start = f"{base_dir}/{entries.get('location', '')}", int(offset)
        return lambda: look(path, start, length, lambda: external_range(tensor, base_dir).path)

    def opened() -> Bytes:
        where = external_range(tensor, base_dir)
        return open_map(where.path)[where.offset : where.offset + where.length] if where.length else np.zeros(0, "u1")

    return opened
