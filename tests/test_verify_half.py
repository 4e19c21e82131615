"""A float16 model is judged at float16's noise, whatever the type of its interface, and errors above it are seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.equivalence import DIFFERENT, EQUIVALENT, verify

HALF = TensorProto.FLOAT16


def network(*, conv: bool, out: int, folded: bool, wrong: float = 0.0) -> onnx.ModelProto:
    """A linear layer in float16, its BatchNormalization, Relu, and a Cast where `out` is another type."""
    random = np.random.default_rng(0)
    shape = (24, 8, 3, 3) if conv else (32, 24)
    weight = random.standard_normal(shape) / 8
    scale, var = random.uniform(0.5, 2, (2, 24))
    bias, mean = random.standard_normal((2, 24))
    constants = {"w": weight, "scale": scale, "bias": bias, "mean": mean, "var": var}
    constants = {name: array.astype(np.float16) for name, array in constants.items()}
    column = (slice(None), 3) if not conv else (3,)
    if folded:
        wide = {name: array.astype(np.float64) for name, array in constants.items()}
        factor = wide["scale"] / np.sqrt(wide["var"] + float(np.float32(1e-5)))
        w = wide["w"] * (factor.reshape(-1, 1, 1, 1) if conv else factor)
        w[column] *= 1 + wrong
        constants = {"w": w.astype(np.float16), "b": (wide["bias"] - factor * wide["mean"]).astype(np.float16)}
    pads: dict[str, Any] = {"pads": [1] * 4} if conv else {}
    inputs = ["x", "w", "b"] if folded and conv else ["x", "w"]
    nodes = [helper.make_node("Conv" if conv else "MatMul", inputs, ["a"], **pads)]
    if not folded:
        nodes.append(helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["n"]))
    elif not conv:
        nodes.append(helper.make_node("Add", ["a", "b"], ["n"]))
    nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["r"]))
    nodes.append(helper.make_node("Cast", ["r"], ["y"], to=out))
    sizes: list[int | str] = ["n", 8, 12, 16] if conv else ["n", 32]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", HALF, sizes)],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("out", [HALF, TensorProto.FLOAT])
@pytest.mark.parametrize("conv", [False, True])
def test_a_correct_fold_passes_at_the_noise_of_float16(conv: bool, out: int) -> None:
    found = verify(network(conv=conv, out=out, folded=False), network(conv=conv, out=out, folded=True))
    assert (found.status, found.noise.status) == (EQUIVALENT, "float64")
    noise = found.noise.outputs[0].noise
    assert noise is not None
    assert 1e-4 < noise.norm < 2e-3


@pytest.mark.parametrize("out", [HALF, TensorProto.FLOAT])
@pytest.mark.parametrize(("conv", "wrong"), [(False, 0.1), (True, 0.02)])
def test_an_error_above_it_is_seen(conv: bool, wrong: float, out: int) -> None:
    """Five times smaller where channels are judged one by one, as those of a convolution are."""
    original = network(conv=conv, out=out, folded=False)
    assert verify(original, network(conv=conv, out=out, folded=True, wrong=wrong)).status == DIFFERENT
    assert verify(original, network(conv=conv, out=out, folded=True, wrong=2e-4)).status == EQUIVALENT
