"""The certificate: a second, independent proof of a fold, from the original, the output and the witness alone.

Translation validation. The witness says how every re-stored tensor is stored. If the graph's ends are stored as they
were, every kept node makes the re-stored output from re-stored inputs, every merged node makes what those that became
it make together, and every node that left is the identity between what it read and what it wrote, then the output
computes what the original computes. Each of these is checked here, node by node, on small random float64 tensors and
with formulas of its own; nothing is shared with the rules, the solver, the merges or the plan.
"""

from __future__ import annotations

import numpy as np
import onnx
from google.protobuf.message import Message

from bnfold.certificate.affines import check_removed, plainly_removed
from bnfold.certificate.calls import with_calls_replaced
from bnfold.certificate.merged import check_region
from bnfold.certificate.narrowed import without_casts
from bnfold.certificate.nodes import check_node, touched
from bnfold.certificate.regrouped import with_sums_regrouped
from bnfold.certificate.result import Certificate, Failure, NotCertifiedError, WrongError
from bnfold.certificate.sample import Draws
from bnfold.certificate.scales import check_merged_scales_removed
from bnfold.certificate.together import plainly_made
from bnfold.certificate.wiring import GraphPair, compare_nodes, match, same_tensor
from bnfold.graph import Graph, Model
from bnfold.witness import GraphWitness, Witness

__all__ = ["Certificate", "Failure", "certify"]


def certify(original: Model, optimized: Model, witness: Witness, *, seed: int = 0) -> Certificate:
    """Check that `optimized` computes what `original` computes.

    Args:
        original: the model as it was.
        optimized: the model as it was written.
        witness: how its tensors are stored, and which nodes left.
        seed: of the random tensors.
    """
    try:
        original = with_calls_replaced(original, witness.calls) if witness.calls else original
        original = with_sums_regrouped(original, witness)
    except WrongError as error:
        return Certificate(0, 0, 0, (Failure("", error.kind, str(error)),))
    failures: list[Failure] = _compare_models(original, optimized)
    if witness.narrowed.type:
        optimized, wrong = without_casts(optimized, witness.narrowed)
        failures += wrong
    if len(original.graphs) != len(optimized.graphs):
        failures.append(Failure("", "interface", "the output has another number of graphs (bodies of If, Loop, Scan)"))
        return Certificate(0, 0, 0, tuple(failures))
    graphs = _paired(original, optimized, witness)
    for graph in graphs:
        _check_ends(graph)
        match(graph)
    for graph in graphs:
        compare_nodes(graph)
    for graph in graphs:
        _check_outputs(graph)
    checked = constants = 0
    for graph in graphs:
        nodes, news = _check_nodes(graph, Draws(seed))
        checked, constants = checked + nodes, constants + news
    failures += [failure for graph in graphs for failure in graph.failures]
    return Certificate(checked, constants, sum(len(graph.same) for graph in graphs), tuple(failures))


def _paired(original: Model, optimized: Model, witness: Witness) -> list[GraphPair]:
    # Both lists come from the same walk, so that paired nodes have paired bodies.
    told = {entry.path: entry for entry in witness.graphs}
    pairs: dict[Graph, GraphPair] = {}
    for old, new in zip(original.graphs, optimized.graphs, strict=True):
        outer = pairs[old.parent] if old.parent is not None else None
        narrowed = witness.narrowed.type
        pairs[old] = GraphPair(old, new, told.get(old.path, GraphWitness(old.path)), outer, narrowed)
        if (outer is None) != (new.parent is None) or (outer is not None and new.parent is not outer.new):
            pairs[old].fail("interface", "", f"the body {old.path!r} is now in another graph")
    unknown = set(told) - {graph.path for graph in original.graphs}
    for path in sorted(unknown):
        pairs[original.main].fail(
            "interface", "", f"the witness speaks of a graph {path!r} that the model does not have"
        )
    return list(pairs.values())


