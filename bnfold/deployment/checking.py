"""Does what was written compute what the model computes? It is run from where it lies, and judged as `verify` judges.

And may a server put requests behind each other? A row's answer must not depend on its neighbours: that is watched.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.deployment.interface import Interface
from bnfold.deployment.settings import CPU, OPENVINO, ORT, PROVIDERS, Settings
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.judging import judge_level
from bnfold.equivalence.reference import reference_of
from bnfold.equivalence.runs import NUDGES, Outputs, Runs, nudged
from bnfold.equivalence.settings import Progress
from bnfold.errors import NotEquivalentError, ProviderError
from bnfold.kernels.base import Array, is_float_type, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.runtime import CannotRun, Session, import_onnxruntime, unavailable
from bnfold.samples import Feeds
from bnfold.source import Source

_APART = 1e-2
"""Rows that see each other differ by their own size; rounding in batches of another size is far below this."""


@dataclass(frozen=True)
class Check:
    """How what was written compares with the model. `status` is "equivalent", or "not run: ..."."""

    status: str
    provider: str = ""
    settings: bool = False
    """Whether the settings were in force; else the model was run on the CPU."""
    samples: int = 0
    outputs: tuple[OutputCheck, ...] = ()

    @property
    def needed(self) -> float:
        """The share of the allowed noise that was needed, at most."""
        return max((check.k_needed for check in self.outputs), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "status": self.status,
            "provider": self.provider,
            "settings": self.settings,
            "samples": self.samples,
            "outputs": [check.to_json() for check in self.outputs],
        }


def not_here(target: str) -> str | None:
    """Why a target's settings cannot be tried on this machine, None where they can."""
    if target in (CPU, ORT):
        return None
    if target != OPENVINO:
        return unavailable(target)
    runtime = import_onnxruntime()
    if runtime is not None and PROVIDERS[OPENVINO] in runtime.get_available_providers():
        return None
    return "the installed onnxruntime was built without it; pip install onnxruntime-openvino"


def check(source: Source, model: Path, settings: Settings, feeds: Sequence[Feeds], seed: int, say: Progress) -> Check:
    """Run a model from where it was written, and judge it by the original's own noise.

    Where a program lies beside it and the target can run here, the program is run; else the model's file, on the CPU.

    Raises:
        NotEquivalentError: it does not run there, or computes something else.
    """
    say("running what was written")
    tried = model.with_name("serve.py").is_file() and not_here(settings.target) is None
    try:
        if tried and not any(array.dtype.kind == "V" for array in feeds[0].values()):
            outputs = [_program(model.parent, sample) for sample in feeds]
        else:
            session = Session(model, optimize=settings.level != "off")
            outputs, tried = [session.run(sample) for sample in feeds], False
    except (CannotRun, ProviderError) as error:
        raise NotEquivalentError(f"{source.label} was copied and does not run: {error}; nothing was written") from error
    runs = _original(source, feeds)
    reference = reference_of(source, Oracle(source), feeds, runs, seed, say)
    checks = judge_level("on", runs, outputs, reference)
    for each in checks:
        if not each.passed:
            raise NotEquivalentError(
                f"{source.label} as it would be served differs: output '{each.output}': {each.problem}; "
                "nothing was written"
            )
    provider = settings.providers[0][0] if tried else PROVIDERS[CPU]
    return Check("equivalent", provider, tried, len(feeds), checks)


def _program(folder: Path, feeds: Feeds) -> Outputs:
    """The program beside the model, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bnfold-serve-") as place:
        given, made = Path(place, "inputs.npz"), Path(place, "outputs.npz")
        np.savez(given, **dict[str, Any](feeds))
        command = [sys.executable, "-B", str(folder / "serve.py"), str(given), str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRun((done.stderr.strip().splitlines() or ["it failed without a word"])[-1][:300])
        with np.load(made) as file:
            return {name: file[name] for name in file.files}


def _original(source: Source, feeds: Sequence[Feeds]) -> Runs:
    """The model on the CPU, as `verify` runs an original."""
    runs = Runs(CPU)
    for level in ("off", "on"):
        session = Session(source.runnable, optimize=level == "on")
        runs.original[level] = [session.run(sample) for sample in feeds]
        if level == "off":
            runs.nudged = [[session.run(nudged(sample, turn)) for turn in range(NUDGES)] for sample in feeds]
    return runs


def mixes_rows(interface: Interface, session: Session, feeds: Feeds) -> str | None:
    """Why requests cannot be put behind each other: what rows give together is not what each gives alone."""
    rows = {len(feeds[tensor.name]) for tensor in interface.inputs}
    if len(rows) != 1:
        return f"the first axes of its inputs do not agree ({', '.join(map(str, sorted(rows)))})"
    count = rows.pop()
    if count < 2:
        feeds, count = {name: np.concatenate([array, array]) for name, array in feeds.items()}, 2
    try:
        together = session.run(feeds)
        for row in range(count):
            alone = session.run({name: array[row : row + 1] for name, array in feeds.items()})
            for name, whole in together.items():
                if whole[row : row + 1].shape != alone[name].shape:
                    return f"output '{name}' has {len(whole)} rows for {count} of its inputs"
                if not _same(whole[row : row + 1], alone[name], whole):
                    return f"output '{name}' of one row depends on the others in the batch"
    except CannotRun as error:
        return f"it does not run on {count} rows and on one alike ({error})"
    return None


def _same(part: Array, alone: Array, whole: Array) -> bool:
    if not is_float_type(whole.dtype):
        return bool(np.mean(part != alone) <= _APART)
    allowed = max(_APART, 16 * unit_roundoff(whole.dtype))
    wide = [np.asarray(each).astype(np.float64) for each in (part, alone, whole)]
    finite = np.isfinite(wide[0]) & np.isfinite(wide[1])
    largest = float(np.max(np.abs(wide[2]), initial=0.0, where=np.isfinite(wide[2])))
    apart = float(np.max(np.abs(wide[0] - wide[1]), initial=0.0, where=finite))
    return apart <= allowed * largest


def sizes_of(shapes: Mapping[str, Sequence[int]] | None, own: Feeds | None) -> dict[str, tuple[int, ...]]:
    """Sizes of inputs that the user said, outright or by giving inputs."""
    said = {name: tuple(array.shape) for name, array in (own or {}).items()}
    return said | {name: tuple(shape) for name, shape in (shapes or {}).items()}
