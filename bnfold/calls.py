"""Model-local functions: who calls them, how many nodes they stand for, and which calls can be replaced by their nodes.

Source: ONNX IR specification, "Functions".
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import onnx

from bnfold.opsets import means_the_same
from bnfold.protos import bodies, every_node

Key = tuple[str, str, str]
"""A function: domain, name, overload."""

MAX_NODES = 1_000_000
"""Nodes that the model may have with every call replaced: calls of calls can grow without bound."""

MAX_REPLACED, TIMES = 100_000, 4
"""Nodes up to which calls are replaced, or so many times what the file holds: a few bytes can stand for any number."""

MAX_DEPTH = 50
"""Functions that may call each other in a row."""


def domain_of(name: str) -> str:
    """A domain by its one name."""
    return "" if name == "ai.onnx" else name


def callee(node: onnx.NodeProto) -> Key:
    """The function that a node calls, if the model has it."""
    return domain_of(node.domain), node.op_type, node.overload


def key_of(function: onnx.FunctionProto) -> Key:
    """How calls name a function."""
    return domain_of(function.domain), function.name, function.overload


_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class Functions:
    """The functions of a model, and why calls of one cannot be replaced."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.by_key = {key_of(function): function for function in model.functions}
        self._totals: dict[str, dict[Key, int]] = {}
        self._obstacles: dict[Key, str] = {}

    def get(self, node: onnx.NodeProto) -> onnx.FunctionProto | None:
        """The function that a node calls; None where it is an operator."""
        return self.by_key.get(callee(node)) if self.by_key else None

    def count(self, op: str = "") -> int:
        """Nodes that the main graph runs (of one operator), those of functions counted at each call."""
        inside = self._inside(op)
        return sum(count * _weight(key, op, inside) for key, count in self._called.items())

    @cached_property
    def _called(self) -> Counter[Key]:
        """What the nodes of the main graph are, and how often."""
        return Counter(callee(node) for node in every_node(self.model.graph.node))

    def obstacle(self, node: onnx.NodeProto) -> str:
        """Why this call cannot be replaced; '' where it can."""
        function = self.by_key[callee(node)]
        if len(node.input) > len(function.input) or len(node.output) > len(function.output):
            return "the call has more inputs or outputs than the function"
        key = callee(node)
        if key not in self._obstacles:
            self._obstacles[key] = self._obstacle(function)
        return self._obstacles[key]

    def _obstacle(self, function: onnx.FunctionProto) -> str:
        if self.too_large or self.count() > self._most:
            return f"with every call replaced the model would have more than {self._most} nodes"
        if len({*function.input, *function.output}) != len(function.input) + len(function.output):
            return "an input of the function is at once an output of it"
        own = {domain_of(entry.domain): entry.version for entry in function.opset_import}
        for node in every_node(function.node):
            if any(a.ref_attr_name and a.type in _GRAPHS for a in node.attribute):
                return "it takes a graph as an attribute"
            for _, body in bodies(node):
                if {value.name for value in body.output} - {name for inner in body.node for name in inner.output}:
                    return "a body in it returns what it did not compute"
            domain = domain_of(node.domain)
            here, there = own.get(domain, 0), self.opsets.get(domain, 0)
            if here != there and callee(node) not in self.by_key and (domain or not means_the_same(node, here, there)):
                return (
                    f"it is written in opset {here} of {domain or 'ai.onnx'}, the model in {there}, "
                    f"and {node.op_type} may not be the same in both"
                )
        return ""

    @cached_property
    def opsets(self) -> dict[str, int]:
        """The version of every domain: the model's, else that of the first function that names one."""
        found: dict[str, int] = {}
        for entries in (self.model.opset_import, *(function.opset_import for function in self.model.functions)):
            for entry in entries:
                found.setdefault(domain_of(entry.domain), entry.version)
        return found

    @cached_property
    def too_large(self) -> bool:
        """Whether calls call so many others, or themselves, that no tool should try to replace them all."""
        return self.count() > MAX_NODES or self._depth > MAX_DEPTH

    @cached_property
    def _most(self) -> int:
        """Nodes that the model may have with calls replaced."""
        parts = (self.model.graph, *self.model.functions)
        return max(MAX_REPLACED, TIMES * sum(1 for part in parts for _ in every_node(part.node)))

    @cached_property
    def _depth(self) -> int:
        """How many functions call each other in a row; more than MAX_DEPTH where they call themselves."""
        calls = {key: {callee(n) for n in every_node(f.node)} & set(self.by_key) for key, f in self.by_key.items()}
        level, depth = set(self.by_key), 0
        while level and depth <= MAX_DEPTH:
            level = {called for key in level for called in calls[key]}
            depth += 1
        return depth

    def _inside(self, op: str) -> dict[Key, int]:
        """By function: nodes in it (of one operator), those of the functions that it calls at each call."""
        if op not in self._totals:
            totals = dict.fromkeys(self.by_key, 0)
            for _ in range(min(self._depth, MAX_DEPTH)):
                totals = {
                    key: sum(_weight(callee(node), op, totals) for node in every_node(function.node))
                    for key, function in self.by_key.items()
                }
            self._totals[op] = totals
        return self._totals[op]


def _weight(key: Key, op: str, inside: dict[Key, int]) -> int:
    return inside[key] if key in inside else int(not op or key[1] == op)
