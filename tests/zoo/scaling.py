#!/usr/bin/env python3
"""Time to solve per affine, for stacks of 1,000 and of 10,000 of them: the table of docs/solver.md.

Run as ``python tests/zoo/scaling.py [--sizes N N]``; exits 1 where the time per affine grows more than 1.5 times.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bnfold.graph import Model
from bnfold.solver import solve
from bnfold.source import read

WIDTH, GROWTH, LAYERS = 8, 4, 24
ALLOWED = 1.5


class Stack:
    """A graph under construction; every operation costs the same, however large the graph is by then."""

    def __init__(self, negative: float) -> None:
        self.negative = negative
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def constant(self, values: ArrayLike) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def relu_bn(self, x: str, channels: int) -> str:
        return self.node("Relu", self.batchnorm(x, channels))

    def batchnorm(self, x: str, channels: int) -> str:
        """A share of the gammas is negative, 3% are a hundred times smaller."""
        gamma = self.rng.lognormal(0, 0.3, channels) * np.where(self.rng.random(channels) < self.negative, -1, 1)
        gamma *= np.where(self.rng.random(channels) < 0.03, 0.01, 1)
        others = (
            self.rng.normal(0, 0.3, channels),
            self.rng.normal(0, 0.5, channels),
            self.rng.lognormal(0, 0.5, channels),
        )
        return self.node("BatchNormalization", x, *map(self.constant, (gamma, *others)))

    def conv(self, x: str, channels: int, out: int, kernel: int) -> str:
        """Padded, without bias."""
        weight = self.constant(self.rng.normal(size=(out, channels, kernel, kernel)) / kernel / channels**0.5)
        return self.node("Conv", x, weight, pads=[kernel // 2] * 4)

    def model(self, y: str, channels: int = WIDTH) -> onnx.ModelProto:
        """Closed: x and y have the same number of channels."""
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, 8, 8]) for name in ("x", y)]
        graph = helper.make_graph(self.nodes, "stack", ends[:1], ends[1:], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(stack: Stack, n: int) -> str:
    x = "x"
    for _ in range(n):
        x = stack.relu_bn(stack.conv(x, WIDTH, WIDTH, 3), WIDTH)
    return stack.conv(x, WIDTH, WIDTH, 1)


def post_activation(stack: Stack, n: int) -> str:
    x = stack.conv("x", WIDTH, WIDTH, 3)
    for _ in range(n // 2):
        y = stack.conv(stack.relu_bn(stack.conv(x, WIDTH, WIDTH, 3), WIDTH), WIDTH, WIDTH, 3)
        x = stack.relu_bn(stack.node("Add", x, y), WIDTH)
    return stack.conv(x, WIDTH, WIDTH, 1)


def pre_activation(stack: Stack, n: int) -> str:
    x = stack.conv("x", WIDTH, WIDTH, 3)
    for _ in range(n // 2):
        y = stack.conv(stack.relu_bn(x, WIDTH), WIDTH, WIDTH, 3)
        x = stack.node("Add", x, stack.conv(stack.relu_bn(y, WIDTH), WIDTH, WIDTH, 3))
    return stack.conv(x, WIDTH, WIDTH, 1)


def dense_blocks(stack: Stack, n: int) -> str:
    x, made = stack.conv("x", WIDTH, WIDTH, 3), 0
    while made < n:
        channels = WIDTH
        for _ in range(LAYERS):
            y = stack.conv(stack.relu_bn(x, channels), channels, 2 * GROWTH, 1)
            y = stack.conv(stack.relu_bn(y, 2 * GROWTH), 2 * GROWTH, GROWTH, 3)
            x = stack.node("Concat", x, y, axis=1)
            channels, made = channels + GROWTH, made + 2
        x = stack.conv(stack.relu_bn(x, channels), channels, WIDTH, 1)
        made += 1
    return x


STACKS: dict[str, Callable[[Stack, int], str]] = {
    "chain": chain,
    "residual stack": post_activation,
    "pre-activation residual stack": pre_activation,
    "24-layer dense blocks": dense_blocks,
}


def measure(make: Callable[[Stack, int], str], n: int, negative: float) -> tuple[int, int, float]:
    """Affines, affines left, and CPU seconds for solving."""
    stack = Stack(negative)
    model = Model(read(stack.model(make(stack, n))))
    gc.collect()
    start = time.process_time()
    outcomes = solve(model).outcomes
    return len(outcomes), sum(not outcome.folded for outcome in outcomes), time.process_time() - start


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--only", choices=STACKS)
    options = parser.parse_args()
    print("| stack | negative gammas | affines | left | seconds | per affine | ratio |\n|---|---|---|---|---|---|---|")
    steep = False
    for name, make in STACKS.items():
        if options.only not in (None, name):
            continue
        for negative in (0.0, 0.02):
            first = 0.0
            for size in options.sizes:
                count, left, seconds = measure(make, size, negative)
                each = seconds / count
                first = first or each
                steep |= each > ALLOWED * first
                print(
                    f"| {name} | {negative:.0%} | {count:,} | {left:,} | {seconds:.1f} | {each * 1e3:.2f} ms "
                    f"| {each / first:.2f} |",
                    flush=True,
                )
    return int(steep)


if __name__ == "__main__":
    sys.exit(main())
