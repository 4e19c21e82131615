"""Folds in models whose sizes are known only at run time: names of sizes, shapes computed by Shape, Gather, Concat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from bnfold import skeleton
from bnfold.certificate import certify
from bnfold.graph import Model, Shape
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.rules.movement import groups
from bnfold.source import read
from tests.builder import Builder
from tests.law import check, fold, law

INT64 = TensorProto.INT64


class Net(Builder):
    """A builder with the chains of nodes by which exporters compute shapes."""

    def size(self, x: str, axis: int) -> str:
        """x.size(axis), as a list of one."""
        one = self.node("Gather", self.node("Shape", x), self.constant(np.array(axis), "axis"))
        return self.node("Unsqueeze", one, self.constant([0], "axes"))

    def view(self, x: str, *sizes: int | str) -> str:
        """x.view(...) with sizes that are numbers or one-element lists."""
        parts = [self.constant([size], "size") if isinstance(size, int) else size for size in sizes]
        return self.node("Reshape", x, self.node("Concat", *parts, axis=0))

    def scaled(self, x: str, *shape: int) -> str:
        """A scale and a shift by constants of this shape."""
        return self.node(
            "Add", self.node("Mul", x, self.constant(self.normal(*shape))), self.constant(self.normal(*shape))
        )

    def parts(self, x: str, axis: int, *sizes: int) -> str:
        """The first part of a Split; nothing reads the others."""
        names = [self.name("part") for _ in sizes]
        return self.node("Split", x, self.constant(list(sizes), "sizes"), outputs=names, axis=axis)


def shuffled(b: Net, x: str) -> str:
    """ShuffleNet's channel shuffle, as PyTorch's tracing exports it."""
    y = b.conv(x, 6, 3, pads=[1, 1, 1, 1])
    n, h, w = (b.size(y, axis) for axis in (0, 2, 3))
    split = b.node("Transpose", b.view(y, n, 2, 3, h, w), perm=[0, 2, 1, 3, 4])
    return b.node("Tanh", b.scaled(b.view(split, n, -1, h, w), 6, 1, 1))


def viewed(b: Net, x: str) -> str:
    pooled = b.node("GlobalAveragePool", b.conv(x, 6, 3))
    return b.node("Tanh", b.scaled(b.view(pooled, b.size(pooled, 0), -1), 6))


def flattened(b: Net, x: str) -> str:
    pooled = b.node("GlobalAveragePool", b.conv(x, 6, 3))
    return b.node("Tanh", b.scaled(b.node("Flatten", pooled), 6))


def tokens(b: Net, x: str) -> str:
    """Vision transformer: flatten the positions, transpose, and a scale and shift of the channels."""
    flat = b.node("Reshape", b.conv(x, 6, 2, strides=[2, 2]), b.constant([0, 6, -1], "shape"))
    return b.node("Tanh", b.scaled(b.node("Transpose", flat, perm=[0, 2, 1]), 6))


def there_and_back(b: Net, x: str) -> str:
    """PP-OCR: to tokens, a scale and shift, and back to an image."""
    y = b.node("Tanh", b.conv(x, 6, 1))
    h, w = b.size(y, 2), b.size(y, 3)
    rows = b.node("Transpose", b.node("Reshape", y, b.constant([0, 6, -1], "shape")), perm=[0, 2, 1])
    zero, channels = b.constant([0], "keep"), b.constant([6], "channels")
    back = b.node("Reshape", b.scaled(rows, 6), b.node("Concat", zero, h, w, channels, axis=0))
    image = b.node("Transpose", back, perm=[0, 3, 1, 2])
    return b.node("Conv", image, b.constant(b.normal(5, 6, 1, 1), "weight"))


def heads(b: Net, x: str) -> str:
    """Attention: the scale of the queries alone goes back into the one matrix that makes all three."""
    rows = b.node("Reshape", b.conv(x, 4, 1), b.constant([0, 4, -1], "shape"))
    qkv = b.matmul(b.node("Transpose", rows, perm=[0, 2, 1]), 12, bias=True)
    split = b.view(qkv, b.size(qkv, 0), -1, 3, 2, 2)
    moved = b.node("Transpose", split, perm=[2, 0, 3, 1, 4])
    bounds = [[b.constant([i], "at") for i in (part, part + 1, 0)] for part in range(3)]
    q, k, v = (b.squeeze(b.node("Slice", moved, *bound), 0) for bound in bounds)
    scaled = b.node("Mul", q, b.constant(0.3, "scale"))
    weights = b.node("Softmax", b.node("MatMul", scaled, b.node("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    return b.node("MatMul", weights, v)


def expanded(b: Net, x: str) -> str:
    """One number for each channel, spread over the image by Expand."""
    y = b.conv(x, 6, 1)
    pooled = b.node("GlobalAveragePool", y)
    total = b.node("Add", y, b.node("Expand", pooled, b.node("Shape", y)))
    return b.node("Tanh", b.node("Mul", total, b.constant(b.normal(6, 1, 1))))


def upsampled(b: Net, x: str) -> str:
    """Up to the size of another tensor, as a feature pyramid does."""
    large = b.conv(x, 6, 1)
    small = b.conv(b.node("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]), 6, 1)
    spatial = b.node("Slice", b.node("Shape", large), b.constant([2], "from"), b.constant([4], "to"))
    batch = b.node("Slice", b.node("Shape", small), b.constant([0], "from"), b.constant([2], "to"))
    bigger = b.node("Resize", small, "", "", b.node("Concat", batch, spatial, axis=0), mode="nearest")
    return b.node("Tanh", b.scaled(bigger, 6, 1, 1))


def one_dimensional(b: Net, x: str) -> str:
    """Sequences: drop an axis, convolve in one dimension, shuffle by a Reshape that copies sizes."""
    y = b.conv(b.node("ReduceMean", x, axes=[3], keepdims=0), 6, 3, pads=[1, 1])
    split = b.node("Transpose", b.node("Reshape", y, b.constant([0, 2, 3, -1], "shape")), perm=[0, 2, 1, 3])
    return b.node("Tanh", b.scaled(b.node("Reshape", split, b.constant([0, 6, -1], "shape")), 6, 1))


def three_dimensional(b: Net, x: str) -> str:
    """Volumes: one more axis, and channels last behind the convolution."""
    y = b.conv(b.unsqueeze(x, 2), 6, 1, 3, 3)
    return b.node("Tanh", b.scaled(b.node("Transpose", y, perm=[0, 2, 3, 4, 1]), 6))


def rows_of_two(b: Net, x: str) -> str:
    """Two images, one above the other: nothing varies along the axis on which they are joined."""
    return b.node("Tanh", b.scaled(b.node("Concat", b.conv(x, 6, 1), b.conv(x, 6, 1), axis=2), 6, 1, 1))


def anchors(b: Net, x: str) -> str:
    """Detector heads: the positions of two scales in one list."""
    small = b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    parts = [b.node("Reshape", b.conv(y, 6, 1), b.constant([0, 6, -1], "shape")) for y in (x, small)]
    return b.node("Tanh", b.scaled(b.node("Concat", *parts, axis=2), 6, 1))


def chunked(b: Net, x: str) -> str:
    """x.chunk(2, 1), as PyTorch's tracing exports it: where it is cut is computed from the number of channels."""
    y = b.conv(x, 6, 1)
    channels = b.node("Gather", b.node("Shape", y), b.constant([1], "axis"))
    half = b.node("Div", b.node("Add", channels, b.constant([1])), b.constant([2]))
    ends = b.constant([0]), *(b.node("Mul", half, b.constant([n])) for n in (1, 2))
    parts = [b.node("Slice", y, *ends[at : at + 2], b.constant([1])) for at in (0, 1)]
    return b.node("Mul", *(b.node("Tanh", b.scaled(part, 3, 1, 1)) for part in parts))


