"""Calls of model-local functions that a fold replaced: the original is brought into the same form, by other means.

The witness says which calls, and what their tensors are called now. What a call computes is what ``onnx.inliner``
makes of it, asked for each call alone and without weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import onnx
from onnx import inliner

from bnfold.certificate.result import WrongError
from bnfold.graph import Model
from bnfold.protos import bodies, every_node
from bnfold.witness import Call, Where

_DOMAIN, _NAME = "bnfold.call", "function"


def with_calls_replaced(original: Model, calls: Mapping[Where, Call]) -> Model:
    """The original with these calls replaced by the nodes of their functions. `original` is not changed.

    Raises:
        WrongError: there is no such call, or a name is taken.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    work = _Replacement(proto, calls)
    work.graph(proto.graph, (), ())
    if len(work.done) != len(calls):
        raise WrongError("interface", "the witness speaks of calls that the model does not have")
    work.finish()
    return Model(replace(original.source, proto=proto, raw=None))


class _Replacement:
    def __init__(self, model: onnx.ModelProto, calls: Mapping[Where, Call]) -> None:
        self.model = model
        self.calls = calls
        self.functions = {
            _called(function.domain, function.name, function.overload): function for function in model.functions
        }
        self.taken = set(_names(model.graph))
        self.done: list[onnx.FunctionProto] = []

    def graph(self, graph: onnx.GraphProto, level: Where, path: tuple[int, ...]) -> None:
        """Replace what is to be replaced in a graph and its bodies."""
        count, nodes = len(self.done), list(self._nodes(graph.node, level, path))
        if len(self.done) > count:
            del graph.node[:]
            graph.node.extend(nodes)

    def finish(self) -> None:
        """Drop the functions that were replaced and that nothing calls any more; import what their nodes need."""
        missing = {_domain(node.domain) for function in self.done for node in every_node(function.node)}
        missing -= {_domain(entry.domain) for entry in self.model.opset_import}
        for function in self.done:
            for entry in function.opset_import:
                if _domain(entry.domain) in missing:
                    missing.remove(_domain(entry.domain))
                    self.model.opset_import.append(entry)
        replaced = {_called(function.domain, function.name, function.overload) for function in self.done}
        while gone := [i for i, f in enumerate(self.model.functions) if self._is_idle(f, replaced)]:
            del self.model.functions[gone[0]]

    def _is_idle(self, function: onnx.FunctionProto, replaced: set[tuple[str, str, str]]) -> bool:
        own = _called(function.domain, function.name, function.overload)
        groups = [self.model.graph.node, *(other.node for other in self.model.functions)]
        groups += [graph.node for info in self.model.training_info for graph in (info.initialization, info.algorithm)]
        return own in replaced and not any(_calls(own, nodes) for nodes in groups)

    def _nodes(self, nodes: Iterable[onnx.NodeProto], level: Where, path: tuple[int, ...]) -> Iterator[onnx.NodeProto]:
        for index, node in enumerate(nodes):
            where = (*level, (*path, index))
            if where not in self.calls:
                for step, body in bodies(node):
                    self.graph(body, level, (*path, index, *step))
                yield node
                continue
            function = self.functions.get(_called(node.domain, node.op_type, node.overload))
            if function is None:
                raise WrongError("interface", f"the witness says that {node.name!r} calls a function")
            self.done.append(function)
            yield from self._nodes(self._body_of(function, node, self.calls[where]), where, ())

    def _body_of(self, function: onnx.FunctionProto, node: onnx.NodeProto, call: Call) -> list[onnx.NodeProto]:
        new = set(call.names.values())
        if len(new) != len(call.names) or new & self.taken or "" in new:
            raise WrongError("wiring", f"a new name for a tensor of the function {function.name!r} is taken")
        self.taken |= new
        made = _inlined(function, node)
        kept = {formal for formal, actual in zip(function.output, node.output, strict=False) if actual}
        names: dict[str, str] = {}
        for inner, outer in zip(_defined(function.node), _defined(made), strict=True):
            if inner not in kept:
                names[outer] = call.names.get(inner, "")
                if not names[outer]:
                    raise WrongError(
                        "wiring", f"the witness has no name for {inner!r} of the function {function.name!r}"
                    )
        for inner_node, own in zip(every_node(function.node), every_node(made), strict=True):
            own.name = inner_node.name and f"{call.label}/{inner_node.name}"
            for group in (own.input, own.output):
                group[:] = [names.get(name, name) for name in group]
            for _, body in bodies(own):
                for values in (body.input, body.output, body.initializer):
                    for value in values:
                        value.name = names.get(value.name, value.name)
        return made


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _called(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return _domain(domain), name, overload


def _calls(own: tuple[str, str, str], nodes: Iterable[onnx.NodeProto]) -> bool:
    return any(_called(node.domain, node.op_type, node.overload) == own for node in every_node(nodes))


def _inlined(function: onnx.FunctionProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that ``onnx.inliner`` puts in the place of one call, in a model of nothing else."""
    model = onnx.ModelProto(ir_version=10)
    model.opset_import.extend(function.opset_import)
    model.opset_import.add(domain=_DOMAIN, version=1)
    model.functions.append(function)
    model.functions[0].domain, model.functions[0].name, model.functions[0].overload = _DOMAIN, _NAME, ""
    model.graph.node.append(node)
    call = model.graph.node[0]
    call.domain, call.op_type, call.overload = _DOMAIN, _NAME, ""
    given = {attribute.name for attribute in call.attribute}  # the inliner forgets the defaults of the others
    call.attribute.extend(default for default in function.attribute_proto if default.name not in given)
    made = inliner.inline_selected_functions(model, [(_DOMAIN, _NAME)]).graph.node
    if len(made) != len(function.node):
        raise WrongError("interface", f"the function {function.name!r} does not inline")
    return list(made)


def _defined(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """The tensors that nodes and their bodies define, '' for an output that is left out."""
    for node in every_node(nodes):
        yield from node.output
        for _, body in bodies(node):
            yield from (item.name for values in (body.input, body.initializer) for item in values)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (item.name for values in (graph.input, graph.output, graph.initializer) for item in values)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for _, body in bodies(node):
            yield from _names(body)
