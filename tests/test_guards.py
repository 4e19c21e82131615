"""Numerical judgement: what rounding would spoil is refused, with its number; what it would not is folded."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from bnfold.graph import Model
from bnfold.guards import bits_lost
from bnfold.solver import solve
from bnfold.source import read
from tests.builder import Builder
from tests.law import fold

TYPES = onnx.TensorProto


def two_readers(gamma: float, type_: int = TYPES.FLOAT) -> onnx.ModelProto:
    """x -> BN -> padded Conv;  x -> Conv. The shift can only go back into x."""
    b = Builder(17, type_)
    x = b.conv(b.input(2, 4, 6, 5), 4, 1)
    b.conv(b.bn(x, gamma=[1, 1, gamma, 1], beta=0.3, mean=0.5, variance=4.0, name="bn"), 3, 3, pads=[1, 1, 1, 1])
    b.conv(x, 3, 1)
    return b.model()


@pytest.mark.parametrize(
    ("gamma", "type_", "bits"),
    [
        (1e-2, TYPES.FLOAT, None),
        (1e-3, TYPES.FLOAT, None),
        (1e-4, TYPES.FLOAT, 12),
        (1e-12, TYPES.FLOAT, 38),
        (1e-1, TYPES.FLOAT16, None),
        (1e-2, TYPES.FLOAT16, 5),
        (1e-10, TYPES.DOUBLE, None),
        (1e-14, TYPES.DOUBLE, 45),
    ],
)
def test_bits_that_other_readers_would_lose(gamma: float, type_: int, bits: int | None) -> None:
    case = fold(two_readers(gamma, type_))
    if bits is None:
        assert case.codes() == {}
        return
    reason = case.reason("precision-loss")
    assert f"lose {bits} bits" in reason.text
    assert reason.channels == (2,)


def test_predicted_bits_follow_the_formula() -> None:
    """log2(abs(beta - mean) / max(spread, abs(mean))): here beta - mean = 0.3/gamma * spread."""
    model = two_readers(1e-2)
    storage = solve(Model(read(model))).plan.graphs[0].storage[model.graph.node[0].output[0]]
    spread = math.sqrt(4.0 + float(np.float32(1e-5)))
    bits = bits_lost(storage, np.full((1, 4, 1, 1), 0.5), np.full((1, 4, 1, 1), spread)).reshape(-1)
    assert bits[2] == pytest.approx(math.log2(0.3 / 1e-2), rel=1e-6)
    assert bits[0] == 0


def test_a_tiny_gamma_behind_a_convolution_is_folded() -> None:
    """Its channel is the constant beta but for a part in 10^12; nothing else reads what becomes small."""
    b = Builder(17, TYPES.FLOAT)
    y = b.conv(b.input(2, 4, 6, 5), 4, 3, pads=[1, 1, 1, 1])
    b.conv(b.node("Relu", b.bn(y, gamma=[1, 1e-12, 1, 1])), 3, 3, pads=[1, 1, 1, 1])
    assert fold(b.model()).codes() == {}


def alone(scale: float, type_: int, shift: float = 0.0, mean: float = 0.5) -> set[str]:
    """Codes of a BN between two convolutions of which the second one pads."""
    b = Builder(17, type_)
    x = b.node("Relu", b.conv(b.input(2, 4, 6, 5), 4, 1))
    y = b.bn(x, gamma=scale, beta=shift, mean=mean, variance=1.0, name="bn")
    b.conv(y, 3, 3, pads=[1, 1, 1, 1])
    return fold(b.model()).codes().get("bn", set())


def test_weights_too_small_or_too_large_for_float16() -> None:
    assert alone(1e-2, TYPES.FLOAT16, mean=0.0) == set()
    assert "out-of-range" in alone(1e-6, TYPES.FLOAT16, mean=0.0)
    assert alone(1e-6, TYPES.FLOAT, mean=0.0) == set()
    assert "out-of-range" in alone(6e4, TYPES.FLOAT16, mean=0.0)
    assert alone(6e4, TYPES.FLOAT, mean=0.0) == set()


def test_values_too_large_for_float16() -> None:
    """Only the shift can go back: x would be stored around 250 * 255, and eight times its spread of 255 is too much."""
    b = Builder(17, TYPES.FLOAT16)
    x = b.conv(b.input(2, 4, 6, 5), 4, 1)
    b.conv(b.bn(x, gamma=1.0, beta=250.0, mean=0.5, variance=65000.0, name="bn"), 3, 3, pads=[1, 1, 1, 1])
    b.node("Relu", b.bn(x, gamma=1.0, beta=1.0, mean=0.5, variance=65000.0, name="other"))
    said = [r.text for outcome in fold(b.model(), keep=("other",)).solution.outcomes for r in outcome.reasons]
    assert any("the values of" in text and "float16" in text for text in said), said


def test_values_may_become_as_large_as_they_were() -> None:
    """What a BatchNormalization makes in float16 already, the convolution in front of it may make."""
    b = Builder(17, TYPES.FLOAT16)
    x = b.conv(b.input(2, 4, 6, 5), 4, 1)
    b.node("Elu", b.bn(x, gamma=1e3, beta=6e4, mean=0.5, variance=1.0, name="bn"))
    assert fold(b.model()).codes() == {}
