"""Model-local functions: their calls, and the model with some calls replaced by the nodes of the function.

Written here rather than left to ``onnx.inliner``, which takes all calls of a function or none, mixes up overloads,
changes the functions that stay, and parses the whole model with its weights. The certificate uses that one.

Source: ONNX IR specification, "Functions".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import onnx

from bnfold.opsets import means_the_same
from bnfold.protos import bodies, every_node
from bnfold.witness import Call, Where

Key = tuple[str, str, str]
"""A function: domain, name, overload."""

MAX_NODES = 1_000_000
"""Nodes that the model may have with every call replaced: calls of calls can grow without bound."""

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
        return sum(self._weight(node, op, inside) for node in every_node(self.model.graph.node))

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
        if self.too_large:
            return f"with every call replaced the model would have more than {MAX_NODES} nodes"
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
                    key: sum(self._weight(node, op, totals) for node in every_node(function.node))
                    for key, function in self.by_key.items()
                }
            self._totals[op] = totals
        return self._totals[op]

    def _weight(self, node: onnx.NodeProto, op: str, inside: dict[Key, int]) -> int:
        key = callee(node)
        return inside[key] if key in inside else int(not op or node.op_type == op)


@dataclass
class Inlined:
    """A model in which some calls are replaced by the nodes of their functions."""

    proto: onnx.ModelProto
    calls: dict[Where, Call] = field(default_factory=dict)
    """The calls that were replaced."""
    kept: list[tuple[str, onnx.FunctionProto, str]] = field(default_factory=list)
    """Calls that cannot be replaced: label, function and why."""
    owners: dict[tuple[str, ...], set[Where]] = field(default_factory=dict)
    """By the tensors of a node: the calls that it comes from."""

    def owner(self, node: onnx.NodeProto) -> set[Where]:
        """The calls that a node comes from; none where it stood in a graph of the model."""
        return self.owners.get(_tensors(node), set())


def inline(
    model: onnx.ModelProto, functions: Functions, wanted: Callable[[Where], bool] = lambda where: True
) -> Inlined:
    """The model with every call replaced that is wanted and can be. `model` is not changed.

    A function that no call names any more, and whose calls were replaced, goes.
    """
    result = Inlined(onnx.ModelProto())
    result.proto.CopyFrom(model)
    worker = _Inliner(functions, wanted, result)
    worker.graph(result.proto.graph, (), ())
    if result.calls:
        worker.import_opsets()
        drop_unused(result.proto, {worker.key[where] for where in result.calls})
    return result


def drop_unused(model: onnx.ModelProto, replaced: set[Key]) -> None:
    """Remove the functions among `replaced` that nothing calls any more."""
    while True:
        nodes = [model.graph.node, *(function.node for function in model.functions)]
        for info in model.training_info:
            nodes += [info.initialization.node, info.algorithm.node]
        called = {callee(node) for group in nodes for node in every_node(group)}
        gone = [i for i, f in enumerate(model.functions) if key_of(f) in replaced and key_of(f) not in called]
        if not gone:
            return
        for i in reversed(gone):
            del model.functions[i]


class _Inliner:
    def __init__(self, functions: Functions, wanted: Callable[[Where], bool], result: Inlined) -> None:
        self.functions = functions
        self.wanted = wanted
        self.result = result
        self.key: dict[Where, Key] = {}
        self.taken = {name for node in every_node(functions.model.graph.node) for name in (*node.input, *node.output)}
        graphs = [functions.model.graph]
        while graphs:
            graph = graphs.pop()
            self.taken.update(item.name for group in (graph.input, graph.output, graph.initializer) for item in group)
            graphs += [body for node in graph.node for _, body in bodies(node)]

    def graph(self, graph: onnx.GraphProto, level: Where, path: tuple[int, ...]) -> None:
        """Replace the calls in a graph and in its bodies."""
        before = len(self.result.calls)
        nodes = self._flat(graph.node, level, path)
        if len(self.result.calls) > before:
            del graph.node[:]
            graph.node.extend(nodes)

    def import_opsets(self) -> None:
        """Name the opsets that the nodes need, where the model did not."""
        known = {domain_of(entry.domain) for entry in self.result.proto.opset_import}
        for where in self.result.calls:
            function = self.functions.by_key[self.key[where]]
            used = {domain_of(node.domain) for node in every_node(function.node)}
            for entry in function.opset_import:
                if (domain := domain_of(entry.domain)) in used - known:
                    known.add(domain)
                    self.result.proto.opset_import.append(entry)

    def _flat(self, nodes: Iterable[onnx.NodeProto], level: Where, path: tuple[int, ...]) -> list[onnx.NodeProto]:
        found: list[onnx.NodeProto] = []
        for i, node in enumerate(nodes):
            here = (*level, (*path, i))
            function = self.functions.get(node)
            if function is None:
                for (attribute, position), body in bodies(node):
                    self.graph(body, level, (*path, i, attribute, position))
            else:
                label = node.name or next((name for name in node.output if name), node.op_type)
                obstacle = self.functions.obstacle(node)
                if obstacle:
                    self.result.kept.append((label, function, obstacle))
                elif self.wanted(here):
                    self.key[here] = callee(node)
                    found += self._flat(self._bind(function, node, label, here), here, ())
                    continue
            if level:
                self.result.owners.setdefault(_tensors(node), set()).add(level)
            found.append(node)
        return found

    def _bind(
        self, function: onnx.FunctionProto, call: onnx.NodeProto, label: str, here: Where
    ) -> list[onnx.NodeProto]:
        """The function's nodes for one call: its tensors under fresh names, its attributes with the call's values."""
        names = dict(zip(function.input, call.input, strict=False))
        names |= dict.fromkeys(function.input[len(call.input) :], "")
        names |= {formal: actual for formal, actual in zip(function.output, call.output, strict=False) if actual}
        fresh: dict[str, str] = {}
        for name in _defined(function.node):
            if name not in names and name not in fresh:
                fresh[name] = self._unique(f"{label}/{name}")
        self.result.calls[here] = Call(label, fresh)
        names |= fresh
        values = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
        nodes: list[onnx.NodeProto] = []
        for inner in function.node:
            nodes.append(onnx.NodeProto())
            nodes[-1].CopyFrom(inner)
        for node in every_node(nodes):
            _rename(node, names)
            node.name = node.name and f"{label}/{node.name}"
            _set_references(node, values)
        return nodes

    def _unique(self, wanted: str) -> str:
        name, n = wanted, 1
        while name in self.taken:
            n += 1
            name = f"{wanted}.{n}"
        self.taken.add(name)
        return name


def _defined(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The tensors that nodes and their bodies define."""
    for node in every_node(nodes):
        yield from (name for name in node.output if name)
        for _, body in bodies(node):
            yield from (item.name for group in (body.input, body.initializer) for item in group)


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Rename a node's tensors, and the ends of its bodies."""
    for group in (node.input, node.output):
        for i, name in enumerate(group):
            group[i] = names.get(name, name)
    for _, body in bodies(node):
        for values in (body.input, body.output, body.initializer, body.value_info):
            for value in values:
                value.name = names.get(value.name, value.name)
        for sparse in body.sparse_initializer:
            sparse.values.name = names.get(sparse.values.name, sparse.values.name)
        for entry in body.quantization_annotation:
            entry.tensor_name = names.get(entry.tensor_name, entry.tensor_name)


def _set_references(node: onnx.NodeProto, values: dict[str, onnx.AttributeProto]) -> None:
    """Put the call's values, or the function's defaults, where attributes refer to them; none of either: it goes."""
    for i in range(len(node.attribute) - 1, -1, -1):
        attribute = node.attribute[i]
        if not attribute.ref_attr_name:
            continue
        value = values.get(attribute.ref_attr_name)
        if value is None:
            del node.attribute[i]
            continue
        name, doc = attribute.name, attribute.doc_string
        attribute.CopyFrom(value)
        attribute.name, attribute.doc_string = name, doc


def _tensors(node: onnx.NodeProto) -> tuple[str, ...]:
    return (node.op_type, *node.input, "->", *node.output)
