"""BatchNormalization of constants: weights that one standardises, as exporters leave them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold.certificate import certify
from bnfold.graph import Model
from bnfold.source import read
from tests.builder import Builder

FLOAT = TensorProto.FLOAT


def standardised(b: Builder, *shape: int, training: bool = True, gain: float = 1.0) -> str:
    """Weights by a BatchNormalization over all that makes one output channel, as in BiT and NFNet."""
    out = shape[0]
    flat = b.node("Reshape", b.constant(b.normal(*shape)), b.constant(np.array([1, out, -1])))
    scale, zero, one = (b.constant(np.full(out, value)) for value in (gain, 0.0, 1.0))
    outputs = ["standardised", "mean", "variance"] if training else ["standardised"]  # nobody reads the last two
    b.node("BatchNormalization", flat, scale, zero, zero, one, name="bn", outputs=outputs, training_mode=int(training))
    return b.node("Reshape", "standardised", b.constant(np.array(shape)))


def bn(b: Builder, x: str, channels: int = 4) -> str:
    """One whose input has no shape yet that the builder knows."""
    return b.node("BatchNormalization", x, *(b.constant(0.5 + np.abs(b.normal(channels))) for _ in range(4)))


def plain(b: Builder, x: str) -> str:
    return b.node("Conv", x, standardised(b, 4, 3, 3, 3))


def evaluation_mode(b: Builder, x: str) -> str:
    return b.node("Conv", x, standardised(b, 4, 3, 3, 3, training=False))


def statistics_that_nodes_compute(b: Builder, x: str) -> str:
    """As PyTorch's newer exporter writes it."""
    flat = b.node("Reshape", b.constant(b.normal(4, 3, 3, 3)), b.constant(np.array([1, 4, -1])))
    mean = b.node("ReduceMean", flat, axes=[0, 2], keepdims=0)
    off = b.node("Sub", flat, b.node("ReduceMean", flat, axes=[0, 2], keepdims=1))
    variance = b.node("ReduceMean", b.node("Mul", off, off), axes=[0, 2], keepdims=0)
    made = b.node("BatchNormalization", flat, b.constant(np.ones(4)), b.constant(np.zeros(4)), mean, variance)
    return b.node("Conv", x, b.node("Reshape", made, b.constant(np.array([4, 3, 3, 3]))))


def of_an_initializer(b: Builder, x: str) -> str:
    """Along the axis of the inputs, with nothing in front of it."""
    return b.node("Conv", x, bn(b, b.constant(b.normal(4, 3, 3, 3)), 3))


def one_behind_the_conv(b: Builder, x: str) -> str:
    return bn(b, plain(b, x))


def scaled_weights(b: Builder, x: str) -> str:
    """NFNet multiplies them by a gain once more."""
    weights = b.node("Mul", standardised(b, 4, 3, 3, 3, gain=0.3), b.constant(b.normal(4, 1, 1, 1)))
    return b.node("Conv", x, weights, b.constant(b.normal(4)))


def two_readers(b: Builder, x: str) -> str:
    weights = standardised(b, 4, 3, 3, 3)
    return b.node("Add", b.node("Relu", b.node("Conv", x, weights)), b.node("Conv", b.node("Tanh", x), weights))


def shape_of_the_weights(b: Builder, x: str) -> str:
    """A bias of zeros is as long as the weights are: the newer exporter again."""
    weights = standardised(b, 4, 3, 3, 3)
    length = b.node("Slice", b.node("Shape", weights), *(b.constant(np.array([n])) for n in (0, 1)))
    return b.node("Conv", x, weights, b.node("Expand", b.constant(np.zeros(1)), length))


def sizes_at_run_time(b: Builder, x: str) -> str:
    """Where a node that stays reads their shape alone, it stores integers."""
    weights = standardised(b, 4, 3, 3, 3)
    window = b.node("Slice", b.node("Shape", weights), *(b.constant(np.array([n])) for n in (2, 4)))
    pooled = b.node("GlobalAveragePool", b.node("Conv", x, weights))
    return b.node("Expand", pooled, b.node("Concat", b.constant(np.array([1, 1])), window, axis=0))


def merged_with_its_neighbour(b: Builder, x: str) -> str:
    return b.node("Add", plain(b, x), b.node("Conv", x, b.constant(b.normal(4, 3, 3, 3))))


CASES: list[tuple[Callable[[Builder, str], str], str]] = [
    (plain, "Conv"),
    (evaluation_mode, "Conv"),
    (statistics_that_nodes_compute, "Conv"),
    (of_an_initializer, "Conv"),
    (one_behind_the_conv, "Conv"),
    (scaled_weights, "Conv"),
    (two_readers, "Conv Relu Tanh Conv Add"),
    (shape_of_the_weights, "Conv"),
    (sizes_at_run_time, "Conv GlobalAveragePool Expand"),
    (merged_with_its_neighbour, "Conv"),
]


