"""A process of `processes`: ``python -m bnfold.fleet.worker FD THREADS`` folds what comes through a pipe."""

from __future__ import annotations

import gc
import sys
from multiprocessing.connection import Connection

from bnfold.fleet.work import Task, portable, work


def main(number: int, threads: int) -> None:
    """Fold models until nobody asks any more."""
    from bnfold.runtime import limit_threads

    limit_threads(threads)
    gc.set_threshold(100_000, 20, 100)
    with Connection(number) as pipe:
        while True:
            try:
                task = pipe.recv()
            except (EOFError, OSError):
                return
            assert isinstance(task, Task)
            try:
                pipe.send(portable(work(task)))
            except BrokenPipeError:
                return


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
