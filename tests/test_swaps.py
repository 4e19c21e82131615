"""A 1x1 convolution and the pool behind it change places, where that leaves fewer places to convolve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold import folding, merges, page, report
from bnfold.folding import Wishes
from bnfold.merges.swapping import swaps
from bnfold.patch import witness_of
from bnfold.plan import Plan
from bnfold.witness import Regrouped, Sum, Witness
from bnfold.witness_data import from_data, to_data
from tests.builder import Builder
from tests.merging import SAME, Row, agree, certified, check, image, ops, run, solved


def front(b: Builder, channels: int = 16, *sizes: int | str) -> str:
    return b.node("Relu", image(b, channels, *(sizes or (8, 6))))


def pool(b: Builder, x: str, size: int = 2, stride: int = 2, **how: Any) -> str:
    axes = len(b.shape(x)) - 2
    return b.node("AveragePool", x, kernel_shape=[size] * axes, strides=[stride] * axes, **how)


def transition(b: Builder, *sizes: int | str, out: int = 8, kernel: int = 1, pooling: Any = None, **how: Any) -> str:
    """Between two blocks of a DenseNet."""
    y = b.conv(front(b, 16, *sizes), out, kernel, **how)
    return b.node("Tanh", pool(b, y, **(pooling or {})))


def globally(b: Builder, *sizes: int | str) -> str:
    return b.node("GlobalAveragePool", b.conv(front(b, 16, *sizes), 8, 1))


def read_elsewhere(b: Builder) -> tuple[str, str]:
    y = b.conv(front(b), 8, 1)
    return pool(b, y), b.node("Tanh", y)


def an_output(b: Builder) -> tuple[str, str]:
    y = b.conv(front(b), 8, 1)
    return y, pool(b, y)


def behind_a_conv(b: Builder) -> str:
    """Both convolutions become one, and the pool stays behind."""
    return pool(b, b.conv(b.conv(front(b), 16, 3, **SAME), 8, 1))


def computed(b: Builder) -> str:
    weight = b.node("Tanh", b.input(8, 16, 1, 1, name="weight"))
    return pool(b, b.node("Conv", front(b), weight))


def in_a_sum(b: Builder) -> str:
    x = front(b)
    return b.node("Add", pool(b, b.conv(x, 8, 1)), b.conv(x, 8, 2, strides=[2, 2]))


def with_a_norm(b: Builder) -> str:
    """The norm behind goes into the convolution."""
    return b.bn(pool(b, b.conv(front(b), 8, 1)))


LEFT, SWAPPED = "Relu Conv AveragePool Tanh", "Relu AveragePool Conv Tanh"

ROWS = [
    Row("DenseNet", transition, SWAPPED),
    Row("no bias", partial(transition, bias=False), SWAPPED),
    Row("groups", partial(transition, group=2), SWAPPED),
    Row("free sizes", lambda b: transition(b, "H", "W"), SWAPPED),
    Row("one axis", lambda b: transition(b, 9), SWAPPED),
    Row("three axes", lambda b: transition(b, 4, 5, 4), SWAPPED),
    Row("windows that overlap", partial(transition, pooling={"size": 3}), SWAPPED),
    Row("padding is counted, and there is none", partial(transition, pooling={"count_include_pad": 1}), SWAPPED),
    Row("VALID", partial(transition, pooling={"auto_pad": "VALID"}), SWAPPED),
    Row("all places", globally, "Relu GlobalAveragePool Conv"),
    Row("a norm behind", with_a_norm, "Relu AveragePool Conv"),
    Row("in a sum", in_a_sum, "Relu Conv"),
    Row("opset 7", transition, SWAPPED, opset=7),
    Row("opset 22", transition, SWAPPED, opset=22, ir=10),
    Row("all places of free sizes", lambda b: globally(b, "H", "W"), "Relu Conv GlobalAveragePool"),
    Row("as many places", partial(transition, pooling={"stride": 1}), LEFT),
    Row("few channels out of many", partial(transition, out=1), LEFT),
    Row("3x3", partial(transition, kernel=3, **SAME), LEFT),
    Row("strides", partial(transition, strides=[2, 2]), LEFT),
    Row("a padded convolution", partial(transition, pads=[1, 1, 1, 1]), LEFT),
    Row("a padded pool", partial(transition, pooling={"size": 3, **SAME}), LEFT),
    Row("SAME", lambda b: transition(b, 7, 7, pooling={"auto_pad": "SAME_UPPER"}), LEFT),
    Row("sizes rounded up", lambda b: transition(b, 7, 7, pooling={"ceil_mode": 1}), LEFT, opset=19),
    Row("read elsewhere", read_elsewhere, "Relu Conv AveragePool Tanh"),
    Row("an output", an_output, "Relu Conv AveragePool"),
    Row("behind another convolution", behind_a_conv, "Relu Conv AveragePool"),
    Row("weights that are computed", computed, "Tanh Relu Conv AveragePool"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_left(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.opset >= 17], ids=lambda row: row.name)
def test_the_runtime_agrees(row: Row) -> None:
    run(row)


@pytest.mark.parametrize("keep", ["conv", "averagepool"])
def test_what_is_kept_stays(keep: str) -> None:
    model = Row("", transition, "").model()
    assert solved(model, Wishes(keep=(keep,)))[1] == model


def test_no_merge_leaves_the_order() -> None:
    model = Row("", transition, "").model()
    assert bnfold.optimize(model, merge=False, verify=False).proto == model


def test_the_report() -> None:
    result = bnfold.optimize(Row("", transition, "").model(TensorProto.FLOAT), samples=1)
    (entry,) = result.merges
    assert result.status == "verified"
    assert entry.to_json() == {
        "node": "averagepool", "status": "swapped", "op": "Conv", "into": "conv", "nodes": ["conv", "averagepool"],
    }  # fmt: skip
    lines = [one.body.plain for one in report.optimized(result)]
    place = lines.index("swapped with the 1x1 convolution in front: 1 pool")
    assert lines[place + 1] == "averagepool"
    assert "now in front of" in page.render([page.section(result, "optimize")])
    assert result.proto is not None
    assert [node.name for node in result.proto.graph.node] == ["relu", "averagepool", "conv", "tanh"]
    assert [node.output[0] for node in result.proto.graph.node] == ["relu", "relu.pooled", "averagepool", "tanh"]


def test_a_pool_of_all_places_may_be_named() -> None:
    result = bnfold.explain(Row("", globally, "").model(), keep=["globalaveragepool"])
    assert not result.merges
    assert not result.warnings


def test_a_body() -> None:
    b = Builder()
    y = transition(b)
    inner = list(b.nodes)
    b.nodes.clear()
    body = onnx.helper.make_graph(inner, "body", [], [onnx.helper.make_tensor_value_info(y, b.type, [2, 8, 4, 3])])
    b.node("If", b.constant(np.array(True)), then_branch=body, else_branch=body, outputs=["o"])
    b.declare("o", 2, 8, 4, 3)
    model = b.model()
    found, made = solved(model)
    assert [[node.op_type for node in a.g.node] for a in made.graph.node[0].attribute] == 2 * [SWAPPED.split()]
    agree(model, made)
    assert certified(model, made, witness_of(found.rewrite)).ok


def test_a_swap_that_is_wrong_is_dropped_and_the_rest_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if padding did not matter."""

    def wrong(graph: Any, allowed: Any, names: Any) -> Any:
        yield from swaps(graph, allowed, names)
        conv, padded = (next(node for node in graph.nodes if node.label == name) for name in ("conv2", "averagepool2"))
        if allowed(padded):
            first = Sum(padded.index, padded.op, (conv.inputs[0],), "new")
            second = Sum(conv.index, conv.op, ("new", *conv.inputs[1:]), padded.outputs[0])
            yield Regrouped((conv.index, padded.index), (first, second))

    monkeypatch.setattr(merges, "swaps", wrong)
    b = Builder(type_=TensorProto.FLOAT)
    x = transition(b)
    pool(b, b.conv(x, 4, 1), 3, count_include_pad=1, **SAME)
    result = bnfold.optimize(b.model(), samples=1)
    assert result.status == "verified"
    assert result.proto is not None
    assert ops(result.proto) == SWAPPED + " Conv AveragePool"
    assert any("averagepool2" in warning for warning in result.warnings)


