"""Many models: one function for each, in this process, in several, or on a Ray cluster, with the same results.

`work` is what is done with one model, `current` what need not be done, `processes` and `cluster` are who does it. One
bad model, or a worker that dies, is one failure; results come in the order of the models whoever finishes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.documents import Failed, UpToDate
from bnfold.fleet.current import current
from bnfold.fleet.work import Done, Task, work
from bnfold.jobs import Job, jobs_of, made
from bnfold.manifest import is_path

if TYPE_CHECKING:
    from bnfold.results import Optimized

__all__ = ["Done", "How", "Task", "may_resume", "optimize_many", "outcomes", "total", "work"]


@dataclass(frozen=True)
class How:
    """Who works."""

    jobs: int | None = None
    """Models at once: one in this process by default, on a cluster as many as it has cores."""
    ray: str | None = None
    """The address of a Ray cluster."""


def outcomes(
    jobs: Sequence[Job],
    options: Mapping[str, Any],
    *,
    how: How | None = None,
    resume: bool = False,
    here: Callable[[Task], Done] = work,
    told: Callable[[int, int], None] = lambda done, all_: None,
) -> Generator[Done, None, None]:
    """Fold every model; what was found, in the order of the models. Close it where not all of it is used.

    Args:
        jobs: the models, and where each goes.
        options: of `bnfold.optimize`.
        how: who works.
        resume: pass over models whose output is up to date, and refuse outputs that are not.
        here: what is done with each where this process works itself.
        told: called with how many are done, and of how many, whenever one is.

    Raises:
        ClusterError: no cluster answers.
    """
    how = how or How()
    with contextlib.ExitStack() as stack:
        for folder in dict.fromkeys(job.folder for job in jobs):
            stack.enter_context(made(folder))
        found = current(jobs, options) if resume else {}
        tasks = [Task(index, job, options) for index, job in enumerate(jobs) if index not in found]
        working = stack.enter_context(contextlib.closing(_working(tasks, how, here)))
        left = len(tasks)
        for index in range(len(jobs)):
            while index not in found:
                done = next(working)
                found[done.index] = done
                left -= 1
                told(len(jobs) - left, len(jobs))
            yield found.pop(index)


def _working(tasks: Sequence[Task], how: How, here: Callable[[Task], Done]) -> Generator[Done, None, None]:
    """What was found, as it comes."""
    if tasks and how.ray is not None:
        from bnfold.fleet import cluster

        yield from cluster.run(tasks, how.ray, how.jobs)
    elif tasks and how.jobs is not None and how.jobs > 1:
        from bnfold.fleet import processes

        yield from processes.run(tasks, how.jobs)
    else:
        yield from map(here, tasks)


def optimize_many(
    models: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    jobs: int | None = None,
    ray: str | None = None,
    resume: bool = True,
    **options: Any,
) -> list[Optimized | UpToDate | Failed]:
    """Fold many models as :func:`bnfold.optimize` does one; what fails is in the list, and stops no other.

    Args:
        models: files, folders, globs and lists (`@FILE`), as on the command line.
        output: a folder; beside each model by default.
        jobs: how many at once, each in a process of its own, with its share of the cores.
        ray: the address of a Ray cluster whose nodes share these folders: `auto`, `local`, `HOST:PORT`, `ray://...`.
        resume: pass over models whose output is up to date. With `force`, or without manifests, nothing is passed over.
        options: of :func:`bnfold.optimize`.

    Raises:
        UsageError: a folder or glob without models, or two models that would go to one file.
        ClusterError: no cluster answers.
    """
    names = [models] if isinstance(models, str | Path) else models
    found, _ = jobs_of([str(name) for name in names], None if output is None else f"{output}/")
    with contextlib.closing(
        outcomes(found, options, how=How(jobs, ray), resume=resume and may_resume(options))
    ) as every:
        return [done.result for done in every]


def total(every: Sequence[Done]) -> str:
    """How many models are done, in one line."""
    failed = sum(isinstance(done.result, Failed) for done in every)
    passed = sum(isinstance(done.result, UpToDate) for done in every)
    said = f"{len(every) - failed} of {len(every)} models done"
    return f"{said}, {passed} of them before" if passed else said


def may_resume(options: Mapping[str, Any]) -> bool:
    """Whether models may be passed over with these options of `bnfold.optimize`: not for what no manifest tells."""
    told = all(options.get(name) is None or is_path(options[name]) for name in ("inputs", "labels"))
    return told and bool(options.get("manifest", True)) and not options.get("force") and not options.get("dry_run")
