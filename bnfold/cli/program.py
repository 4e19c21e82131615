"""The program around its commands: one or two lines for every error, and the exit codes."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

YOUNG = 100_000
"""New objects between two searches for cycles of garbage: a model's graph is a million objects, and no garbage."""

DONE, CANNOT, USAGE, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130


class Program(click.Group):
    """A click group whose errors are one or two lines that begin with the program's name."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit."""
        gc.set_threshold(YOUNG, 20, 100)
        kwargs |= {"standalone_mode": False, "prog_name": "bnfold"}
        try:
            with _ended_in_order():
                code = super().main(*args, **kwargs)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "bnfold"
            complain(f"{error.format_message()}\nTry '{command} --help'.")
            code = USAGE
        except click.ClickException as error:
            complain(error.format_message())
            code = CANNOT
        except click.Abort:
            complain("interrupted")
            code = INTERRUPTED
        gc.freeze()  # the process ends: nothing need be searched for garbage once more
        sys.exit(code)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Where the program is asked to end, what it would leave on the disk goes first."""

    def end(number: int, _: object) -> None:
        complain("terminated")
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def complain(message: str) -> None:
    """Say on stderr what is wrong."""
    click.echo(f"bnfold: {message}", err=True)
