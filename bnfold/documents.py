"""The files that a command writes about its models: checked before the work starts, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold import manifest, temporary
from bnfold.errors import BnfoldError, OutputError, UsageError

if TYPE_CHECKING:  # numpy and onnx stay unloaded until there is a result
    from bnfold.benchmark import Bench
    from bnfold.equivalence.result import Verification


def shows_traceback(error: Exception) -> bool:
    """Whether this is a bug whose traceback somebody wants to see."""
    return bool(os.environ.get("BNFOLD_TRACEBACK")) and not isinstance(error, BnfoldError | MemoryError | OSError)


@dataclass(frozen=True)
class Failed:
    """A model that a command could not do."""

    model: str | None
    """Its path, where the failure is one model's."""
    message: str
    """One or two lines."""
    exit_code: int

    @staticmethod
    def of(error: Exception, model: Path | None) -> Failed:
        """What went wrong, in one or two lines that say what to do."""
        code, message = 1, ""
        if isinstance(error, BnfoldError):
            code, message = error.exit_code, str(error)
        elif isinstance(error, MemoryError):
            message = "not enough memory; save the model with external data, or use a larger machine"
        elif isinstance(error, OSError):
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        elif isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # pathlib, before 3.13
            message = f"{str(error).removeprefix('Symlink loop from ')} is a link in a circle; give another name"
        else:  # a bug: the models that wait behind this one shall not suffer
            what = f"internal error, {type(error).__name__}: {error}".splitlines()[0]
            message = f"{what}\nThis is a bug: please report it with the traceback that BNFOLD_TRACEBACK=1 shows."
        return Failed(None if model is None else str(model), _printable(message), code)

    def to_json(self) -> dict[str, Any]:
        """The entry in the list of models."""
        error = {"message": self.message, "exit_code": self.exit_code}
        return {"model": {"path": self.model}, "error": error}


@dataclass(frozen=True)
class UpToDate:
    """A model whose output is there, and is just what would be made of it; nothing was done."""

    model: str
    output: str
    before: int
    """BatchNormalization nodes, as its manifest says."""
    after: int

    def to_json(self) -> dict[str, Any]:
        """The entry in the list of models."""
        return {
            "model": {"path": self.model, "output": self.output},
            "batchnorm": {"before": self.before, "after": self.after},
            "status": "up-to-date",
        }


@dataclass(frozen=True)
class Pair:
    """What was found about two models."""

    original: str
    optimized: str
    result: Verification | Bench

    def to_json(self) -> dict[str, Any]:
        """The whole report of `verify` or `bench`."""
        return {"schema": 1, "original": self.original, "optimized": self.optimized, **self.result.to_json()}


@dataclass(frozen=True)
class Document:
    """One such file, and the option that asked for it; `-` is stdout."""

    option: str
    file: str

    @property
    def is_stdout(self) -> bool:
        """Whether it goes to stdout."""
        return self.file == "-"

    def write(self, text: str) -> None:
        """Write the text: under another name first, so that the file is whole whenever it is there.

        Raises:
            OutputError: the disk is full, or the folder cannot be written to any more.
        """
        if self.is_stdout:
            with to_stdout():
                sys.stdout.write(text)
                sys.stdout.flush()
            return
        path = Path(self.file)
        try:
            if temporary.is_special(path):
                path.write_text(text, encoding="utf-8")
            else:
                _replace(path.resolve(), text)
        except OSError as error:
            raise OutputError(f"{self.file} cannot be written: {error.strerror}") from None


def _replace(path: Path, text: str) -> None:
    with temporary.folder(path) as folder:
        made = folder / path.name
        with made.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            made.chmod(path.stat().st_mode)
        made.replace(path)


@contextlib.contextmanager
def to_stdout() -> Iterator[None]:
    """Where results go to stdout.

    Raises:
        OutputError: its disk is full. Whoever stopped to read them has seen enough: that stays `BrokenPipeError`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}") from None


def check(documents: Sequence[Document], models: Iterable[Path | None], outputs: Iterable[Path] = ()) -> None:
    """See that every document can be written.

    Raises:
        UsageError: one would overwrite a model, an output, a file beside one of these, or another document.
        OutputError: one cannot be written.
    """
    given = [model for model in models if model is not None]
    taken = {model.resolve(): "a model" for model in given}
    for output in outputs:
        sidecar = output.with_name(f"{output.name}.data")
        taken |= dict.fromkeys([each.resolve() for each in (output, manifest.path_for(output), sidecar)], "the output")
    for document in documents:
        if document.is_stdout:
            continue
        option, path = document.option, Path(document.file)
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name to {option}")
        if path.resolve() in taken:
            raise UsageError(f"{option} {path} would overwrite {taken[path.resolve()]}; choose another name")
        if path.is_file() and not _is_document(path) and any(_is_data(path.resolve(), model) for model in given):
            raise UsageError(f"{option} {path} would overwrite the external data of a model; choose another name")
        if not path.parent.is_dir():
            raise OutputError(f"the folder {path.parent} of {option} does not exist; make it first")
        if not all(os.access(each, os.W_OK) for each in _touched(path)):
            raise OutputError(f"{path} cannot be written to; choose another place for {option}")
        taken[path.resolve()] = f"the file of {option}"


def _is_document(path: Path) -> bool:
    """Whether a file begins as those that are written here."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(20).startswith((b'{\n "schema": 1', b"<!DOCTYPE html>", b"<?xml "))
    return False


def _is_data(path: Path, model: Path) -> bool:
    """Whether a file is one that a model has its data in."""
    folder = model.resolve().parent
    if not path.is_relative_to(folder):
        return False
    from bnfold.patch import tensors
    from bnfold.source import is_beside, read_lean

    with contextlib.suppress(BnfoldError, OSError, ValueError, MemoryError):
        found = {e.value for each in tensors(read_lean(model).proto) if is_beside(each) for e in each.external_data}
        return any(os.path.realpath(folder / name) == str(path) for name in found if len(name) < 4096)
    return False


def _printable(text: str) -> str:
    """At most two lines, without control characters: names in a model may hold anything."""
    lines = ["".join(char if char.isprintable() else "?" for char in line) for line in text.splitlines()[:2]]
    return "\n".join(line[:600] for line in lines)


def _touched(path: Path) -> list[Path]:
    """What must be writable: a file that is replaced, and its folder."""
    if temporary.is_special(path):
        return [path]
    real = path.resolve()
    return [real.parent, *([real] if real.exists() else [])]
