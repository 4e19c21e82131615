"""Constants that are moved by what is known at run time only: embeddings, tokens for every image, as many positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.certificate import certify
from bnfold.graph import Model
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.source import read
from tests.builder import Builder
from tests.law import Folded, affines, check, fold, law

INT64 = TensorProto.INT64
CHANNELS = 6


class Net(Builder):
    """A builder with tables, and numbers that come at run time."""

    def table(self, *shape: int) -> str:
        """A constant."""
        return self.constant(self.normal(*shape), "table")

    def numbers(self, *shape: int | str) -> str:
        """Indices, 0 to 4 in the tests."""
        return self.input(*shape, name="i", type_=INT64)

    def like(self, x: str, *sizes: int) -> str:
        """A shape: the batch of x, and these sizes."""
        batch = self.node("Slice", self.node("Shape", x), self.constant([0]), self.constant([1]))
        return self.node("Concat", batch, self.constant(list(sizes)), axis=0)

    def scaled(self, x: str, *shape: int) -> str:
        """A scale and a shift, in front of what passes neither."""
        y = self.node("Mul", x, self.constant(self.normal(*shape)))
        return self.node("Sigmoid", self.node("Add", y, self.constant(self.normal(*shape))))


def rows(b: Net) -> str:
    return b.node("Sigmoid", b.bn(b.node("Gather", b.table(5, CHANNELS), b.numbers("N"))))


def tokens(b: Net) -> str:
    return b.scaled(b.node("Gather", b.table(5, CHANNELS), b.numbers("N", "T")), CHANNELS)


def columns(b: Net) -> str:
    return b.scaled(b.node("Gather", b.table(CHANNELS, 5, 2), b.numbers("N"), axis=1), CHANNELS, 1, 1)


def one_row(b: Net) -> str:
    return b.scaled(b.node("Gather", b.table(5, CHANNELS), b.numbers()), CHANNELS)


def many_rows(b: Net) -> str:
    return b.scaled(b.node("Gather", b.table(700, CHANNELS), b.numbers("N")), CHANNELS)


def class_token(b: Net) -> str:
    x = b.input("N", 4, CHANNELS)
    token = b.node("Expand", b.table(1, 1, CHANNELS), b.like(x, 1, CHANNELS))
    return b.scaled(b.node("Concat", token, b.matmul(x, CHANNELS, bias=True), axis=1), CHANNELS)


def repeated_token(b: Net) -> str:
    x = b.input("N", 4, CHANNELS)
    batch = b.node("Slice", b.node("Shape", x), b.constant([0]), b.constant([1]))
    token = b.node("Tile", b.table(1, 1, CHANNELS), b.node("Concat", batch, b.constant([1, 1]), axis=0))
    return b.scaled(b.node("Concat", token, b.matmul(x, CHANNELS, bias=True), axis=1), CHANNELS)


def one_number_for_all(b: Net) -> str:
    x = b.input("N", CHANNELS, 4)
    return b.scaled(b.node("Expand", b.table(1, 1, 1), b.like(x, CHANNELS, 4)), CHANNELS, 1)


def positions(b: Net) -> str:
    part = b.node("Slice", b.table(5, CHANNELS), b.constant([0]), b.numbers(1), b.constant([0]))
    return b.scaled(part, CHANNELS)


def chosen(b: Net) -> str:
    return b.scaled(
        b.node("Compress", b.table(5, CHANNELS), b.input(5, name="i", type_=TensorProto.BOOL), axis=0), CHANNELS
    )


NETS: list[Callable[[Net], str]] = [
    rows, tokens, columns, one_row, many_rows, class_token, repeated_token, one_number_for_all, positions, chosen,
]  # fmt: skip


def made(net: Callable[[Net], str]) -> onnx.ModelProto:
    b = Net()
    net(b)
    return b.model()


def proved(case: Folded) -> bool:
    witness = witness_of(Rewrite.of(case.solution.plan))
    return certify(Model(read(case.original)), Model(read(case.model)), witness).ok


@pytest.mark.parametrize("net", NETS)
def test_is_stored_as_it_is_read(net: Callable[[Net], str]) -> None:
    model = made(net)
    assert affines(model) > 0
    law(model, 0)


@pytest.mark.parametrize("net", NETS)
def test_one_number_of_it_that_is_wrong_is_seen(net: Callable[[Net], str]) -> None:
    case = fold(made(net))
    assert proved(case)
    (stored,) = (each for each in case.model.graph.initializer if "table" in each.name)
    values = numpy_helper.to_array(stored).copy()
    values.flat[-1] *= 1 + 1e-9
    stored.CopyFrom(numpy_helper.from_array(values, stored.name))
    assert not proved(case)


def last_layer(b: Net, table: str) -> None:
    """A product by the table, turned around."""
    b.node("MatMul", b.input(2, CHANNELS), b.node("Transpose", table, perm=[1, 0]))


def a_body(b: Net, table: str) -> None:
    """Something in an If that reads it."""
    inner = helper.make_tensor_value_info("inner", b.type, [5, CHANNELS])
    body = helper.make_graph([helper.make_node("Neg", [table], ["inner"])], "body", [], [inner])
    b.node("If", b.input(name="condition", type_=TensorProto.BOOL), then_branch=body, else_branch=body)


@pytest.mark.parametrize("other", [last_layer, a_body])
def test_not_twice(other: Callable[[Net, str], None]) -> None:
    """An embedding that something else reads too: a Mul would go, and a second table come."""
    b = Net()
    table = b.table(5, CHANNELS)
    b.scaled(b.node("Gather", table, b.numbers("N")), CHANNELS)
    other(b, table)
    case = fold(b.model())
    assert case.left == 2
    assert "would be there twice" in case.reason("conflict").text


def test_not_in_a_body_that_reads_an_outer_one() -> None:
    b = Net()
    table, numbers = b.table(5, CHANNELS), b.numbers(3)
    inner = Net()
    y = inner.node("Gather", table, numbers)
    factor = inner.constant(inner.normal(CHANNELS))
    inner.node("Tanh", inner.node("Mul", y, factor), outputs=["inner"])
    made = helper.make_tensor_value_info("inner", b.type, [3, CHANNELS])
    body = helper.make_graph(inner.nodes, "body", [], [made], inner.initializers)
    b.node("If", b.input(name="condition", type_=TensorProto.BOOL), then_branch=body, else_branch=body)
    case = fold(b.model())
    assert {code for codes in case.codes().values() for code in codes} >= {"conflict"}
    assert proved(case)


@pytest.mark.parametrize(("shape", "at"), [((5, 1), 0), ((1, 1, 1), 2)], ids=["rows", "a new axis"])
def test_what_varies_where_it_is_moved_along_stays(shape: tuple[int, ...], at: int) -> None:
    """Which row comes when is not known; and a constant takes no more axes."""
    b = Net()
    if at == 0:
        y = b.node("Gather", b.table(5, CHANNELS), b.numbers(5))
    else:
        y = b.node("Expand", b.table(CHANNELS), b.constant([5, CHANNELS]))
        y = b.node("Expand", b.table(4), b.like(b.input("N", 2), 3, 4))
        shape = (3, 1)
    b.scaled(y, *shape)
    check(fold(b.model()))
    assert fold(b.model()).left == 2


def test_a_large_table_goes_through_in_pieces() -> None:
    b = Net(type_=TensorProto.FLOAT)
    b.scaled(b.node("Gather", b.constant(np.ones((40_000, 32)), "table"), b.numbers("N")), 32)
    case = fold(b.model())
    assert case.left == 0
    assert proved(case)
