"""One operator in one form, and which affines leave in front of it and behind it: a row of the tables of rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.certificate import certify
from bnfold.graph import Model
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.runtime import Session
from bnfold.source import read
from tests.builder import KINDS, Builder
from tests.law import Folded, feeds, law

Apply = Callable[[Builder, str], str]

IMAGE = (3, 6, 7, 5)
TRAP = (3, 5, 4, 5)  # the width equals the channels
ALL = KINDS
SCALES = "upsz"


@dataclass(frozen=True)
class Row:
    """One operator in one form.

    `front`: the affines (letters of `Builder.affine`) that leave between the graph input and this operator, with an
    absorber behind. `behind`: those that leave between this operator and the graph output, with an absorber in front.
    """

    name: str
    apply: Apply
    front: str
    behind: str
    shape: tuple[int, ...] = IMAGE
    axis: int = 1
    """Channel axis of the output."""
    opsets: tuple[int, ...] = (17,)
    front_axis: int = 1
    """Channel axis of the input."""


def node(op: str, **attributes: Any) -> Apply:
    """An operator of one input."""
    return lambda b, x: b.node(op, x, **attributes)


def cases(rows: Iterable[Row]) -> list[object]:
    """Every row in both directions: each kind of affine at the newest opset, some at the older ones."""
    return [
        pytest.param(row, side, kind, opset, id=f"{row.name}-{side}-{kind}-{opset}")
        for row in rows
        for opset in row.opsets
        for side in ("front", "behind")
        for kind in (KINDS if opset == row.opsets[-1] >= 7 else "stn")
    ]


def built(row: Row, side: str, kind: str, opset: int, type_: int = TensorProto.DOUBLE) -> Builder:
    """The graph of a case."""
    b = Builder(opset, type_)
    x = b.input(*row.shape)
    if side == "front":
        b.absorber(row.apply(b, b.affine(x, kind, row.front_axis)), axis=row.axis)
    else:
        b.affine(row.apply(b, b.absorber(x, out=row.shape[1])), kind, row.axis)
    return b


def holds(row: Row, side: str, kind: str, opset: int) -> Folded:
    """The law, what leaves and what stays, and the certificate."""
    leaves = kind in (row.front if side == "front" else row.behind)
    case = law(built(row, side, kind, opset).model())
    assert (case.left == 0) == leaves, f"{case.left} affine nodes left: {case.codes()}"
    certified(case)
    return case


def certified(case: Folded) -> None:
    """The certificate holds."""
    found = certify(Model(read(case.original)), Model(read(case.model)), witness_of(Rewrite.of(case.solution.plan)))
    assert found.ok, found.failures


def runs_alike(case: Folded, tolerance: float = 2e-5, optimize: bool = True) -> None:
    """ONNX Runtime makes the same of both models, up to the rounding of float32."""
    values = feeds(case.original)
    before, after = (
        Session(model.SerializeToString(), optimize=fuse).run(values)
        for model, fuse in ((case.original, False), (case.model, optimize))
    )
    for name, value in before.items():
        size = max(1.0, float(np.max(np.abs(value))))
        np.testing.assert_allclose(after[name], value, rtol=0, atol=tolerance * size)
