"""The cost model of merges against measurement: two nodes, or branches, and the one node that they are, in turns.

Prints for each pair what `bnfold.merges.cost` expects and what ONNX Runtime's CPU shows: the time of the one node
relative to that of the nodes that it replaces. A merge that the model allows should not measure above 1 beyond the
spread.

    python -m tests.zoo.merge_cost
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import onnx
from onnx import TensorProto

from bnfold.folding import Folder
from bnfold.graph import Model
from bnfold.merges import search, swapping
from bnfold.merges.cost import MARGIN
from bnfold.runtime import Session
from bnfold.source import read
from bnfold.write import folded
from tests.builder import Builder


@dataclass(frozen=True)
class Pair:
    """Nodes, and the one that they become."""

    name: str
    make: Callable[[Builder], object]


def chain(channels: int, size: int, *layers: dict[str, int], batch: int = 1) -> Callable[[Builder], object]:
    """Convolutions one behind another: out, kernel, stride, group (0: depthwise)."""

    def make(b: Builder) -> str:
        x = b.input(batch, channels, size, size)
        now = channels
        for i, layer in enumerate(layers):
            kernel, group = layer.get("kernel", 1), layer.get("group", 1) or now
            now = layer.get("out", now)
            pads = [kernel // 2] * 4
            stride = [layer.get("stride", 1)] * 2
            x = b.node(
                "Conv", x, b.constant(0.1 * b.normal(now, b.shape(x)[1] // group, kernel, kernel), f"w{i}"),
                *([b.constant(b.normal(now), f"b{i}")] if i == len(layers) - 1 else []),
                group=group, pads=pads, strides=stride,
            )  # fmt: skip
        return b.node("Relu", x)

    return make


def branches(
    channels: int, size: int, *kernels: tuple[int, int], identity: bool = False, out: int = 0
) -> Callable[[Builder], object]:
    """Parallel convolutions (kernel, group; group 0 is depthwise), perhaps with the input itself."""

    def make(b: Builder) -> str:
        x = b.input(1, channels, size, size)
        total = x if identity else ""
        for kernel, group in kernels:
            y = b.conv(x, channels, kernel, group=group or channels, pads=[kernel // 2] * 4, scale=0.1)
            total = b.node("Add", total, y) if total else y
        return b.node("Relu", total)

    return make


def beside(
    channels: int, size: int, outs: tuple[int, ...], kernel: int = 1, stride: int = 1
) -> Callable[[Builder], object]:
    """Convolutions of one tensor, their outputs side by side; products of rows for a kernel of 0."""

    def make(b: Builder) -> str:
        if not kernel:
            x = b.input(1, size, channels)
            return b.node("Relu", b.node("Concat", *(b.matmul(x, out, True) for out in outs), axis=2))
        x = b.input(1, channels, size, size)
        how: Any = {"pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return b.node("Relu", b.node("Concat", *(b.conv(x, out, kernel, scale=0.1, **how) for out in outs), axis=1))

    return make


def padded(
    channels: int, out: int, size: tuple[int, int], kernel: tuple[int, int], stride: int, group: int = 1
) -> Callable[[Builder], object]:
    """A Pad in front of a convolution that does not pad, as TensorFlow and Keras export them."""

    def make(b: Builder) -> str:
        ends = [(k - 1) // 2 for k in kernel], [k // 2 for k in kernel]
        pads = b.constant(np.array([0, 0, *ends[0], 0, 0, *ends[1]]), "pads")
        x = b.node("Pad", b.input(1, channels, *size), pads)
        return b.node("Relu", b.conv(x, out, *kernel, group=group, strides=[stride, stride if size[1] > 1 else 1]))

    return make


def pooled(channels: int, out: int, size: int, stride: int = 2) -> Callable[[Builder], object]:
    """A 1x1 convolution, and an average of its places (of all for a stride of 0): they change places."""

    def make(b: Builder) -> str:
        y = b.conv(b.input(1, channels, size, size), out, 1, scale=0.1)
        how: Any = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
        return b.node("Relu", b.node("AveragePool", y, **how) if stride else b.node("GlobalAveragePool", y))

    return make


def layer(out: int, kernel: int = 1, stride: int = 1, group: int = 1) -> dict[str, int]:
    return {"out": out, "kernel": kernel, "stride": stride, "group": group}


ONE_ONE = [
    (16, 16, 72, 56), (32, 16, 96, 112), (24, 48, 24, 28), (96, 24, 144, 56), (160, 80, 320, 7), (64, 64, 64, 28),
    (256, 128, 256, 14), (320, 320, 1280, 7),
]  # fmt: skip
"""Channels in, between and out, and the size."""

DEPTHWISE = [
    (3, 16, 112, 3, 1), (3, 32, 224, 7, 2), (8, 8, 56, 3, 1), (16, 8, 112, 3, 1), (48, 12, 112, 3, 2),
    (16, 64, 28, 3, 1), (32, 16, 112, 3, 1), (32, 32, 14, 3, 1),
]  # fmt: skip
"""Channels in and out, size, kernel, stride."""


SIBLINGS: list[tuple[int, tuple[int, ...], int, int, int]] = [
    (64, (32, 32), 56, 1, 1), (256, (64, 64), 14, 1, 1), (512, (128, 128), 7, 1, 1), (32, (8, 8), 56, 1, 1),
    (64, (1, 4), 20, 1, 1), (64, (64, 64), 28, 3, 1), (16, (16, 16), 112, 3, 1), (128, (32, 96), 28, 3, 1),
    (64, (20, 40, 12), 20, 3, 1), (3, (16, 16), 112, 3, 2), (256, (12, 24), 19, 3, 1),
    (64, (64, 64), 196, 0, 1), (384, (384, 384), 196, 0, 1), (128, (16, 4), 50, 0, 1),
]  # fmt: skip
"""Channels in and out, size, kernel (0: products), stride."""


def _pairs() -> Iterator[Pair]:
    for a, m, o, s in ONE_ONE:
        yield Pair(f"1x1, 1x1: {a}-{m}-{o} at {s}", chain(a, s, layer(m), layer(o)))
    for a, m, o, s in [(3, 32, 16, 112), (16, 64, 16, 28), (64, 64, 64, 28), (64, 128, 64, 14)]:
        yield Pair(f"3x3, 1x1: {a}-{m}-{o} at {s}", chain(a, s, layer(m, 3), layer(o)))
    for a, m, o, s in [(16, 64, 16, 28), (64, 64, 64, 28), (8, 32, 32, 56)]:
        yield Pair(f"1x1, 3x3: {a}-{m}-{o} at {s}", chain(a, s, layer(m), layer(o, 3)))
    for a, o, s, k, t in DEPTHWISE:
        yield Pair(f"dw{k}/{t}, 1x1: {a}-{o} at {s}", chain(a, s, layer(a, k, t, 0), layer(o)))
    for a, o, s, k in [(3, 16, 112, 3), (8, 16, 56, 3), (2, 8, 112, 5)]:
        yield Pair(f"1x1, dw{k}: {a}-{o} at {s}", chain(a, s, layer(o), layer(o, k, 1, 0)))
    for c, s in [(8, 56), (16, 56), (64, 28), (128, 14)]:
        yield Pair(f"dw3 + 1x1 at {s}, {c} channels", branches(c, s, (3, 0), (1, 1)))
    for c, s in [(16, 56), (64, 28), (256, 14)]:
        yield Pair(f"3x3 + 1x1 + x at {s}, {c} channels", branches(c, s, (3, 1), (1, 1), identity=True))
    for c, s in [(48, 56), (384, 14)]:
        yield Pair(f"dw3 + dw1 + x at {s}, {c} channels", branches(c, s, (3, 0), (1, 0), identity=True))
        yield Pair(f"dw7 + dw3 at {s}, {c} channels", branches(c, s, (7, 0), (3, 0)))
    for a, o, s, k, t in [(3, 32, 224, 3, 2), (16, 16, 56, 3, 1), (64, 64, 28, 3, 1), (64, 64, 28, 5, 1)]:
        yield Pair(f"Pad, {k}x{k}/{t}: {a}-{o} at {s}", padded(a, o, (s, s), (k, k), t))
    for c, s, k, t in [(96, 112, 3, 2), (144, 56, 3, 2), (144, 56, 5, 2), (240, 28, 3, 2), (192, 28, 3, 1)]:
        yield Pair(f"Pad, dw{k}/{t}: {c} at {s}", padded(c, c, (s, s), (k, k), t, group=c))
    for a, o, s, k, t in [(1, 128, 1024, 512, 4), (128, 16, 128, 64, 1), (32, 32, 256, 3, 1), (32, 32, 256, 9, 1)]:
        yield Pair(f"Pad, {k}x1/{t}: {a}-{o} at {s}x1", padded(a, o, (s, 1), (k, 1), t))
    for c, s in [(32, 28), (128, 14)]:
        yield Pair(f"5x5 + 3x3 at {s}, {c} channels", branches(c, s, (5, 1), (3, 1)))
    for a, outs, s, k, t in SIBLINGS:
        kind = f"{k}x{k}/{t}" if k else "rows"
        yield Pair(f"{kind} beside: {a}-{'+'.join(map(str, outs))} at {s}", beside(a, s, outs, k, t))

    for c, out, s, t in [(256, 128, 56, 2), (512, 256, 28, 2), (64, 64, 28, 2), (64, 8, 56, 2), (256, 16, 28, 2)]:
        yield Pair(f"1x1, pool/{t}: {c}-{out} at {s}", pooled(c, out, s, t))
    for c, out, s in [(512, 1000, 7), (256, 10, 14), (32, 10, 28)]:
        yield Pair(f"1x1, pool of all: {c}-{out} at {s}", pooled(c, out, s, 0))


PAIRS = list(_pairs())


def measured(pair: Pair, rounds: int) -> tuple[Told, float, float, float]:
    """What the model says of it, and the relative time: median and quartiles.

    Processor time of one thread, so that others on the machine count little.
    """
    b = Builder(17, TensorProto.FLOAT)
    pair.make(b)
    model = b.model()
    expected = _expected(model)
    with (  # merged, whatever the model says
        patch("bnfold.merges.search.MARGIN", 1e9),
        patch("bnfold.merges.swapping.MARGIN", 1e9),
    ):
        merged = folded(Folder(Model(read(model))).solve().rewrite)
    assert sum(node.op_type in ("Conv", "MatMul") for node in merged.graph.node) == 1, pair.name
    x = {"x": np.random.default_rng(0).normal(size=b.shape("x")).astype(np.float32)}
    sessions = [Session(each.SerializeToString(), optimize=True, threads=1) for each in (model, merged)]
    ratios = []
    for session in sessions * 3:
        session.run(x)
    for _ in range(rounds):
        times = []
        for session in sessions:
            start, runs = time.process_time(), 0
            while runs < 3 or time.process_time() - start < 0.004:
                session.run(x)
                runs += 1
            times.append((time.process_time() - start) / runs)
        ratios.append(times[1] / times[0])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return expected, float(middle), float(low), float(high)


class Told(NamedTuple):
    """What the model says: the cost of the one relative to the others, and whether it is made."""

    ratio: float
    pays: bool


def _expected(model: onnx.ModelProto) -> Told:
    graph = Model(read(model)).main
    pool = next((node for node in graph.nodes if node.op in swapping.POOLS), None)
    if pool is not None:
        behind, before = swapping.costs(graph.nodes[0], pool)
        return Told(before / behind, before <= MARGIN * behind)
    every = {node for node in graph.nodes if node.op != "Relu"}
    found = search.evaluated(max(every, key=lambda node: node.index), every)
    return Told(found.merged_cost / found.cost, found.pays)


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print(f"{'':44} expected  measured")
    for pair in PAIRS:
        if options.only in pair.name:
            found, middle, low, high = measured(pair, options.rounds)
            expected, told = found.ratio, "merged" if found.pays else "left"
            print(f"{pair.name:44} {expected:8.2f}  {middle:8.2f}  ({low:.2f} to {high:.2f})  {told}", flush=True)


if __name__ == "__main__":
    main()
