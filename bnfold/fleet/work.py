"""What is done with one model, wherever: it never raises, so that no model stops another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bnfold import temporary
from bnfold.documents import Failed, UpToDate, shows_traceback
from bnfold.jobs import Job
from bnfold.naming import FP32, default_output

if TYPE_CHECKING:
    from bnfold.results import Optimized


@dataclass(frozen=True)
class Task:
    """A model to fold: its place among all, and the options of `bnfold.optimize`."""

    index: int
    job: Job
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """What became of it."""

    index: int
    job: Job
    result: Optimized | UpToDate | Failed
    seconds: float


def work(task: Task) -> Done:
    """Fold one model."""
    import bnfold

    start = time.perf_counter()
    try:
        result: Optimized | Failed = bnfold.optimize(task.job.model, task.job.output, **task.options)
    except Exception as error:  # whatever it is, it is the end of this model only
        if shows_traceback(error):
            raise
        result = Failed.of(error, task.job.model)
    return Done(task.index, task.job, result, time.perf_counter() - start)


def portable(done: Done) -> Done:
    """What goes back to who asked: without the witness, which lies in the manifest and can be as large as a model."""
    from bnfold.results import Optimized
    from bnfold.witness import Witness

    if not isinstance(done.result, Optimized):
        return done
    return replace(done, result=replace(done.result, witness=Witness()))


def lost(task: Task, why: str) -> Done:
    """The end of a model whose worker died: what that left on the disk goes."""
    sweep(task)
    return Done(task.index, task.job, Failed(str(task.job.model), f"{task.job.model}: {why}", 1), 0.0)


def sweep(task: Task) -> None:
    """Remove what a worker that died has left beside the model and the output."""
    output = task.job.output or default_output(task.job.model, task.options.get("precision", FP32))
    for path in (task.job.model, output):
        temporary.sweep(path)
