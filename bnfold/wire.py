"""Protobuf's wire format, as far as it takes to keep the data of large tensors out of a parsed model.

`detach` takes a model's bytes apart: a small model without that data, and where the data lies. `spliced` puts a small
model together again: its bytes, and the places between them where data belongs. Only the main graph's initializers and
their `raw_data` are looked at; all else passes as it is.

Source: Protocol Buffers, "Encoding"; the field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

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


_Field = tuple[int, int, int, int, int]
"""Number, kind, start, where its value begins, end."""


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
    first, inside, last = _graph(data)
    pieces: list[Buffer] = []
    payloads: list[Payload] = []
    kept = inside
    for index, (start, value, end) in enumerate(_entries(data, inside, last, _INITIALIZER)):
        if end - value > least and (found := _payload(data, value, end, index, least)) is not None:
            payload, says, around = found
            around.append(mark(payload, says))
            pieces += [data[kept:start], _header(_INITIALIZER, sum(map(len, around))), *around]
            payloads.append(payload)
            kept = end
    pieces.append(data[kept:last])
    header = _header(_GRAPH, sum(map(len, pieces)))
    return b"".join([data[:first], header, *pieces, data[last:]]), payloads


def spliced(data: bytes, lengths: Mapping[int, int]) -> Iterator[bytes | int]:
    """The pieces of a model whose initializers get data of these lengths; an initializer's index stands for its data.

    Args:
        data: a serialised ModelProto in which `raw_data` of these initializers is present and empty.
        lengths: bytes of data, by index of the initializer.
    """
    first, inside, last = _graph(data)
    pieces: list[bytes | int] = []
    kept = inside
    for index, (start, value, end) in enumerate(_entries(data, inside, last, _INITIALIZER)):
        if index in lengths:
            _, _, raw, _, behind = next(field for field in _fields(data, value, end) if field[0] == _RAW_DATA)
            before, after = data[value:raw] + _header(_RAW_DATA, lengths[index]), data[behind:end]
            inner = len(before) + lengths[index] + len(after)
            pieces += [data[kept:start] + _header(_INITIALIZER, inner) + before, index, after]
            kept = end
    pieces.append(data[kept:last])
    total = sum(lengths[piece] if isinstance(piece, int) else len(piece) for piece in pieces)
    yield data[:first] + _header(_GRAPH, total)
    yield from pieces
    yield data[last:]


def _graph(data: Buffer) -> tuple[int, int, int]:
    """Start, value and end of the main graph; where there are several, protobuf appends what the others hold."""
    found = next((field for field in _fields(data, 0, len(data)) if field[0] == _GRAPH), None)
    if found is None or found[1] != _BYTES:
        raise UnusualError
    return found[2:]


def _payload(data: Buffer, value: int, end: int, index: int, least: int) -> tuple[Payload, bool, list[Buffer]] | None:
    """A tensor's data, whether it says that this is inside, and what stands around it; None where it stays."""
    raw: Payload | None = None
    says, kept, around = False, value, list[Buffer]()
    for number, kind, first, inside, last in _fields(data, value, end):
        if number == _EXTERNAL_DATA:
            return None
        if number not in (_RAW_DATA, _DATA_LOCATION):
            continue
        if number == _DATA_LOCATION:
            if says or kind != _VARINT or data[inside] != 0:
                return None
            says = True
        elif kind != _BYTES or last - inside < least:
            return None
        else:
            raw = Payload(index, inside, last - inside)  # of several the last one counts
        around.append(data[kept:first])
        kept = last
    if raw is None:
        return None
    around.append(data[kept:end])
    return raw, says, around


def _entries(data: Buffer, at: int, end: int, number: int) -> Iterator[tuple[int, int, int]]:
    """Start, value and end of every entry of one repeated message."""
    for found, kind, start, value, stop in _fields(data, at, end):
        if found == number:
            if kind != _BYTES:
                raise UnusualError
            yield start, value, stop


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
        yield tag >> 3, kind, start, value, at


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
