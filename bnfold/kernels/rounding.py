"""Monte Carlo arithmetic: what one random rounding of every constant and every result does to a model.

Each weight and each computed tensor is multiplied by 1 + u * r with r uniform in [-1, 1] and u the unit roundoff of
the type that the model stores it in (D. S. Parker, "Monte Carlo Arithmetic", UCLA CSD-970002, 1997). The result moves
by what correctly rounded arithmetic of that precision may move it, whatever runtime computes it.

Only what depends on the model's inputs is rounded: sizes and scales that a graph computes from shapes stay exact.
"""

from __future__ import annotations

import zlib
from collections.abc import Container, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from bnfold.kernels.base import Array, is_float, unit_roundoff

# They copy, select or compare: their results need no rounding.
# fmt: off
_EXACT = frozenset({
    "Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "Pad", "DepthToSpace", "SpaceToDepth", "Relu", "MaxPool",
    "GlobalMaxPool", "Max", "Min", "Clip", "Abs", "Neg", "Dropout", "ReduceMax", "ReduceMin", "Where", "ScatterND",
    "ScatterElements", "Scatter", "Floor", "Ceil", "Round", "Sign", "TopK", "ArgMax", "ArgMin", "NonZero", "If",
    "Loop", "Scan",
})
# fmt: on

# A fold rewrites these constants; those of other ops steer them (scales, bounds, exponents).
# fmt: off
WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "BatchNormalization", "InstanceNormalization",
    "GroupNormalization", "LayerNormalization", "RMSNormalization", "Add", "Sub", "Mul", "Div", "Sum", "Mean",
    "Max", "Min", "Where", "PRelu",
    "GRU", "LSTM", "RNN",
})
# fmt: on
"""The ops whose constants are weights."""

# They return facts about their input that rounding does not touch.
_OPAQUE = frozenset({"Shape", "Size"})

_DEFAULT_UNIT = 2.0**-24

# Random numbers are drawn once and repeated: a prime length, so that no axis of a tensor lines up with the period.
_POOL = 1_048_573


class Rounding:
    """One Monte Carlo rounding of the weights and, unless `weights_only`, of every result.

    `unit` is the unit roundoff of all, in place of that of each one's type.
    `units` has the unit roundoff of every tensor that depends on an input so far.
    """

    def __init__(self, seed: int, *, weights_only: bool = False, unit: float | None = None) -> None:
        self.weights_only, self.unit = weights_only, unit
        self._random = np.random.default_rng(seed)
        self._pool = self._random.uniform(-1, 1, _POOL)

    def inputs(
        self,
        op: str,
        names: Sequence[str],
        values: list[Any],
        units: Mapping[str, float],
        stored: Mapping[str, float],
        held: Container[str] = (),
    ) -> list[Any]:
        """A node's inputs with its weights rounded.

        `stored` has the unit roundoff of the constants; those that are not `held` elsewhere may be overwritten.
        """
        if op not in WEIGHTED or not any(name in units for name in names):
            return values
        return [
            value
            if name in units or not is_float(value) or value.size < 2
            else self._weight(name, value, stored, name not in held)
            for name, value in zip(names, values, strict=True)
        ]

    def _weight(self, name: str, value: Array, stored: Mapping[str, float], ours: bool) -> Array:
        # Placed by name: a shared weight is rounded once.
        return self._rounded(value, stored.get(name, _DEFAULT_UNIT), zlib.crc32(name.encode()) % _POOL, ours)

    def output(self, op: str, value: Any, unit: float) -> Any:
        """A node's result, rounded where the node rounds."""
        if self.weights_only or op in _EXACT or not is_float(value):
            return value
        return self._rounded(value, unit or _DEFAULT_UNIT, int(self._random.integers(_POOL)))

    def _rounded(self, value: Array, unit: float, start: int, ours: bool = False) -> Array:
        """value * (1 + unit * r), r from the pool beginning at `start`; in place where the array is `ours`."""
        whole = ours and value.flags.owndata and value.flags.writeable and value.flags.c_contiguous
        result = value if whole and value.dtype == np.float64 else np.array(value, np.float64, order="C")
        flat, at, place = result.reshape(-1), 0, start
        unit = self.unit or unit
        while at < flat.size:
            count = min(_POOL - place, flat.size - at)
            part = flat[at : at + count]
            part += part * (unit * self._pool[place : place + count])
            at, place = at + count, 0
        return result


class Nearest(Rounding):
    """Every result rounded to nearest in the type that the model has it in, as a runtime does that computes in it.

    Beyond the type's range it is infinite. Products are added up exactly before they are rounded.
    """

    def __init__(self) -> None:
        super().__init__(0)

    def inputs(
        self,
        op: str,
        names: Sequence[str],
        values: list[Any],
        units: Mapping[str, float],
        stored: Mapping[str, float],
        held: Container[str] = (),
    ) -> list[Any]:
        """The inputs as they are: constants have their type already."""
        return values

    def output(self, op: str, value: Any, unit: float) -> Any:
        """A node's result in its type."""
        dtype = _TYPES.get(unit)
        return value if dtype is None or not is_float(value) else value.astype(dtype).astype(np.float64)


_TYPES = {unit_roundoff(dtype): np.dtype(dtype) for dtype in (np.float16, np.float32, ml_dtypes.bfloat16)}


def result_unit(op: str, names: Sequence[str], units: Mapping[str, float], cast_to: float | None) -> float | None:
    """The unit roundoff of a node's results, or None where they do not depend on an input."""
    found = [units[name] for name in names if name in units]
    if op in _OPAQUE or not found:
        return None
    if cast_to is not None:
        return cast_to
    floats = [unit for unit in found if unit > 0]
    return floats[0] if floats else 0.0
