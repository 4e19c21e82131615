"""What a classifier answers before and after: accuracy on the user's labels, and how far the scores moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.equivalence.check import finite
from bnfold.errors import UsageError
from bnfold.inputs import Own
from bnfold.kernels.base import Array, is_float_type
from bnfold.runtime import Session

_TOP = 5


@dataclass(frozen=True)
class Share:
    """A share of the samples, 0 to 1, before and after."""

    before: float
    after: float

    def to_json(self) -> dict[str, float]:
        """A plain dict."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class Answers:
    """Both models on every labelled sample, on `provider` with its optimisations on.

    `top5` is None for fewer than six classes. `changed` counts samples whose first answer is another; `difference` is
    the largest absolute difference of a score, `largest` the largest absolute score of the original.
    """

    output: str
    provider: str
    samples: int
    classes: int
    top1: Share
    top5: Share | None
    changed: int
    difference: float
    largest: float

    @property
    def shares(self) -> tuple[tuple[str, Share], ...]:
        """The accuracies that there are, by name."""
        return tuple((name, share) for name, share in (("top-1", self.top1), ("top-5", self.top5)) if share)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "output": self.output,
            "provider": self.provider,
            "samples": self.samples,
            "classes": self.classes,
            "top1": self.top1.to_json(),
            "top5": self.top5 and self.top5.to_json(),
            "changed": self.changed,
            "difference": finite(self.difference),
            "largest": finite(self.largest),
        }


def answers(
    own: Own,
    labels: Array,
    original: bytes | Path,
    optimized: bytes | Path,
    *,
    provider: str,
    tf32: bool = False,
    options: Mapping[str, str] | None = None,
) -> Answers:
    """Run both models on every sample.

    Raises:
        UsageError: no output has a row of scores for each image, or a label is no class.
        CannotRun: a model does not run.
    """
    one, two = (Session(model, provider=provider, tf32=tf32, options=options) for model in (original, optimized))
    pairs: list[tuple[Array, Array]] = []
    output = ""
    for sample in own:
        outputs = one.run(sample)
        rows = next(iter(sample.values())).shape[0]
        output = output or _scores(outputs, rows)
        pairs.append((_flat(outputs[output], rows), _flat(two.run(sample)[output], rows)))
    before, after = (np.concatenate(found)[: len(labels)] for found in zip(*pairs, strict=True))
    classes = before.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise UsageError(
            f"--labels has the class {wrong[0]}, and output '{output}' has {classes} classes, 0 to {classes - 1}"
        )
    return Answers(
        output,
        provider,
        len(labels),
        classes,
        _share(before, after, labels, 1),
        _share(before, after, labels, _TOP) if classes > _TOP else None,
        int(np.count_nonzero(before.argmax(1) != after.argmax(1))),
        float(np.max(np.abs(before - after))),
        float(np.max(np.abs(before))),
    )


def _scores(outputs: Mapping[str, Array], rows: int) -> str:
    """The first output that has at least two numbers for each row, and nothing else."""
    for name, value in outputs.items():
        if value.ndim < 2 or value.shape[0] != rows or not is_float_type(value.dtype):
            continue
        if 1 < max(value.shape[1:]) == value.size // rows:
            return name
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    raise UsageError(f"--labels: no output has one row of class scores for each of {rows} samples ({shapes})")


def _flat(value: Array, rows: int) -> Array:
    return value.reshape(rows, -1).astype(np.float64)


def _share(before: Array, after: Array, labels: Array, top: int) -> Share:
    return Share(*(float(np.mean(_hits(scores, labels, top))) for scores in (before, after)))


def _hits(scores: Array, labels: Array, top: int) -> Array:
    """Whether fewer than `top` classes score higher than the right one; of equals the first comes first."""
    right = np.take_along_axis(scores, labels[:, None], 1)
    ahead = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < labels[:, None]))
    return np.asarray(np.count_nonzero(ahead, axis=1) < top)
