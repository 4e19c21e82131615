"""SHA-256 of files: streamed, or beside other work."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

PIECE = 1 << 20
"""Bytes that are read at once."""


class Digest(NamedTuple):
    """What tells a file's content from any other."""

    size: int
    sha256: str

    @staticmethod
    def of(data: bytes) -> Digest:
        """Of bytes in memory."""
        return Digest(len(data), hashlib.sha256(data).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"bytes": self.size, "sha256": self.sha256}


def digest(path: Path, stop: threading.Event | None = None) -> Digest:
    """Of a file; of as much as was read where `stop` is set meanwhile.

    Raises:
        OSError: it cannot be read.
    """
    found, size, piece = hashlib.sha256(), 0, memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while (stop is None or not stop.is_set()) and (count := file.readinto(piece)):
            found.update(piece[:count])
            size += count
    return Digest(size, found.hexdigest())


def digest_of_all(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and contents of all files below a folder. None if one cannot be read."""
    try:
        if not path.is_dir():
            return digest(path).sha256
        files = sorted(each for each in path.rglob("*") if each.is_file())
        lines = (f"{digest(each).sha256} {each.relative_to(path).as_posix()}\n" for each in files)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    except OSError:
        return None


class Beside:
    """The digests of files, made by a thread of their own while others work."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._found: dict[Path, Digest] = {}
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="bnfold-sha256", daemon=True)

    def _work(self) -> None:
        try:
            for path in self._paths:
                self._found[path] = digest(path, self._stop)
        except OSError as error:
            self._error = error

    def result(self) -> Mapping[Path, Digest]:
        """All of them, by path as given.

        Raises:
            OSError: one cannot be read.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
