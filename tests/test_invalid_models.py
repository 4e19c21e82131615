"""Models that break ONNX's rules: one clear line or an explained stay, from a path as from memory. Never a bug."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike
from onnx import numpy_helper, parser
from packaging.version import Version

import bnfold
from bnfold.errors import ModelError, NotEquivalentError
from bnfold.operand_shapes import odd_operand
from bnfold.validity import problem_of
from tests.program import saved

INVALID = "is not a valid ONNX model"
FIT = "does not fit the others"
STAYS = "unsupported-form"
CONV = "c = Conv(x, w, k) y = BatchNormalization(c, g, b, m, v)"
BN = "d = BatchNormalization(x, g, b, m, v)"


def floats(*shape: int) -> ArrayLike:
    return np.random.default_rng(len(shape)).uniform(0.5, 1.5, shape).astype(np.float32)


def model(graph: str, /, x: str = "1,4,5,6", y: str = "A,B,C,D", **arrays: ArrayLike) -> onnx.ModelProto:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    made = parser.parse_model(f"{header} g (float[{x}] x) => (float[{y}] y) {{ {graph} }}")
    given = dict.fromkeys("gbmvk", floats(4)) | {"w": floats(4, 4, 1, 1)} | arrays
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in given.items())
    return made


INTEGERS = np.ones(4, np.int64)

MODELS: dict[str, tuple[onnx.ModelProto, str]] = {
    "an integer bias": (model(CONV, k=INTEGERS), STAYS),
    "a bias that is too short": (model(CONV, k=floats(3)), STAYS),
    "a bias of one": (model(CONV, k=floats(1)), STAYS),
    "a bias of rank 2": (model(CONV, k=floats(4, 1)), STAYS),
    "no bias at all": (model(CONV, k=floats(0)), STAYS),
    "weights of rank 2": (model(CONV, w=floats(4, 4)), STAYS),
    "weights of rank 3": (model(CONV, w=floats(4, 4, 1)), STAYS),
    "integer weights": (model(CONV, w=np.ones((4, 4, 1, 1), np.int64)), STAYS),
    "weights larger than what they read": (model(CONV, y="1,4,5,6", w=floats(4, 4, 9, 9)), INVALID),
    "strides of one axis": (model(CONV.replace("Conv", "Conv<strides=[1]>")), INVALID),
    "pads that take too much": (model(CONV.replace("Conv", "Conv<pads=[-9,-9,-9,-9]>")), INVALID),
    "a group that does not divide": (model(CONV.replace("Conv", "Conv<group=3>")), STAYS),
    "a group of another type": (model(CONV.replace("Conv", "Conv<group=1.5>")), "opaque-op"),
    "a reference to an attribute of no function": (
        model(f"{BN} e = Concat<axis=1>(d, x) y = Conv(e, w)", w=floats(3, 8, 1, 1)), "opaque-op"),
    "an image of rank 2": (model(CONV, x="1,4"), STAYS),
    "integer statistics": (model(CONV, m=INTEGERS), STAYS),
    "a mean that is too long": (model(CONV, m=floats(5)), "unsupported-form"),
    "a gamma of rank 2": (model(CONV, g=floats(4, 1)), "unsupported-form"),
    "four inputs": (model(CONV.replace(", v)", ")")), "unsupported-form"),
    "a bias of a deconvolution": (model(CONV.replace("Conv", "ConvTranspose"), k=floats(5)), STAYS),
    "C that is too long": (model(CONV.replace("Conv", "Gemm"), x="2,4", y="A,B", w=floats(4, 4), k=floats(7)), STAYS),
    "C of rank 3": (model(CONV.replace("Conv", "Gemm"), x="2,4", y="A,B", w=floats(4, 4), k=floats(1, 1, 4)), STAYS),
    "integers in an Add": (model(f"{BN} e = Add(d, k) y = Conv(e, w)", k=np.array(3)), INVALID),
    "an index out of range": (model(f"{BN} e = Gather<axis=1>(d, k) y = Conv(e, w)", k=np.array([0, 1, 2, -9])), STAYS),
    "indices that are floats": (model(f"{BN} e = Gather<axis=1>(d, k) y = Conv(e, w)", k=floats(4)), INVALID),
    "scales of integer weights": (
        model("q = DequantizeLinear<axis=0>(w, k) c = Conv(x, q) y = BatchNormalization(c, g, b, m, v)",
              w=np.ones((4, 4, 1, 1), np.int8), k=floats(7)), STAYS),
    "a scale of an InstanceNormalization": (
        model("d = InstanceNormalization(x, k, b) y = BatchNormalization(d, g, b, m, v)", k=floats(7)), FIT),
    "a scale of a LayerNormalization": (
        model("d = LayerNormalization<axis=1>(x, k, u) y = BatchNormalization(d, g, b, m, v)",
              k=floats(7), u=floats(4, 5, 6)), FIT),
    "an Einsum of sizes that do not meet": (
        model(f'{BN} y = Einsum<equation="bchw,oc->bohw">(d, w)', w=floats(3, 7)), STAYS),
    "weights for other channels": (model(f"{BN} y = Conv(d, w)", w=floats(4, 5, 1, 1)), FIT),
    "the bias of a GRU": (
        model("t = Transpose<perm=[0,2,1]>(x) d = BatchNormalization(t, g, b, m, v) u = Transpose<perm=[0,2,1]>(d) "
              "y = GRU<hidden_size=2>(u, w, r, k)", x="2,5,4", w=floats(1, 6, 4), r=floats(1, 6, 2), k=floats(1, 5)),
        FIT,
    ),
    "a region of a Resize": (
        model(f'{BN} e = Resize<coordinate_transformation_mode="tf_crop_and_resize">(d, k, s) y = Conv(e, w)',
              k=floats(3), s=np.ones(4, np.float32)), FIT),
    "a condition that is too long": (
        model(f"{BN} e = Compress<axis=1>(d, k) y = Conv(e, w)", k=np.ones(9, np.bool_)), FIT),
    "two sizes to work out": (
        model("c = Conv(x, w) d = Reshape(c, k) y = BatchNormalization(d, g, b, m, v)",
              x="1,4,5,5", y="1,4,5,5", k=np.array([-1, 4, -1])), INVALID),
    "a window of one axis": (
        model("c = Conv(x, w) d = MaxPool<kernel_shape=[2]>(c) y = BatchNormalization(d, g, b, m, v)"), INVALID),
    "a circle": (model(CONV.replace("x", "y", 1)), "waits for its own result"),
    "no opset": (model(CONV), "does not say which ONNX opset"),
    "no such opset": (model(CONV), "uses opset -1, which does not exist"),
    "a function of no such opset": (model(CONV), "uses opset -9223372036854775808, which does not exist"),
    "no graph": (onnx.ModelProto(ir_version=8), "holds no graph"),
}  # fmt: skip
MODELS["a reference to an attribute of no function"][0].graph.node[1].attribute[0].ref_attr_name = "b"
MODELS["no opset"][0].ClearField("opset_import")
MODELS["no such opset"][0].opset_import[0].version = -1
MODELS["a function of no such opset"][0].functions.add(name="f", domain="own").opset_import.add(version=-(2**63))


def told(given: onnx.ModelProto | Path) -> Iterator[str]:
    """What `optimize`, without and with verification, and `explain` say: the error, or codes and warnings."""
    for verify in (False, True, None):
        try:
            found = bnfold.explain(given) if verify is None else bnfold.optimize(given, verify=verify, force=True)
        except ModelError as error:
            yield str(error)
        else:
            yield "; ".join([*(why.code for each in found.affines for why in each.reasons), *found.warnings])


@pytest.mark.skipif(
    Version(onnx.__version__) < Version("1.22"), reason="ONNX's inference says else, or kills the process"
)
@pytest.mark.parametrize("name", MODELS)
def test_one_line_or_a_reason(name: str, tmp_path: Path) -> None:
    given, words = MODELS[name]
    for way in (given, saved(given, tmp_path / "model.onnx")):
        plain, verified, explained = told(way)
        assert words in plain, plain
        assert words in verified, verified
        assert not explained or words in explained, explained  # it may be that only a fold shows it
        for line in (plain, verified, explained):
            assert "\n" not in line
            assert "report" not in line


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_weights_that_are_not_finite_fold_or_stay(lost: float) -> None:
    weights = np.asarray(floats(4, 4, 1, 1)).copy()
    weights[1, 2] = lost
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for graph in (CONV, f"{BN} y = Conv(d, w)"):
            result = bnfold.optimize(model(graph, w=weights))
            assert not result.warnings
            assert result.status in ("verified", "certified")


def test_valid_models_are_not_blamed() -> None:
    valid = model(CONV)
    assert problem_of(valid) == ""
    assert odd_operand(onnx.shape_inference.infer_shapes(valid).graph) == ""


@pytest.mark.parametrize(
    "node",
    [
        "y = Gather<axis = -9223372036854775808>(x, i)",
        "y = LayerNormalization<axis = 2147483648>(x, w)",
        'y = RegexFullMatch<pattern = "a">("")',
        "y = MaxPool<kernel_shape = [2, 2], strides = [0, 1]>(x)",
        'y = Einsum<equation = "a.b">(x)',
    ],
)
def test_models_are_blamed_for_nodes_that_inference_is_not_shown(node: str) -> None:
    graph = f"g (float[2, 3, 4, 5] x, int64[1] i, float[5] w) => (float[N] y) {{ {node} }}"
    given = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> {graph}')
    assert "breaks the rules of its operator" in problem_of(given)


def test_a_failing_fold_of_a_valid_model_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.write.rounded", lambda values, type_: (values * 2).astype(np.float32))
    with pytest.raises(NotEquivalentError):
        bnfold.optimize(model(CONV), strict=True)


@pytest.mark.parametrize(
    ("equation", "fits"), [("bchw,oc->bohw", False), ("bchw,oi->bohw", True), ("...c,oc->...o", True)]
)
def test_sizes_of_an_einsum(equation: str, fits: bool) -> None:
    given = model(f'{BN} y = Einsum<equation="{equation}">(d, w)', w=floats(3, 7))
    assert (odd_operand(onnx.shape_inference.infer_shapes(given).graph) == "") == fits


@pytest.mark.parametrize(
    ("graph", "fits"),
    [
        ("y = Slice(x, i, j, i)", False),
        ("y = Slice(x, i, i, i, j)", False),
        ("y = Slice(x, j, j, k)", False),
        ("y = Slice(x, j, j, j)", True),
        ("y = Pad(x, i)", False),
        ("y = Pad(x, k)", True),
        ("y = Pad(x, i, , i)", False),
        ("y = Pad(x, j, , i)", True),
        ("y = Tile(x, i)", False),
        ("y = Tile(x, j)", True),
        ("y = Slice(x, i, i, two)", False),
        ("y = Slice(x, i, i, one)", True),
        ("y = Slice(x, i, i, one, two)", True),
        ("y = Slice(x, i, i, one, zero)", False),
        ("y = Pad(x, j, , two)", False),
        ("y = Pad(x, j, , one)", True),
        ("any = own.f(x) y = Pad(x, j, , any)", True),
    ],
)
def test_lists_for_axes_fit_the_axes(graph: str, fits: bool) -> None:
    inputs = "float[2, 3] x, int64[1] i, int64[2] j, int64[4] k"
    constants = "int64[1] one = {-2}, int64[1] two = {2}, int64[1] zero = {0}"
    opsets = 'opset_import: ["": 18, "own": 1]'
    given = parser.parse_model(
        f"<ir_version: 10, {opsets}> g ({inputs}) => (float[A, B] y) <{constants}> {{ {graph} }}"
    )
    assert (odd_operand(given.graph) == "") == fits
    assert (problem_of(given) == "") == fits