def model_of(case: Callable[[Builder, str], str], type_: int = FLOAT) -> onnx.ModelProto:
    b = Builder(17, type_)
    return b.model(case(b, b.input(2, 3, 7, 6)))


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
@pytest.mark.parametrize(("case", "left"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_it_goes_and_what_it_computed_is_stored(case: Callable[[Builder, str], str], left: str, merge: bool) -> None:
    made = bnfold.optimize(model_of(case), merge=merge)
    assert made.status == "verified"
    assert made.proto is not None
    left = "Conv Conv Add" if case is merged_with_its_neighbour and not merge else left
    assert [node.op_type for node in made.proto.graph.node] == left.split()
    assert [affine.status for affine in made.affines if affine.op == "BatchNormalization"].count("kept") == 0
    assert made.batchnorm.before >= 1 == 1 + made.batchnorm.after
    again = bnfold.optimize(made.proto, merge=merge)
    assert again.proto is not None and again.proto.SerializeToString() == made.proto.SerializeToString()


def test_the_report_names_who_took_it_up() -> None:
    (affine,) = bnfold.optimize(model_of(plain), verify=False).affines
    assert (affine.way, affine.into, affine.into_ops) == ("push", ("conv",), ("Conv",))
    affine, _ = bnfold.optimize(model_of(one_behind_the_conv), verify=False).affines
    assert (affine.way, affine.into) == ("push", ("conv",))
    (affine,) = bnfold.optimize(model_of(merged_with_its_neighbour), verify=False).affines
    assert (affine.way, affine.into) == ("merge", ("conv",))


@pytest.mark.parametrize("value", [1 + 2e-7, 1 - 2e-7, 1.5])
def test_the_certificate_sees_a_weight_that_is_off(value: float) -> None:
    model = model_of(plain)
    made = bnfold.optimize(model, verify=False)
    assert made.proto is not None and made.witness is not None
    assert certify(Model(read(model)), Model(read(made.proto)), made.witness).ok
    (weight,) = made.proto.graph.initializer
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[5] *= value
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    assert not certify(Model(read(model)), Model(read(made.proto)), made.witness).ok


def kept(model: onnx.ModelProto, **wishes: object) -> tuple[str, str]:
    made = bnfold.optimize(model, verify=False, **wishes)  # type: ignore[arg-type]
    (affine,) = (each for each in made.affines if each.op == "BatchNormalization")
    assert affine.status == "kept"
    assert made.proto is not None and "BatchNormalization" in {node.op_type for node in made.proto.graph.node}
    return affine.reasons[0].code, affine.reasons[0].text


def test_the_weights_are_an_output_too() -> None:
    b = Builder(17, FLOAT)
    x = b.input(2, 3, 7, 6)
    weights = standardised(b, 4, 3, 3, 3)
    assert kept(b.model(b.node("Conv", x, weights), weights))[0] == "graph-output"


def test_the_user_keeps_it() -> None:
    assert kept(model_of(plain), keep=["bn"])[0] == "kept-by-user"


def test_its_statistics_are_read() -> None:
    b = Builder(17, FLOAT)
    y = plain(b, b.input(2, 3, 7, 6))
    assert kept(b.model(y, b.node("Neg", "mean")))[0] == "training-mode"


@pytest.mark.parametrize(
    ("weight", "variance", "code"), [(1.0, -1.0, "invalid-statistics"), (np.inf, 1.0, "unsupported-form")]
)
def test_what_is_not_finite_is_left_alone(weight: float, variance: float, code: str) -> None:
    b = Builder(17)
    x = b.input(2, 3, 7, 6)
    four = [b.constant(np.full(4, value)) for value in (1.0, 0.0, 0.0, variance)]
    made = b.node("BatchNormalization", b.constant(np.full((1, 4, 27), weight)), *four, epsilon=0.0)
    assert kept(b.model(b.node("Conv", x, b.node("Reshape", made, b.constant(np.array([4, 3, 3, 3]))))))[0] == code


def test_what_float32_cannot_hold_is_left_alone() -> None:
    b = Builder(17, FLOAT)
    x = b.input(2, 3, 7, 6)
    weights = standardised(b, 4, 3, 3, 3, gain=1e30)
    assert kept(b.model(b.node("Conv", x, b.node("Mul", weights, weights))))[0] == "out-of-range"


def test_what_is_too_large_only_on_the_way_to_who_stores_it_goes() -> None:
    b = Builder(17, FLOAT)
    x = b.input(2, 3, 7, 6)
    weights = standardised(b, 4, 3, 3, 3, gain=1e30)
    small = b.node("Mul", b.node("Mul", weights, b.constant(1e20)), b.constant(1e-30))
    made = bnfold.optimize(b.model(b.node("Conv", x, b.node("Mul", small, b.constant(1e-20)))), verify=False)
    assert made.batchnorm.after == 0
