"""Models from ONNX's text form, and the test of a fold from the outside: optimized, verified, compared."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

from bnfold import api
from bnfold.oracle import Oracle
from bnfold.results import Optimized
from tests.law import feeds


def build(graph: str, *functions: str, opset: int = 18, ir: int = 10, type_: str = "float") -> onnx.ModelProto:
    """A model from ONNX's text form: the graph's body from x to y, with the weights w, w1, s, b, m, v."""
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}, "f" : 1]>'
    text = f"{header} g ({type_}[N,4,H,W] x) => ({type_}[A,B,C,D] y) {{ {graph} }} {' '.join(functions)}"
    model = parser.parse_model(text)
    rng = np.random.default_rng(3)
    shapes = {"w": (4, 4, 3, 3), "w1": (4, 4, 1, 1), "s": (4,), "b": (4,), "m": (4,), "v": (4,)}
    dtype = np.float64 if type_ == "double" else np.float32
    used = {name for _, node in all_nodes(model) for name in node.input}
    for name, shape in shapes.items():
        if name in used:
            values = rng.uniform(0.2, 2, shape) if name == "v" else rng.normal(size=shape)
            model.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
    return model


def all_nodes(model: onnx.ModelProto) -> list[tuple[str, onnx.NodeProto]]:
    found: list[tuple[str, onnx.NodeProto]] = []
    stack = [("", list(model.graph.node))]
    while stack:
        path, nodes = stack.pop()
        for node in nodes:
            found.append((path, node))
            stack += [(f"{path}/{a.name}", list(a.g.node)) for a in node.attribute if a.HasField("g")]
    return found


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for _, node in all_nodes(model)]


def optimize(model: onnx.ModelProto, left: int = 0, runs: bool = True) -> Optimized:
    """Fold in memory and verify, by the certificate alone where no runtime `runs` the model, which is not changed."""
    before = model.SerializeToString(deterministic=True)
    result = api.optimize(model, verify=runs)
    assert model.SerializeToString(deterministic=True) == before
    assert result.proto is not None
    onnx.checker.check_model(result.proto, full_check=True)
    assert result.batchnorm.after == left, [affine.to_json() for affine in result.affines]
    if result.batchnorm.before > left:
        assert result.certificate is not None and result.certificate.ok
        assert result.status == ("verified" if runs else "certified")
    values = feeds(model)
    old, new = (Oracle(one).run(values, ["y"])["y"] for one in (model, result.proto))
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6 * float(np.max(np.abs(old))))
    return result
