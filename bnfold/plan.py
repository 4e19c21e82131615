"""What a fold will change: constants, attributes, new biases, nodes that leave. Pure data, made by rules and solver.

Nothing is computed from weights here: an edit holds small per-channel arrays in float64, and the weights are read once,
when the model is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnfold.affine import Array, Storage
from bnfold.constants import Constant
from bnfold.graph import Graph
from bnfold.witness import Call, Where


@dataclass(frozen=True, eq=False)
class NewConstant:
    """A node's input becomes the constant ``base * factors[0] * ... + shift``, rounded once to `type`."""

    slot: int
    hint: str
    """What the constant is to its node (weight, bias, scale): part of its new name."""
    type: int
    shape: tuple[int, ...]
    base: Constant | None
    """The constant it is made from; None for zero."""
    factors: tuple[Array, ...] = ()
    shift: Callable[[], Array] | None = None

    def rows(self, start: int, stop: int) -> Array:
        """The new values in float64, along the first axis from `start` to `stop` (a scalar has one row)."""
        whole = not self.shape or (start == 0 and stop >= self.shape[0])
        pick = (lambda array: array) if whole else (lambda array: _rows(array, len(self.shape), start, stop))
        size = self.shape if whole else (min(stop, self.shape[0]) - start, *self.shape[1:])
        value: Array = np.zeros((1,) * len(size)) if self.base is None else pick(self.base.load()).astype(np.float64)
        for factor in self.factors:
            value = value * pick(factor)
        if self.shift is not None:
            value = value + pick(self.shift())
        return np.broadcast_to(value, size)

    def value(self) -> Array:
        """All new values in float64, not yet rounded."""
        return self.rows(0, self.shape[0] if self.shape else 1)


def _rows(array: Array, rank: int, start: int, stop: int) -> Array:
    return array[start:stop] if array.ndim == rank and array.shape[0] != 1 else array


@dataclass(frozen=True)
class SetAttribute:
    """An attribute of the node gets a new value."""

    name: str
    value: int | float


@dataclass(frozen=True)
class SetOperator:
    """The node becomes another operator with the same inputs, outputs and attributes: Max becomes Min."""

    op: str


@dataclass(frozen=True, eq=False)
class NewBias:
    """An Add of a constant is put right behind the node's first output: the bias that a MatMul has no slot for."""

    type: int
    shift: Array
    """Float64, broadcasts against the output."""


Edit = NewConstant | SetAttribute | SetOperator | NewBias


@dataclass
class GraphPlan:
    """What changes in one graph."""

    graph: Graph
    storage: dict[str, Storage] = field(default_factory=dict)
    """How every re-stored tensor is stored, relative to the original model."""
    removed: dict[int, str] = field(default_factory=dict)
    """Index of every node that leaves, with the input that its output becomes one with."""
    edits: dict[int, tuple[Edit, ...]] = field(default_factory=dict)
    """By node index, in the original graph."""

    def names(self) -> dict[str, str]:
        """Tensor names that change: where nodes leave, several tensors become one, which keeps the best name.

        A graph output's name always stays; else a name whose meaning did not change; else the producer's.
        """
        one: dict[str, str] = {}

        def root(name: str) -> str:
            while one.get(name, name) != name:
                name = one[name]
            return name

        for index, source in sorted(self.removed.items()):
            one[self.graph.nodes[index].outputs[0]] = root(source)
        members: dict[str, list[str]] = {}
        for name in one:
            members.setdefault(root(name), []).append(name)
        new: dict[str, str] = {}
        for first, others in members.items():
            group = [first, *others]
            best = min(group, key=lambda name: self._badness(name, group))
            new.update({name: best for name in group if name != best})
        return new

    def _badness(self, name: str, group: list[str]) -> tuple[bool, bool, int]:
        changed = name in self.storage and not self.storage[name].is_identity
        pinned = name in self.graph.output_set or name not in self.graph.producers
        return (not pinned, changed, -group.index(name))


@dataclass
class Plan:
    """What changes in the whole model."""

    graphs: list[GraphPlan]
    calls: Mapping[Where, Call] = field(default_factory=dict)
    """Calls of functions that were replaced in the model that is planned for."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes at all."""
        return not any(plan.removed for plan in self.graphs)
