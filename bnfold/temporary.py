"""Temporary files and folders beside what they will become: hidden, locked while their owner lives, swept when it died.

The lock (flock) goes with the process, however that ends; so the next run knows what nobody will ever finish. It is on
the thing itself, and works between threads, users and containers that share a disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

_OURS: set[Path] = set()
"""What this process has made, and not yet removed or given its name."""


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, named after it; removed when the block ends, with what is in it.

    Raises:
        OSError: it cannot be made.
    """
    made, lock = _locked(path, Path.mkdir)
    try:
        yield made
    finally:
        _remove(made)
        os.close(lock)


@contextlib.contextmanager
def file(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, named after it; removed when the block ends.

    Raises:
        OSError: it cannot be made.
    """
    made, lock = _locked(path, partial(Path.touch, exist_ok=False))
    try:
        yield made
    finally:
        _remove(made)
        os.close(lock)


def drop() -> None:
    """Remove all that this process has: it ends at once."""
    for path in list(_OURS):
        _remove(path)


def sweep(path: Path) -> None:
    """Remove what runs that died have left beside `path`."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if ours.fullmatch(entry.name):
                _remove_abandoned(Path(entry.path))


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait until no other run is between :func:`alone` and the end of its block for the same folder."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system knows locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        with contextlib.suppress(OSError):  # nor lets a folder be synced
            os.fsync(handle)
    finally:
        os.close(handle)


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a device or the like, which is written to and never replaced; so is all of /dev."""
    return (path.exists() and not path.is_file() and not path.is_dir()) or str(path.parent.resolve()) == "/dev"


def _locked(path: Path, create: Callable[[Path], None]) -> tuple[Path, int]:
    """Create a thing and lock it; anew where another run swept it away in between."""
    sweep(path)
    while True:
        made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        create(made)
        try:
            lock = os.open(made, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            _OURS.add(made)
            return made, lock
        os.close(lock)


def _remove(made: Path) -> None:
    """Remove a thing of this process, where it is still there under its own name."""
    if made.is_dir():
        shutil.rmtree(made, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
    _OURS.discard(made)


def _remove_abandoned(path: Path) -> None:
    """Remove a thing, unless its owner lives, or locks are unknown here."""
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(lock)
