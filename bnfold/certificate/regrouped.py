"""Sums in another order: the original is brought into the same form, where the terms are the same.

Addition is commutative and associative, rounding apart, and so is the broadcasting of shapes. So a sum is what it was
where its terms are, each with its sign, and as often as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import onnx

from bnfold.certificate.result import WrongError
from bnfold.certificate.swapped import check_swap
from bnfold.graph import Graph, Model, Node
from bnfold.witness import Regrouped, Sum, Witness

Terms = Counter[tuple[str, int]]
"""How often a tensor is added (1) or taken off (-1)."""

BROADCASTS = {"Add": 7, "Sub": 7, "Sum": 8}
"""From which opset an operator takes terms of any shapes, in any order."""

MOST = 512
"""Sums that may change places together."""


def with_sums_regrouped(original: Model, witness: Witness) -> Model:
    """The original with its sums in the order that the witness says. `original` is not changed.

    Raises:
        WrongError: a sum would be another one.
    """
    wanted = {entry.path: entry.regrouped for entry in witness.graphs if entry.regrouped}
    if not wanted:
        return original
    known = {graph.path for graph in original.graphs}
    if set(wanted) - known:
        raise WrongError("interface", "the witness speaks of sums in a graph that the model does not have")
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    taken = _names(original)
    for graph in sorted(original.graphs, key=lambda graph: -len(graph.trail)):
        if graph.path in wanted:
            _regroup(graph, graph.within(proto), wanted[graph.path], taken)
    return Model(replace(original.source, proto=proto, raw=None), direct=original.direct)


def _regroup(graph: Graph, proto: onnx.GraphProto, wanted: tuple[Regrouped, ...], taken: set[str]) -> None:
    gone: set[int] = set()
    places: dict[int, list[onnx.NodeProto]] = {}
    for each in wanted:
        _check(graph, each, taken)
        if gone & set(each.nodes):
            raise WrongError("wiring", "the witness regroups a node twice")
        gone |= set(each.nodes)
        if each.is_swap:
            places[each.nodes[-1]] = [_node(graph, made) for made in each.sums]
            continue
        waiting: list[onnx.NodeProto] = []
        for made in each.sums:
            waiting.append(_node(graph, made))
            if made.like >= 0:
                places[made.like], waiting = waiting, []
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(proto.node):
        if index not in gone:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        nodes += places.get(index, [])
    del proto.node[:]
    proto.node.extend(nodes)


def _node(graph: Graph, made: Sum) -> onnx.NodeProto:
    node = onnx.NodeProto(name=made.output)
    if made.like >= 0:
        node.CopyFrom(graph.nodes[made.like].proto)
    node.op_type, node.input[:], node.output[:] = made.op, made.inputs, [made.output]
    return node


def _check(graph: Graph, wanted: Regrouped, taken: set[str]) -> None:
    """See that the nodes in the new order add up to the same. The names of new tensors are taken then."""
    if wanted.is_swap:
        check_swap(graph, wanted, taken)
        return
    before = _terms_before(graph, wanted.nodes)
    root = graph.nodes[wanted.nodes[-1]]
    likes = [made.like for made in wanted.sums if made.like >= 0]
    if set(likes) - set(wanted.nodes) or len(set(likes)) != len(likes) or not wanted.sums or wanted.sums[-1].like < 0:
        raise WrongError("wiring", f"the witness makes {root.label} of nodes that do not go, or not once")
    after: dict[str, Terms] = {}
    for made in wanted.sums:
        if graph.model.opset < BROADCASTS.get(made.op, graph.model.opset + 1):
            raise WrongError("wiring", f"the witness makes {made.output!r} by {made.op}")
        terms = _terms_of(made, before, after)
        if made.output not in before and (made.output in taken or not made.output):
            raise WrongError("wiring", f"the witness makes {made.output!r} anew, which there is")
        if made.output in after or (made.output in before and terms != before[made.output]):
            raise WrongError("wiring", f"{made.output!r} would be another sum")
        after[made.output] = terms
    read = {name for made in wanted.sums for name in made.inputs}
    if set(after) - read != {root.outputs[0]}:
        raise WrongError("wiring", f"{root.label} would not be made, or not alone")
    taken.update(after)


def _terms_of(made: Sum, before: Mapping[str, Terms], after: Mapping[str, Terms]) -> Terms:
    """What a new sum adds up, once the sums in `after` are made."""
    if not made.inputs or (made.op != "Sum" and len(made.inputs) != 2):
        raise WrongError("wiring", f"the witness makes {made.output!r} of {len(made.inputs)} terms")
    terms: Terms = Counter()
    for slot, name in enumerate(made.inputs):
        sign = -1 if made.op == "Sub" and slot else 1
        if name in before and name not in after:
            raise WrongError("wiring", f"{made.output!r} would read {name!r}, which is gone")
        if not name:
            raise WrongError("wiring", f"{made.output!r} would read nothing")
        inner: Mapping[tuple[str, int], int] = after.get(name, {(name, 1): 1})
        for (term, own), count in inner.items():
            terms[term, own * sign] += count
    return terms


def _terms_before(graph: Graph, indices: tuple[int, ...]) -> dict[str, Terms]:
    """What each of the sums adds up; what it reads of the others is read by it alone."""
    ordered = list(indices) == sorted(set(indices))
    if len(indices) > MOST:
        raise WrongError("wiring", f"the witness regroups {len(indices)} sums at once")
    if not ordered or not indices or not all(0 <= index < len(graph.nodes) for index in indices):
        raise WrongError("wiring", "the witness regroups nodes that are none")
    nodes = [graph.nodes[index] for index in indices]
    own = {node.outputs[0] for node in nodes if len(node.outputs) == 1}
    found: dict[str, Terms] = {}
    for node in nodes:
        _check_sum(graph, node, last=node is nodes[-1], inside=set(indices))
        terms: Terms = Counter()
        for slot, name in enumerate(node.inputs):
            sign = -1 if node.op == "Sub" and slot else 1
            if name in own and name not in found:
                raise WrongError("wiring", f"{node.label} stands before what it reads")
            inner: Mapping[tuple[str, int], int] = found.get(name, {(name, 1): 1})
            for (term, of), count in inner.items():
                terms[term, of * sign] += count
        found[node.outputs[0]] = terms
    return found


def _check_sum(graph: Graph, node: Node, last: bool, inside: set[int]) -> None:
    free = node.op in BROADCASTS and node.version >= BROADCASTS[node.op]
    if not free or node.attributes or len(node.outputs) != 1 or not all(node.inputs):
        raise WrongError("wiring", f"the witness regroups {node.label}, which is no plain sum")
    name = node.outputs[0]
    readers = graph.consumers.get(name, [])
    pinned = name in graph.output_set or name in graph.captured or name in graph.annotated
    if not last and (pinned or len(readers) != 1 or readers[0][0].index not in inside):
        raise WrongError("wiring", f"the witness regroups {node.label}, which is read elsewhere too")


def _names(model: Model) -> set[str]:
    """Every name of a tensor or a node in the model."""
    found = {value.name for graph in model.graphs for value in (*graph.proto.input, *graph.proto.output)}
    for graph in model.graphs:
        found |= graph.initializers.keys() | {tensor.values.name for tensor in graph.proto.sparse_initializer}
        for node in graph.nodes:
            found |= {node.proto.name, *node.inputs, *node.outputs}
    return found
