"""Where errors sit: histograms of outputs, and inner tensors as they are stored."""

import numpy as np
import onnx
import pytest

from bnfold import optimize, verify
from bnfold.equivalence.spread import PER_DECADE, SAMPLED, Sketch, histogram
from tests.builder import Builder
from tests.program import different, foldable


def test_a_histogram_counts_every_finite_error_once() -> None:
    reference = np.array([4.0, -2.0, 1.0, 0.0, 3.0])
    before = reference + np.array([0, 5e-3, -5e-3, 0, 5e-6])
    after = reference + np.array([5e-3, 0, 0, 0, 0])
    found = histogram(reference, before, after)
    assert found is not None
    assert found.zeros == (2, 4)
    assert (sum(found.before), sum(found.after)) == (3, 1)
    assert found.first == -6, "the bin of 1.25e-6"
    (at,) = np.flatnonzero(found.after)
    assert found.first + at / PER_DECADE <= np.log10(1.25e-3) <= found.first + (at + 1) / PER_DECADE
    assert len(found.before) == len(found.after) == at + 1


@pytest.mark.parametrize("reference", [np.zeros(3), np.array([np.inf, 1.0]), np.zeros(0)])
def test_nothing_to_be_relative_to(reference: np.ndarray) -> None:
    assert histogram(reference, reference, reference) is None


def test_two_equal_runs_have_no_bins() -> None:
    found = histogram(np.ones(3), np.ones(3), np.ones(3))
    assert found is not None
    assert (found.before, found.after, found.zeros) == ((), (), (3, 3))


def test_a_sketch_takes_the_same_elements_of_one_shape_and_floats_only() -> None:
    sketch, other = Sketch(), Sketch()
    big = np.arange(2.0 * SAMPLED).reshape(2, -1)
    for each in (sketch, other):
        each("x", big)
        each("n", np.arange(3))
        each("s", np.float64(1))
        each("q", [np.ones(2), np.ones(3)])
    assert set(sketch.samples) == {"x"}
    assert sketch.samples["x"][1].shape == (SAMPLED,)
    np.testing.assert_array_equal(sketch.samples["x"][1], other.samples["x"][1])


def rescaled() -> onnx.ModelProto:
    """A BatchNormalization that folds through a MaxPool: the tensor between Conv and MaxPool is stored anew."""
    b = Builder(type_=onnx.TensorProto.FLOAT)
    y = b.node("MaxPool", b.conv(b.input(2, 3, 10, 14), 4, 3), kernel_shape=[2, 2])
    return b.model(b.node("Relu", b.bn(y, gamma=np.array([0.25, 3, 5, 7]))))


def test_inner_tensors_are_compared_as_they_are_stored() -> None:
    found = optimize(rescaled()).verification
    assert found is not None
    layers = {layer.tensor: layer for layer in found.noise.layers}
    assert len(layers) == 4, "every tensor of the original"
    assert all(layer.error < 8 * layer.noise < 1e-5 for layer in layers.values())
    assert [layer.op for layer in found.noise.layers] == ["Conv", "MaxPool", "BatchNormalization", "Relu"]


def test_without_the_witness_a_tensor_of_another_scale_is_far_off() -> None:
    model = rescaled()
    folded = optimize(model).proto
    assert folded is not None
    found = verify(model, folded, providers=["cpu"])
    assert found.passed
    assert any(layer.error > 0.1 for layer in found.noise.layers)


def test_the_first_tensor_that_is_wrong_is_seen() -> None:
    model = foldable()
    found = verify(model, different(model), providers=["cpu"])
    first = found.noise.layers[0]
    assert first.op == "Conv"
    assert first.error > 100 * first.noise
