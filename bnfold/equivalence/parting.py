"""Where two models part: the first tensor, in the order of the original's graph, that is not the same in both.

Both run in float64 on one sample. A tensor is the same where it differs by no more than rounding the weights moves it
(the rule of `bnfold.equivalence.noise`). It is stored otherwise where `v = alpha*v' + beta` holds in each channel: that
is what a fold does, and no difference yet. Graph outputs must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import onnx

from bnfold.equivalence.noise import Evidence, judge
from bnfold.errors import ModelError
from bnfold.kernels.base import Array, is_float_type, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.samples import Feeds, real_inputs
from bnfold.source import Source

_POINTS = 512
"""How many positions of a channel are compared, about; the same ones in both models."""

_ENOUGH = 3
"""Numbers of a channel that can tell an affine map from something else."""

_FOLDED = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})


@dataclass(frozen=True)
class Parting:
    """Where they part. `matched_by` is "name", "position", or "nothing" where no tensor of one is found in the other.

    `tensor` (by its name in the original; `other` in the optimized model), made by `node` of type `op`, is the first
    that differs, and `problem` says how; it is empty where all that were matched agree. `agree` tensors before it do,
    `stored_otherwise` of them, the first of which is `first_stored`, up to a scale and shift of each channel.
    """

    matched_by: str
    matched: int
    agree: int = 0
    tensor: str = ""
    other: str = ""
    node: str = ""
    op: str = ""
    problem: str = ""
    stored_otherwise: int = 0
    first_stored: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(vars(self))

    @property
    def before(self) -> str:
        """What agrees before the first difference, or altogether, in words."""
        if not self.matched:
            return "no tensor of one model was found in the other, by name or by position"
        how = f"{self.agree} of {self.matched} tensors matched by {self.matched_by} agree"
        if self.stored_otherwise:
            how += f", {self.stored_otherwise} of them up to scale and shift, the first '{self.first_stored}'"
        return how if self.tensor else f"{how}: in float64 no difference was found in the main graph"

    def __str__(self) -> str:
        if not self.tensor:
            return self.before
        name = f"'{self.tensor}'" + (f" ('{self.other}' in the other)" if self.other != self.tensor else "")
        return f"{name}, output of {self.op} '{self.node}': {self.problem}; before it {self.before}"


@dataclass
class _Seen:
    """One tensor of one model: who makes it, its shapes sample by sample, and what is compared."""

    node: onnx.NodeProto
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        return self.node.op_type, *self.shapes


def find_parting(original: Source, optimized: Source, feeds: Feeds, seed: int) -> Parting:
    """Run both, and compare tensor by tensor.

    Raises `ModelError` where they have not as many inputs, and what the oracle raises.
    """
    samples = _turned(feeds)
    names = [value.name for value in real_inputs(optimized.proto)]
    if len(names) != len(feeds):
        raise ModelError(f"one has {len(feeds)} inputs, the other {len(names)}")
    renamed = [dict(zip(names, _in_order(original.proto, sample), strict=True)) for sample in samples]
    runs = [_seen(original, samples, rounding) for rounding in (None, seed + 1, seed + 2)]
    others = [_seen(optimized, renamed, rounding) for rounding in (None, seed + 3)]
    ends = [[value.name for value in source.proto.graph.output] for source in (original, optimized)]
    pairs, how = _matched(runs[0], others[0], ends)
    outputs = set(ends[0])
    stored: list[str] = []
    for agree, (name, other) in enumerate(pairs):
        before, after = runs[0][name], others[0][other]
        problem = ""
        if before.shapes != after.shapes:
            problem = f"its shape is {list(after.shapes[0])}, the original's {list(before.shapes[0])}"
        else:
            noisy = [np.concatenate(run[name].values) for run in runs[1:] if name in run]
            moved = [np.concatenate(run[other].values) for run in others[1:] if other in run]
            value, found = np.concatenate(before.values), np.concatenate(after.values)
            problem = _difference(name, value, found, noisy)
            if problem and name not in outputs and _is_stored_otherwise(name, value, found, noisy, moved):
                stored.append(name)
                problem = ""
        if problem:
            label, first = before.node.name or before.node.output[0], next(iter(stored), "")
            return Parting(how, len(pairs), agree, name, other, label, before.node.op_type, problem, len(stored), first)
    return Parting(how, len(pairs), len(pairs), stored_otherwise=len(stored), first_stored=next(iter(stored), ""))


def _turned(feeds: Feeds) -> list[Feeds]:
    """The sample, and itself with its values in other places, until there are enough rows to tell maps apart."""
    rows = min((array.shape[0] for array in feeds.values() if array.ndim), default=1)
    count = -(-_ENOUGH // max(1, rows))
    return [{name: np.roll(array, 7 * turn) for name, array in feeds.items()} for turn in range(count)]


def _in_order(model: onnx.ModelProto, sample: Feeds) -> list[Array]:
    return [sample[value.name] for value in real_inputs(model)]


def _seen(source: Source, samples: Sequence[Feeds], rounding: int | None) -> dict[str, _Seen]:
    """Every tensor that nodes of the main graph make, in order; Constants are no results."""
    makers = {name: node for node in source.proto.graph.node for name in node.output if node.op_type != "Constant"}
    oracle = Oracle(source)
    seen: dict[str, _Seen] = {}

    def watch(name: str, value: Any) -> None:
        if name in makers and isinstance(value, np.ndarray | np.generic):
            entry = seen.setdefault(name, _Seen(makers[name]))
            entry.shapes.append(np.shape(value))
            entry.values.append(_some(np.asarray(value)))

    for sample in samples:
        oracle.run(sample, rounding_seed=rounding, weights_only=True, watch=watch)
    return seen


def _some(value: Array) -> Array:
    """(rows, channels, middle, last): all of a small tensor, and of a large one the same random part of the middle."""
    first, last = (value.shape + (1, 1))[:2], value.shape[-1] if value.ndim > 2 else 1
    whole = value.reshape(*first, -1, last) if value.size else np.zeros((0, 1, 1, 1), value.dtype)
    wanted = max(1, _POINTS // max(1, last))
    if whole.shape[2] > wanted:
        random = np.random.default_rng(whole.shape[2])
        whole = whole[:, :, np.sort(random.choice(whole.shape[2], wanted, replace=False))]
    return np.array(whole)


def _matched(
    one: Mapping[str, _Seen], two: Mapping[str, _Seen], outputs: Sequence[Sequence[str]]
) -> tuple[list[tuple[str, str]], str]:
    """By name where most names that both have mean the same; else by operator and shape, in order, and as outputs."""
    common = [name for name in one if name in two]
    alike = sum(_same_meaning(one[name], two[name]) for name in common)
    if alike and 2 * alike >= len(common) and 2 * alike >= min(len(one), len(two)):
        return [(name, name) for name in common], "name"
    names = list(one), list(two)
    keys = [seen.key for seen in one.values()], [seen.key for seen in two.values()]
    blocks = SequenceMatcher(None, *keys, autojunk=False)
    pairs = {
        names[0][block.a + step]: names[1][block.b + step]
        for block in blocks.get_matching_blocks()
        for step in range(block.size)
    }
    if len(outputs[0]) == len(outputs[1]):
        pairs |= dict(zip(*outputs, strict=True))
    return [(name, pairs[name]) for name in one if pairs.get(name) in two], "position" if pairs else "nothing"


def _same_meaning(one: _Seen, two: _Seen) -> bool:
    """Whether a name may stand for one tensor; where a node was folded, another one writes its output."""
    return one.shapes == two.shapes and (one.node.op_type == two.node.op_type or one.node.op_type in _FOLDED)


def _difference(name: str, value: Array, found: Array, noisy: Sequence[Array]) -> str:
    return judge(Evidence(name, 0, value, value, found, noisy, unit=unit_roundoff(np.float32))).problem


def _is_stored_otherwise(name: str, value: Array, found: Array, noisy: Sequence[Array], moved: Sequence[Array]) -> bool:
    """Whether an affine map of each channel (axis 1, or the last one) explains the difference."""
    if not is_float_type(value.dtype) or not (np.isfinite(value).all() and np.isfinite(found).all()):
        return False
    for channel in (1, 3):
        axes = tuple(axis for axis in range(4) if axis != channel)
        if value.size // max(1, value.shape[channel]) < _ENOUGH:
            continue
        alpha, beta = _fit(found, value, axes)
        after = [value + alpha * (run - found) for run in moved]
        if not _difference(name, value, alpha * found + beta, [*noisy, *after]):
            return True
    return False


def _fit(x: Array, y: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """alpha and beta of each channel with the least squares of `alpha*x + beta - y`."""
    middle, target = x.mean(axes, keepdims=True), y.mean(axes, keepdims=True)
    spread = ((x - middle) ** 2).sum(axes, keepdims=True)
    common = ((x - middle) * (y - target)).sum(axes, keepdims=True)
    alpha = np.divide(common, spread, out=np.zeros_like(common), where=spread > 0)
    return alpha, target - alpha * middle
