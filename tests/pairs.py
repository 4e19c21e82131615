"""Two models that ought to be one: a small network, and the same folded by hand, right or a little wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

DEPTH, WIDTH = 4, 12

SMALL = {"x": (2, 3, 20, 28)}


def info(name: str, shape: Sequence[int | str | None] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def made(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    opset: int = 17,
    ir: int = 8,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def network(
    *,
    folded: bool,
    dtype: Any = np.float32,
    corrupt: Callable[[dict[str, Array]], None] | None = None,
    bn_opset: int = 17,
    shape: Sequence[int | str | None] = ("n", 3, "h", "w"),
) -> onnx.ModelProto:
    """Four times Conv, BatchNormalization, Relu, then a mean; the same one folded, with constants rounded once."""
    random = np.random.default_rng(3)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, constants, x = [], {}, "x"
    for layer in range(DEPTH):
        inputs = 3 if layer == 0 else WIDTH
        w = (random.standard_normal((WIDTH, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(dtype)
        # Awkward gammas; the betas keep every channel alive, so that each constant matters.
        bn = [random.uniform(-1.5, 1.5, WIDTH), random.uniform(0.2, 0.8, WIDTH), random.standard_normal(WIDTH) * 0.2]
        scale, bias, mean = (array.astype(dtype) for array in bn)
        var = random.uniform(0.2, 1.5, WIDTH).astype(dtype)
        names = [f"{name}{layer}" for name in ("w", "scale", "bias", "mean", "var")]
        if folded:
            wide = [array.astype(np.float64) for array in (w, scale, bias, mean, var)]
            factor = wide[1] / np.sqrt(wide[4] + float(np.float32(1e-5)))
            constants[f"w{layer}"] = (wide[0] * factor.reshape(-1, 1, 1, 1)).astype(dtype)
            constants[f"b{layer}"] = (wide[2] - factor * wide[3]).astype(dtype)
            nodes.append(helper.make_node("Conv", [x, f"w{layer}", f"b{layer}"], [f"y{layer}"], pads=[1] * 4))
        else:
            constants |= dict(zip(names, (w, scale, bias, mean, var), strict=True))
            nodes.append(helper.make_node("Conv", [x, names[0]], [f"c{layer}"], pads=[1] * 4))
            test: dict[str, Any] = {"is_test": 1} if bn_opset < 7 else {}
            nodes.append(helper.make_node("BatchNormalization", [f"c{layer}", *names[1:]], [f"y{layer}"], **test))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"r{layer}"]))
        x = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    if corrupt is not None:
        corrupt(constants)
    outputs = [info("mean", None, kind), info(x, None, kind)]
    return made(nodes, constants, [info("x", shape, kind)], outputs, opset=bn_opset)


def scaled(name: str, factor: float, channel: int = 5) -> Callable[[dict[str, Array]], None]:
    def corrupt(constants: dict[str, Array]) -> None:
        array = constants[name].copy()
        array[channel] = array[channel] * np.asarray(factor, array.dtype)
        constants[name] = array

    return corrupt


def unary(op: str, *, kind: int = TensorProto.FLOAT, out: int | None = None, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], **attributes)
    return made([node], {}, [info("x", ["n", 4], kind)], [info("y", None, kind if out is None else out)])
