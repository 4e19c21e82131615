"""Which models need no work: their output is there, and its manifest says that just this would be made again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnfold import manifest as manifests
from bnfold.documents import Failed, UpToDate
from bnfold.errors import BnfoldError
from bnfold.fleet.work import Done
from bnfold.hashes import digest
from bnfold.jobs import Job
from bnfold.manifest import Artifact
from bnfold.naming import default_output

THREADS = 8
"""Files that are hashed at once."""

_NOT_OF_THE_FOLD = ("manifest", "force", "dry_run", "progress")


def current(jobs: Sequence[Job], options: Mapping[str, Any]) -> dict[int, Done]:
    """By place of the job: those whose output is up to date, and those whose output is in the way."""
    asked = manifests.options(**{name: given for name, given in options.items() if name not in _NOT_OF_THE_FOLD})
    asked = json.loads(json.dumps(asked))  # as a file holds them
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda job: _state(job, asked), jobs))
    return {
        index: Done(index, job, state, 0.0)
        for index, (job, state) in enumerate(zip(jobs, found, strict=True))
        if state is not None
    }


def _state(job: Job, asked: Mapping[str, Any]) -> UpToDate | Failed | None:
    """None where there is no output yet."""
    output = job.output or default_output(job.model, asked["precision"])
    if not os.path.lexists(output) or not job.model.is_file():
        return None
    try:
        told = manifests.read(manifests.path_for(output))
        counts = told.counts["batchnorm"]
        found = UpToDate(str(job.model), str(output), int(counts["before"]), int(counts["after"]))
        why = (
            "another version of bnfold made it" if told.versions.get("bnfold") != version("bnfold")
            else "it was made with other options or inputs" if told.options != asked
            else "it was made from another model" if not _is(job.model, told.original)
            else "it has changed since it was made" if not _is(output, told.optimized)
            else ""
        )  # fmt: skip
    except (BnfoldError, KeyError, TypeError, ValueError):
        why = "it has no manifest"
    if not why:
        return found
    message = f"{output} exists, and is not up to date: {why}; use --force to overwrite it, or another name with -o"
    return Failed(str(job.model), message, 1)


def _is(model: Path, told: Artifact) -> bool:
    """Whether a model and its external data are what a manifest says. Sizes first: they cost nothing."""
    folder = model.resolve().parent
    files = [(model, told.digest), *((folder / name, each) for name, each in told.data.items())]
    try:
        return all(path.stat().st_size == each.size for path, each in files) and all(
            digest(path) == each for path, each in files
        )
    except OSError:
        return False
