"""The models of tests/zoo/cost.py: 10,000 nodes with 190 MB of weights in the file, and gigabytes beside it.

Each is written by a process of its own: a peak of the memory of one process would count for those that it starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.zoo.scaling import Stack

CHANNELS = 43
"""Of every convolution; 2,857 of 3x3 hold 190 MB."""

WIDTH = 5657
"""One weight matrix of this width takes 128 MB."""

BLOCK = 7
"""Nodes of one block of a residual stack."""


def residual(path: Path, nodes: int) -> None:
    """Write blocks of Conv, BN, Relu, Conv, BN, Add, Relu: every BN stands behind a convolution of its own."""
    stack, x = Stack(0.02), "x"
    for _ in range(nodes // BLOCK):
        y = conv(stack, stack.node("Relu", batchnorm(stack, conv(stack, x))))
        x = stack.node("Relu", stack.node("Add", x, batchnorm(stack, y)))
    path.write_bytes(stack.model(x, CHANNELS).SerializeToString())


def preactivation(path: Path, nodes: int) -> None:
    """Write blocks of BN, Relu, Conv, BN, Relu, Conv, Add: the first BN of each reads the stream."""
    stack, x = Stack(0.0), "x"
    for _ in range(nodes // BLOCK):
        y = conv(stack, stack.node("Relu", batchnorm(stack, x)))
        x = stack.node("Add", x, conv(stack, stack.node("Relu", batchnorm(stack, y))))
    path.write_bytes(stack.model(x, CHANNELS).SerializeToString())


def conv(stack: Stack, x: str) -> str:
    """Padded, 3x3."""
    return stack.conv(x, CHANNELS, CHANNELS, 3)


def batchnorm(stack: Stack, x: str) -> str:
    """Without the Relu."""
    return stack.batchnorm(x, CHANNELS)


def external(path: Path, gigabytes: float) -> None:
    """Write a chain of Gemm, BatchNormalization and Relu with all its constants outside."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    with path.with_suffix(".data").open("wb") as file:

        def store(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file_name), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            file.write(array.tobytes())
            tensors.append(tensor)
            return name

        file_name, value = path.with_suffix(".data").name, "x"
        for i in range(max(1, round(gigabytes * 1e9 / (4 * WIDTH**2)))):
            weight = store(f"fc{i}.weight", np.roll(block, i, 0))
            vectors = [1 + 0.1 * rng.random(WIDTH) if k in (0, 3) else 0.1 * rng.random(WIDTH) for k in range(4)]
            names = [store(f"bn{i}.{k}", vector.astype(np.float32)) for k, vector in enumerate(vectors)]
            nodes.append(helper.make_node("Gemm", [value, weight], [f"g{i}"], name=f"fc{i}", transB=1))
            nodes.append(helper.make_node("BatchNormalization", [f"g{i}", *names], [f"b{i}"], name=f"bn{i}"))
            nodes.append(helper.make_node("Relu", [f"b{i}"], [f"r{i}"], name=f"relu{i}"))
            value = f"r{i}"
    shape: list[str | int | None] = ["N", WIDTH]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", value)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    kind, target, size = sys.argv[1:]
    if kind == "external":
        external(Path(target), float(size))
    else:
        {"residual": residual, "preactivation": preactivation}[kind](Path(target), int(size))
