"""A new version of a model in a repository of Triton: there as a whole, or not at all, and never over another one.

What is written is staged beside where it goes and moved there last. In the model's own folder a server looks only at
folders with a number for a name; in the repository's it takes every folder for a model, hidden ones too. So a new model
is staged outside the repository where that is the same disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bnfold import temporary
from bnfold.deployment.files import put
from bnfold.errors import OutputError

CONFIG = "config.pbtxt"
_STAGED = "version"


class Repository:
    """One model in a repository.

    Args:
        root: the repository; its last folder is made where it is missing.
        name: of the model.
        force_config: replace a configuration that differs.
    """

    def __init__(self, root: Path, name: str, force_config: bool = False) -> None:
        self.root, self.folder, self.force_config = root, root / name, force_config

    def check(self) -> None:
        """See that a version can be added, before any work is done.

        Raises:
            OutputError: the repository is a file, its folder is missing, or one of them cannot be written to.
        """
        for path in (self.root, self.folder):
            if os.path.lexists(path) and not path.is_dir():
                raise OutputError(f"{path} is not a folder; give another one with --triton, or another --name")
        if not self.root.is_dir() and not self.root.parent.is_dir():
            raise OutputError(f"the folder {self.root.parent} does not exist; make it first")
        there = next(path for path in (self.folder, self.root, self.root.parent) if path.is_dir())
        if not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {there} cannot be written to; choose another place with --triton")

    def check_config(self, config: str) -> None:
        """See that the versions that are there already keep the configuration that they have.

        Raises:
            OutputError: it is another one, and `force_config` was not given.
        """
        path = self.folder / CONFIG
        if self.force_config or not self.folder.is_dir():
            return
        if path.is_file():
            found = path.read_text(encoding="utf-8", errors="replace")
            problem = f"it differs from what this model needs ({_difference(found, config)})" if found != config else ""
        else:
            made_up = "there are versions and no configuration: Triton makes one up, and would read this one instead"
            problem = made_up if self._versions() else ""
        if not problem:
            return
        raise OutputError(
            f"{path}: {problem}\nA server would serve older versions by it too: --force-config replaces it"
        )

    def add(self, config: str, shared: Mapping[str, bytes], write: Callable[[Path], None]) -> int:
        """Write a version, and give its number: one more than the highest that is there.

        Args:
            config: text of config.pbtxt.
            shared: files of the model's folder that the configuration names; they are named by their content.
            write: fills the version's folder.

        Raises:
            OutputError: the disk is full, a folder cannot be written to, or the configuration differs.
        """
        with contextlib.ExitStack() as stack:
            with _writing(self.root):
                self.root.mkdir(exist_ok=True)
                staged = stack.enter_context(temporary.folder(self._place()))
            with _writing(self.root):
                (staged / "1").mkdir()
                write(staged / "1")
                for name, content in shared.items():
                    (staged / name).parent.mkdir(exist_ok=True)
                    put(staged / name, content)
                put(staged / CONFIG, config)
                with temporary.alone(self.root):
                    if not self.folder.is_dir():
                        staged.rename(self.folder)
                        return 1
                    self.check_config(config)
                    return self._move(staged, config, shared)

    def _place(self) -> Path:
        """What is staged lies beside this."""
        if self.folder.is_dir():
            return self.folder / _STAGED
        outside = self.root.resolve()
        same_disk = outside.stat().st_dev == outside.parent.stat().st_dev
        return outside if same_disk and os.access(outside.parent, os.W_OK | os.X_OK) else self.folder

    def _move(self, staged: Path, config: str, shared: Mapping[str, bytes]) -> int:
        """To the versions that are there: what the configuration names, then the version, last the configuration."""
        for name in shared:
            target = self.folder / name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                (staged / name).rename(target)
        number = max(self._versions(), default=0) + 1
        version = self.folder / str(number)
        (staged / "1").rename(version)
        path = self.folder / CONFIG
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != config:
            try:
                (staged / CONFIG).replace(path)
            except OSError:
                version.rename(staged / "1")
                raise
        return number

    def _versions(self) -> list[int]:
        names = [path.name for path in self.folder.iterdir()]
        return [int(name) for name in names if name.isascii() and name.isdigit()]


def _difference(found: str, wanted: str) -> str:
    """The first line that is not the same."""
    pairs = zip((*found.splitlines(), ""), (*wanted.splitlines(), ""), strict=False)
    there, here = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    return f"'{there.strip()[:80] or 'nothing'}' there, '{here.strip()[:80] or 'nothing'}' here"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
