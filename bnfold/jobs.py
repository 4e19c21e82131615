"""Which models a command line means, and where each goes: files, folders, globs and lists, one output for each."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import UsageError
from bnfold.naming import is_output


@dataclass(frozen=True)
class Job:
    """A model, where it goes (None: beside it), and the folder to make for that."""

    model: Path
    output: Path | None = None
    folder: Path | None = None


def jobs_of(models: Sequence[str], out: str | None) -> tuple[list[Job], bool]:
    """Every model once; and whether several were meant, be there only one.

    Raises:
        UsageError: a folder, glob or list without models, or two models that would go to one file.
    """
    listed = any(each.startswith("@") and not Path(each).exists() for each in models)
    models = [name for each in models for name in _listed(each)]
    found = {model.resolve(): (model, name) for each in models for model, name in _expand(each)}
    several = listed or len(models) > 1 or not any(Path(models[0]) == model for model, _ in found.values())
    if out is None:
        return [Job(model) for model, _ in found.values()], several
    folder = Path(out)
    if not (several or out.endswith(os.sep) or folder.is_dir()):
        return [Job(Path(models[0]), folder)], several
    if folder.is_file():
        raise UsageError(f"{folder} is a file; for several models give a folder with -o")
    jobs = [Job(model, folder / name, (folder / name).parent) for model, name in found.values()]
    taken: dict[Path | None, Path] = {}
    for job in jobs:
        if job.output in taken:
            raise UsageError(f"{taken[job.output]} and {job.model} would both become {job.output}; run them apart")
        taken[job.output] = job.model
    return jobs, several


def _listed(argument: str) -> list[str]:
    """The lines of `@FILE`, or of stdin for `@-`; anything else is itself."""
    if not argument.startswith("@") or Path(argument).exists():
        return [argument]
    try:
        text = sys.stdin.read() if argument == "@-" else Path(argument[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"the list {argument[1:]} cannot be read: {why}") from None
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise UsageError(f"the list {argument[1:]} names no model")
    return names


def _expand(argument: str) -> list[tuple[Path, Path]]:
    """The models that one argument names, each with its name below the output folder."""
    path = Path(argument)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.onnx") if _is_original(file))
        pairs = [(file, file.relative_to(path)) for file in files]
    elif not path.exists() and any(char in argument for char in "*?["):
        import glob

        matches = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207  absolute patterns too
        pairs = [(file, Path(file.name)) for file in matches if file.is_file() and _is_original(file)]
    else:
        return [(path, Path(path.name))]
    if not pairs:
        raise UsageError(f"no .onnx model in {argument} (NAME.folded.onnx is an output, and skipped)")
    return pairs


def _is_original(path: Path) -> bool:
    return not path.name.startswith(".") and not is_output(path)


@contextlib.contextmanager
def made(folder: Path | None) -> Iterator[None]:
    """Make an output folder; what was made goes again where nothing came of it."""
    new = [] if folder is None else [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in new:
            with contextlib.suppress(OSError):
                each.rmdir()
