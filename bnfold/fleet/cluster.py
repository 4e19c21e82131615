"""A Ray cluster: the same work, on any node.

Nodes share the folders of the models and have the same bnfold. A model whose worker or node dies is tried again
elsewhere; after `TRIES` it is a failure. Ray itself retries nothing, so that no model takes a cluster down for ever.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from bnfold.cluster import connected, here, settle
from bnfold.fleet.work import Done, Task, lost, portable, work

TRIES = 3

GRACE = 5.0
"""Seconds that workers have to end in order."""


def run(tasks: Sequence[Task], address: str, count: int | None) -> Iterator[Done]:
    """Fold models on a cluster, `count` at once or as many as it has cores; what was found, as it comes.

    Raises:
        ClusterError: Ray is not installed, or no cluster answers.
    """
    with connected(address) as ray:
        most = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_there)
        place = here()
        waiting = deque((task, 1) for task in tasks)
        running: dict[Any, tuple[Task, int]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    task, turn = waiting.popleft()
                    running[remote.remote(task, place)] = task, turn
                (ready,), _ = ray.wait(list(running), num_returns=1)
                task, turn = running.pop(ready)
                try:
                    done = ray.get(ready)
                except ray.exceptions.RayError as error:
                    if turn < TRIES:
                        waiting.append((task, turn + 1))
                        continue
                    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                    done = lost(task, f"its worker died {turn} times, perhaps for want of memory; {why}")
                yield done
        finally:
            for each in running:
                with contextlib.suppress(Exception):
                    ray.cancel(each)  # as Ctrl-C: what it has begun to write goes
            if running:
                with contextlib.suppress(Exception):
                    ray.wait(list(running), num_returns=len(running), timeout=GRACE)


def _there(task: Task, place: tuple[str, str]) -> Done:
    """What a worker does: in the folder of who asked, so that all paths mean the same."""
    against = settle(*place)
    return lost(task, against) if against else portable(work(task))
