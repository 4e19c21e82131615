"""Branches of one tensor in a sum with other terms between them: they become one wherever in the sum they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import bnfold
from bnfold import merges
from bnfold.folding import Wishes
from bnfold.patch import witness_of
from bnfold.plan import NewConstant
from bnfold.witness import Regrouped, Sum, Witness
from bnfold.witness_data import from_data, to_data
from tests.builder import Builder
from tests.merging import SAME, Row, agree, certified, check, image, ops, run, solved


def three(b: Builder) -> tuple[str, str, str]:
    """Two convolutions of one tensor, and another term."""
    x = image(b)
    return b.conv(x, 4, 3, **SAME), b.conv(x, 4, 1), b.node("Tanh", x)


def between(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Add", b.node("Add", one, other), two)


def on_the_right(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Add", one, b.node("Add", other, two))


def in_one_sum(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Sum", one, other, two, b.node("Sigmoid", other))


def in_two_sums(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Sum", b.node("Sum", one, other, "x"), b.node("Sigmoid", other), two)


def its_input(b: Builder) -> str:
    x = image(b)
    return b.node("Add", b.node("Add", b.conv(x, 4, 3, **SAME), b.node("Tanh", x)), x)


def taken_off_twice(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Sub", one, b.node("Sub", two, other))


def all_taken_off(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Sub", other, b.node("Add", one, b.node("Sub", b.node("Sigmoid", other), two)))


def others_taken_off_together(b: Builder) -> str:
    one, two, other = three(b)
    less = b.node("Sub", b.node("Sub", one, other), b.node("Sigmoid", other))
    return b.node("Add", b.node("Sub", b.node("Relu", other), less), two)


def two_tensors(b: Builder) -> str:
    x = image(b)
    y = b.node("Relu", x)
    crossed = (b.node("Add", b.conv(x, 4, 3, **SAME), b.conv(y, 4, 1)), b.node("Add", b.bn(b.conv(y, 4, 3, **SAME)), x))
    return b.node("Add", *crossed)


def a_broadcast_term(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Add", b.node("Add", one, b.node("GlobalAveragePool", other)), two)


def a_constant_that_enlarges(b: Builder) -> str:
    x = b.input("N", 4, 7, 6)
    one = b.node("Add", b.conv(x, 4, 3, **SAME), b.constant(b.normal(3, 4, 1, 1)))
    b.declare(whole := b.node("Add", one, b.conv(x, 4, 1)), 3, 4, 7, 6)
    return whole


def with_a_norm_behind(b: Builder) -> str:
    one, two, other = three(b)
    return b.bn(b.node("Add", b.node("Add", one, b.conv(other, 4, 1)), two))


def behind_a_shared_node(b: Builder) -> str:
    x = image(b)
    wide = b.conv(x, 8, 1)
    return b.node("Add", b.node("Add", b.conv(wide, 4, 1), b.node("Tanh", x)), b.conv(wide, 4, 1))


def two_of_three(b: Builder) -> str:
    """Both depthwise ones become one; with the pointwise one it would cost far more."""
    x = image(b, 64, 14, 14)
    how: Any = {"group": 64, **SAME}
    return b.node("Add", b.node("Add", b.conv(x, 64, 3, **how), b.conv(x, 64, 1)), b.conv(x, 64, 3, **how))


def products(b: Builder) -> str:
    x = b.input(2, 5, 6)
    return b.node("Add", b.node("Add", b.matmul(x, 6, True), b.node("Tanh", x)), b.matmul(x, 6, True))


def gemms(b: Builder) -> str:
    x = b.input(5, 6)
    return b.node("Sub", b.node("Add", b.gemm(x, 6), b.node("Tanh", x)), b.gemm(x, 6))


def read_in_between(b: Builder) -> tuple[str, str]:
    one, two, other = three(b)
    return (partly := b.node("Add", one, other)), b.node("Add", partly, two)


def used_in_between(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Mul", partly := b.node("Add", one, other), b.node("Add", partly, two))


def other_strides(b: Builder) -> str:
    x = image(b, 4, 1, 1)
    one = b.conv(x, 4, 3, strides=[2, 2], **SAME)
    return b.node("Add", b.node("Add", one, b.node("Tanh", x)), b.conv(x, 4, 1))


def read_twice(b: Builder) -> str:
    one, two, other = three(b)
    return b.node("Add", b.node("Add", one, other), b.node("Add", two, one))


def many(b: Builder, count: int) -> str:
    x = image(b)
    total = b.node("Tanh", x)
    for n in range(count):
        total = b.node("Sub" if n % 3 else "Add", total, b.conv(x, 4, 1, group=4))
        total = b.node("Add", total, b.node("Relu", b.per_channel("Mul", x, float(n + 2))))
    return total


ROWS = [
    Row("another term between", between, "Conv Tanh Add"),
    Row("another term between, on the right", on_the_right, "Conv Tanh Add"),
    Row("one Sum", in_one_sum, "Conv Tanh Sigmoid Sum"),
    Row("two Sums", in_two_sums, "Conv Tanh Sigmoid Sum"),
    Row("the input itself", its_input, "Conv Tanh Add"),
    Row("taken off twice", taken_off_twice, "Conv Tanh Add"),
    Row("all of them taken off", all_taken_off, "Conv Tanh Sigmoid Add Sub"),
    Row("others taken off together", others_taken_off_together, "Conv Tanh Sigmoid Add Relu Add Add"),
    Row("branches of two tensors", two_tensors, "Relu Conv Conv Add"),
    Row("a term that is broadcast", a_broadcast_term, "Conv Tanh GlobalAveragePool Add"),
    Row("a constant that may enlarge it", a_constant_that_enlarges, "Conv Add"),
    Row("a BatchNormalization behind", with_a_norm_behind, "Conv Tanh Conv Add"),
    Row("behind a node that both read", behind_a_shared_node, "Conv Tanh Add"),
    Row("two of three", two_of_three, "Conv Conv Add"),
    Row("matrix products", products, "MatMul Add Tanh Add"),
    Row("Gemms, one taken off", gemms, "Gemm Tanh Add"),
    Row("a sum in between that is an output", read_in_between, "Conv Conv Tanh Add Add"),
    Row("a sum in between that is read elsewhere", used_in_between, "Conv Conv Tanh Add Add Mul"),
    Row("other strides", other_strides, "Conv Tanh Add Conv Add"),
    Row("a branch that the sum reads twice", read_twice, "Conv Tanh Add"),
    Row(
        "four branches, four other terms",
        partial(many, count=4),
        "Tanh Conv Mul Relu Add Mul Relu Add Mul Relu Add Add Mul Relu Add",
    ),
    Row("opset 6", between, "Conv Conv Tanh Add Add", opset=6, ir=3),
    Row("opset 7", between, "Conv Tanh Add", opset=7),
    Row("a Sum of opset 7", in_one_sum, "Conv Conv Tanh Sigmoid Sum", opset=7),
    Row("opset 22", between, "Conv Tanh Add", opset=22, ir=10),
]


@pytest.mark.parametrize("order", list(permutations("dps")), ids="".join)
def test_branches_that_do_not_all_pay_as_one_in_any_order(order: tuple[str, ...]) -> None:
    """A depthwise 7x7 and a full 1x1 do not become one; a scale of their input goes into one of them."""
    b = Builder(seed=1)
    x = b.input(1, 8, 9, 9)
    first, second, third = (
        b.bn(
            b.node("Conv", x, b.constant(b.normal(8, 1, 7, 7)), pads=[3] * 4, group=8) if kind == "d"
            else b.conv(x, 8, 1) if kind == "p" else x
        )
        for kind in order
    )  # fmt: skip
    b.node("Relu", b.node("Add", b.node("Add", first, second), third))
    model = b.model()
    found, made = solved(model)
    assert ops(made) == "Conv Conv Add Relu"
    agree(model, made)
    assert certified(model, made, witness_of(found.rewrite)).ok


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_is_left(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.opset >= 17], ids=lambda row: row.name)
def test_the_runtime_agrees(row: Row) -> None:
    run(row)


def test_names_of_what_changed_are_new() -> None:
    """A tensor keeps its name only where it is the same: what stands between is another sum."""
    b = Builder()
    one, two, other = three(b)
    b.node("Add", b.node("Add", b.node("Add", one, other), two), b.node("Sigmoid", other))
    found, made = solved(b.model())
    outputs = [node.output[0] for node in made.graph.node]
    assert outputs == ["add3.branches", "tanh", "add2.regrouped", "sigmoid", "add3"]
    assert [node.name for node in made.graph.node] == ["conv", "tanh", "add2", "sigmoid", "add3"]
    assert not found.almost


def test_what_merges_as_a_whole_keeps_its_order() -> None:
    """Even where one branch is too long to be looked through for what it has in common with the others."""
    b = Builder()
    x = image(b)
    deep = b.conv(x, 4, 1)
    for _ in range(20):
        deep = b.node("Neg", deep)
    b.node("Add", b.node("Add", b.conv(x, 4, 3, **SAME), deep), b.conv(x, 4, 1))
    found, made = solved(b.model())
    assert ops(made) == "Conv"
    assert found.rewrite.regrouped is None


def test_shapes_of_what_is_gone_go() -> None:
    model = onnx.shape_inference.infer_shapes(Row("", between, "").model())
    found, made = solved(model)
    assert {value.name for value in model.graph.value_info} > {"add", "conv2"}
    assert {value.name for value in made.graph.value_info} == {"tanh"}
    assert certified(model, made, witness_of(found.rewrite)).ok


def test_what_does_not_merge_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the merge is not made after all, the sum is left in its order."""
    model = Row("", between, "").model()
    monkeypatch.setattr("bnfold.folding.merges.find", lambda model, allow: merges.Merges(()))
    found, made = solved(model)
    assert found.rewrite.is_empty
    assert found.rewrite.regrouped is None
    assert made == model


