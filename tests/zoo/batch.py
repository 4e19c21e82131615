"""A model whose inputs have a fixed batch, with the batch left free where it computes the same, sample by sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from bnfold import samples
from bnfold.runtime import CannotRun, Session

NAME = "batch"
ALLOWED = 1e-3
"""Relative distance of one sample alone from the same among others."""


def free(model: ModelProto) -> ModelProto:
    """A copy whose inputs and outputs have a first axis of any size; other declared shapes are left out."""
    freed = ModelProto()
    freed.CopyFrom(model)
    del freed.graph.value_info[:]
    given = {value.name for value in samples.real_inputs(model)}
    for value in [*(v for v in freed.graph.input if v.name in given), *freed.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = NAME
    return freed


def is_fixed(model: ModelProto) -> bool:
    """Whether any input has a number for its first axis."""
    return any(_fixed(value) for value in samples.real_inputs(model))


def _fixed(value: ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and dims[0].dim_value > 0


def trouble(path: Path, size: int) -> str:
    """Why a model with a free batch does not compute `size` samples as it does one at a time; "" where it does."""
    specs = samples.input_specs(onnx.load(path, load_external_data=False))
    try:
        session = Session(path, optimize=False, threads=1)
    except CannotRun as error:
        return str(error)[:100]
    said = "no size that was tried runs"
    for shapes in samples.candidates(specs, batches=(size,), planes=((224, 224), (48, 320), (32, 32))):
        feeds = samples.make(specs, shapes, 0, 0, (0, 2))
        if {len(array) for array in feeds.values()} != {size}:
            return "its inputs have no common batch"
        try:
            together = session.run(feeds)
            alone = session.run({name: array[:1] for name, array in feeds.items()})
        except CannotRun as error:
            said = str(error)[:100]
            continue
        return next(filter(None, (_differs(together[name], alone[name], size) for name in together)), "")
    return said


def _differs(together: NDArray[np.float32], alone: NDArray[np.float32], size: int) -> str:
    if together.shape != (size * alone.shape[0], *alone.shape[1:]):
        found, one = ("x".join(map(str, array.shape)) for array in (together, alone))
        return f"a batch is built in: {size} samples give {found}, one gives {one}"
    first, wanted = together[: len(alone)].astype(np.float64), alone.astype(np.float64)
    same = np.linalg.norm(first - wanted) <= ALLOWED * np.linalg.norm(wanted)
    return "" if same else "samples of one batch change each other"
