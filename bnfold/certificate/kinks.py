"""Where an operator bends that is not at zero: tensors around zero alone would never get there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.affines import align
from bnfold.graph import Node

ROUNDS = 16
"""Samples of a node that has kinks: each of its elements is near one kink at random."""


def kinks(node: Node, rank: int) -> list[Array]:
    """The bounds of a Clip, the constants of Max and Min; each broadcasts against a tensor of this rank."""
    found: list[Array] = []
    if node.op == "Clip" and node.version < 11:
        found = [np.asarray(node.get_float(name, 0.0)) for name in ("min", "max") if name in node.attributes]
    elif node.op in ("Clip", "Max", "Min"):
        constants = (node.constant(slot) for slot in range(len(node.inputs)))
        found = [each.float64() for each in constants if each is not None and len(each.shape) <= rank]
    return [align(node, np.where(np.isfinite(each), each, 0.0), rank) for each in found]


def around(centres: Sequence[Array], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Normal numbers; near zero, or near one of the centres that fit the shape."""
    value = rng.standard_normal(shape)
    fitting = [each for each in centres if all(n in (1, size) for n, size in zip(each.shape, shape, strict=True))]
    if fitting:
        choices = [np.zeros(shape), *(np.broadcast_to(each, shape) for each in fitting)]
        value = value + np.choose(rng.integers(len(choices), size=shape), choices)
    return value
