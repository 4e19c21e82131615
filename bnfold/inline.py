"""The model with some calls of model-local functions replaced by the nodes of the functions.

Written here rather than left to ``onnx.inliner``, which takes all calls of a function or none, mixes up overloads,
forgets defaults of attributes, changes the functions that stay, and parses the whole model with its weights. The
certificate uses that one.

Source: ONNX IR specification, "Functions".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import onnx

from bnfold.calls import Functions, Key, callee, domain_of, key_of
from bnfold.protos import Names, bodies, every_node
from bnfold.witness import Call, Where


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
        self.names = Names(functions.model)

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
                fresh[name] = self.names.fresh(f"{label}/{name}")
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
    for configuration in node.device_configurations:
        for spec in configuration.sharding_spec:
            spec.tensor_name = names.get(spec.tensor_name, spec.tensor_name)
    for _, body in bodies(node):
        for values in (body.input, body.output, body.initializer, body.value_info):
            for value in values:
                value.name = names.get(value.name, value.name)
        for sparse in body.sparse_initializer:
            sparse.values.name = names.get(sparse.values.name, sparse.values.name)
        for entry in body.quantization_annotation:
            entry.tensor_name = names.get(entry.tensor_name, entry.tensor_name)
            for parameter in entry.quant_parameter_tensor_names:
                parameter.value = names.get(parameter.value, parameter.value)


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
