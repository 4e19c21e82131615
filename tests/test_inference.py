"""What ONNX's inference finds while it is kept from long vectors: all that it would find without."""

from __future__ import annotations

import onnx
import pytest

from bnfold import shapes
from bnfold.skeleton import infer_value_info
from tests.hostile_models import LAID_OUT

COMPUTED = {
    "a shape": "s = Shape(x) y = Reshape(v, s)",
    "an Add behind it": "s = Shape(x) r = Reshape(v, s) y = Add(r, r)",
    "a shape that is cast": "s = Shape(x) t = Cast<to = 7>(s) y = Reshape(v, t)",
    "an Expand": "s = Shape(x) one = Constant<value = float {1.0}>() y = Expand(one, s)",
    "the shape of an Expand": """s = Shape(x) one = Constant<value = float {1.0}>() e = Expand(one, s)
        t = Shape(e) y = Reshape(v, t)""",
    "a long vector behind numbers": "long = Cast<to = 1>(v) s = Shape(x) y = Reshape(long, s)",
    "a long vector in between": "w = Mul(v, v) s = Shape(x) y = Reshape(w, s)",
}


def shape_of(nodes: str, output: str = "y") -> tuple[int | str | None, ...] | None:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[2, 3, 4, 50] x, float[1200] v) => ({output}) {{ {nodes} }}'
    )
    graph = infer_value_info(model)
    found = [value.type for value in (*graph.value_info, *graph.input, *graph.output) if value.name == output]
    return shapes.shape_of(found[0]) if found[0].tensor_type.HasField("shape") else None


@pytest.mark.parametrize("nodes", COMPUTED.values(), ids=COMPUTED)
def test_computed_shapes_are_found(nodes: str) -> None:
    assert shape_of(nodes) == (2, 3, 4, 50)


def test_what_is_known_without_numbers_stays() -> None:
    """The Add is opaque where numbers are followed, for its vectors are long."""
    assert shape_of("s = Shape(x) r = Reshape(v, s) y = Add(v, v)") == (1200,)


def test_a_model_without_computed_numbers_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    infer = onnx.shape_inference.infer_shapes

    def counted(model: onnx.ModelProto, check_type: bool, strict_mode: bool, data_prop: bool) -> onnx.ModelProto:
        asked.append(data_prop)
        return infer(model, check_type, strict_mode, data_prop)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", counted)
    assert shape_of("y = Relu(x)") == (2, 3, 4, 50)
    assert asked == [False]
    assert shape_of(COMPUTED["a shape"]) == (2, 3, 4, 50)
    assert asked[1:] == [False, True]


def test_inference_that_gives_up_leaves_what_was_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, data_prop: bool = False, **__: object) -> onnx.ModelProto:
        raise RuntimeError(data_prop)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", fails)
    assert shape_of("y = Relu(x)", "x") == (2, 3, 4, 50)


def test_there_is_an_attack_on_every_operator_that_lays_out_vectors() -> None:
    schemas = onnx.defs.get_all_schemas()
    followed = {s.name for s in schemas if s.has_data_propagation_function} - {"Shape"}  # whose numbers are a few sizes
    assert followed <= {name.split(" ")[0] for name in LAID_OUT}
