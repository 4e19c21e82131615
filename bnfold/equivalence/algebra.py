"""The algebra of a fold: both graphs in float64, the folded one with constants that nobody rounded, must agree.

What rounding hides shows here: on a network of eight layers a channel that is off by 1e-6 changes the float32 error by
a twentieth, and this difference from 1e-15 to 1e-7. Compared at the outputs and at every tensor of the main graph that
both models have, v' against a*v + b, so that an output that saturates hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from bnfold.affine import Storage
from bnfold.equivalence.spread import Sketch, growth, restored
from bnfold.errors import BnfoldError, ModelError
from bnfold.graph import Graph
from bnfold.kernels.base import Array, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.patch import patch, witness_of
from bnfold.plan import NewConstant, Plan, Rewrite, SetAttribute
from bnfold.source import FLOATS
from bnfold.witness import Witness
from bnfold.write import unwritten

TOLERANCE = 1e-12
"""Relative to the largest magnitude of the tensor. Right folds of 138 networks differ by at most 4e-13 (`make zoo`)."""

ROUNDED = 1e-6
"""The tolerance where a number has to be rounded all the same: an attribute is a float32, an int32 bias a whole one."""

_SLACK = 64.0
"""What roundings add up to, in units of one."""

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


def compare(
    rewrite: Rewrite,
    feeds: Mapping[str, Any],
    conditioning: float = 1.0,
    known: Sketch | None = None,
    noisy: Sketch | None = None,
) -> Algebra:
    """Evaluate both, and compare.

    Args:
        rewrite: what became of the original.
        feeds: one sample.
        conditioning: how many times its own rounding a float64 evaluation may be off, where that is a lot.
        known: the original's tensors on this sample, where they have been computed before calls were replaced.
        noisy: the same tensors where weights were rounded: how many times its rounding each one may be off.
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
    conditioning = max(conditioning, _SLACK * _growth(model.main, before, witness))
    tolerance = ROUNDED if rounds(rewrite.plan) else max(TOLERANCE, conditioning * unit_roundoff(np.float64))
    sides = before, after, noisy or Sketch()
    found = _Sides(*sides, witness, frozenset(model.main.outputs), tolerance, _coarsest(model.proto))
    errors = tuple(found.errors())
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


@dataclass(frozen=True)
class _Sides:
    """The tensors of the original, of the folded model, and of the original with rounded weights."""

    before: Sketch
    after: Sketch
    noisy: Sketch
    witness: Witness
    outputs: frozenset[str]
    tolerance: float
    unit: float
    """Of the roundings of the weights."""

    def errors(self) -> Iterator[TensorError]:
        """Tensor by tensor; the graph's outputs are what they were, whatever the witness says."""
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
            yield TensorError(renamed, error, self._allowed(name, expected, storage))

    def _allowed(self, name: str, expected: Array, storage: Storage | None) -> float:
        """What roundings make of a tensor in float64, from what rounding the weights to their own type makes of it."""
        shape, values = self.noisy.samples.get(name, ((), None))
        moved = None if values is None else restored(values, shape, storage)
        if moved is None or moved.shape != expected.shape or not np.isfinite(moved - expected).all():
            return self.tolerance
        conditioning = _SLACK * _apart(moved, expected) / self.unit
        return max(self.tolerance, conditioning * unit_roundoff(np.float64))


def _coarsest(model: onnx.ModelProto) -> float:
    """The unit roundoff of the coarsest float type that a weight has."""
    types = {tensor.data_type for tensor in model.graph.initializer} & set(FLOATS)
    return max((unit_roundoff(FLOATS[type_]) for type_ in types), default=unit_roundoff(np.float32))


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
