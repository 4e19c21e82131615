"""The user's own inputs: arrays, an `.npz`, an `.npy`, what Polygraphy saved, or a folder of images."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from bnfold import images
from bnfold.errors import UsageError
from bnfold.kernels.base import Array, is_float_type
from bnfold.preprocess import Preprocess, is_carried
from bnfold.samples import Feeds, InputSpec

InputsLike = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]

BATCH = 32
"""Images in one sample where the model leaves that free."""


@dataclass(frozen=True)
class Own:
    """The user's samples, made when they are asked for. `rows` is how many images or rows they hold in all.

    The last sample repeats its last row where they do not come out even. `names` are those of the images, below the
    `folder`.
    """

    count: int
    make: Callable[[int], Feeds]
    rows: int
    folder: Path | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    start: Callable[[int], int] = lambda index: 0
    """How many rows are in front of a sample."""

    def __iter__(self) -> Iterator[Feeds]:
        return map(self.make, range(self.count))


def load(
    inputs: InputsLike,
    specs: Sequence[InputSpec],
    model: onnx.ModelProto,
    preprocess: str | Mapping[str, Any] | None = None,
    *,
    by_row: bool = False,
) -> Own:
    """The samples in a dict (or several), a file or a folder. `by_row` cuts large arrays along their first axis.

    Raises `UsageError` for what cannot be read, a missing input or a wrong type or shape.
    """
    facts = Preprocess.of(preprocess, model)
    if isinstance(inputs, Mapping):
        return _cut(_fitting(inputs, specs, facts), specs, by_row)
    if not isinstance(inputs, (str, Path)):
        return _as_they_are([_fitting(sample, specs, facts) for sample in inputs], specs)
    path = Path(inputs)
    pictures = images.listed(path) if path.is_dir() else []
    saved = sorted(path.glob("*.json")) if path.is_dir() and not pictures else []
    if saved or path.suffix == ".json":
        found = [sample for file in saved or [path] for sample in _polygraphy(file)]
        return _as_they_are([_fitting(sample, specs, facts) for sample in found], specs)
    if path.is_dir():
        images.check(path, pictures)
        return _folder(path, pictures, _only(specs, path), facts, model, stated=preprocess is not None)
    return _cut(_fitting(_arrays(path, specs), specs, facts), specs, by_row)


def _only(specs: Sequence[InputSpec], path: Path) -> InputSpec:
    if len(specs) != 1:
        raise UsageError(f"--inputs {path} is for one input, and the model has {len(specs)}; give an .npz")
    return specs[0]


def _as_they_are(samples: Sequence[Feeds], specs: Sequence[InputSpec]) -> Own:
    if not samples:
        raise UsageError("--inputs holds no sample")
    for sample in samples:
        for spec in specs:
            _must_fit(sample[spec.name], spec, spec.dims)
    sizes = [rows_of(sample) or 1 for sample in samples]
    return Own(len(samples), lambda index: samples[index], sum(sizes), start=lambda index: sum(sizes[:index]))


def rows_of(sample: Feeds) -> int | None:
    """The size of the first axis, where all inputs have it in common."""
    sizes = {array.shape[0] if array.ndim else 0 for array in sample.values()}
    return sizes.pop() if len(sizes) == 1 else None


def _cut(sample: Feeds, specs: Sequence[InputSpec], by_row: bool) -> Own:
    """One sample, or several where the model's batch is fixed, or where rows are what counts."""
    rows = rows_of(sample)
    fixed = {spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], int)}
    batch = fixed.pop() if len(fixed) == 1 else None
    if rows is None or not rows or (batch is None and not by_row):
        return _as_they_are([sample], specs)
    size = batch or min(rows, BATCH)
    start = size.__mul__
    return Own(-(-rows // size), lambda index: _part(sample, start(index), size), rows, start=start)


def _part(sample: Feeds, start: int, size: int) -> Feeds:
    return {name: _filled(array[start : start + size], size) for name, array in sample.items()}


def _filled(array: Array, size: int) -> Array:
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing else array


def _folder(
    path: Path, paths: Sequence[Path], spec: InputSpec, facts: Preprocess, model: onnx.ModelProto, *, stated: bool
) -> Own:
    facts = facts.fitted(spec)
    batch = spec.dims[0] if spec.dims and isinstance(spec.dims[0], int) else min(len(paths), BATCH)

    def make(index: int) -> Feeds:
        part = paths[index * batch : (index + 1) * batch]
        return {spec.name: _filled(facts(images.decoded(part, facts), spec), batch)}

    guessed = "nothing says how images are prepared: pixel/255 was assumed; say it with --preprocess"
    return Own(
        -(-len(paths) // batch),
        make,
        len(paths),
        path,
        tuple(each.relative_to(path).as_posix() for each in paths),
        () if stated or is_carried(model) else (guessed,),
        start=batch.__mul__,
    )


# --------------------------------------------------------------------------------------------------------------- files


def _arrays(path: Path, specs: Sequence[InputSpec]) -> Mapping[str, Array]:
    found = loaded(path, f"--inputs {path}")
    if isinstance(found, np.ndarray):
        return {_only(specs, path).name: found}
    if len(specs) == 1 and specs[0].name not in found and "images" in found:
        return {specs[0].name: found["images"]}
    return found


def loaded(path: Path, what: str) -> Array | Mapping[str, Array]:
    """An .npy's array, or the arrays of an .npz. Raises `UsageError` for a file that numpy does not read."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)  # an .npy may be larger than the memory
        if isinstance(found, np.ndarray):
            return np.asarray(found)
        with found:
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise UsageError(f"{what} does not exist; check the path") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{what} is not an .npz or .npy file that numpy reads ({error})") from None


def _polygraphy(path: Path) -> list[Mapping[str, Array]]:
    """The samples that `polygraphy run --save-inputs` wrote: objects with arrays by input name, in a list or alone."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"--inputs {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--inputs {path} is not JSON ({error})") from None
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(sample, dict) for sample in found):
        raise UsageError(f"--inputs {path} is not what 'polygraphy run --save-inputs' writes: a list of samples")
    return [{name: _decoded(entry, name, path) for name, entry in sample.items()} for sample in found]


def _decoded(entry: Any, name: str, path: Path) -> Array:
    """One array as Polygraphy encodes it: an .npy file in base64; in its first releases with a byte for a character."""
    text = entry.get("array") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"--inputs {path}: '{name}' is not a numpy array that Polygraphy saved")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = text.encode("latin-1", errors="replace")
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"--inputs {path}: '{name}' is not a numpy array that Polygraphy saved ({error})") from None
    if isinstance(found, np.ndarray):
        return found
    return np.asarray(next(iter(found.values())))


# ---------------------------------------------------------------------------------------------------------- the shapes


def _fitting(arrays: Mapping[str, Any], specs: Sequence[InputSpec], facts: Preprocess) -> Feeds:
    missing = [spec.name for spec in specs if spec.name not in arrays]
    if missing:
        raise UsageError(f"--inputs has no '{missing[0]}'; the model's inputs are {', '.join(s.name for s in specs)}")
    return {spec.name: _checked(np.asarray(arrays[spec.name]), spec, facts) for spec in specs}


def _checked(array: Array, spec: InputSpec, facts: Preprocess) -> Array:
    """The array in the input's type. Pixels (uint8, 4 axes) for an input of floats are prepared as images are."""
    if array.dtype == np.uint8 and array.ndim == 4 and is_float_type(spec.dtype):
        facts = replace(facts, size=None).fitted(spec)
        array = facts(array if facts.layout == "nhwc" else array.transpose(0, 2, 3, 1), spec)
    if array.dtype.kind == "V" and spec.dtype == ml_dtypes.bfloat16:
        array = array.view(ml_dtypes.bfloat16)  # what numpy makes of it in a file
    if array.dtype != spec.dtype:
        if not (is_float_type(array.dtype) and is_float_type(spec.dtype)) and array.dtype.kind != spec.dtype.kind:
            raise UsageError(f"--inputs: '{spec.name}' is {array.dtype}, and the model wants {spec.dtype}")
        array = array.astype(spec.dtype)
    # The first axis may be any number of the model's batches.
    _must_fit(array, spec, spec.dims and (None, *spec.dims[1:])[: len(spec.dims)])
    return array


def _must_fit(array: Array, spec: InputSpec, dims: Sequence[int | str | None] | None) -> None:
    if dims is None or (
        len(dims) == array.ndim
        and all(not isinstance(dim, int) or dim == size for dim, size in zip(dims, array.shape, strict=True))
    ):
        return
    wanted = list(spec.dims or ())
    raise UsageError(f"--inputs: '{spec.name}' has shape {list(array.shape)}, and the model wants {wanted}")