def _compare_models(original: Model, optimized: Model) -> list[Failure]:
    old, new = original.proto, optimized.proto
    checks = {
        "IR version": old.ir_version == new.ir_version,
        "opset imports": _bytes(*old.opset_import) == _bytes(*new.opset_import),
        "functions": _bytes(*old.functions) == _bytes(*new.functions),
    }
    return [Failure("", "interface", f"the {what} changed") for what, same in checks.items() if not same]


def _check_ends(graph: GraphPair) -> None:
    """Inputs and outputs are the same, and every boundary is stored as it was."""
    for what, old, new in (
        ("inputs", _free_inputs(graph.old), _free_inputs(graph.new)),
        ("outputs", list(graph.old.proto.output), list(graph.new.proto.output)),
    ):
        if _bytes(*old) != _bytes(*new):
            graph.fail("interface", "", f"the {what} of the graph are not those of the original (name, type, order)")
    if _bytes(*graph.old.proto.sparse_initializer) != _bytes(*graph.new.proto.sparse_initializer):
        graph.fail("constant", "", "a sparse initializer changed")
    unlisted = set(graph.new.initializers) - graph.new.input_set
    listing = graph.new.model.proto.ir_version < 4 and graph.old.parent is None
    if listing and unlisted and not set(graph.old.initializers) - graph.old.input_set:
        graph.fail("interface", min(unlisted), "below IR version 4 every initializer must be listed as an input")
    ends = {
        "is an input of the graph": set(graph.old.input_set),
        "is an output of the graph": set(graph.old.output_set),
        "is read inside a subgraph": graph.old.captured,
        "is an initializer": set(graph.old.initializers),
        "is named by an annotation": set(graph.old.annotated),
    }
    for name in graph.witness.storage:
        for why, names in ends.items():
            if name in names and graph.storage(name) is not None:
                graph.fail("boundary", name, f"{name!r} {why}, and must be stored as it was")
                break


def _free_inputs(graph: Graph) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller gives: below IR 4 every initializer is listed as an input, and is none."""
    constants = graph.initializers if graph.parent is None and graph.model.proto.ir_version < 4 else {}
    return [value for value in graph.proto.input if value.name not in constants]


def _check_outputs(graph: GraphPair) -> None:
    """Every output of the graph is made by the same node, and has its old name."""
    for name in graph.old.outputs:
        if graph.scope(name) is None:
            continue
        if graph.renamed(name) != name or not same_tensor(graph, name, name):
            graph.fail("wiring", name, f"the output {name!r} is not what it was")
    for name in graph.old.overridable:
        if not same_tensor(graph, name, name):
            graph.fail("interface", name, f"the default value of the input {name!r} changed")
    for name in graph.new.annotated:
        if graph.old.owner(name) is not None and graph.new.owner(name) is None:
            graph.fail("wiring", name, f"an annotation names {name!r}, which is gone")


@np.errstate(over="ignore", invalid="ignore")  # weights that are not finite
def _check_nodes(graph: GraphPair, draws: Draws) -> tuple[int, int]:
    checked = constants = 0
    pairs = {index: pair for index, pair in graph.pairs.items() if touched(graph, pair)}
    fine = plainly_removed(graph, [node for node in graph.old.nodes if node.index in graph.witness.removed])
    fine |= plainly_made(graph, pairs.values(), draws)
    for node in graph.old.nodes:
        pair, region = pairs.get(node.index), graph.regions.get(node.index)
        left = node.index in graph.witness.removed
        if not left and region is None and pair is None:
            continue
        checked += 1
        if node.index in fine:
            continue
        try:
            if left and node.index in graph.witness.merged:
                check_merged_scales_removed(graph, node)
            elif left:
                check_removed(graph, node)
            elif region is not None:
                constants += check_region(graph, region, draws)
            elif pair is not None:
                constants += check_node(graph, pair, draws)
        except WrongError as error:
            graph.fail(error.kind, node.label, str(error), error.error)
        except (NotCertifiedError, ValueError, IndexError, MemoryError) as error:  # what fits no check fails
            graph.fail("node", node.label, f"it cannot be certified: {error}")
    return checked, constants


def _bytes(*protos: Message) -> list[bytes]:
    return [proto.SerializeToString(deterministic=True) for proto in protos]
