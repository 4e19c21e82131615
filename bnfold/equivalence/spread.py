"""How errors are spread: over the elements of an output, and over the tensors inside a model.

Nothing here decides: it shows where an error sits, and how far rounding alone would have brought it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from bnfold.affine import Storage
from bnfold.kernels.base import Array, is_float_type
from bnfold.witness import Witness

PER_DECADE = 4
"""Bins of a histogram in each power of ten."""

SMALLEST = -18
"""Errors below ten to this power count as if they were of it; float64 knows none so small but zero."""

SAMPLED = 4096
"""Elements that are compared of each inner tensor: enough for a norm, and every tensor of a large model fits."""


@dataclass(frozen=True)
class Histogram:
    """Element errors of an output relative to its largest element: how many there are of each size.

    Bin i holds errors from ``10 ** (first + i/4)`` up to the next bin. `zeros` has those of the original and of the
    optimized model that are exactly zero, in no bin.
    """

    first: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "first": self.first,
            "per_decade": PER_DECADE,
            "before": list(self.before),
            "after": list(self.after),
            "zeros": list(self.zeros),
        }


def histogram(reference: Array, before: Array, after: Array) -> Histogram | None:
    """The histogram of two runs' errors; None where the reference has no finite size."""
    size = float(np.max(np.abs(reference), initial=0.0))
    if not (0 < size < float("inf")):
        return None
    counted = [_bins(np.abs(run - reference) / size) for run in (before, after)]
    first = min((low for low, _, _ in counted if low is not None), default=0)
    last = max((first, *(low + len(counts) for low, counts, _ in counted if low is not None)))
    padded = []
    for low, counts, _ in counted:
        bins = [0] * (last - first)
        if low is not None:
            bins[low - first : low - first + len(counts)] = counts
        padded.append(tuple(bins))
    return Histogram(first / PER_DECADE, padded[0], padded[1], (counted[0][2], counted[1][2]))


def _bins(errors: Array) -> tuple[int | None, list[int], int]:
    """The first bin's number, the counts from it on, and how many errors are zero."""
    errors = errors[np.isfinite(errors)]
    found = errors[errors > 0]
    zeros = int(errors.size - found.size)
    if not found.size:
        return None, [], zeros
    numbers = np.floor(np.log10(np.maximum(found, 10.0**SMALLEST)) * PER_DECADE).astype(np.int64)
    low = int(numbers.min())
    return low, [int(count) for count in np.bincount(numbers - low)], zeros


@dataclass
class Sketch:
    """Some elements of every float tensor that one run makes, the same ones of tensors of one shape."""

    samples: dict[str, tuple[tuple[int, ...], Array]] = field(default_factory=dict)

    def __call__(self, name: str, value: Any) -> None:
        """Take a tensor; an oracle's `watch`."""
        if isinstance(value, np.ndarray) and value.ndim and value.size and is_float_type(value.dtype):
            self.samples[name] = value.shape, value.reshape(-1)[_picked(value.shape)]


def _picked(shape: tuple[int, ...]) -> Array:
    size = int(np.prod(shape, dtype=np.int64))
    return np.arange(size) if size <= SAMPLED else np.random.default_rng(0).integers(0, size, SAMPLED)


@dataclass(frozen=True)
class Layer:
    """An inner tensor in float64: how far the optimized model is from the original, as stored.

    `error` is the norm of the difference relative to the norm; `noise` is what one random rounding of the original's
    weights makes of the same tensor. `op` is the operator that makes it.
    """

    tensor: str
    op: str
    error: float
    noise: float

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"tensor": self.tensor, "op": self.op, "error": self.error, "noise": self.noise}


def layers(
    model: onnx.ModelProto, truth: Sketch, rounded: Sketch, optimized: Sketch, witness: Witness | None
) -> tuple[Layer, ...]:
    """Every tensor of the original's main graph that the optimized model has too, in order.

    The witness says how tensors are stored; without it, those of the same name are compared as they are.
    """
    main = (witness or Witness()).main
    found = []
    for node in model.graph.node:
        for name in node.output:
            if name not in truth.samples or name not in rounded.samples:
                continue
            shape, values = truth.samples[name]
            other_shape, other = optimized.samples.get(main.names.get(name, name), ((), None))
            expected = restored(values, shape, main.storage.get(name))
            if other is None or other_shape != shape or expected is None:
                continue
            error, noise = _apart(other, expected), _apart(rounded.samples[name][1], values)
            if error is not None and noise is not None:
                found.append(Layer(name, node.op_type, error, noise))
    return tuple(found)


def restored(values: Array, shape: tuple[int, ...], storage: Storage | None) -> Array | None:
    """What a sketch took, as the optimized model stores it; None where that does not keep it on every channel."""
    if storage is None:
        return values
    if not storage.has_encode or storage.a.ndim > len(shape):
        return None
    scale, shift, _ = _encode(shape, storage)
    return np.asarray(scale * values + shift)


def _encode(shape: tuple[int, ...], storage: Storage) -> tuple[Array, Array, Array]:
    """Scale, shift and channel of the elements that a sketch takes of a tensor that is stored like this."""
    index = np.unravel_index(_picked(shape), shape)
    scale, shift = (np.broadcast_to(array, shape)[index] for array in (storage.a, storage.b))
    return scale, shift, index[1] if len(shape) > 1 else np.zeros(len(scale), np.int64)


def growth(values: Array, shape: tuple[int, ...], storage: Storage) -> float:
    """How many times larger than a channel itself the shift is that it is stored with: its readers lose as much."""
    scale, shift, channel = _encode(shape, storage)
    size, moved = np.zeros((2, int(channel.max(initial=0)) + 1))
    np.maximum.at(size, channel, np.abs(scale * values))
    np.maximum.at(moved, channel, np.abs(shift))
    return float(np.max(moved[size > 0] / size[size > 0], initial=0.0))


def _apart(run: Array, expected: Array) -> float | None:
    """The relative norm of the difference, where both are finite and there is something to be relative to."""
    size = float(np.linalg.norm(expected))
    difference = float(np.linalg.norm(run - expected))
    return difference / size if 0 < size < float("inf") and np.isfinite(difference) else None
