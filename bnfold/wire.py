"""Protobuf's wire format, as far as it takes to keep the data of large tensors out of a parsed model.

`detach` takes a model's bytes apart: a small model without that data, and where the data lies. `spliced` puts a small
model together again: its bytes, and the places between them where data belongs. Only the main graph's initializers and
their `raw_data` are looked at; all else passes as it is.

Source: Protocol Buffers, "Encoding"; the field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Buffer = bytes | memoryview

_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGEST_VARINT = 63


class UnusualError(Exception):
    """The bytes are not as writers of models make them; protobuf itself may know what they mean."""


@dataclass(frozen=True)
class Payload:
    """The data of one initializer of the main graph."""

    index: int
    """Which initializer."""
    offset: int
    """Where its data begins in the file."""
    length: int


class _Field(NamedTuple):
    number: int
    kind: int
    start: int
    value: int
    end: int


def detach(data: Buffer, least: int, mark: Callable[[Payload, bool], bytes]) -> tuple[bytes, list[Payload]]:
    """The model without the data of its large initializers, and where that lies.

    Args:
        data: a serialised ModelProto.
        least: data of fewer bytes stays.
        mark: what stands in a tensor instead of its data: serialised fields of a TensorProto. It is told whether the
            tensor says of itself that its data is inside.

    Raises:
        UnusualError: the bytes are no model, or not one as writers make it.
    """
    graph = _graph(data)
    pieces: list[Buffer] = []
    payloads: list[Payload] = []
    kept = graph.value
    for index, (start, value, end) in enumerate(_entries(data, graph.value, graph.end, _INITIALIZER)):
        if end - value > least and (found := _payload(data, value, end, index, least)) is not None:
            payload, says, around = found
            around.append(mark(payload, says))
            pieces += [data[kept:start], _header(_INITIALIZER, sum(map(len, around))), *around]
            payloads.append(payload)
            kept = end
    pieces.append(data[kept : graph.end])
    header = _header(_GRAPH, sum(map(len, pieces)))
    return b"".join([data[: graph.start], header, *pieces, data[graph.end :]]), payloads


def spliced(data: bytes, lengths: Mapping[int, int]) -> Iterator[bytes | int]:
    """The pieces of a model whose initializers get data of these lengths; an initializer's index stands for its data.

    Args:
        data: a serialised ModelProto in which `raw_data` of these initializers is present and empty.
        lengths: bytes of data, by index of the initializer.
    """
    graph = _graph(data)
    pieces: list[bytes | int] = []
    kept = graph.value
    for index, (start, value, end) in enumerate(_entries(data, graph.value, graph.end, _INITIALIZER)):
        if index in lengths:
            raw = next(field for field in _fields(data, value, end) if field.number == _RAW_DATA)
            before, after = data[value : raw.start] + _header(_RAW_DATA, lengths[index]), data[raw.end : end]
            inner = len(before) + lengths[index] + len(after)
            pieces += [data[kept:start] + _header(_INITIALIZER, inner) + before, index, after]
            kept = end
    pieces.append(data[kept : graph.end])
    total = sum(lengths[piece] if isinstance(piece, int) else len(piece) for piece in pieces)
    yield data[: graph.start] + _header(_GRAPH, total)
    yield from pieces
    yield data[graph.end :]


def _graph(data: Buffer) -> _Field:
    """The main graph; where there are several, protobuf appends what the others hold."""
    found = next((field for field in _fields(data, 0, len(data)) if field.number == _GRAPH), None)
    if found is None or found.kind != _BYTES:
        raise UnusualError
    return found


def _payload(data: Buffer, value: int, end: int, index: int, least: int) -> tuple[Payload, bool, list[Buffer]] | None:
    """A tensor's data, whether it says that this is inside, and what stands around it; None where it stays."""
    raw, says, kept, around = None, False, value, list[Buffer]()
    for field in _fields(data, value, end):
        if field.number == _EXTERNAL_DATA:
            return None
        if field.number not in (_RAW_DATA, _DATA_LOCATION):
            continue
        if field.number == _DATA_LOCATION:
            if says or field.kind != _VARINT or data[field.value] != 0:
                return None
            says = True
        elif field.kind != _BYTES or field.end - field.value < least:
            return None
        else:
            raw = field  # of several the last one counts
        around.append(data[kept : field.start])
        kept = field.end
    if raw is None:
        return None
    around.append(data[kept:end])
    return Payload(index, raw.value, raw.end - raw.value), says, around


def _entries(data: Buffer, at: int, end: int, number: int) -> Iterator[tuple[int, int, int]]:
    """Start, value and end of every entry of one repeated message."""
    for field in _fields(data, at, end):
        if field.number == number:
            if field.kind != _BYTES:
                raise UnusualError
            yield field.start, field.value, field.end


def _fields(data: Buffer, at: int, end: int) -> Iterator[_Field]:
    """The fields of one message."""
    while at < end:
        start = at
        tag, at = _varint(data, at, end)
        value, kind = at, tag & 7
        if kind == _BYTES:
            length, value = _varint(data, at, end)
            at = value + length
        elif kind == _VARINT:
            at = _varint(data, at, end)[1]
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise UnusualError
        if at > end:
            raise UnusualError
        yield _Field(tag >> 3, kind, start, value, at)


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    if at < end and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    while at < end and shift <= _LARGEST_VARINT:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise UnusualError


def _header(number: int, length: int) -> bytes:
    """Tag and length of a field of bytes."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(length)


def _as_varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
