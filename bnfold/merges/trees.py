"""Sums of many terms: the Adds, Subs and Sums that make one, its terms, and the same with some of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bnfold import rules
from bnfold.graph import Graph, Node
from bnfold.merges.nodes import dynamic
from bnfold.protos import Names
from bnfold.rules import Source
from bnfold.witness import Regrouped, Sum

OPERATORS = {"Add": 7, "Sub": 7, "Sum": 8}
"""Each with the opset from which it broadcasts, so that the order of terms is free."""

MOST = 128
"""Nodes and terms that one sum may have."""


@dataclass(frozen=True)
class Term:
    """One operand of one of the nodes that no other of them makes."""

    name: str
    sign: int
    """1, or -1 where it is taken off in the end."""
    place: tuple[int, int]
    """Index of the node that reads it, and the slot."""


@dataclass(frozen=True)
class Tree:
    """A sum: nodes that nobody else reads, and what they add up."""

    root: Node
    nodes: tuple[Node, ...]
    """In graph order."""
    terms: tuple[Term, ...]

    def under(self) -> dict[int, set[tuple[int, int]]]:
        """By index of a node: the places of the terms that it adds up."""
        found: dict[int, set[tuple[int, int]]] = {}
        made = {node.outputs[0]: node.index for node in self.nodes}
        for node in self.nodes:
            own = found[node.index] = set[tuple[int, int]]()
            for slot, name in enumerate(node.inputs):
                own |= found[made[name]] if name in made else {(node.index, slot)}
        return found

    def regrouped(self, groups: Sequence[Sequence[Term]], names: Names) -> Regrouped | None:
        """The same sum with the terms of each group added up on their own.

        None where it would take a negation that the original does not have.
        """
        return _Regrouping(self, names).made(groups)


def trees(graph: Graph, allowed: Callable[[Node], bool]) -> Iterator[Tree]:
    """Every sum of three terms or more, as large as it is."""
    inner: set[Node] = set()
    for root in reversed(graph.nodes):
        if root in inner or not _is_sum(root, allowed):
            continue
        found = _tree(root, allowed)
        inner.update(found.nodes)
        if 2 < len(found.terms) <= MOST and len(found.nodes) <= MOST:
            yield found


def _tree(root: Node, allowed: Callable[[Node], bool]) -> Tree:
    graph, nodes, terms = root.graph, [root], []
    stack = [(root, 1)]
    while stack:
        node, sign = stack.pop()
        for slot, name in enumerate(node.inputs):
            own = -sign if node.op == "Sub" and slot else sign
            made = graph.producers.get(name)
            alone = len(graph.consumers[name]) == 1 and name not in graph.output_set | graph.captured | graph.annotated
            if made is not None and alone and made.index < node.index and _is_sum(made, allowed):
                nodes.append(made)
                stack.append((made, own))
            else:
                terms.append(Term(name, own, (node.index, slot)))
    nodes.sort(key=lambda node: node.index)
    return Tree(root, tuple(nodes), tuple(sorted(terms, key=lambda term: term.place)))


def _is_sum(node: Node, allowed: Callable[[Node], bool]) -> bool:
    free = node.op in OPERATORS and node.version >= OPERATORS[node.op]
    plain = free and not node.attributes and len(node.outputs) == 1
    if not plain or len(node.inputs) < 2 or not dynamic(node) or not allowed(node):
        return False
    # A constant that may enlarge the tensor is a term like any other.
    return len(dynamic(node)) == len(node.inputs) or not isinstance(rules.as_source(node), Source)


class _Regrouping:
    """Each group stands where the last node reads one of its terms; the others are left out where they stood."""

    def __init__(self, tree: Tree, names: Names) -> None:
        self.tree, self.names = tree, names
        self.sums: list[Sum] = []
        self.values: dict[str, tuple[str, int] | None] = {}
        """What stands for an output of the old nodes: a tensor and its sign, or nothing."""

    def made(self, groups: Sequence[Sequence[Term]]) -> Regrouped | None:
        root = self.tree.root
        home = {max(term.place for term in group): group for group in groups}
        out = {term.place for group in groups for term in group}
        under, signs = self.tree.under(), self._signs()
        gone = [node for node in self.tree.nodes if under[node.index] & out]
        for node in gone:
            operands: list[tuple[str, int]] = []
            for slot, name in enumerate(node.inputs):
                own = -1 if node.op == "Sub" and slot else 1
                place = node.index, slot
                if place in home:
                    operands.append(self._group(home[place], signs[node.index]))
                elif place not in out and (value := self.values.get(name, (name, 1))) is not None:
                    operands.append((value[0], own * value[1]))
            if not self._add(node, operands):
                return None
        if self.values[root.outputs[0]] != (self.sums[-1].output, 1):
            return None
        last = self.sums[-1]
        self.sums[-1] = Sum(last.like, last.op, last.inputs, root.outputs[0])
        return Regrouped(tuple(node.index for node in gone), tuple(self.sums))

    def _signs(self) -> dict[int, int]:
        """By index of a node: the sign with which its output is in the whole sum."""
        found = {self.tree.root.index: 1}
        made = {node.outputs[0]: node for node in self.tree.nodes}
        for node in reversed(self.tree.nodes):
            for slot, name in enumerate(node.inputs):
                if name in made:
                    found[made[name].index] = -found[node.index] if node.op == "Sub" and slot else found[node.index]
        return found

    def _group(self, group: Sequence[Term], around: int) -> tuple[str, int]:
        """Add the terms up: a tensor, and its sign in a node that is in the whole sum with sign `around`."""
        signed = sorted(((term.name, term.sign * around) for term in group), key=lambda each: -each[1])
        sign = signed[0][1]
        total = signed[0][0]
        for name, own in signed[1:]:
            output = self.names.fresh(f"{self.tree.root.outputs[0]}.branches")
            self.sums.append(Sum(-1, "Add" if own == sign else "Sub", (total, name), output))
            total = output
        return total, sign

    def _add(self, node: Node, operands: Sequence[tuple[str, int]]) -> bool:
        """What a node of the original becomes; whether it can."""
        output = node.outputs[0]
        if len(operands) < 2:
            self.values[output] = operands[0] if operands else None
            return True
        signs = [sign for _, sign in operands]
        sign = max(signs)
        if len(set(signs)) == 1:
            op, inputs = "Sum" if node.op == "Sum" else "Add", [name for name, _ in operands]
        elif len(operands) == 2:
            op, inputs = "Sub", [name for name, _ in sorted(operands, key=lambda each: -each[1])]
        else:
            return False
        new = self.names.fresh(f"{output}.regrouped")
        self.sums.append(Sum(node.index, op, tuple(inputs), new))
        self.values[output] = new, sign
        return True
