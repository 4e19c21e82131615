"""Files on their way to the disk: what a large one's digest and its sync take is done behind whoever writes it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from queue import Queue

from bnfold.hashes import Digest
from bnfold.wire import Buffer

LARGE = 1 << 20
"""Bytes of a file from which on it gets a thread of its own."""

AHEAD = 16
"""Pieces by which its writer may be ahead of its digest."""


class Written:
    """A new file, written from one end to the other.

    Its digest is there soon after its end, its content on the disk somewhat later.
    """

    def __init__(self, path: Path, hashed: bool) -> None:
        self._file = path.open("wb")
        self._size = 0
        self._hash = hashlib.sha256() if hashed else None
        self._hashed = threading.Event()
        self._pieces: Queue[Buffer | None] = Queue(AHEAD)
        self._thread: threading.Thread | None = None
        self._complete = False
        self._error: OSError | None = None

    def write(self, data: Buffer) -> None:
        """Append bytes, which nobody may change any more."""
        self._size += len(data)
        self._file.write(data)
        if self._thread is None and self._size > LARGE:
            self._thread = threading.Thread(target=self._work, name="bnfold-written", daemon=True)
            self._thread.start()
        if self._hash is None:
            return
        if self._thread is None:
            self._hash.update(data)
        else:
            self._pieces.put(data)

    def writelines(self, pieces: Iterable[Buffer]) -> None:
        """Append pieces."""
        for piece in pieces:
            self.write(piece)

    def tell(self) -> int:
        """Bytes that were written."""
        return self._size

    def finish(self) -> None:
        """That was all.

        Raises:
            OSError: the disk is full.
        """
        self._file.flush()
        self._complete = True
        if self._thread is None:
            self._work_ends()
            self.wait()
        else:
            self._pieces.put(None)

    @property
    def digest(self) -> Digest:
        """Of all of it, once that is finished."""
        assert self._complete and self._hash is not None
        self._hashed.wait()
        return Digest(self._size, self._hash.hexdigest())

    def wait(self) -> None:
        """Until it is on the disk, once it is finished.

        Raises:
            OSError: it did not get there.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Let go of it, whatever became of it."""
        if self._thread is not None:
            if not self._complete:
                self._pieces.put(None)
            self._thread.join()
        with contextlib.suppress(OSError):
            self._file.close()

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            assert self._hash is not None
            self._hash.update(piece)
        if self._complete:
            self._work_ends()

    def _work_ends(self) -> None:
        self._hashed.set()
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self._error = error
