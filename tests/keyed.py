"""A keyed comparison of two models: nodes and tensors by name, field by field, unknown fields included.

Nothing here looks at a plan or a witness: only the two models, and the labels of the nodes that are said to have left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

NEW = re.compile(r".*\.(folded|merged)(\.\d+)?$")
"""Names of new constants."""

ADDED = re.compile(r".*\.add_bias(\.\d+)?$")
"""Names of nodes that a fold adds."""

PLACE = frozenset({"location", "offset", "length", "checksum"})
"""Where external data lies, which may change."""

OPERATORS = ({"Max", "Min"}, {"ReduceMax", "ReduceMin"}, {"ArgMax", "ArgMin"})
"""Operators that become each other where a scale is negative."""

WINDOW = frozenset(
    ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "alpha", "beta", "transA", "transB")
)
"""Attributes that a merge may change."""


@dataclass(frozen=True)
class Merge:
    """What a report says: the names of `nodes` that became one, the one of them that stayed, and its operator.

    `root` is the last of them; or it is none of them, and a sum that has fewer terms now, in another order.
    """

    root: str
    nodes: tuple[str, ...]
    into: str
    op: str


def unintended(
    before: ModelProto,
    after: ModelProto,
    left: Collection[str],
    numbers: bool = False,
    merges: Collection[Merge] = (),
) -> list[str]:
    """What differs although no fold asks for it; one line for each.

    Args:
        before: the model as it was.
        after: the model as it is.
        left: names of the nodes that folds took away; their first outputs where they have no name of their own.
        numbers: whether attributes that hold a number may change, as those of Clip, Gemm and LeakyRelu do.
        merges: what became one node.
    """
    found = list(_rest("model", before, after, "graph"))
    gone = {id(node): node for node in _labelled(before.graph, left)}
    groups: dict[int, _Group] = {}
    for merge in merges:
        nodes, into = list(_labelled(before.graph, merge.nodes)), next(_labelled(before.graph, [merge.into]))
        group = _Group(merge.op, merge.root in merge.nodes, nodes, into)
        groups |= {id(node): group for node in group.nodes}
        gone |= {id(node): node for node in group.nodes if node is not group.into}
        gone.pop(id(group.into), None)
    return found + _Graphs("graph", before.graph, after.graph, gone, groups, numbers, before.ir_version < 4, None).found


def exchanged(before: ModelProto, after: ModelProto, pairs: Collection[tuple[str, str]]) -> ModelProto:
    """The first model with the nodes of each pair, a convolution and the pool behind it, the other way round.

    Args:
        before: not changed.
        after: says how what is between the two is called now.
        pairs: their labels.
    """
    made = ModelProto()
    made.CopyFrom(before)
    for labels in pairs:
        conv, pool = (next(_labelled(made.graph, [label])) for label in labels)
        (between,) = conv.output
        graph = next(graph for graph in _graphs(made.graph) if any(node is pool for node in graph.node))
        new = _between(after, conv, pool)
        nodes = [node for node in graph.node if node is not conv and node is not pool]
        place = next(i for i, node in enumerate(graph.node) if node is pool) - 1  # the convolution stood before it
        pool.input[0], conv.input[0], conv.output[0] = conv.input[0], new, pool.output[0]
        pool.output[0] = new
        ordered = (*nodes[:place], pool, conv, *nodes[place:])
        copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
        kept = [value for value in graph.value_info if value.name != between]
        values = [ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(copies)
        graph.value_info.extend(values)
    return made


def _between(after: ModelProto, conv: NodeProto, pool: NodeProto) -> str:
    """How the tensor between a pool and the convolution behind it is called."""
    nodes = [node for graph in _graphs(after.graph) for node in graph.node]
    named = [node.output[0] for node in nodes if node.name and node.name == pool.name]
    return next(iter(named or [node.input[0] for node in nodes if pool.output[0] in node.output]), "")


@dataclass(frozen=True)
class _Group:
    """Nodes that became one."""

    op: str
    whole: bool
    """Whether they are all that was added up."""
    nodes: list[NodeProto]
    into: NodeProto

    @property
    def inputs(self) -> set[str]:
        """What the nodes read and none of them makes."""
        return {name for node in self.nodes for name in node.input} - {n for node in self.nodes for n in node.output}


def _labelled(graph: GraphProto, labels: Collection[str]) -> Iterator[NodeProto]:
    """The nodes with these labels: a name, or an output; a name that is taken, and an output."""
    graphs, taken = [graph], set[str]()
    while graphs:
        graph = graphs.pop()
        inner: list[GraphProto] = []
        for node in graph.node:
            first = next((name for name in node.output if name), "")
            label = node.name or first
            if label in taken:
                label = f"{label}:{first}"
            taken.add(label)
            if label in labels:
                yield node
            inner += _bodies(node)
        graphs += inner[::-1]


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field holds several values."""
    found = getattr(field, "is_repeated", None)  # protobuf 6.31 and later; older ones have only the label
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if found is None else found)