# ------------------------------------------------------------------------------------------------------ the certificate


def forged(**changes: Any) -> Callable[[Regrouped], Regrouped]:
    return lambda own: replace(own, **changes)


def with_step(place: int, **changes: Any) -> Callable[[Regrouped], Regrouped]:
    def change(own: Regrouped) -> Regrouped:
        steps = list(own.sums)
        steps[place] = replace(steps[place], **changes)
        return replace(own, sums=tuple(steps))

    return change


FORGERIES: dict[str, tuple[Callable[[Regrouped], Regrouped], str]] = {
    "a name that is taken": (with_step(0, output="tanh"), "which there is"),
    "no name": (with_step(0, output=""), "which there is"),
    "another input": (with_step(0, inputs=("x",)), "alone"),
    "another operator": (with_step(0, op="MaxPool"), "alone"),
    "like another node": (with_step(0, like=0), "alone"),
    "other weights": (with_step(1, inputs=("relu.pooled", "conv.weight")), "alone"),
    "another output": (with_step(1, output="tanh"), "alone"),
    "the other way round": (forged(nodes=(2, 1)), "no two in this order"),
    "one node": (forged(nodes=(1,)), "no two in this order"),
    "a node beyond the last": (forged(nodes=(1, 99)), "no two in this order"),
    "no convolution": (forged(nodes=(0, 2)), "read elsewhere"),
    "no pool": (forged(nodes=(2, 3)), "no 1x1 convolution"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_witness_is_refused(forgery: str) -> None:
    model = Row("", transition, "").model()
    found, made = solved(model)
    (graph,) = witness_of(found.rewrite).graphs
    forge, text = FORGERIES[forgery]
    proof = certified(model, made, Witness((replace(graph, regrouped=tuple(map(forge, graph.regrouped))),)))
    assert not proof.ok
    assert text in proof.failures[0].text


@pytest.mark.parametrize(
    "row",
    [
        row
        for row in ROWS
        if row.left in (LEFT, "Relu Conv AveragePool")
        and row.name not in ("as many places", "few channels out of many", "behind another convolution")
    ],
    ids=lambda row: row.name,
)
def test_the_certificate_sees_two_that_may_not_change_places(row: Row) -> None:
    """As the merges would do it, did they not look."""
    model = row.model()
    conv, pooling = (next(n for n in model.graph.node if n.op_type == op) for op in ("Conv", "AveragePool"))
    indices = [list(model.graph.node).index(node) for node in (conv, pooling)]
    first = Sum(indices[1], "AveragePool", (conv.input[0],), "new")
    second = Sum(indices[0], "Conv", ("new", *conv.input[1:]), pooling.output[0])
    found, _ = solved(model)
    (graph,) = witness_of(found.rewrite).graphs
    proof = certified(model, model, Witness((replace(graph, regrouped=(Regrouped(tuple(indices), (first, second)),)),)))
    assert [failure.kind for failure in proof.failures] == ["wiring"]
    assert "conv" in proof.failures[0].text


def test_a_witness_goes_into_a_manifest_and_back() -> None:
    found, _ = solved(Row("", transition, "").model())
    witness = witness_of(found.rewrite)
    assert witness.main.regrouped
    assert from_data(to_data(witness), 1 << 20).graphs[0].regrouped == witness.main.regrouped


def test_nothing_but_a_swap_is_a_change() -> None:
    found, _ = solved(Row("", transition, "").model())
    assert not found.rewrite.is_empty
    assert found.rewrite.plan.is_empty
    assert found.changes == ["averagepool"]
    assert isinstance(found.rewrite.plan, Plan)
    assert folding.MERGED not in found.changes


# ------------------------------------------------------------------------------------------------------- random graphs


def scribbled(seed: int) -> onnx.ModelProto:
    """Blocks of a convolution and a pool, of any kind, with a norm or nothing around, some of them read twice."""
    b = Builder(seed=seed)
    rng = np.random.default_rng(seed)
    x = front(b, 8, *[(13,), (12, 9), (7, 6, 8)][int(rng.integers(3))])
    for _ in range(3):
        given = b.bn(x) if rng.random() < 0.3 else x
        kernel = int(rng.choice([1, 1, 1, 3])) if min(b.shape(given)[2:]) > 3 else 1
        y = b.conv(given, 8, kernel, group=int(rng.choice([1, 1, 2, 8])), bias=bool(rng.random() < 0.7))
        size, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        spare = min(b.shape(y)[2:]) - size
        how: Any = SAME if spare > 0 and size == 3 and len(b.shape(y)) == 4 and rng.random() < 0.2 else {}
        if spare < 0:
            break
        averaged = pool(b, y, size, stride, count_include_pad=int(rng.integers(2)), **how)
        if rng.random() < 0.15:
            b.node("Tanh", y)
        x = b.bn(averaged) if rng.random() < 0.4 else averaged
        x = b.node("Add", x, b.node("Tanh", x)) if rng.random() < 0.3 else x
        x = b.node("Relu", x) if rng.random() < 0.7 else x
    return b.model()


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever may change places does, paying or not: the result is the same, and certified."""
    monkeypatch.setattr("bnfold.merges.swapping.MARGIN", 1e9)
    model = scribbled(seed)
    found, made = solved(model)
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures
