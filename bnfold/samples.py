"""Inputs to compare two models on: seeded, signed, of several scales, and of a size that the model accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bnfold.errors import UsageError
from bnfold.kernels.base import Array, is_float_type

Feeds = dict[str, Array]
"""One sample: values by input name."""

SCALES = (1.0, 0.25, 3.0)
"""The spread of the values, sample by sample in turn."""

# What a free axis may be: batch above one and height unlike width come first, what fixed-size models expect last.
BATCHES = (3, 2, 1)
PLANES = ((96, 128), (160, 224), (224, 224), (299, 299), (320, 320), (48, 320), (512, 512), (640, 640), (32, 32))
_LENGTHS = (24, 16, 128, 1)
_WAVES = (1024, 16000, 80)
_INTEGERS = ((0, 9), (0, 2), (1, 2))
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))  # pixels, or quantized values: the whole range


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: element type, and its dims as numbers, names or None."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str | None, ...] | None

    @property
    def is_free(self) -> bool:
        """Whether any size is left to choose."""
        return self.dims is None or any(not isinstance(dim, int) for dim in self.dims)


def real_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have no initializer: the others are constants (below IR 4) or have a default."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in constants]


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """The inputs to feed. Raises `UsageError` for one that is no tensor (a sequence, an optional)."""
    specs = []
    for value in real_inputs(model):
        if not value.type.HasField("tensor_type"):
            raise UsageError(f"input '{value.name}' is not a tensor: bnfold cannot make values for it")
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        dims = None
        if tensor.HasField("shape"):
            dims = tuple(dim.dim_value if dim.dim_value > 0 else str(dim.dim_param) or None for dim in tensor.shape.dim)
        specs.append(InputSpec(value.name, dtype, dims))
    return specs


def candidates(
    specs: Sequence[InputSpec],
    shapes: Mapping[str, Sequence[int]] | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    planes: Sequence[tuple[int, int]] = PLANES,
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try, in order of preference. Those asked for are kept; a fixed model has one candidate.

    Raises `UsageError` for a shape of an unknown input, of another rank, or against a fixed size.
    """
    given = {name: tuple(int(size) for size in shape) for name, shape in (shapes or {}).items()}
    _check_given(specs, given)
    seen = []
    for batch in batches:
        for turn, plane in enumerate(planes):
            names: dict[str, int] = {}
            length, wave = _LENGTHS[turn % len(_LENGTHS)], _WAVES[turn % len(_WAVES)]
            found = {
                spec.name: given.get(spec.name) or _filled(spec, batch, plane, length, wave, names) for spec in specs
            }
            if found not in seen:
                seen.append(found)
                yield found


def _check_given(specs: Sequence[InputSpec], given: Mapping[str, tuple[int, ...]]) -> None:
    known = {spec.name: spec for spec in specs}
    for name, shape in given.items():
        if name not in known:
            raise UsageError(f"--shape names '{name}', which is no input; the inputs are {', '.join(known) or 'none'}")
        dims = known[name].dims
        fits = dims is None or (
            len(dims) == len(shape)
            and all(not isinstance(dim, int) or dim == size for dim, size in zip(dims, shape, strict=True))
        )
        if not fits:
            raise UsageError(f"--shape {name}={'x'.join(map(str, shape))} does not fit the model's {list(dims or ())}")


def _filled(
    spec: InputSpec, batch: int, plane: tuple[int, int], length: int, wave: int, names: dict[str, int]
) -> tuple[int, ...]:
    """Sizes for the free axes; one name has one size throughout the model."""
    dims = (None, 3, None, None) if spec.dims is None else spec.dims
    sizes = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            sizes.append(dim)
            continue
        if axis == 0:
            size = batch
        elif len(dims) >= 4:
            # Channels last where the last axis is fixed and small: height and width are then axes 1 and 2.
            first = 1 if not isinstance(dims[1], int) and isinstance(dims[-1], int) else len(dims) - 2
            size = plane[min(max(axis - first, 0), 1)] if axis >= first else (3 if axis == 1 else 8)
        else:
            size = wave if len(dims) == 3 and axis == 2 else length
        sizes.append(names.setdefault(dim, size) if dim else size)
    return tuple(sizes)


def make(
    specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], sample: int, seed: int, integers: tuple[int, int]
) -> dict[str, Array]:
    """One sample: normal values of a spread that depends on `sample`, exactly representable in each input's type."""
    random = np.random.default_rng([seed, sample])
    spread = SCALES[sample % len(SCALES)]
    feeds: dict[str, Array] = {}
    for spec in specs:
        shape = shapes[spec.name]
        if is_float_type(spec.dtype):
            values = random.standard_normal(shape) * spread
            if len(shape) > 2 and sample % 2:
                # Channels of unlike size, as real data has.
                values = values * random.uniform(0.2, 2.0, (1, shape[1], *[1] * (len(shape) - 2)))
            feeds[spec.name] = np.asarray(values).astype(spec.dtype)  # without axes NumPy gives a number
        elif spec.dtype == np.dtype(bool):
            feeds[spec.name] = np.asarray(random.integers(0, 2, shape) == sample % 2)
        elif spec.dtype in _BYTES:
            limits = np.iinfo(spec.dtype)
            feeds[spec.name] = np.asarray(random.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True))
        elif spec.dtype.kind in "iu":
            feeds[spec.name] = np.asarray(random.integers(*integers, shape)).astype(spec.dtype)
        else:
            raise UsageError(f"input '{spec.name}' is of type {spec.dtype}: give values with --inputs FILE.npz")
    return feeds


def integer_ranges(specs: Sequence[InputSpec]) -> Sequence[tuple[int, int]]:
    """The ranges to try for integer inputs (indices and lengths: small and not negative)."""
    free = any(spec.dtype.kind in "iu" and spec.dtype not in _BYTES for spec in specs)
    return _INTEGERS if free else _INTEGERS[:1]
