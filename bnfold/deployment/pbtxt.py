"""Protobuf's text format, as much of it as a model configuration needs: fields in order, messages, lists, names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Name:
    """A value of an enumeration, which is written without quotes."""

    text: str


Value: TypeAlias = "str | int | bool | Name | Message | Sequence[Value]"
"""A list is a field that is repeated."""

Message: TypeAlias = dict[str, Value]

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def render(message: Message) -> str:
    """The fields, one a line; messages are indented."""
    return "".join(f"{line}\n" for line in _lines(message))


def mapped(entries: dict[str, Value]) -> list[Value]:
    """The entries of a map field, which are messages of key and value."""
    return [{"key": key, "value": value} for key, value in entries.items()]


def _lines(message: Message, indent: str = "") -> Iterator[str]:
    for field, value in message.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(each, dict):
                yield f"{indent}{field}: {_scalar(each)}"
            elif not each:
                yield f"{indent}{field} {{}}"
            else:
                yield f"{indent}{field} {{"
                yield from _lines(each, indent + "  ")
                yield f"{indent}}}"


def _scalar(value: Value) -> str:
    if isinstance(value, Name):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    return "".join(f"\\{byte:03o}" for byte in char.encode())