def test_what_is_too_much_for_one_merge_becomes_one_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.merges.search.LIMIT", 4)
    b = Builder()
    x = image(b)
    b.node("Sum", *(b.conv(x, 4, 1) for _ in range(5)))
    model = b.model()
    found, made = solved(model)
    assert ops(made) == "Conv"
    agree(model, made)
    assert certified(model, made, witness_of(found.rewrite)).ok


@pytest.mark.parametrize("keep", ["add", "add2", "conv2"])
def test_what_is_kept_is_not_regrouped(keep: str) -> None:
    model = Row("", between, "").model()
    found, made = solved(model, Wishes(keep=(keep,)))
    assert made == model
    assert found.rewrite.regrouped is None


def test_no_merge_leaves_the_order() -> None:
    model = Row("", between, "").model()
    result = bnfold.optimize(model, merge=False, verify=False)
    assert result.proto == model


def test_the_report_speaks_of_the_nodes_of_the_original() -> None:
    (merge,) = bnfold.explain(Row("", between, "").model()).merges
    assert (merge.root, merge.nodes, merge.into) == ("add2", ("conv", "conv2", "add"), "conv")
    b = Builder()
    x = image(b)
    gap = b.node("Add", b.conv(b.bn(x), 4, 3, **SAME), b.node("Tanh", x))
    b.node("Add", gap, b.conv(x, 4, 1))
    (almost,) = bnfold.explain(b.model()).merges
    assert (almost.root, almost.status) == ("add2", "kept")
    assert "pads with zeros" in almost.reason


