"""The witness of a fold: how every re-stored tensor is stored, and which nodes left. Enough to check the fold again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bnfold.affine import Storage

Where = tuple[tuple[int, ...], ...]
"""Where the original has a call of a function: one entry for each function around it, outermost first, and its own.

An entry is a node's index in its graph or function; before it, for every body that the node is in, the index of the
node that has the body, of its attribute, and the position in a list of graphs or -1.
"""


@dataclass(frozen=True)
class Call:
    """A call of a model-local function that the fold replaced by the function's nodes."""

    label: str
    """What the names of the nodes begin with."""
    names: Mapping[str, str] = field(default_factory=dict)
    """New names of the function's own tensors."""


@dataclass(frozen=True)
class Merged:
    """Nodes that became one, by index in the original."""

    kept: int
    """The one whose place the merged node has."""
    members: tuple[int, ...]


@dataclass(frozen=True)
class Sum:
    """An Add, Sub or Sum that a regrouped sum is made of; a pool, or the convolution that it changed places with."""

    like: int
    """Index in the original of the node that it is but for its operator and tensors; -1 for a new one."""
    op: str
    inputs: tuple[str, ...]
    output: str
    """A new one's name too."""


@dataclass(frozen=True)
class Regrouped:
    """A sum of many terms in another order, so that terms which become one node stand together.

    Or a 1x1 convolution and the pool behind it, which change places.
    """

    nodes: tuple[int, ...]
    """Index in the original of every Add, Sub and Sum that goes, or of the two; the last one's output stays."""
    sums: tuple[Sum, ...]
    """What is made instead, in this order: each in the place of the node that it is like, a new one in front of the
    next that is like one; both of two that change places, in that of the last."""

    @property
    def is_swap(self) -> bool:
        """Whether two nodes change places."""
        return len(self.sums) == 2 and self.sums[1].op == "Conv"


@dataclass(frozen=True)
class GraphWitness:
    """The witness for one graph of the model, with the calls replaced."""

    path: str
    """Which graph: '' is the main one, 'if_3/then_branch/' a body."""
    storage: dict[str, Storage] = field(default_factory=dict)
    """By tensor name in the original: how it is stored in the output."""
    removed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By index of an affine node in the original: its input and output, which are one tensor in the output."""
    names: dict[str, str] = field(default_factory=dict)
    """Tensor names that changed, original to output."""
    merged: dict[int, Merged] = field(default_factory=dict)
    """By index of the node whose output one merged node now makes."""
    regrouped: tuple[Regrouped, ...] = ()
    """Sums that were put into another order, before anything else changed: all other indices count the nodes after it.
    """


@dataclass(frozen=True)
class Narrowed:
    """A conversion to a smaller float type, after everything else changed."""

    type: int = 0
    """ONNX element type; 0 where there was none."""
    carries: Mapping[str, str] = field(default_factory=dict)
    """New tensors of the main graph, by name: the tensor whose values they are, cast."""


@dataclass(frozen=True)
class Witness:
    """The witness for a whole model."""

    graphs: tuple[GraphWitness, ...] = ()
    calls: Mapping[Where, Call] = field(default_factory=dict)
    """The calls that were replaced, before anything else changed."""
    narrowed: Narrowed = Narrowed()
    """What became smaller, in the end."""

    @property
    def main(self) -> GraphWitness:
        """The witness for the main graph; an empty one where nothing was re-stored there."""
        return next((graph for graph in self.graphs if graph.path == ""), GraphWitness(""))
