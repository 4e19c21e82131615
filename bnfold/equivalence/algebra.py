"""The algebra of a fold: both graphs in float64, the folded one with constants that nobody rounded, must agree.

What rounding hides shows here: on a network of eight layers a channel that is off by 1e-6 changes the float32 error by
a twentieth, and this difference from 1e-15 to 1e-7. Compared at the outputs and at every tensor of the main graph that
both models have, v' against a*v + b, so that an output that saturates hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnfold.equivalence.spread import Sketch, growth, restored
from bnfold.errors import BnfoldError, ModelError
from bnfold.graph import Graph
from bnfold.kernels.base import Array, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.patch import patch, witness_of
from bnfold.plan import NewConstant, Plan, Rewrite, SetAttribute
from bnfold.source import FLOATS, Source
from bnfold.witness import Witness
from bnfold.write import unwritten

TOLERANCE = 1e-12
"""Relative to the largest magnitude of the tensor. Right folds of 138 networks differ by at most 4e-13 (`make zoo`)."""

ROUNDED = 1e-6
"""The tolerance where a number has to be rounded all the same: an attribute is a float32, an int32 bias a whole one."""

_SLACK = 64.0
"""What roundings add up to, in units of one."""

_COARSE, _DRAWS = 32.0, 3
"""Roundings of float64 that show in float64, in units of one; and how often they are drawn."""

BROKEN = "broken: "
"""How the status of a folded model begins that cannot be evaluated."""

_WORST = 5
"""Tensors that the report names."""


@dataclass(frozen=True)
class TensorError:
    """How far apart the two models are at one tensor, and may be, relative to its largest magnitude."""

    tensor: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether that is near enough."""
        return self.error <= self.allowed

    def to_json(self) -> dict[str, Any]:
        """A plain dict; an error that is not finite becomes None."""
        return {**vars(self), "error": self.error if np.isfinite(self.error) else None}


@dataclass(frozen=True)
class Algebra:
    """What was found; `worst` are the tensors that take most of what they are allowed, at least `tolerance`.

    `status` is "float64"; "not run: ..." where the original cannot be evaluated, or "broken: ..." where only the folded
    model cannot.
    """

    status: str
    tolerance: float = TOLERANCE
    compared: int = 0
    """Tensors."""
    worst: tuple[TensorError, ...] = ()
    errors: tuple[TensorError, ...] = field(default=(), repr=False)
    """Every tensor that was compared, in the order in which the original makes them."""

    @property
    def broken(self) -> bool:
        """Whether the folded model cannot be evaluated, where the original can."""
        return self.status.startswith(BROKEN)

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the fold."""
        return not self.broken and all(error.passed for error in self.worst)

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; '' where nothing is."""
        if self.passed:
            return ""
        if self.broken:
            return f"in float64 the folded model is {self.status}"
        first = next(error for error in self.errors if not error.passed)
        return (
            f"in float64 and with unrounded constants, tensor '{first.tensor}' is {first.error:.1e} from what it "
            f"should be, and {first.allowed:.0e} is allowed"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "status": self.status,
            "passed": self.passed,
            "tolerance": self.tolerance,
            "compared": self.compared,
            "worst": [error.to_json() for error in self.worst],
        }