def test_affines_among_the_branches_are_reported() -> None:
    b = Builder()
    x = image(b)
    b.node("Add", b.node("Add", b.bn(b.conv(x, 4, 3, **SAME)), b.node("Tanh", x)), b.bn(x))
    ways = {affine.node: (affine.status, affine.way, affine.into) for affine in bnfold.explain(b.model()).affines}
    assert ways == {"bn": ("folded", "merge", ("conv",)), "bn2": ("folded", "merge", ("conv",))}


def test_a_body() -> None:
    b = Builder()
    y = between(b)
    inner = list(b.nodes)
    b.nodes.clear()
    body = onnx.helper.make_graph(inner, "body", [], [onnx.helper.make_tensor_value_info(y, b.type, [2, 4, 7, 6])])
    b.node("If", b.constant(np.array(True)), then_branch=body, else_branch=body, outputs=["o"])
    b.declare("o", 2, 4, 7, 6)
    b.node("Add", b.node("Add", b.conv("x", 4, 1), "o"), "x")
    model = b.model()
    found, made = solved(model)
    (branch, *_), *rest = (
        [a.g for a in node.attribute if a.name == "then_branch"] for node in made.graph.node if node.op_type == "If"
    )
    assert [node.op_type for node in branch.node] == ["Conv", "Tanh", "Add"]
    assert not rest
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures


def test_a_call_of_a_function_is_replaced_where_its_branches_merge() -> None:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], name="wide"),
        onnx.helper.make_node("Tanh", ["x"], ["t"], name="other"),
        onnx.helper.make_node("Add", ["a", "t"], ["s"], name="first"),
        onnx.helper.make_node("Add", ["s", "x"], ["y"], name="second"),
    ]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("own", 1)]
    function = onnx.helper.make_function("own", "Block", ["x", "w"], ["y"], nodes, opsets[:1])
    b = Builder(type_=TensorProto.FLOAT)
    x = image(b)
    b.nodes.append(
        onnx.helper.make_node("Block", [x, b.constant(b.normal(4, 4, 1, 1))], ["y"], name="block", domain="own")
    )
    value = onnx.helper.make_tensor_value_info("y", b.type, [2, 4, 7, 6])
    graph = onnx.helper.make_graph(b.nodes, "test", b.inputs, [value], b.initializers)
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    result = bnfold.optimize(model, samples=1)
    assert result.status == "verified"
    assert result.proto is not None
    assert ops(result.proto) == "Conv Tanh Add"


def test_a_merge_that_is_wrong_is_dropped_and_the_order_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    y = b.node("Relu", between(b))
    b.node("Add", b.node("Add", b.conv(y, 4, 1), b.node("Tanh", y)), y)
    right = merges._merge

    def wrong(found: Any) -> Any:
        merge = right(found)
        if "conv3" not in [node.label for node in merge.members]:
            return merge
        weight = next(edit for edit in merge.edits if isinstance(edit, NewConstant))
        spoilt = replace(weight, values=lambda *rows: weight.rows(*rows) * 1.01)
        return replace(merge, edits=tuple(spoilt if edit is weight else edit for edit in merge.edits))

    monkeypatch.setattr(merges, "_merge", wrong)
    result = bnfold.optimize(b.model(), samples=1)
    assert result.status == "verified"
    assert [merge.root for merge in result.merges if merge.status == "merged"] == ["add2"]
    assert result.proto is not None
    assert ops(result.proto) == "Conv Tanh Add Relu Conv Tanh Add Add"


# ------------------------------------------------------------------------------------------------------ the certificate


def forged(change: Callable[[Regrouped], Regrouped]) -> Callable[[Witness], Witness]:
    def forge(witness: Witness) -> Witness:
        (graph,) = witness.graphs
        (own,) = graph.regrouped
        return replace(witness, graphs=(replace(graph, regrouped=(change(own),)),))

    return forge


def with_sum(place: int, **changes: Any) -> Callable[[Witness], Witness]:
    """One of the new sums in another way."""

    def change(own: Regrouped) -> Regrouped:
        sums = list(own.sums)
        sums[place] = replace(sums[place], **changes)
        return replace(own, sums=tuple(sums))

    return forged(change)


