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

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bnfold.graph import Model
from bnfold.solver import solve
from bnfold.source import read
from tests.builder import Builder

WIDTH, GROWTH, LAYERS = 8, 4, 24
ALLOWED = 1.5


def bn(b: Builder, x: str, negative: float) -> str:
    """A BatchNormalization, a share of whose gammas is negative, and 3% a hundred times smaller."""
    channels = b.shape(x)[1]
    gamma = b.rng.lognormal(0, 0.3, channels) * np.where(b.rng.random(channels) < negative, -1, 1)
    return b.bn(x, gamma=gamma * np.where(b.rng.random(channels) < 0.03, 0.01, 1))


def conv(b: Builder, x: str, out: int, kernel: int) -> str:
    """A padded convolution without bias."""
    return b.conv(x, out, kernel, bias=False, pads=[kernel // 2] * 4, scale=0.1)


def chain(b: Builder, n: int, negative: float) -> None:
    x = b.input(2, WIDTH, 8, 8)
    for _ in range(n):
        x = b.node("Relu", bn(b, conv(b, x, WIDTH, 3), negative))


def post_activation(b: Builder, n: int, negative: float) -> None:
    x = conv(b, b.input(2, WIDTH, 8, 8), WIDTH, 3)
    for _ in range(n // 2):
        y = b.node("Relu", bn(b, conv(b, x, WIDTH, 3), negative))
        x = b.node("Relu", b.node("Add", x, bn(b, conv(b, y, WIDTH, 3), negative)))


def pre_activation(b: Builder, n: int, negative: float) -> None:
    x = conv(b, b.input(2, WIDTH, 8, 8), WIDTH, 3)
    for _ in range(n // 2):
        y = conv(b, b.node("Relu", bn(b, x, negative)), WIDTH, 3)
        x = b.node("Add", x, conv(b, b.node("Relu", bn(b, y, negative)), WIDTH, 3))
    conv(b, x, WIDTH, 1)


def dense_blocks(b: Builder, n: int, negative: float) -> None:
    x, made = conv(b, b.input(2, WIDTH, 8, 8), WIDTH, 3), 0
    while made < n:
        for _ in range(LAYERS):
            y = conv(b, b.node("Relu", bn(b, x, negative)), 2 * GROWTH, 1)
            y = conv(b, b.node("Relu", bn(b, y, negative)), GROWTH, 3)
            x = b.node("Concat", x, y, axis=1)
            made += 2
        x = conv(b, b.node("Relu", bn(b, x, negative)), WIDTH, 1)
        made += 1


STACKS: dict[str, Callable[[Builder, int, float], None]] = {
    "chain": chain,
    "residual stack": post_activation,
    "pre-activation residual stack": pre_activation,
    "24-layer dense blocks": dense_blocks,
}


def measure(make: Callable[[Builder, int, float], None], n: int, negative: float) -> tuple[int, int, float]:
    """Affines, affines left, and CPU seconds for solving."""
    b = Builder(17, onnx.TensorProto.FLOAT)
    make(b, n, negative)
    model = Model(read(b.model()))
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