def compare(rewrite: Rewrite, feeds: Mapping[str, Any], known: Sketch | None = None) -> Algebra:
    """Evaluate both, and compare.

    Args:
        rewrite: what became of the original.
        feeds: one sample.
        known: the original's tensors on this sample, where they have been computed before calls were replaced.
    """
    model, before, after = rewrite.original, known or Sketch(), Sketch()
    try:
        if known is None or rewrite.calls:  # a function's tensors are inner ones only where its call is replaced
            Oracle(model.source).run(feeds, watch=before)
    except BnfoldError as error:
        return Algebra(f"not run: {error}")
    made = patch(rewrite.model, rewrite.plan)
    source = replace(rewrite.model.source, proto=made.proto)
    try:
        Oracle(source, constants=unwritten(made, exact=True)).run(feeds, watch=after)
    except ModelError as error:
        return Algebra(f"{BROKEN}{error}")
    except BnfoldError as error:
        return Algebra(f"not run: {error}")
    witness = witness_of(rewrite)
    lost = _SLACK * _growth(model.main, before, witness) * unit_roundoff(np.float64)
    tolerance = ROUNDED if rounds(rewrite.plan) else max(TOLERANCE, lost)
    sides = _Sides(before, after, witness, frozenset(model.main.outputs), tolerance)
    errors = tuple(sides.errors())
    if not all(error.passed for error in errors):
        errors = tuple(sides.errors(_moved(model.source, feeds)))
    worst = sorted(errors, key=lambda each: -each.error / each.allowed if np.isfinite(each.error) else -np.inf)
    return Algebra("float64", tolerance, len(errors), tuple(worst[:_WORST]), errors)


def _growth(graph: Graph, before: Sketch, witness: Witness) -> float:
    """The most that any tensor of several readers grows by the shift that it is stored with: so much they may lose."""
    found = [0.0]
    for name, storage in witness.main.storage.items():
        shape, values = before.samples.get(name, ((), None))
        several = len(graph.consumers.get(name, ())) > 1
        if values is not None and several and storage.has_encode and storage.a.ndim <= len(shape):
            found.append(growth(values, shape, storage))
    return max(each for each in found if np.isfinite(each))


def _moved(source: Source, feeds: Mapping[str, Any]) -> list[Sketch]:
    """The tensors of a model of which every weight and every result is off by a few units in the last place."""
    found = [Sketch() for _ in range(_DRAWS)]
    for seed, sketch in enumerate(found):
        Oracle(source).run(feeds, rounding_seed=seed, unit=_COARSE * unit_roundoff(np.float64), watch=sketch)
    return found


@dataclass(frozen=True)
class _Sides:
    """The tensors of both models."""

    before: Sketch
    after: Sketch
    witness: Witness
    outputs: frozenset[str]
    tolerance: float

    def errors(self, moved: Sequence[Sketch] = ()) -> Iterator[TensorError]:
        """Tensor by tensor; the graph's outputs are what they were, whatever the witness says.

        Args:
            moved: the original's tensors, where they were rounded so that it shows.
        """
        main = self.witness.main
        for name, (shape, values) in self.before.samples.items():
            renamed = name if name in self.outputs else main.names.get(name, name)
            storage = None if name in self.outputs else main.storage.get(name)
            expected = restored(values, shape, storage)
            if renamed not in self.after.samples or expected is None:
                continue
            found, value = self.after.samples[renamed]
            same = found == shape and np.array_equal(np.isfinite(value), np.isfinite(expected))
            error = _apart(value, expected) if same else float("inf")
            draws = [each.samples.get(name, ((), values)) for each in moved]
            others = [restored(drawn, shape, storage) for size, drawn in draws if size == shape]
            noise = max((_apart(other, expected) for other in others if other is not None), default=0.0)
            yield TensorError(renamed, error, max(self.tolerance, _SLACK / _COARSE * noise))


def _apart(value: Array, expected: Array) -> float:
    """The largest difference where both are finite, relative to the largest magnitude."""
    finite = np.isfinite(expected)
    error = float(np.max(np.abs(value - expected), where=finite, initial=0.0))
    size = float(np.max(np.abs(expected), where=finite, initial=0.0))
    return error / size if error and size else error


def rounds(plan: Plan) -> bool:
    """Whether an edit rounds a number although nothing else does here."""
    edits = [edit for graph in plan.graphs for own in graph.edits.values() for edit in own]
    return any(
        edit.type not in FLOATS
        if isinstance(edit, NewConstant)
        else isinstance(edit, SetAttribute) and isinstance(edit.value, float) and edit.value != round(edit.value)
        for edit in edits
    )
