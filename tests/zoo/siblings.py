"""What sibling 1x1 convolutions would gain: those that read one tensor as one convolution and a Split, timed in turns.

This is the measurement by which bnfold leaves them apart: it prints, for each model, the time with siblings merged
relative to the time without, both folded.

    python -m tests.zoo.siblings MODEL...
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import bnfold
from bnfold.runtime import Session


def merged(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy with the pointwise convolutions of every tensor as one; and how many tensors have several."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    groups: dict[tuple[str, bytes], list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "Conv" and _is_pointwise(node, constants):
            strides = b"".join(a.SerializeToString() for a in node.attribute if a.name == "strides")
            groups[node.input[0], strides].append(node)
    found = [nodes for nodes in groups.values() if len(nodes) > 1]
    for number, nodes in enumerate(found):
        first = nodes[0]
        weights = [constants[node.input[1]] for node in nodes]
        biases = [
            constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight), weight.dtype)
            for node, weight in zip(nodes, weights, strict=True)
        ]
        names = [f"sibling{number}.{what}" for what in ("weight", "bias", "sizes", "output")]
        arrays = np.concatenate(weights), np.concatenate(biases), np.array([len(weight) for weight in weights])
        tensors = [numpy_helper.from_array(*pair) for pair in zip(arrays, names, strict=False)]
        graph.initializer.extend(tensors)
        if made.ir_version < 4:  # every initializer is an input there
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors)
        outputs, sizes = [node.output[0] for node in nodes], [len(weight) for weight in weights]
        old = made.opset_import[0].version < 13
        split = helper.make_node("Split", names[3:] if old else [names[3], names[2]], outputs, axis=1)
        if old:
            split.attribute.append(helper.make_attribute("split", sizes))
        first.input[:] = [first.input[0], *names[:2]]
        first.output[0] = names[3]
        place = list(graph.node).index(first)
        for node in nodes[1:]:
            graph.node.remove(node)
        graph.node.insert(place + 1, split)
    return made, len(found)


def _is_pointwise(node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> bool:
    weight = constants.get(node.input[1])
    plain = all(helper.get_attribute_value(a) == 1 for a in node.attribute if a.name == "group")
    pads = [n for a in node.attribute if a.name == "pads" for n in a.ints]
    return weight is not None and set(weight.shape[2:]) == {1} and plain and not any(pads)


def main() -> None:
    """Measure the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    for path in options.models:
        folded = bnfold.optimize(path.read_bytes(), verify=False).proto
        assert folded is not None
        joined, tensors = merged(folded)
        sessions = [Session(model.SerializeToString(), threads=1) for model in (folded, joined)]
        rng = np.random.default_rng(0)
        initial = {tensor.name for tensor in folded.graph.initializer}
        feeds = {
            value.name: rng.normal(size=[d.dim_value or 1 for d in value.type.tensor_type.shape.dim]).astype(np.float32)
            for value in folded.graph.input
            if value.name not in initial
        }
        outputs = [session.run(feeds) for session in sessions]
        for name in outputs[0]:
            np.testing.assert_allclose(outputs[1][name], outputs[0][name], rtol=1e-3, atol=1e-4)
        ratios = []
        for _ in range(options.rounds):
            times = []
            for session in sessions:
                start = time.perf_counter()
                session.run(feeds)
                times.append(time.perf_counter() - start)
            ratios.append(times[1] / times[0])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(f"{path.name:40} {tensors:3} tensors  {middle:.2f}  ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