NETS: list[Callable[[Net, str], str]] = [
    shuffled, viewed, flattened, tokens, there_and_back, heads, expanded, upsampled, one_dimensional, three_dimensional,
    rows_of_two, anchors, chunked,
]  # fmt: skip

IMAGES: list[tuple[int | str, ...]] = [("N", 4, "H", "W"), ("N", 4, "S", "S"), (2, 4, "H", 6), ("N", 4, 6, 6)]


def made(net: Callable[[Net, str], str], shape: tuple[int | str, ...]) -> onnx.ModelProto:
    b = Net()
    net(b, b.input(*shape))
    return b.model()


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("net", NETS)
def test_folds_where_sizes_are_free(net: Callable[[Net, str], str], shape: tuple[int | str, ...]) -> None:
    model = made(net, shape)
    assert not model.graph.value_info
    case = law(model, 0)
    given = Model(read(model))
    assert certify(given, Model(read(case.model)), witness_of(Rewrite.of(case.solution.plan))).ok


@pytest.mark.parametrize("net", NETS)
def test_folds_without_inference(net: Callable[[Net, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX's inference fails on a model, the operators still tell enough."""
    model = made(net, ("N", 4, "H", "W"))
    monkeypatch.setattr(skeleton, "infer_value_info", lambda proto: proto.graph)
    case = fold(model)
    assert case.left == 0, case.codes()


def test_a_constant_in_front_of_a_sequence_of_any_length() -> None:
    """WaveNet: zeros for what came before."""
    b = Net()
    past = b.constant(b.normal(1, 6, 3), "past")
    y = b.node("Concat", past, b.conv(b.input(1, 4, "T"), 6, 1), axis=2)
    b.node("Tanh", b.scaled(y, 6, 1))
    law(b.model(), 0)


def test_a_size_that_is_one_at_run_time_only() -> None:
    """PP-OCR: an image of one row, flattened to tokens, comes back as (N, 1, W, C); nothing says that H is 1."""
    b = Net()
    y = b.node("Tanh", b.conv(b.input("N", 4, "H", "W"), 6, 1))
    rows = b.node("Transpose", b.node("Reshape", y, b.constant([0, 6, -1], "shape")), perm=[0, 2, 1])
    back = b.view(b.scaled(rows, 6), 0, 1, b.size(y, 3), 6)
    image = b.node("Transpose", back, perm=[0, 3, 1, 2])
    b.node("Conv", image, b.constant(b.normal(5, 6, 1, 1), "weight"))
    case = fold(b.model())
    given = Model(read(case.original))
    assert case.left == 0, case.codes()
    assert certify(given, Model(read(case.model)), witness_of(Rewrite.of(case.solution.plan))).ok


def test_a_size_that_follows_from_the_shape_behind() -> None:
    """Attention of EfficientFormerV2: nothing says how many channels a head has, but the image that they make up is."""
    b = Net()
    x = b.input(1, 10, 2, 3)
    heads = b.view(b.conv(x, 10, 1), 1, 2, b.size(b.node("Tanh", b.input("K")), 0), 3)
    image = b.node("Reshape", heads, b.constant([1, 10, 2, 3], "image"))
    total = b.node("Add", image, b.conv(x, 10, 1))
    b.node("Erf", b.node("Div", total, b.constant(np.float32(1.7))))
    case = fold(b.model())
    given = Model(read(case.original))
    assert case.left == 0, case.codes()
    assert certify(given, Model(read(case.model)), witness_of(Rewrite.of(case.solution.plan))).ok


PICKED: list[Callable[[Net, str], str]] = [
    lambda b, x: b.node("Gather", x, b.input(2, name="i", type_=INT64), axis=2),
    lambda b, x: b.node("Unsqueeze", b.node("Gather", x, b.input(name="i", type_=INT64), axis=3), b.constant([2])),
    lambda b, x: b.node("Squeeze", b.node("Gather", x, b.input(2, 1, name="i", type_=INT64), axis=3), b.constant([4])),
    lambda b, x: b.node("Compress", x, b.input(6, name="i", type_=TensorProto.BOOL), axis=2),
    lambda b, x: b.node("Slice", x, b.input(1, name="i", type_=INT64), b.constant([6]), b.constant([2])),
    lambda b, x: b.node("Slice", x, b.constant([0]), b.size(b.node("Relu", b.input(4)), 0), b.constant([2])),
    lambda b, x: b.node("Slice", x, b.constant([1, 1]), b.constant([5, 4]), b.constant([1, -1])),
    lambda b, x: b.node(
        "Slice", x, b.input(1, name="i", type_=INT64), b.constant([-9]), b.constant([2]), b.constant([-1])
    ),
    lambda b, x: b.parts(x, 2, 2, 4),
    lambda b, x: b.parts(x, -1, 3, 3),
]


@pytest.mark.parametrize("front", [True, False])
@pytest.mark.parametrize("pick", PICKED)
def test_what_picks_along_other_axes_passes(pick: Callable[[Net, str], str], front: bool) -> None:
    """Which elements are picked does not matter where a demand is the same for all: only channels differ."""
    b = Net()
    y = b.conv(b.input(3, 4, 6, 6), 6, 1)
    y = pick(b, b.node("Tanh", b.bn(y)) if front else y)
    channels = b.shape(y)[1] if b.shape(y)[1] > 1 else 6  # 1 where inference gives up
    last = b.node("Tanh", y if front else b.scaled(y, channels, 1, 1))
    case = fold(b.model(last))
    check(case)
    assert case.left == 0, case.codes()


GROUPS = [
    (("N", "H * W", 120), ("N", 1, "W", 120), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
    (("N", 4, 5, 6), ("N", 20, 6), [([0], [0]), ([1, 2], [1]), ([3], [2])]),
    (("N", 12, "H", "W"), ("N", 2, 6, "H * W"), [([0], [0]), ([1], [1, 2]), ([2, 3], [3])]),
    (("N", 3, 1, 1), ("N", 3), [([0], [0]), ([1], [1]), ([2, 3], [])]),
    ((1, "N", 3), ("N", 3), [([0, 1], [0]), ([2], [1])]),
    (("2 * N", 3), ("N", 6), [([0, 1], [0, 1])]),
    (("N", 6), ("N", 2, 3), [([0], [0]), ([1], [1, 2])]),
    (("A", "B", 3), ("C", 3), [([0, 1], [0]), ([2], [1])]),
    ((2, 3, 4), (4, 3, 2), [([0, 1, 2], [0, 1, 2])]),
    ((), (1,), [([], [0])]),
]


@pytest.mark.parametrize(("old", "new", "expected"), GROUPS)
def test_groups_of_axes(old: Shape, new: Shape, expected: list[tuple[list[int], list[int]]]) -> None:
    assert groups(old, new) == expected
    assert groups(new, old) == [(before, after) for after, before in expected]
