"""The program around its commands: one or two lines for every error, and the exit codes."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from bnfold import temporary

YOUNG = 1_000_000
"""New objects between two searches for cycles of garbage: the graph of a large model is a million, and no garbage."""

GRACE = 10.0
"""Seconds to end in order after SIGTERM."""

AGAIN = 1.0
"""Seconds after which a process that has not ended is asked again."""

DONE, CANNOT, USAGE, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130


class Program(click.Group):
    """A click group whose errors are one or two lines that begin with the program's name."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit."""
        gc.set_threshold(YOUNG, 20, 100)
        _open_streams()
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
        except OSError as error:  # the help, or the version
            complain(f"stdout cannot be written: {error.strerror}")
            code = CANNOT
        gc.freeze()  # the process ends: nothing need be searched for garbage once more
        sys.exit(code)


def _open_streams() -> None:
    """Let a stream that is closed lead nowhere: else the next file that is opened takes its number, and its output."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Where the program is asked to end, what it would leave on the disk goes first."""
    asked = threading.Event()

    def end(number: int, _: object) -> None:
        asked.set()
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_ended_at_last, args=(told,), daemon=True).start()
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if asked.is_set() else signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        os.close(tell)
        if asked.is_set():
            _end()
            sys.exit(128 + signal.SIGTERM)


def _ended_at_last(told: int) -> None:
    """Wait for SIGTERM, then ask for the end again and again, and at last end the process from here.

    The signal's own exception comes only when a runtime's call returns, and is lost where Python cannot raise it: in a
    destructor, a callback of the garbage collector, or an import within a compiled module.
    """
    while numbers := os.read(told, 64):
        if signal.SIGTERM in numbers:
            end = time.monotonic() + GRACE
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(AGAIN, left))
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            _end()
            os._exit(128 + signal.SIGTERM)
    os.close(told)


def _end() -> None:
    """Leave nothing behind, not even what a second request kept from being removed, and say so.

    It is said past Python's streams, which raise where a signal came while something was written to them.
    """
    temporary.drop()
    with contextlib.suppress(OSError):
        os.write(2, b"bnfold: terminated\n")


def complain(message: str) -> None:
    """Say on stderr what is wrong, as far as anything can be said there."""
    with contextlib.suppress(OSError):
        click.echo(f"bnfold: {message}", err=True)
