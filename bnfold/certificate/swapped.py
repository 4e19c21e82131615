"""A pool that stands in front of a 1x1 convolution now, and stood behind it.

The convolution makes the same of every place, and an average of places makes the same of every channel; the bias is
its own average. So the order does not matter, where every average is of places of the tensor alone.
"""

from __future__ import annotations

from bnfold.certificate.result import WrongError
from bnfold.graph import Graph, Node
from bnfold.witness import Regrouped, Sum


def check_swap(graph: Graph, wanted: Regrouped, taken: set[str]) -> None:
    """See that the two may change places, and do. The name of the new tensor is taken then.

    Raises:
        WrongError: they may not, or something else changes.
    """
    if len(wanted.nodes) != 2 or not 0 <= wanted.nodes[0] < wanted.nodes[1] < len(graph.nodes):
        raise WrongError("wiring", "the witness swaps nodes that are no two in this order")
    conv, pool = (graph.nodes[index] for index in wanted.nodes)
    between = conv.outputs[0]
    pinned = between in graph.output_set or between in graph.captured or between in graph.annotated
    if pinned or [reader for reader, _ in graph.consumers.get(between, [])] != [pool]:
        raise WrongError(
            "wiring", f"what is between {conv.label} and {pool.label}, which changed places, is read elsewhere"
        )
    if not _is_pointwise(conv) or not _is_average(pool):
        raise WrongError("wiring", f"{conv.label} and {pool.label} are no 1x1 convolution and an average")
    new = wanted.sums[0].output
    if new in taken or not new:
        raise WrongError("wiring", f"the witness makes {new!r} anew, which there is")
    first = Sum(pool.index, pool.op, (conv.inputs[0],), new)
    second = Sum(conv.index, conv.op, (new, *conv.inputs[1:]), pool.outputs[0])
    if wanted.sums != (first, second):
        raise WrongError("wiring", f"{conv.label} and {pool.label} would not change places alone")
    taken.add(new)


def _is_pointwise(node: Node) -> bool:
    """Whether it is a convolution that sees one place for each place of its output."""
    weight = node.constant(1) if node.op == "Conv" else None
    moves = [*(node.get_ints("strides") or []), *(1 + pad for pad in node.get_ints("pads") or [])]
    return weight is not None and set(weight.shape[2:]) == {1} and set(moves) <= {1} and len(node.outputs) == 1


def _is_average(node: Node) -> bool:
    """Whether it is a pool of which every output is the average of as many places, none of them padding."""
    if len(node.outputs) != 1 or len(node.inputs) != 1:
        return False
    plain = not any(node.get_ints("pads") or []) and not node.get_int("ceil_mode", 0)
    return node.op == "GlobalAveragePool" or (
        node.op == "AveragePool" and plain and node.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