FORGERIES: dict[str, tuple[Callable[[Witness], Witness], str]] = {
    "nothing was": (lambda w: replace(w, graphs=(replace(w.graphs[0], regrouped=()),)), ""),
    "a term is taken off": (with_sum(0, op="Sub"), "another sum"),
    "another operator": (with_sum(0, op="Mul"), "by Mul"),
    "another term": (with_sum(0, inputs=("conv", "tanh")), "another sum"),
    "a term twice": (with_sum(1, inputs=("add2.branches", "add2.branches")), "another sum"),
    "one term more": (with_sum(0, op="Sum", inputs=("conv", "conv2", "tanh")), "another sum"),
    "a name that is taken": (with_sum(0, output="x"), "which there is"),
    "a name of a node that goes": (with_sum(0, output="add"), "another sum"),
    "no name": (with_sum(0, output=""), "which there is"),
    "the total elsewhere": (with_sum(1, output="elsewhere"), "not alone"),
    "a sum that nothing reads": (
        forged(lambda own: replace(own, sums=(Sum(-1, "Add", ("x", "x"), "more"), *own.sums))),
        "not alone",
    ),
    "like a node that stays": (with_sum(1, like=0), "do not go"),
    "the last one is new": (with_sum(1, like=-1), "do not go"),
    "a tensor that is gone": (with_sum(0, inputs=("add", "conv2")), "which is gone"),
    "a node that is no sum": (forged(lambda own: replace(own, nodes=(2, 3, 4))), "no plain sum"),
    "one node alone": (forged(lambda own: replace(own, nodes=(4,))), ""),
    "no nodes": (forged(lambda own: replace(own, nodes=())), "none"),
    "no sums": (forged(lambda own: replace(own, sums=())), "do not go"),
    "nodes out of order": (forged(lambda own: replace(own, nodes=own.nodes[::-1])), "none"),
    "a node beyond the last": (forged(lambda own: replace(own, nodes=(3, 99))), "none"),
    "twice": (
        lambda w: replace(w, graphs=(replace(w.graphs[0], regrouped=w.graphs[0].regrouped * 2),)),
        "which there is",
    ),
    "in a graph that is not there": (lambda w: replace(w, graphs=(replace(w.graphs[0], path="if/"),)), "does not have"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_witness_is_refused(forgery: str) -> None:
    model = Row("", between, "").model()
    found, made = solved(model)
    witness = witness_of(found.rewrite)
    assert witness.main.regrouped == (
        Regrouped(
            (3, 4),
            (Sum(-1, "Add", ("conv", "conv2"), "add2.branches"), Sum(4, "Add", ("tanh", "add2.branches"), "add2")),
        ),
    )
    forge, text = FORGERIES[forgery]
    proof = certified(model, made, forge(witness))
    assert not proof.ok
    assert text in proof.failures[0].text


@pytest.mark.parametrize("make", [read_in_between, used_in_between])
def test_a_sum_that_is_read_elsewhere_may_not_change(make: Callable[[Builder], Any]) -> None:
    """As the merges would do it, did they not look at who reads a sum."""
    model = Row("", make, "").model()
    found, made = solved(model)
    own = Regrouped((3, 4), (Sum(-1, "Add", ("conv", "conv2"), "new"), Sum(4, "Add", ("new", "tanh"), "add2")))
    (graph,) = witness_of(found.rewrite).graphs
    proof = certified(model, made, Witness((replace(graph, regrouped=(own,)),)))
    assert [failure.text for failure in proof.failures] == ["the witness regroups add, which is read elsewhere too"]


def test_a_witness_goes_into_a_manifest_and_back() -> None:
    found, _ = solved(Row("", in_two_sums, "").model())
    witness = witness_of(found.rewrite)
    assert witness.main.regrouped
    assert from_data(to_data(witness), 1 << 20).graphs[0].regrouped == witness.main.regrouped
    found, _ = solved(Row("", lambda b: b.node("Add", x := image(b), b.conv(x, 4, 1)), "").model())
    assert "regrouped" not in to_data(witness_of(found.rewrite))["graphs"][0]


# ------------------------------------------------------------------------------------------------------- random sums


def scattered(seed: int) -> onnx.ModelProto:
    """A random tree of sums over convolutions of two tensors, the tensors themselves, and terms that are not linear."""
    b = Builder(seed=seed)
    rng = np.random.default_rng(seed)
    x = image(b)
    y = b.node("Relu", x)
    makers: list[Callable[[], str]] = [
        lambda: b.conv(x, 4, 3, **SAME),
        lambda: b.conv(y, 4, 1),
        lambda: b.conv(x, 4, 1, group=4),
        lambda: b.bn(str(rng.choice([x, y]))),
        lambda: str(rng.choice([x, y])),
        lambda: b.node("Tanh", x),
        lambda: b.node("GlobalAveragePool", y),
        lambda: b.node("Neg", b.conv(y, 4, 3, **SAME)),
    ]
    front = [makers[int(rng.integers(len(makers)))]() for _ in range(int(rng.integers(3, 9)))]
    while len(front) > 1:
        op = str(rng.choice(["Add", "Add", "Sub", "Sum"]))
        taken = [front.pop(int(rng.integers(len(front)))) for _ in range(min(len(front), 3 if op == "Sum" else 2))]
        if rng.random() < 0.1:
            b.node("Sigmoid", taken[0])
        front.append(b.node(op, *taken))
    return b.model()


@pytest.mark.parametrize("seed", range(60))
def test_random_sums(seed: int) -> None:
    model = scattered(seed)
    found, made = solved(model)
    agree(model, made)
    proof = certified(model, made, witness_of(found.rewrite))
    assert proof.ok, proof.failures
