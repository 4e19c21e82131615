"""Numerical judgement: an exact fold that rounding would spoil is refused.

Two things can go wrong in the type that the model is stored in. A constant may not fit it. And a tensor that is stored
around another zero, ``v = alpha*v' + beta``, is rounded relative to ``|v - beta|`` instead of ``|v|``: every reader
loses ``log2(|beta - mean| / max(spread, |mean|))`` bits. A scale alone loses nothing in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold.affine import AGREE, Array, Storage
from bnfold.graph import Graph
from bnfold.plan import Edit, NewBias, NewConstant, SetAttribute, SetOperator
from bnfold.reasons import Reason
from bnfold.rules import Source
from bnfold.rules.base import channels_where, faults
from bnfold.rules.scaling import SIGMAS
from bnfold.source import FLOATS, limits_of

BITS = {"float16": 3.0, "bfloat16": 1.0, "float32": 10.0, "float64": 39.0}
"""How many of its significant bits a tensor of several readers may lose. Measured on 160 networks: folds that pass
verification lose at most 7 in float32, a dense network that fails loses 17."""


def unlock(graph: Graph) -> str:
    """What would make room for values that do not fit."""
    return "leave --precision out" if graph.model.narrow else "fold before converting to a smaller type"


class Spreads:
    """What BatchNormalization nodes know about the tensors that they read, where others read these too."""

    def __init__(self, graph: Graph, sources: dict[int, Source], bits: float) -> None:
        self._graph = graph
        self._bits = bits
        self._known: dict[str, tuple[Array, Array]] = {}
        self._reached: dict[str, Array] = {}
        """By tensor: how large its readers' results are in the original already."""
        for source in sources.values():
            if source.spread is not None and source.mean is not None:
                name, affine = source.ends[0], source.affine
                self._learn(name, source.mean, source.spread)
                reached = (
                    np.abs(affine.scale * source.mean + affine.shift) + SIGMAS * np.abs(affine.scale) * source.spread
                )
                self._reached[name] = np.maximum(reached, self._reached.get(name, 0.0))

    def _learn(self, name: str, mean: Array, spread: Array) -> None:
        """Note a tensor's statistics, and those of the parts that it is joined from."""
        found = [(name, mean, spread)]
        while found:
            name, mean, spread = found.pop()
            if name in self._known:
                continue
            self._known[name] = (mean, spread)
            node = self._graph.producers.get(name)
            if node is None or node.op != "Concat" or node.get_int("axis", 1) != 1:
                continue
            start = 0
            for part in node.inputs:
                shape = self._graph.shape(part)
                if shape is None or not isinstance(shape[1], int):
                    break
                stop = start + shape[1]
                found.append((part, mean[:, start:stop], spread[:, start:stop]))
                start = stop

    def against(self, name: str, storage: Storage, before: Storage) -> Reason | None:
        """The reason against storing a tensor like this: out of its type's range, or its readers lose too many bits."""
        if name not in self._known:
            return None
        mean, spread = self._known[name]
        type_ = FLOATS.get(_stored(self._graph.type(name), self._graph.model.narrow), np.dtype(np.float32))
        outside = _outside(storage, mean, spread, type_, self._reached.get(name, np.zeros(1)))
        if outside.any():
            return Reason(
                "out-of-range",
                f"the values of {name!r} would not fit {type_.name}",
                name,
                unlock(self._graph),
                channels_where(outside),
            )
        if len(self._graph.consumers.get(name, ())) < 2:
            return None
        usual = BITS[type_.name]
        limit = min(self._bits, usual)
        bits = bits_lost(storage, mean, spread)
        worse = bits > limit
        if worse.any():
            worse &= bits > bits_lost(before, mean, spread) + 0.5
        if not worse.any():
            return None
        return Reason(
            "precision-loss",
            f"{name!r} would be stored so far from zero that its other readers lose {np.max(bits[worse]):.0f} bits, "
            f"of which {limit:g} are allowed{'' if limit == usual else ', for more made too much rounding noise'}",
            name,
            "retrain or prune the channels whose gamma is almost zero",
            *faults(worse, bits),
        )

    def most(self, decided: Mapping[str, Storage]) -> float:
        """The most bits that any reader would lose, rounded to whole ones."""
        losses = [0.0]
        for name, storage in decided.items():
            if name in self._known and len(self._graph.consumers.get(name, ())) > 1:
                losses.append(float(np.max(bits_lost(storage, *self._known[name]), initial=0.0)))
        return float(round(max(losses)))


