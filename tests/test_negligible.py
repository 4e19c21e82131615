"""A shift counts as zero only below half a unit in the last place of every output within the statistics."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import bnfold
from tests.builder import Builder

FLOAT = onnx.TensorProto.FLOAT


def relu_bn_padded_conv(ratio: float, gamma: float) -> onnx.ModelProto:
    """Only a BN without shift leaves; the shift is `ratio` times half the unit of its smallest output (3)."""
    b = Builder(17, FLOAT)
    x = b.node("Relu", b.conv(b.input(2, 3, 6, 5), 3, 1))
    shift = ratio * 2.0**-23
    # With variance + epsilon = 1, s = gamma, and t = 5 - gamma * mean.
    mean = (5.0 - shift) / gamma
    y = b.bn(x, gamma=gamma, beta=5.0, mean=mean, variance=1.0 - float(np.float32(1e-5)), name="bn", parameters=11)
    b.conv(y, 2, 3, pads=[1, 1, 1, 1])
    return b.model()


@pytest.mark.parametrize(
    ("ratio", "gamma", "left", "noted"),
    [
        (0.0, 0.25, 0, False),
        (0.9, 0.25, 0, True),
        (-0.9, -0.25, 0, True),
        (1.1, 0.25, 1, False),
        (0.9, 0.7, 1, False),  # 5 - 8 * 0.7 < 0: some value within the statistics gives an output of zero
    ],
)
def test_a_shift_counts_as_zero_only_where_it_rounds_away(ratio: float, gamma: float, left: int, noted: bool) -> None:
    result = bnfold.optimize(relu_bn_padded_conv(ratio, gamma), verify=False)
    (affine,) = (found for found in result.affines if found.node == "bn")
    assert result.batchnorm.after == left
    assert ("1 channels" in affine.note or "3 channels" in affine.note) == noted
    assert ("note" in affine.to_json()) == noted
    assert result.certificate is None or result.certificate.ok
