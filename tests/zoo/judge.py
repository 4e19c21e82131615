"""Is what a tool wrote still the model? ONNX Runtime runs both, its own optimisations off, on the same inputs.

    python -m tests.zoo.judge            # reads jobs, see tests/zoo/forks.py: [limit, ORIGINAL.onnx, CHANGED.onnx]

Verdicts: `right`; `wrong` (other inputs or outputs, or other values); `does not load`; `unchecked` where ONNX Runtime
cannot run the original. It is lenient: what the original itself does to an input error of 1e-6 is allowed ten times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from bnfold import samples
from bnfold.runtime import CannotRun, Session
from tests.zoo import forks
from tests.zoo.count import count

Feeds = dict[str, NDArray[Any]]

ALLOWED = {"float64": 1e-3, "float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Relative error of an output, by its type: far above rounding, far below a wrong fold."""


@dataclass(frozen=True)
class Judgement:
    """What was found; counts are None where the output is no model at all."""

    verdict: str
    detail: str = ""
    error: float | None = None
    bn: int | None = None
    left: int | None = None


def judge(original: Path, changed: Path) -> Judgement:
    """Load both, compare what they promise and what they compute."""
    try:
        before, after = onnx.load(original, load_external_data=False), onnx.load(changed, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's errors share no base class
        return Judgement("does not load", str(error)[:200])
    left = count(after)
    verdict, detail, worst = _compare(before, after, original, changed)
    return Judgement(verdict, detail, worst, left.bn, left.left_of(count(before)))


def _compare(before: ModelProto, after: ModelProto, original: Path, changed: Path) -> tuple[str, str, float | None]:
    problem = _interface(before, after)
    if problem:
        return "wrong", problem, None
    try:
        reference = Session(original, optimize=False, threads=1)
        feeds = _first_that_runs(reference, before)
    except CannotRun as error:
        return "unchecked", str(error)[:200], None
    try:
        session = Session(changed, optimize=False, threads=1)
    except CannotRun as error:
        return "does not load", str(error)[:200], None
    worst, note, folded = 0.0, "", _constants(before)
    for feed in [*feeds, *_overridden(before, feeds[0])]:
        wanted, noisy = reference.run(feed), reference.run(_disturbed(feed))
        try:
            found = session.run(feed | {name: folded[name] for name in session.inputs if name in folded})
        except CannotRun as error:
            return "wrong", str(error)[:200], None
        for name, value in wanted.items():
            distance = _distance(found[name], value)
            allowed = max(ALLOWED.get(value.dtype.name, 0.0), 10 * _distance(noisy[name], value))
            worst = max(worst, distance)
            if not distance <= allowed:
                note = f"output '{name}' is off by {distance:.1e} of its size"
    return ("wrong" if note else "right"), note, worst


def _interface(before: ModelProto, after: ModelProto) -> str:
    """Inputs that a caller gives, and outputs, must keep their names; an input with a default may be overridden."""
    inputs = [{value.name for value in samples.real_inputs(model)} for model in (before, after)]
    inputs[1] -= set(_constants(before))
    if inputs[0] != inputs[1]:
        return f"inputs are {sorted(inputs[1])}, not {sorted(inputs[0])}"
    outputs = [[value.name for value in model.graph.output] for model in (before, after)]
    if outputs[0] != outputs[1]:
        return f"outputs are {outputs[1]}, not {outputs[0]}"
    gone = set(_defaults(before)) - {value.name for value in after.graph.input}
    return f"input '{min(gone)}' can no longer be given" if gone else ""


def _defaults(model: ModelProto) -> dict[str, onnx.TensorProto]:
    """Inputs that have a default, which a caller may override. Below IR 4 they are constants."""
    names = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in names}


def _constants(model: ModelProto) -> Feeds:
    """Below IR 4 every constant is listed as an input. ONNX Runtime leaves the entries of those that it folded."""
    if model.ir_version >= 4:
        return {}
    names = {value.name for value in model.graph.input}
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in names}


def _first_that_runs(session: Session, model: ModelProto) -> list[Feeds]:
    specs = samples.input_specs(model)
    last = CannotRun("no size that was tried runs")
    for shapes in samples.candidates(specs):
        made = [samples.make(specs, shapes, sample, 0, (0, 2)) for sample in range(2)]
        try:
            session.run(made[0])
        except CannotRun as error:
            last = error
            continue
        return made
    raise last


def _overridden(model: ModelProto, feed: Feeds) -> Iterator[Feeds]:
    """One more sample in which every default is overridden."""
    defaults = _defaults(model)
    if defaults:
        yield feed | {name: onnx.numpy_helper.to_array(tensor)[::-1].copy() for name, tensor in defaults.items()}


def _disturbed(feed: Feeds) -> Feeds:
    """The same inputs, a millionth off."""
    rng = np.random.default_rng(1)
    return {
        name: (x * (1 + 1e-6 * rng.standard_normal(x.shape))).astype(x.dtype) if x.dtype.kind == "f" else x
        for name, x in feed.items()
    }


def _distance(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The norm of the difference relative to the norm, infinite for another shape or other not-a-numbers."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    x, y = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(y)
    if not np.array_equal(finite, np.isfinite(x)):
        return float("inf")
    size = float(np.linalg.norm(y[finite]))
    return float(np.linalg.norm((x - y)[finite])) / size if size else float(np.abs(x[finite]).max(initial=0.0))


if __name__ == "__main__":
    forks.serve(lambda paths: asdict(judge(Path(paths[0]), Path(paths[1]))))
