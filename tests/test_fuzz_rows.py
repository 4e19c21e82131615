"""Random graphs of products by matrices, and scales and shifts along any axes: rows, columns and batches of all kinds.

`make fuzz` makes thousands. A failure names its seed: `checked(built(SEED))`.
"""

from __future__ import annotations

import os
import random

import numpy as np
import onnx

from bnfold.patch import witness_of
from tests.builder import Builder
from tests.merging import agree, certified, solved

GRAPHS = int(os.environ.get("BNFOLD_FUZZ", "300"))
FIRST = int(os.environ.get("BNFOLD_SEED") or 0)

OPS = ["left", "right", "elementwise", "elementwise", "elementwise", "sum", "sum", "bn", "unary", "conv"]


def built(seed: int) -> onnx.ModelProto:
    """One graph of tensors of 2 to 4 axes."""
    rng = random.Random(seed)
    b = Builder(17)
    b.rng = np.random.default_rng(seed)
    values = [b.input(*(rng.choice([2, 3, 4]) for _ in range(rng.choice([2, 3, 3, 4]))))]
    if rng.random() < 0.6:
        values.append(b.node(rng.choice(["Relu", "Tanh"]), values[0]))
    for _ in range(rng.randint(4, 12)):
        values.append(step(b, rng, values))
    more = [rng.choice(values[1:-1])] if rng.random() < 0.3 else []
    return b.model(values[-1], *more)


def step(b: Builder, rng: random.Random, values: list[str]) -> str:
    """One node behind one of the latest values."""
    x, op = rng.choice(values[-4:]), rng.choice(OPS)
    shape = b.shape(x)
    if op == "left":
        return b.node("MatMul", b.constant(b.normal(rng.choice([2, 3, shape[-2]]), shape[-2])), x)
    if op == "right" and len(shape) == 2 and rng.random() < 0.5:
        return b.gemm(x, rng.choice([2, 3, shape[-1]]), transB=rng.randint(0, 1))
    if op == "right":
        return b.matmul(x, rng.choice([2, 3, shape[-1]]), rng.random() < 0.4)
    if op == "elementwise":
        return elementwise(b, rng, x)
    if op == "sum":
        other = rng.choice([name for name in values if b.shape(name) == shape])
        return b.node(rng.choice(["Add", "Sub", "Sum", "Mean"]), x, other)
    if op == "unary" or len(shape) < 3:
        return b.node(rng.choice(["Identity", "Neg", "Relu", "Tanh"]), x)
    if op == "conv":
        return b.conv(x, rng.choice([2, 3, shape[1]]), 1)
    gamma = b.normal(shape[1])
    gamma[: rng.choice([0, 0, 1])] = 0.0
    return b.bn(x, gamma=gamma)


def elementwise(b: Builder, rng: random.Random, x: str) -> str:
    """A constant that varies along some axes, here and there zero, before or behind the tensor."""
    sizes = [size if rng.random() < 0.5 else 1 for size in b.shape(x)]
    while sizes and sizes[0] == 1 and rng.random() < 0.5:
        del sizes[0]
    constant = b.normal(*sizes)
    if rng.random() < 0.25:
        constant = np.where(b.normal(*sizes) > 0.5, 0.0, constant)
    op = rng.choice(["Mul", "Add", "Sub", "Div"])
    if op == "Div":
        return b.node(op, x, b.constant(np.abs(constant) + 0.3))
    operands = [x, b.constant(constant)]
    return b.node(op, *(operands if rng.random() < 0.7 else operands[::-1]))


def checked(model: onnx.ModelProto) -> int:
    """How many nodes merged; folded, the graph is certified and the same."""
    found, made = solved(model)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures[0]
    agree(model, made)
    return len(found.rewrite.merges)


def test_rows_of_any_kind() -> None:
    merged = 0
    for seed in range(FIRST, FIRST + GRAPHS):
        try:
            merged += checked(built(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert merged > GRAPHS // 10