def _outside(
    storage: Storage, mean: Array, spread: Array, type_: np.dtype[np.generic], reached: Array
) -> NDArray[np.bool_]:
    """Where values within the statistics would overflow a type, or sink so far below it that they lose their digits.

    As large as they have `reached` in the original they may become.
    """
    limits = limits_of(type_)
    regular = (storage.num != 0) & (storage.den != 0)
    den = np.where(regular, storage.den, 1.0)
    a, b = np.abs(storage.num / den), np.abs(storage.off / den)
    sunken = a * np.maximum(np.abs(mean), spread) < limits.smallest_normal * 2.0 ** -BITS[type_.name]
    over = a * (np.abs(mean) + SIGMAS * spread) + b > np.maximum(limits.max, (1 + AGREE) * reached)
    return np.asarray(regular & (over | (sunken & (b == 0) & (a < 1))))


def bits_lost(storage: Storage, mean: Array, spread: Array) -> Array:
    """Bits lost by storing a tensor of this mean and spread; none where v' does not matter."""
    regular = (storage.num != 0) & (storage.den != 0)
    beta = np.where(regular, -storage.off / np.where(storage.num == 0, 1.0, storage.num), 0.0)
    size = np.maximum(np.maximum(spread, np.abs(mean)), np.finfo(np.float64).tiny)
    growth = np.where(regular & (storage.off != 0), np.abs(beta - mean) / size, 1.0)
    return np.asarray(np.log2(np.maximum(growth, 1.0)))


def misfits(edits: Sequence[Edit], narrow: int = 0) -> str:
    """What of a node's edits does not fit the type in which it is stored; '' where all does.

    Float32 will be stored in `narrow`, where that is a type. Where a bias comes along, a few channels of small weights
    lose nothing that it would not drown.
    """
    biased = any(isinstance(edit, NewBias) or (isinstance(edit, NewConstant) and edit.hint == "bias") for edit in edits)
    return next((text for edit in edits if (text := _misfit(edit, biased, narrow))), "")


def _stored(type_: int, narrow: int) -> int:
    return narrow if narrow and type_ == TensorProto.FLOAT else type_


def _misfit(edit: Edit, biased: bool, narrow: int) -> str:
    if isinstance(edit, SetAttribute | SetOperator) or edit.type not in FLOATS:
        return ""
    type_ = FLOATS[_stored(edit.type, narrow)]
    limits = limits_of(type_)
    largest, smallest = limits.max, limits.smallest_normal
    if isinstance(edit, NewBias):
        return "" if np.all(np.abs(edit.shift) <= largest) else f"the new bias would overflow {type_.name}"
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        high = math.prod(float(np.abs(factor).max(initial=0.0)) for factor in edit.factors)
        low = math.prod(_least(factor) for factor in edit.factors)
    value: Array
    if edit.values is not None or not (largest > 1e20 and low > 1e-20 and high < 1e20):
        with np.errstate(over="ignore", invalid="ignore"):
            value = edit.value()
    elif edit.shift is not None and (edit.base is None or edit.hint == "bias"):
        value = edit.shift()  # the rest is far from the limits
    else:
        return ""
    if not np.all(np.abs(value) <= largest):
        return f"the new {edit.hint} would overflow {type_.name}"
    if edit.base is None or edit.shift is not None:
        return ""
    groups = () if biased else edit.factors
    bits = _sunken(np.abs(value), groups, smallest) - _sunken(np.abs(edit.base.float64()), (), smallest)
    if (biased or edit.values is not None) and bits > 0:  # a merge is no need
        return f"the new {edit.hint} would be subnormal in {type_.name}"
    if bits <= BITS[type_.name]:
        return ""
    return f"the new {edit.hint} would be so small that {type_.name} keeps {bits:.0f} bits less of it"


def _least(factor: Array) -> float:
    """The smallest magnitude but zero."""
    sizes = np.abs(factor[factor != 0])
    return float(sizes.min()) if sizes.size else 1.0


def _sunken(size: Array, factors: tuple[Array, ...], smallest: float) -> float:
    """Bits that subnormal numbers lose: the most of any group of values that share their factors."""
    shape = np.broadcast_shapes(*(factor.shape for factor in factors)) if factors else ()
    shared = tuple(axis for axis in range(size.ndim) if axis >= len(shape) or shape[axis] == 1)
    most = np.max(size, axis=shared, initial=0.0) if shared else size
    low = most[(most > 0) & (most < smallest)]
    return float(np.log2(smallest / np.min(low))) if low.size else 0.0
