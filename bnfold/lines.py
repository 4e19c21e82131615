"""Lines of text for a person: wrapped and coloured on a terminal, one line each and plain elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from rich.console import Console
from rich.text import Text

LABEL = 20
GOOD, BAD, LOUD, FAINT = "green", "bold red", "bold yellow", "dim"


@dataclass(frozen=True)
class Line:
    """`head` is never wrapped; `body` is, under column `hang`."""

    body: Text
    head: str = ""
    hang: int = 0


def line(text: str = "", style: str = "", head: str = "", hang: int | None = None) -> Line:
    """A line of one style; `hang` is the width of `head` unless said."""
    return Line(Text(clean(text), style), head, len(head) if hang is None else hang)


def clean(text: str) -> str:
    """Text that cannot steer a terminal: names in a model may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def console(file: IO[str]) -> Console:
    """A console that wraps and colours only where `file` is a terminal, whatever the environment says."""
    terminal = file.isatty()
    return Console(file=file, force_terminal=terminal, highlight=False, markup=False, emoji=False)


def show(lines: Iterable[Line], screen: Console) -> None:
    """Print the lines."""
    for each in lines:
        if not screen.is_terminal:
            print(f"{each.head}{each.body.plain}".rstrip(), file=screen.file)
            continue
        first, *rest = each.body.wrap(screen, max(24, screen.width - max(each.hang, len(each.head)))) or [Text()]
        for part in (Text(each.head).append_text(first), *(Text(" " * each.hang).append_text(more) for more in rest)):
            part.rstrip()
            screen.print(part, soft_wrap=True)
    screen.file.flush()


def fact(label: str, text: str, style: str = "") -> Line:
    """A label, and what is said of it under one column."""
    return line(text, style, f"  {label:<{LABEL}}")


def size(count: int) -> str:
    """Bytes for a person, in powers of 1000."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
