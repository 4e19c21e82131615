"""The witness of a fold: how every re-stored tensor is stored, and which nodes left. Enough to check the fold again."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.affine import Storage


@dataclass(frozen=True)
class GraphWitness:
    """The witness for one graph of the model."""

    path: str
    """Which graph: '' is the main one, 'if_3/then_branch/' a body."""
    storage: dict[str, Storage] = field(default_factory=dict)
    """By tensor name in the original: how it is stored in the output."""
    removed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By index of an affine node in the original: its input and output, which are one tensor in the output."""
    names: dict[str, str] = field(default_factory=dict)
    """Tensor names that changed, original to output."""


@dataclass(frozen=True)
class Witness:
    """The witness for a whole model."""

    graphs: tuple[GraphWitness, ...] = ()
