"""A keyed comparison of models before and after merges: nothing beside what merged has changed."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

import bnfold
from tests.builder import Builder
from tests.keyed import Merge, exchanged, unintended
from tests.merging import Row, image
from tests.test_merged_scales import ROWS as SCALES
from tests.test_merges import BRANCHES, CHAINS, repvgg
from tests.test_regrouped import ROWS as REGROUPED
from tests.test_siblings import ROWS as SIBLINGS
from tests.test_swaps import ROWS as SWAPS


@pytest.mark.parametrize("row", [*BRANCHES, *CHAINS, *REGROUPED, *SCALES, *SIBLINGS, *SWAPS], ids=lambda row: row.name)
def test_a_merge_changes_nothing_beside_it(row: Row) -> None:
    model = row.model()
    result = bnfold.optimize(model, verify=False)
    assert result.proto is not None
    assert not unasked(model, result.proto, result)


def unasked(before: onnx.ModelProto, after: onnx.ModelProto, result: bnfold.Optimized) -> list[str]:
    """What a keyed comparison finds."""
    left = [affine.node for affine in result.affines if affine.status == "folded"]
    made = [Merge(each.root, each.nodes, each.into, each.op) for each in result.merges if each.status == "merged"]
    pairs = [(each.nodes[0], each.nodes[1]) for each in result.merges if each.status == "swapped"]
    return unintended(exchanged(before, after, pairs), after, left, numbers=True, merges=made)


UNASKED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "what the node reads": (lambda m: m.graph.node[1].input.__setitem__(0, "x"), "reads 'x'"),
    "its operator": (lambda m: setattr(m.graph.node[1], "op_type", "ConvTranspose"), "is new"),
    "its output": (lambda m: m.graph.node[1].output.__setitem__(0, "another"), "is new"),
    "another attribute": (lambda m: m.graph.node[1].attribute.add(name="odd", type=1, f=1.0), "odd changed"),
    "a node beside it": (lambda m: setattr(m.graph.node[0], "op_type", "Elu"), "is new"),
    "a node in front": (lambda m: m.graph.node.insert(1, m.graph.node[0]), "is new"),
}


@pytest.mark.parametrize("name", UNASKED)
def test_what_a_merge_does_not_ask_for_is_seen(name: str) -> None:
    b = Builder()
    b.node("Tanh", repvgg(b, b.node("Relu", image(b, 4, 7, 7))))
    model = b.model()
    result = bnfold.optimize(model, verify=False)
    assert result.proto is not None and not unasked(model, result.proto, result)
    spoil, words = UNASKED[name]
    spoil(result.proto)
    assert any(words in line for line in unasked(model, result.proto, result))
