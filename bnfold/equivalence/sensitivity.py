"""How small a mistake does a verification see? One constant of each kind is corrupted, and it is asked again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold.kernels.base import Array, is_float_type, unit_roundoff
from bnfold.source import Source, array_of

LARGEST = 0.01
"""The largest relative corruption that is tried; the smallest is four units in the last place."""

_STEP = 4.0
_TRIES = 3
"""Channels that are tried: what is wrong in one that a ReLU holds at zero cannot be seen."""

_AXES = {("Conv", 1): 0, ("ConvTranspose", 1): 1, ("MatMul", 0): -2, ("MatMul", 1): -1}


@dataclass(frozen=True)
class Sensitivity:
    """The smallest relative corruption seen in one channel of one constant, of `constants` of this kind.

    `kind` is the operator and its name for the input: `Conv.W`. `smallest` is None where not even `largest` was seen;
    `seen_by` is "float64" or the provider. `ulps` is `smallest` in units in the last place of the constant's type.
    """

    kind: str
    constants: int
    node: str
    tensor: str
    channel: int
    largest: float
    smallest: float | None = None
    seen_by: str = ""
    ulps: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(vars(self))


Seen = Callable[[Source], str]
"""Who sees that a model differs from the original: "float64", a provider, or "" for nobody."""


def sensitivity(optimized: Source, seen: Seen, say: Callable[[str], None]) -> tuple[Sensitivity, ...]:
    """Corrupt one constant of each kind, by halves between a few units in the last place and 1%."""
    copy = onnx.ModelProto()
    copy.CopyFrom(optimized.proto)
    model = Source(copy, None, optimized.base_dir)
    rows = []
    for kind, constants in sorted(constants_by_kind(copy).items()):
        say(f"corrupting {kind}")
        middle = len(constants) // 2
        tried = (
            _corrupted(model, each, kind, len(constants), seen) for each in constants[middle:] + constants[:middle]
        )
        row = next((row for row in tried if row is not None), None)
        if row is not None:
            rows.append(row)
    return tuple(rows)


@dataclass(frozen=True)
class Constant:
    """A tensor that a node reads at one of its inputs. `tensor` belongs to the model and is changed in place."""

    node: onnx.NodeProto
    at: int
    tensor: onnx.TensorProto
    name: str

    def values(self, base_dir: Path | None) -> Array:
        """What it holds."""
        return np.asarray(array_of(self.tensor, base_dir))

    @contextmanager
    def corrupted(self, values: Array, channel: int, amount: float) -> Iterator[None]:
        """One channel of the values times 1 + amount, until the block ends."""
        right = onnx.TensorProto()
        right.CopyFrom(self.tensor)
        wrong = _scaled(values, _axis(self, values), channel, amount)
        self.tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, right.name))
        try:
            yield
        finally:
            self.tensor.CopyFrom(right)

    def channels(self, values: Array) -> Iterator[int]:
        """Channels that are not zero: the one of middle size, the largest, the smallest."""
        if values.ndim == 0 or values.size == 0:
            yield from [0] if np.any(values) else []
            return
        axis = _axis(self, values)
        rows = np.moveaxis(values.astype(np.float64), axis, 0).reshape(values.shape[axis], -1)
        norms = np.linalg.norm(rows, axis=1)
        order = [int(channel) for channel in np.argsort(norms, kind="stable") if norms[channel] > 0]
        if order:
            yield from list(dict.fromkeys((order[len(order) // 2], order[-1], order[0])))[:_TRIES]


def constants_by_kind(model: onnx.ModelProto) -> dict[str, list[Constant]]:
    """Constants of floats that nodes of the main graph read, in order, each once: `Conv.W` and so on."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    found: dict[str, list[Constant]] = defaultdict(list)
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            tensor = tensors.pop(name, None)
            if tensor is not None and is_float_type(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)):
                found[f"{node.op_type}.{_formal(node, at, opsets)}"].append(Constant(node, at, tensor, name))
    return found


def _formal(node: onnx.NodeProto, at: int, opsets: dict[str, int]) -> str:
    """The operator's own name for an input."""
    try:
        formal = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain).inputs
    except onnx.defs.SchemaError:
        return str(at)
    return formal[min(at, len(formal) - 1)].name


def _corrupted(model: Source, constant: Constant, kind: str, count: int, seen: Seen) -> Sensitivity | None:
    """None for a constant that is zero all over."""
    values = constant.values(model.base_dir)
    amounts = _amounts(values.dtype)

    def by(channel: int, amount: float) -> str:
        with constant.corrupted(values, channel, amount):
            return seen(model)

    row = None
    for channel in constant.channels(values):
        label = constant.node.name or constant.node.output[0]
        row = Sensitivity(kind, count, label, constant.name, channel, amounts[-1])
        found = by(channel, amounts[-1])
        if found:
            smallest, found = _smallest(amounts, partial(by, channel), found)
            return replace(row, smallest=smallest, seen_by=found, ulps=smallest / (2 * unit_roundoff(values.dtype)))
    return row


def _smallest(amounts: Sequence[float], by: Callable[[float], str], found: str) -> tuple[float, str]:
    """The smallest amount that is seen, where the last is; and by whom."""
    low, high = 0, len(amounts) - 1
    while low < high:
        middle = (low + high) // 2
        who = by(amounts[middle])
        if who:
            high, found = middle, who
        else:
            low = middle + 1
    return amounts[high], found


def _amounts(dtype: Any) -> tuple[float, ...]:
    ulp = 2 * unit_roundoff(dtype)
    steps = [4 * ulp]
    while steps[-1] * _STEP < LARGEST:
        steps.append(steps[-1] * _STEP)
    return (*steps, LARGEST) if steps[-1] < LARGEST else (2 * ulp,)


def _axis(constant: Constant, values: Array) -> int:
    """The axis of the output's channels; where the operator is none that is known, the longest."""
    op, at = constant.node.op_type, constant.at
    if op == "Gemm" and at < 2:
        turned = {entry.name: entry.i for entry in constant.node.attribute}.get("transB" if at else "transA", 0)
        return at ^ int(turned)
    axis = _AXES.get((op, at), int(np.argmax(values.shape or (1,))))
    return axis % max(1, values.ndim) if values.ndim >= 2 else 0


def _scaled(values: Array, axis: int, channel: int, amount: float) -> Array:
    wrong = values.astype(np.float64)
    part = np.moveaxis(wrong, axis, 0) if values.ndim else wrong.reshape(1)
    part[channel] *= 1 + amount
    return np.asarray(wrong.astype(values.dtype))
