"""Very large models: how long they take, and that nothing recurses.

python -m tests.large [NAME...]     folds them at full size and prints seconds of CPU and memory: `make wide`
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnfold
from tests.features_graphs import value

IMAGE = (1, 4, 5, 6)


def block(x: str, tag: str) -> list[NodeProto]:
    """Conv, BatchNormalization, Relu."""
    return [
        helper.make_node("Conv", [x, "weight"], [f"{tag}c"]),
        helper.make_node("BatchNormalization", [f"{tag}c", "gamma", "beta", "mean", "variance"], [f"{tag}b"]),
        helper.make_node("Relu", [f"{tag}b"], [f"{tag}r"]),
    ]


def model(nodes: list[NodeProto], output: str) -> ModelProto:
    rng = np.random.default_rng(0)
    arrays = {"weight": rng.normal(0, 0.5, (4, 4, 1, 1)), "variance": rng.uniform(0.9, 1.1, 4), "one": np.ones(())}
    arrays |= {name: rng.uniform(0.9, 1.1, 4) for name in ("gamma", "beta", "mean")}
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    inputs = [value("x", *IMAGE), value("go", type_=TensorProto.BOOL)]
    graph = helper.make_graph(nodes, "large", inputs, [value(output, *IMAGE)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(size: int) -> ModelProto:
    """So many nodes, one behind the other."""
    nodes: list[NodeProto] = []
    for i in range(size // 3):
        nodes += block(nodes[-1].output[0] if nodes else "x", str(i))
    return model(nodes, nodes[-1].output[0])


def choices(size: int) -> ModelProto:
    """So many bodies of If, each with a BatchNormalization."""

    def body(x: str, tag: str) -> GraphProto:
        nodes = block(x, tag)
        return helper.make_graph(nodes, tag, [], [value(nodes[-1].output[0], *IMAGE)])

    nodes = block("x", "first")
    for i in range(size // 2):
        x = nodes[-1].output[0]
        bodies = {"then_branch": body(x, f"t{i}"), "else_branch": body(x, f"e{i}")}
        nodes.append(helper.make_node("If", ["go"], [f"if{i}"], **bodies))
    return model(nodes, nodes[-1].output[0])


def constants(size: int) -> ModelProto:
    """The scale is computed by so many nodes, one behind the other."""
    made = [helper.make_node("Mul", [f"k{i - 1}" if i else "gamma", "one"], [f"k{i}"]) for i in range(size)]
    nodes = block("x", "first")
    nodes[1].input[1] = made[-1].output[0]
    return model([*made, *nodes], nodes[-1].output[0])


def passes(size: int) -> ModelProto:
    """The scale has a way of so many nodes to its absorber."""
    nodes = block("x", "first")
    way = [helper.make_node("MaxPool", [f"k{i - 1}" if i else nodes[0].output[0]], [f"k{i}"], kernel_shape=[1, 1])
           for i in range(size)]  # fmt: skip
    nodes[1].input[0] = way[-1].output[0]
    return model([nodes[0], *way, *nodes[1:]], nodes[-1].output[0])


MODELS: dict[str, tuple[Callable[[int], ModelProto], int]] = {
    "nodes": (chain, 100_000),
    "bodies of If": (choices, 5_000),
    "nodes that compute a constant": (constants, 10_000),
    "nodes between a scale and its absorber": (passes, 10_000),
}
"""By what there is much of: the builder, and how many at full size."""


def main() -> None:
    """Each in a process of its own, so that each has a peak of its own."""
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        make, size = MODELS[sys.argv[2]]
        data = make(size).SerializeToString()
        start = time.process_time()
        result = bnfold.optimize(data, verify=False)
        used, peak = time.process_time() - start, getrusage(RUSAGE_SELF).ru_maxrss / 1024
        counts = f"BatchNormalization {result.batchnorm.before:,} -> {result.batchnorm.after:,}"
        sys.stdout.write(f"{size:,} {sys.argv[2]}: {counts}, {used:.0f} s of CPU, {peak:.0f} MB at the peak\n")
        return
    for name in sys.argv[1:] or MODELS:
        subprocess.run([sys.executable, "-m", "tests.large", "--one", name], check=True)


if __name__ == "__main__":
    main()
