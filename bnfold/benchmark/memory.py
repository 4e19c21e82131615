"""The peak memory of both models, each in processes of its own: what one leaves behind cannot count for the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bnfold.benchmark.interval import TOO_FEW, Compared
from bnfold.benchmark.results import Memory
from bnfold.errors import BnfoldError
from bnfold.kernels.base import Array

TURNS = 3
"""Processes of each model, in turns."""

MARGIN = 0.05
"""A ratio this close to 1 is no difference: the allocator's steps make as much."""

_TIMEOUT = 900.0
_NAMES = ("original", "optimized")


class CannotMeasure(BnfoldError):
    """A child process measured nothing; says why."""


def peak_memory(
    models: Sequence[bytes | Path],
    feeds: Mapping[str, Array],
    *,
    seconds: float,
    session: Mapping[str, Any],
) -> tuple[Memory, str]:
    """The memory of both models, and why part of it is missing where it is.

    Args:
        models: the original and the optimized model, as `Session` takes them.
        feeds: what they run on.
        seconds: no further turn begins after this time; the first is always made.
        session: what `Session` is told; see `Task` for what that must hold.

    Raises:
        CannotMeasure: a child process failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bnfold-memory-") as folder:
        np.savez(Path(folder) / "feeds.npz", *feeds.values())
        task = {"feeds": str(Path(folder) / "feeds.npz"), "inputs": list(feeds), "session": dict(session)}
        paths = [_path(model, Path(folder) / f"{name}.onnx") for name, model in zip(_NAMES, models, strict=True)]
        turns: list[tuple[dict[str, Any], dict[str, Any]]] = []
        while not turns or (len(turns) < TURNS and time.perf_counter() - start < seconds):
            before, after = (
                _child(task | {"model": str(path)}, name) for path, name in zip(paths, _NAMES, strict=True)
            )
            turns.append((before, after))
    every = [report for turn in turns for report in turn]
    process = [(before["peak"] - before["base"], after["peak"] - after["base"]) for before, after in turns]
    device = None
    if all(report["device"] is not None for report in every):
        device = memory_compared([(before["device"], after["device"]) for before, after in turns])
    trouble = next((report["trouble"] for report in every if report["trouble"]), "")
    return Memory(int(median(report["base"] for report in every)), memory_compared(process), device), trouble


def memory_compared(turns: Sequence[tuple[int, int]]) -> Compared:
    """Bytes of both models, turn by turn. `low` and `high` are the extremes over all pairings, not a 95% interval."""
    originals, optimizeds = ([max(1, value) for value in column] for column in zip(*turns, strict=True))
    low, high = min(originals) / max(optimizeds), max(originals) / min(optimizeds)
    before, after = median(originals), median(optimizeds)
    ratio = before / after
    if len(turns) < TURNS:
        return Compared(before, after, len(turns), ratio, None, None, TOO_FEW)
    words = f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / ratio:.2f}x larger"
    same = low <= 1 <= high or abs(ratio - 1) < MARGIN
    return Compared(before, after, len(turns), ratio, low, high, "no difference" if same else words)


def _path(model: bytes | Path, beside: Path) -> Path:
    if isinstance(model, Path):
        return model.resolve()
    beside.write_bytes(model)
    return beside


def _child(task: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the child reports. The bnfold that runs there is the one that runs here."""
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bnfold.benchmark.child"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMeasure(f"{name}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise CannotMeasure(f"{name}: {last}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