def _rest(where: str, old: Message, new: Message, *without: str) -> Iterator[str]:
    """The fields of two messages that differ, but for those that are compared elsewhere."""
    plain = [field for field in old.DESCRIPTOR.fields if field.name not in without]
    for field in plain:
        pair = [_bytes(message, field.name) for message in (old, new)]
        if pair[0] != pair[1]:
            yield f"{where}.{field.name} changed"
    copies = [type(old)(), type(new)()]
    for copy, message in zip(copies, (old, new), strict=True):
        copy.CopyFrom(message)
        for field in message.DESCRIPTOR.fields:
            copy.ClearField(field.name)
    if copies[0].SerializeToString() != copies[1].SerializeToString():
        yield f"{where} has other unknown fields"


def _bytes(message: Message, name: str) -> bytes:
    """One field of a message as it is stored, in a message that has no other."""
    only = type(message)()
    value = getattr(message, name)
    if is_repeated(message.DESCRIPTOR.fields_by_name[name]):
        getattr(only, name).extend(value)
    elif not message.HasField(name):
        return b"absent"
    elif isinstance(value, Message):
        getattr(only, name).CopyFrom(value)
    else:
        setattr(only, name, value)
    return bytes(only.SerializeToString(deterministic=True))


class _Graphs:
    """Two graphs, and what is found about them and their bodies."""

    def __init__(
        self,
        where: str,
        old: GraphProto,
        new: GraphProto,
        left: dict[int, NodeProto],
        groups: dict[int, _Group],
        numbers: bool,
        listed: bool,
        outer: _Graphs | None,
    ) -> None:
        self.where, self.old, self.new, self.left, self.numbers, self.listed = where, old, new, left, numbers, listed
        self.outer, self.groups = outer, groups
        self.found: list[str] = []
        own = {tensor.name for tensor in old.initializer}
        self.fresh = {t.name for t in new.initializer if t.name not in own and NEW.match(t.name)}
        self.read_after = set(_read(new))
        self.aliases: dict[str, set[str]] = {}
        self.names_left = {name for node in old.node if self._has_left(node) for name in node.output}
        self.regrouped = not all(group.whole for group in groups.values())
        self.behind = {node.input[0]: node.output[0] for node in new.node if ADDED.match(node.name)}
        pairs, gone = self._aligned()
        self._names(pairs, gone)
        for one, other in pairs:
            self._node(one, other)
        self._gone(gone)
        self._constants()
        self._values("value_info", lambda name: name not in self.made_after)
        self._values("input", lambda name: listed and name in own, lambda name: listed and name in self.fresh)
        self._values("output", lambda name: False)
        compared = ("node", "initializer", "value_info", "input", "output")
        self.found += _rest(where, old, new, *compared)

    def _aligned(self) -> tuple[list[tuple[NodeProto, NodeProto]], list[NodeProto]]:
        """Every node that stays beside what became of it, in order; and those that left."""
        pairs: list[tuple[NodeProto, NodeProto]] = []
        gone: list[NodeProto] = []
        waiting = list(self.new.node)[::-1]
        for node in self.old.node:
            while waiting and ADDED.match(waiting[-1].name) and waiting[-1].name != node.name:
                added = waiting.pop()
                if added.op_type != "Add" or added.input[1] not in self._fresh_anywhere():
                    self.found.append(f"{self.where}: node {added.name} is new")
            if not self._has_left(node) and waiting and self._is_one(node, waiting[-1]):
                pairs.append((node, waiting.pop()))
            else:
                gone.append(node)
        self.found += [f"{self.where}: node {_label(node)} is new" for node in waiting if not ADDED.match(node.name)]
        return pairs, gone

    def _is_one(self, node: NodeProto, other: NodeProto) -> bool:
        """Whether `other` can be what became of `node`: one without a name keeps its output, or takes one that left."""
        group = self.groups.get(id(node))
        if group is not None and group.into is node:
            made = {*node.output, *self.names_left}
            outputs = {self.behind.get(name, name) for name in other.output}
            return other.op_type == group.op and other.name == node.name and (made >= outputs or self.regrouped)
        if self._is_sum(node) and self._is_sum(other):
            return node.name == other.name
        if _key(node) != _key(other):
            return False
        return bool(node.name) or all(name in node.output or name in self.names_left for name in other.output)

    def _is_sum(self, node: NodeProto) -> bool:
        """Whether its terms may have another order."""
        return self.regrouped and node.op_type in ("Add", "Sub", "Sum")

    def _fresh_anywhere(self) -> set[str]:
        return self.fresh | (self.outer._fresh_anywhere() if self.outer else set())

    def _has_left(self, node: NodeProto) -> bool:
        return id(node) in self.left  # protobuf gives the same object again as long as one is held

    def _names(self, pairs: Iterable[tuple[NodeProto, NodeProto]], gone: Iterable[NodeProto]) -> None:
        """What every tensor may be called now."""
        behind = self.behind
        for one, other in pairs:
            for name, renamed in zip(one.output, other.output, strict=False):
                self.aliases[name] = {behind.get(renamed, renamed)}
        for one, other in pairs:
            for node in self.groups[id(one)].nodes if id(one) in self.groups else ():
                self.aliases |= {name: {behind.get(other.output[0], other.output[0])} for name in node.output}
        stays = {id(one) for one, _ in pairs}
        for node in gone:
            group = self.groups.get(id(node))
            if group is not None and id(group.into) in stays:
                continue
            names = node.input if group is None else group.inputs
            through = set().union(*(self._now(name) for name in names if name))
            for name in node.output:
                self.aliases[name] = through
        self.made_after = {name for node in self.new.node for name in node.output} | {v.name for v in self.new.input}
        self.made_after |= {tensor.name for tensor in self.new.initializer}

    def _now(self, name: str) -> set[str]:
        if name in self.aliases:
            return self.aliases[name]
        defined = {value.name for value in self.old.input} | {tensor.name for tensor in self.old.initializer}
        return self.outer._now(name) if self.outer and name not in defined else {name}

    def _node(self, one: NodeProto, other: NodeProto) -> None:
        where = f"{self.where}.node[{_label(one)}]"
        self.found += _rest(where, one, other, "op_type", "input", "output", "attribute")
        if self._is_sum(one):
            made = self.made_after | self._fresh_anywhere()
            self.found += [f"{where} reads {name!r}" for name in other.input if name not in made]
            return
        if id(one) in self.groups:
            self._merged(where, self.groups[id(one)], other)
            return
        same = {one.op_type, other.op_type}
        if len(same) > 1 and same not in OPERATORS:
            self.found.append(f"{where} became {other.op_type}")
        for slot, name in enumerate(other.input):
            old = one.input[slot] if slot < len(one.input) else ""
            if name != old and name not in self._now(old) | self._fresh_anywhere():
                self.found.append(f"{where}.input[{slot}] was {old!r} and is {name!r}")
        if len(other.input) < len(one.input) or len(other.output) != len(one.output):
            self.found.append(f"{where} has another number of inputs or outputs")
        self._attributes(where, one, other)

    def _merged(self, where: str, group: _Group, other: NodeProto) -> None:
        """One node instead of several: it reads what they read, and new constants."""
        known = set().union(*(self._now(name) for name in group.inputs)) | self._fresh_anywhere()
        self.found += [f"{where} reads {name!r}" for name in other.input if name and name not in known]
        old = {a.name: a for a in group.into.attribute}
        for a in other.attribute:
            if a.name not in WINDOW and (a.name not in old or list(_rest("", old[a.name], a))):
                self.found.append(f"{where}.{a.name} changed")
        gone = set(old) - {a.name for a in other.attribute} - WINDOW
        self.found += [f"{where}.{name} is gone" for name in sorted(gone)]

    def _attributes(self, where: str, one: NodeProto, other: NodeProto) -> None:
        old, new = list(one.attribute), list(other.attribute)
        numbers = (AttributeProto.FLOAT, AttributeProto.INT)
        if [a.name for a in old] != [a.name for a in new[: len(old)]]:
            self.found.append(f"{where} has other attributes")
            return
        for a in new[len(old) :]:
            if not (self.numbers and a.type in numbers):
                self.found.append(f"{where}.{a.name} is new")
        for a, b in zip(old, new, strict=False):
            if self.numbers and a.type in numbers:
                self.found += _rest(f"{where}.{a.name}", a, b, "f", "i")
                continue
            self.found += _rest(f"{where}.{a.name}", a, b, "g", "graphs")
            graphs = [[*([x.g] if x.HasField("g") else []), *x.graphs] for x in (a, b)]
            for i, (inner, changed) in enumerate(zip(*graphs, strict=True)):
                place = f"{where}.{a.name}{i or ''}"
                self.found += _Graphs(place, inner, changed, self.left, self.groups, self.numbers, False, self).found

    def _gone(self, gone: Sequence[NodeProto]) -> None:
        """A node that left and was no affine computed constants that nothing reads any more, but something did."""
        wanted = set(_read(self.old)) | {value.name for value in self.old.output}
        for node in gone:
            if not self._has_left(node) and not (
                wanted & set(node.output) and not set(node.output) & (self.read_after | self.made_after)
            ):
                self.found.append(f"{self.where}: node {_label(node)} is gone")

    def _constants(self) -> None:
        old, new = list(self.old.initializer), {t.name: t for t in self.new.initializer}
        order = [tensor.name for tensor in self.new.initializer if tensor.name not in self.fresh]
        if order != [tensor.name for tensor in old if tensor.name in new]:
            self.found.append(f"{self.where}: initializers stand in another order, or are new")
        used = set(_read(self.old))
        for tensor in old:
            where = f"{self.where}.initializer[{tensor.name}]"
            if tensor.name in new:
                self.found += _tensor(where, tensor, new[tensor.name])
            elif tensor.name in self.read_after or tensor.name not in used:
                self.found.append(f"{where} is gone")

    def _values(
        self, field: str, may_go: Callable[[str], bool], may_come: Callable[[str], bool] = lambda name: False
    ) -> None:
        old, new = getattr(self.old, field), getattr(self.new, field)
        kept = [value for value in new if not may_come(value.name)]
        names = {value.name for value in kept}
        stays = [value for value in old if value.name in names or not may_go(value.name)]
        renamed = field == "output" and self.outer is not None  # a body gives back what it captured under its new name
        if not renamed and [value.name for value in stays] != [value.name for value in kept]:
            self.found.append(f"{self.where}.{field} has other entries")
            return
        for one, other in zip(stays, kept, strict=True):
            self.found += _rest(f"{self.where}.{field}[{one.name}]", one, other, *(["name"] if self.outer else []))


def _tensor(where: str, one: TensorProto, other: TensorProto) -> Iterator[str]:
    yield from _rest(where, one, other, "external_data")
    entries = [[(e.key, e.value) for e in tensor.external_data if e.key not in PLACE] for tensor in (one, other)]
    if entries[0] != entries[1]:
        yield f"{where}.external_data changed"


def _key(node: NodeProto) -> tuple[str, ...]:
    """What a node keeps: its name, or else its operator."""
    operator = next((min(pair) for pair in OPERATORS if node.op_type in pair), node.op_type)
    return (node.name, node.domain, operator, node.overload)


def _label(node: NodeProto) -> str:
    return node.name or next(iter(node.output), node.op_type)


def _read(graph: GraphProto) -> Iterator[str]:
    """Names that a graph, its outputs and its bodies read."""
    stack = [graph]
    while stack:
        graph = stack.pop()
        yield from (value.name for value in graph.output)
        for node in graph.node:
            yield from node.input
            stack += _bodies(node)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all bodies in it."""
    stack = [graph]
    while stack:
        graph = stack.pop()
        yield graph
        stack += [body for node in graph.node for body in _bodies(node)]


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]
