"""From the temporary folder to the output: complete or not at all, whatever happens to the process or to the input.

Files are written to a hidden folder beside the output, synced, then moved into place, external data first. Between two
moves there is never a model at the output's name whose external data is another's: an old one is taken away before.
Nor is there a manifest of another model: an old one goes before anything moves, the new one comes before a model that
is new, and after one that takes the place of an older model at once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bnfold import manifest, temporary
from bnfold.errors import ModelError, OutputError, UsageError
from bnfold.hashes import Digest
from bnfold.patch import tensors
from bnfold.source import ExternalRange, Source, Stamp, external_range, is_beside, stamp_of
from bnfold.written import Written

BEHIND = 8
"""Files that may be on their way to the disk at once."""


@dataclass(frozen=True)
class Destination:
    """Where the result goes: the model file, and the one file for external data beside it."""

    path: Path
    force: bool = False
    stamps: dict[Path, Stamp | None] = field(default_factory=dict)
    """The files of the original, as they were when they were first looked at."""
    with_manifest: bool = False

    @property
    def manifest(self) -> Path:
        """The manifest beside the output."""
        return manifest.path_for(self.path)

    @property
    def sidecar(self) -> Path:
        """File for external data."""
        return self.path.with_name(self.path.name + ".data")

    def check_free(self, *others: Path) -> None:
        """See that nothing is overwritten that was not meant to be: the output, and files beside it.

        Raises:
            OutputError: one of them exists, and `force` was not given.
        """
        for path in (self.path, *others):
            if os.path.lexists(path) and not self.force:
                raise OutputError(f"{path} exists; use --force to overwrite it, or another name with -o")
        if self.with_manifest and os.path.lexists(self.manifest) and not (self.force or self.has_old_manifest):
            raise OutputError(f"{self.manifest} exists, and is no manifest; use --force to overwrite it")

    @property
    def has_old_manifest(self) -> bool:
        """Whether the manifest of another model, or of one that is gone, lies there."""
        return manifest.is_manifest(self.manifest)

    def check_unchanged(self) -> None:
        """See that what was read is still there, so that the output is proved against what the input is.

        Raises:
            ModelError: the model or its external data was changed or removed meanwhile.
        """
        for path, stamp in self.stamps.items():
            if stamp != stamp_of(path):
                raise ModelError(f"{path} changed while it was read, or is gone; nothing was written, try again")


def destination(source: Source, output: Path, force: bool, with_manifest: bool = False) -> Destination:
    """Check that the output may be written, and its manifest if there shall be one, before any work is done.

    Raises:
        UsageError: it is the input, or a file that the input needs.
        OutputError: it exists and `force` is not given, or its folder is missing or read-only.
    """
    stamps: dict[Path, Stamp | None] = (
        {} if source.path is None else {source.path: source.stamp or stamp_of(source.path)}
    )
    stamps |= {place.path: stamp_of(place.path) for place in external_data(source)}
    found = Destination(output, force, stamps, with_manifest)
    for path in (output, found.manifest) if with_manifest else (output,):
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name with -o")
        if temporary.is_special(path):
            raise OutputError(f"{path} is a pipe or a device, and would be replaced; give a file name with -o")
    written = (found.path, found.sidecar, found.manifest)
    if {path.resolve() for path in written} & {path.resolve() for path in stamps}:
        raise UsageError(f"{output} would overwrite the input; choose another name with -o")
    found.check_free(*([found.sidecar] if len(stamps) > 1 else []))
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist; make it first")
    if not os.access(output.parent, os.W_OK):
        raise OutputError(f"the folder {output.parent} cannot be written to; choose another place with -o")
    return found


def external_data(source: Source) -> Iterator[ExternalRange]:
    """Where the external data of a model lies, tensor by tensor."""
    for tensor in tensors(source.proto):
        if is_beside(tensor):
            yield external_range(tensor, source.base_dir)


class Staged:
    """A result on disk that is not yet the output: a hidden folder beside it, in which every file has its final name.

    So it can be loaded and verified as it will be, then moved into place or thrown away.
    """

    def __init__(self, where: Destination, folder: Path) -> None:
        self.where = where
        self.folder = folder
        self._files: dict[Path, Written] = {}

    @property
    def path(self) -> Path:
        """The staged model file."""
        return self.folder / self.where.path.name

    @property
    def digests(self) -> dict[Path, Digest]:
        """Of the files that were created, by name, where there will be a manifest."""
        return {name: file.digest for name, file in self._files.items()}

    @contextlib.contextmanager
    def create(self, name: Path | str) -> Iterator[Written]:
        """A new file, `name` relative to the output's folder; on its way to the disk when closed.

        Raises:
            OutputError: the disk is full, or the folder cannot be written to.
        """
        staged = self.folder / name
        with _writing(self.where.path):
            staged.parent.mkdir(parents=True, exist_ok=True)
            for earlier in itertools.islice(reversed(self._files.values()), BEHIND - 1, BEHIND):
                earlier.wait()
            file = self._files[Path(name)] = Written(staged, self.where.with_manifest)
            yield file
            file.finish()

    def close(self) -> None:
        """Let go of all files."""
        for file in self._files.values():
            file.close()

    def tell(self, text: str) -> None:
        """Put a manifest beside the model.

        Raises:
            OutputError: the disk is full, or the folder cannot be written to.
        """
        with self.create(self.where.manifest.name) as file:
            file.write(text.encode())

    def keep(self) -> None:
        """Move everything into place: external data first, the model last, unless it replaces one at once.

        Raises:
            ModelError: the original is not any more what it was.
            OutputError: another run was faster, or the folder cannot be written to any more.
        """
        output, told, folder = self.where.path, self.where.manifest, self.where.path.parent
        with _writing(output):
            for file in self._files.values():
                file.wait()
        self.where.check_unchanged()
        with _writing(output), temporary.alone(folder):
            data = [name for name in self._files if name not in (Path(output.name), Path(told.name))]
            self.where.check_free(*(folder / name for name in data))
            if self.where.with_manifest or self.where.has_old_manifest:
                told.unlink(missing_ok=True)
            if any((folder / name).exists() for name in data):
                output.unlink(missing_ok=True)  # it may need what is overwritten now
            for name in data:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).replace(folder / name)
            moves = [Path(output.name)]
            if Path(told.name) in self._files:
                moves.insert(len(moves) if os.path.lexists(output) else 0, Path(told.name))
            for name in moves:
                (self.folder / name).replace(folder / name)


@contextlib.contextmanager
def staged(where: Destination) -> Iterator[Staged]:
    """Write a result; whatever is not kept when the block ends is removed, and so is what a run that died has left.

    Raises:
        OutputError: the folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        with _writing(where.path):
            folder = stack.enter_context(temporary.folder(where.path))
        yield stack.enter_context(contextlib.closing(Staged(where, folder)))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
