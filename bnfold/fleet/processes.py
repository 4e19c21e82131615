"""Several processes on this machine: each a fresh Python that folds one model after the other.

A process that dies (killed, out of memory) takes one model with it; another takes its place. When the one that asked
ends, it kills those that still work, whatever they do (nothing partial ever has a final name), and removes what they
leave. Were it killed itself, they would end after their model, for nobody is at the other end of the pipe.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from bnfold.fleet.work import Done, Task, lost, sweep

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _Worker:
    """One process, and the model it has."""

    def __init__(self, threads: int, scratch: str) -> None:
        self.pipe, other = Pipe()
        self.task: Task | None = None
        paths = os.pathsep.join(str(Path(each).resolve()) for each in sys.path)
        environment = dict.fromkeys(_THREADS, str(threads)) | os.environ | {"PYTHONPATH": paths, "TMPDIR": scratch}
        command = [sys.executable, "-m", "bnfold.fleet.worker", str(other.fileno()), str(threads)]
        with other:
            # In a group of its own: Ctrl-C is for the one that asked, which tells the others.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_number(sys.stderr) else subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=environment,
                process_group=0,
            )

    def give(self, task: Task) -> None:
        """Let it fold a model."""
        self.task = task
        with contextlib.suppress(OSError):  # it died already: its pipe says so
            self.pipe.send(task)

    def took(self) -> Done:
        """What became of its model."""
        task, self.task = self.task, None
        assert task is not None
        try:
            found = self.pipe.recv()
            assert isinstance(found, Done)
            return found
        except (EOFError, OSError):
            code = self.process.wait()
            how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
            return lost(task, f"its process {how}, perhaps for want of memory; fold fewer at once (--jobs)")


def run(tasks: Sequence[Task], count: int) -> Iterator[Done]:
    """Fold models in `count` processes; what was found, as it comes."""
    waiting = deque(tasks)
    count = min(count, len(tasks))
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    workers: dict[Connection, _Worker] = {}
    scratch = tempfile.mkdtemp(prefix="bnfold-jobs-")
    try:
        while waiting or any(worker.task for worker in workers.values()):
            while waiting and len(workers) < count:
                worker = _Worker(threads, scratch)
                workers[worker.pipe] = worker
                worker.give(waiting.popleft())
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                worker = workers[ready]
                if worker.task is not None:
                    yield worker.took()
                if worker.process.poll() is not None or not waiting:
                    del workers[ready]
                    _end(worker)
                else:
                    worker.give(waiting.popleft())
    finally:
        for worker in workers.values():
            _end(worker)
        shutil.rmtree(scratch, ignore_errors=True)


def _end(worker: _Worker) -> None:
    """End a process: one that waits by closing its pipe, one that works by killing it and removing what it leaves."""
    worker.pipe.close()
    if worker.task is not None:
        worker.process.kill()
    worker.process.wait()
    if worker.task is not None:
        sweep(worker.task)


def _has_number(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return False
