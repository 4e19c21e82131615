"""The algebra of a fold: both graphs in float64, the folded one with constants that nobody rounded, must agree.

What rounding hides shows here: on a network of eight layers a channel that is off by 1e-6 changes the float32 error by
a twentieth, and this difference from 1e-15 to 1e-7. Compared at the outputs and at every tensor of the main graph that
both models have, v' against a*v + b, so that an output that saturates hides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.errors import BnfoldError
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.plan import NewConstant, Plan, SetAttribute
from bnfold.source import FLOATS
from bnfold.witness import GraphWitness
from bnfold.write import folded

TOLERANCE = 1e-12
"""Relative to the largest magnitude of the tensor. Correct folds of 160 networks differ by at most 6e-14."""

ROUNDED = 1e-6
"""The tolerance where a number has to be rounded all the same: an attribute is a float32, an int32 bias a whole one."""

_ELEMENTS = 1 << 16
"""Elements of a tensor that are compared at most, evenly spread."""

_WORST = 5
"""Tensors that the report names."""


@dataclass(frozen=True)
class TensorError:
    """How far apart the two models are at one tensor, relative to its largest magnitude."""

    tensor: str
    error: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict; an error that is not finite becomes None."""
        return {"tensor": self.tensor, "error": self.error if np.isfinite(self.error) else None}


@dataclass(frozen=True)
class Algebra:
    """What was found. `status` is "float64" or "not run: ..."; `worst` the tensors that differ most."""

    status: str
    tolerance: float = TOLERANCE
    compared: int = 0
    """Tensors."""
    worst: tuple[TensorError, ...] = ()
    errors: tuple[TensorError, ...] = field(default=(), repr=False)
    """Every tensor that was compared, in the order in which the folded model makes them."""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the fold."""
        return all(error.error <= self.tolerance for error in self.worst)

    @property
    def problem(self) -> str:
        """What is wrong, in a sentence; '' where nothing is."""
        if self.passed:
            return ""
        first = next(error for error in self.errors if not error.error <= self.tolerance)
        return (
            f"in float64 and with unrounded constants, tensor '{first.tensor}' is {first.error:.1e} from what it "
            f"should be, and {self.tolerance:.0e} is allowed"
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


def compare(model: Model, plan: Plan, feeds: Mapping[str, Any], conditioning: float = 1.0) -> Algebra:
    """Evaluate both, and compare.

    Args:
        model: the original, calls of functions replaced where the plan replaces them.
        plan: what the fold changes.
        feeds: one sample.
        conditioning: how many times its own rounding a float64 evaluation may be off, where that is a lot.
    """
    try:
        watcher = _Watcher(witness_of(plan).graphs, {value.name for value in model.proto.graph.output})
        base_dir = model.source.base_dir
        Oracle(model.proto, base_dir=base_dir).run(feeds, watch=watcher.original)
        Oracle(folded(model, plan, exact=True), base_dir=base_dir).run(feeds, watch=watcher.compare)
    except BnfoldError as error:
        return Algebra(f"not run: {error}")
    errors = tuple(watcher.errors)
    worst = sorted(errors, key=lambda each: -each.error if np.isfinite(each.error) else -np.inf)
    tolerance = ROUNDED if _rounds(plan) else max(TOLERANCE, conditioning * 2.0**-53)
    return Algebra("float64", tolerance, len(errors), tuple(worst[:_WORST]), errors)


class _Watcher:
    """Keeps what the original's tensors should be in the folded model, and compares them there."""

    def __init__(self, graphs: tuple[GraphWitness, ...], outputs: set[str]) -> None:
        main = next((graph for graph in graphs if graph.path == ""), GraphWitness(""))
        self.storage: Mapping[str, Storage] = main.storage
        self.names: Mapping[str, str] = main.names
        self.expected: dict[str, tuple[Array, float]] = {}
        self.errors: list[TensorError] = []

    def original(self, name: str, value: Any) -> None:
        """One tensor of the original."""
        storage = self.storage.get(name)
        if not _is_float(value) or (storage is not None and not storage.has_encode):
            return
        if storage is not None:
            value = storage.a * value + storage.b
        self.expected[self.names.get(name, name)] = (_spread(value), float(np.max(np.abs(value), initial=0.0)))

    def compare(self, name: str, value: Any) -> None:
        """One tensor of the folded model."""
        if name not in self.expected or not _is_float(value):
            return
        expected, size = self.expected.pop(name)
        value = _spread(value)
        if value.shape != expected.shape:
            self.errors.append(TensorError(name, float("inf")))
            return
        both = np.isfinite(expected) & np.isfinite(value)
        same = np.isfinite(expected) == np.isfinite(value)
        error = float(np.max(np.abs(value - expected), where=both, initial=0.0)) if same.all() else float("inf")
        self.errors.append(TensorError(name, error / size if error and size else error))


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _spread(value: Array) -> Array:
    """Elements that are evenly spread over a tensor, borders included; all of a small one."""
    flat = value.reshape(-1)
    step = -(-flat.size // _ELEMENTS)
    return flat if step <= 1 else flat[:: step | 1].copy()  # an odd step meets every column of an even width


def _rounds(plan: Plan) -> bool:
    """Whether an edit rounds a number although nothing else does here."""
    edits = [edit for graph in plan.graphs for own in graph.edits.values() for edit in own]
    return any(
        edit.type not in FLOATS
        if isinstance(edit, NewConstant)
        else isinstance(edit, SetAttribute) and edit.value != round(edit.value)
        for edit in edits
    )
