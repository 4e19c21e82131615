"""A folder with a model, its settings and a program that runs it: there as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bnfold import temporary
from bnfold.errors import OutputError


def check_folder(folder: Path) -> None:
    """See that a new folder can be made, before any work is done.

    Raises:
        OutputError: it exists, or the folder above is missing or cannot be written to.
    """
    if os.path.lexists(folder):
        raise OutputError(f"{folder} exists and is never overwritten; remove it, or give another name with -o")
    if not folder.parent.is_dir():
        raise OutputError(f"the folder {folder.parent} does not exist; make it first")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder.parent} cannot be written to; choose another place with -o")


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have a new folder filled, beside where it goes, and move it there.

    Raises:
        OutputError: the disk is full, the folder above cannot be written to, or another run was faster.
    """
    try:
        with temporary.folder(folder) as staged:
            write(staged)
            with temporary.alone(folder.parent):
                check_folder(folder)
                staged.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
