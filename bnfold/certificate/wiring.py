"""Which node of the output is which node of the original, and that nothing else happened to the graph.

The output holds the original's nodes in their order, less those that left, those that became part of another, and those
that only computed what nothing reads any more, and perhaps one Add of a constant right behind a MatMul. Every input
that is no constant reads the same tensor, by its new name; every other field is equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto

from bnfold.affine import Storage
from bnfold.certificate.narrowed import rounded_once, same_but_type
from bnfold.certificate.result import Failure
from bnfold.certificate.rounding import alike, identical
from bnfold.constants import from_initializer
from bnfold.graph import Graph, Node
from bnfold.source import external_range, is_beside, is_external
from bnfold.witness import GraphWitness

Bases = tuple[Path | None, Path | None]
"""The folders of both models, for external data."""

MAY_CHANGE = {
    "Gemm": frozenset({"beta", "broadcast"}),
    "LeakyRelu": frozenset({"alpha"}),
    "Clip": frozenset({"min", "max"}),
    "Pad": frozenset({"value"}),
    "Resize": frozenset({"extrapolation_value"}),
    "InstanceNormalization": frozenset({"epsilon"}),
    "GroupNormalization": frozenset({"epsilon"}),
    "LayerNormalization": frozenset({"epsilon"}),
    "RMSNormalization": frozenset({"epsilon"}),
    "DequantizeLinear": frozenset({"axis"}),
}
"""Attributes that a fold may change; the numeric test decides whether rightly."""

_NOTHING: frozenset[str] = frozenset()

MAY_APPEAR = {
    "Conv": 2,
    "ConvTranspose": 2,
    "Gemm": 2,
    "Pad": 2,
    "LayerNormalization": 2,
    "LSTM": 3,
    "GRU": 3,
    "RNN": 3,
}
"""The input slot of an optional constant that a fold may add."""

_PAIRS = (("Max", "Min"), ("ReduceMax", "ReduceMin"), ("ArgMax", "ArgMin"))
OPPOSITE = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
"""Operators that a fold may turn into each other; the numeric test decides whether rightly."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A node of the original and what became of it."""

    old: Node
    new: Node
    bias: Node | None = None
    """The Add of a constant that was put behind a MatMul."""
    changed: frozenset[int] = frozenset()
    """Input slots whose constant is another one, or new."""
    reset: bool = False
    """Whether an attribute changed that may, or the operator became its opposite."""

    @property
    def result(self) -> str:
        """Name of the first output, as the rest of the output graph reads it."""
        return (self.bias or self.new).outputs[0]


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of the original that became one."""

    members: tuple[Node, ...]
    """In graph order; the output of the last one is what the merged node makes."""
    kept: Node
    """The member whose place the merged node has."""
    source: str
    """The only tensor that they read from outside."""
    new: Node
    bias: Node | None = None
    """The Add of a constant behind a merged MatMul."""

    @property
    def windowed(self) -> bool:
        """Whether it is a convolution."""
        return self.new.op == "Conv"

    @property
    def left(self) -> bool:
        """Whether it is a product by a constant on the left."""
        return self.new.op == "MatMul" and self.new.constant(0) is not None

    def axis(self, rank: int) -> int:
        """Where the channels are in a tensor of this rank."""
        return 1 if self.windowed else rank - 2 if self.left else rank - 1


@dataclass(eq=False)
class GraphPair:
    """One graph of the original, and what became of it."""

    old: Graph
    new: Graph
    witness: GraphWitness
    outer: GraphPair | None = None
    narrowed: int = 0
    """A smaller float type in which constants may be that were float32."""
    pairs: dict[int, Pair] = field(default_factory=dict)
    """By index in the original."""
    regions: dict[int, Region] = field(default_factory=dict)
    """By index of the last of their members."""
    failures: list[Failure] = field(default_factory=list)
    same: dict[str, bool] = field(default_factory=dict)
    """Initializers that were compared, by name."""
    _scope: dict[str, GraphPair | None] = field(default_factory=dict)
    _renamed: dict[str, str] = field(default_factory=dict)
    _origins: dict[str, tuple[GraphPair | None, str]] = field(default_factory=dict)
    _storage: dict[str, Storage | None] = field(default_factory=dict)

    def scope(self, name: str) -> GraphPair | None:
        """The graph, this one or an outer one, in which the original defines a name."""
        if name not in self._scope:
            at: GraphPair | None = self
            owner = self.old.owner(name)
            while at is not None and at.old is not owner:
                at = at.outer
            self._scope[name] = at
        return self._scope[name]

    def renamed(self, name: str) -> str:
        """What the output calls a tensor of the original."""
        found = self._renamed.get(name)
        if found is None:
            found = self._renamed[name] = self._find_renamed(name)
        return found

    def _find_renamed(self, name: str) -> str:
        scope = self.scope(name)
        while scope is not None:
            name = scope.witness.names.get(name, name)
            owner = scope.scope(name)  # a node that left a body may have read a tensor of an outer graph
            if owner is scope:
                break
            scope = owner
        return name

    def origin(self, name: str) -> tuple[GraphPair | None, str]:
        """The tensor that this one became one with where nodes left, and the graph that defines it."""
        found = self._origins.get(name)
        if found is None:
            found = self._origins[name] = self._find_origin(name)
        return found

    def _find_origin(self, name: str) -> tuple[GraphPair | None, str]:
        scope = self.scope(name)
        while scope is not None:
            made = scope.old.producers.get(name)
            if made is None or made.index not in scope.witness.removed:
                break
            source = scope.witness.removed[made.index][0]
            if source not in scope.read_by(made):
                break
            scope, name = scope.scope(source), source
            if scope is not None and name in scope._origins:
                return scope._origins[name]
        return scope, name

    def made(self, index: int) -> tuple[Node | None, ...]:
        """The nodes of the output that make what a node of the original made."""
        pair, region = self.pairs.get(index), self.regions.get(index)
        return (pair.new, pair.bias) if pair is not None else (region.new, region.bias) if region is not None else ()

    def members(self, index: int) -> tuple[Node, ...]:
        """The nodes that became one with a node of the original, and it."""
        merged = self.witness.merged.get(index)
        nodes = self.old.nodes
        return tuple(nodes[i] for i in sorted({index, *(merged.members if merged else ())}) if 0 <= i < len(nodes))

    def read_by(self, node: Node) -> set[str]:
        """What it, and the nodes that became one with it, read from outside, constants left out."""
        members = self.members(node.index)
        made = {name for member in members for name in member.outputs}
        read = {name for member in members for name in member.inputs if name}
        return {name for name in read if node.graph.constant(name) is None} - made

    def storage(self, name: str) -> Storage | None:
        """How the output stores a tensor of the original; None where it is stored as it was."""
        if name not in self._storage:
            scope = self.scope(name)
            found = None if scope is None else scope.witness.storage.get(name)
            self._storage[name] = None if found is None or found.is_identity else _slim(found)
        return self._storage[name]

    def fail(self, kind: str, node: str, text: str, error: float = 0.0) -> None:
        """Note a failure."""
        self.failures.append(Failure(node, kind, text, error))


def match(pair: GraphPair) -> None:
    """Pair the nodes of one graph, and note what does not fit. Outer graphs must have been paired."""
    _check_names(pair)
    used: dict[int, Node] = {}
    last = -1
    merged = _merged(pair)
    for node in pair.old.nodes:
        if node.index in pair.witness.removed or (node.index in merged and merged[node.index] is None):
            continue
        end = merged.get(node.index)
        if end is not None:
            last = _match_region(pair, node, end, used, last)
            continue
        outputs = [pair.renamed(name) if name else "" for name in node.outputs]
        first = next((name for name in outputs if name), None)
        found = _next_without_output(pair.new, last) if first is None else pair.new.producers.get(first)
        if found is None and first is None:
            pair.fail("wiring", node.label, "it is gone, and nobody said that it left")
        if found is None:
            continue  # dead, or else whoever reads it is found to read nothing
        bias = None
        if node.op == "MatMul" and found.op == "Add":
            bias, found = found, _product_behind(pair, found, used)
            if found is None:
                pair.fail(
                    "wiring", node.label, f"its output is made by {bias.label!r}, which adds no constant to a MatMul"
                )
                continue
            outputs[0] = found.outputs[0]
        for made in [found] if bias is None else [found, bias]:
            if made.index <= last or made.index in used:
                pair.fail("wiring", node.label, "it stands in another place than in the original")
            last = max(last, made.index)
            used[made.index] = node
        if list(found.outputs) != outputs:
            pair.fail("wiring", node.label, f"its outputs are {list(found.outputs)}, not {outputs}")
        pair.pairs[node.index] = Pair(node, found, bias)
    for extra in pair.new.nodes:
        if extra.index not in used:
            pair.fail("wiring", extra.label, "the original has no such node")


def _merged(pair: GraphPair) -> dict[int, int | None]:
    """For every node that became part of another: the last of its group where the merged node has its place.

    That one may have left in the end.
    """
    found: dict[int, int | None] = {}
    for end, merged in pair.witness.merged.items():
        known = all(0 <= index < len(pair.old.nodes) for index in merged.members)
        alone = not any(index in found or (index in pair.witness.removed and index != end) for index in merged.members)
        once = len(set(merged.members)) == len(merged.members)
        if not (known and alone and once and merged.kept in merged.members and max(merged.members) == end):
            pair.fail("wiring", "", f"the witness says that {len(merged.members)} nodes became one, which cannot be")
            continue
        found |= dict.fromkeys(merged.members) | {merged.kept: None if end in pair.witness.removed else end}
    return found


def _match_region(pair: GraphPair, kept: Node, end: int, used: dict[int, Node], last: int) -> int:
    """Find the merged node; returns where the output goes on."""
    members = pair.members(end)
    read = pair.read_by(members[-1])
    new, bias = pair.new.producers.get(pair.renamed(members[-1].outputs[0])), None
    if new is not None and kept.op in ("MatMul", "Mul") and new.op == "Add":
        new, bias = _product_behind(pair, new, used, kept.op), new
    alike = new is not None and (new.op, new.proto.name, len(new.outputs)) == (kept.op, kept.proto.name, 1)
    if new is None or not alike or len(read) != 1:
        pair.fail("wiring", kept.label, "there is no node that it and others became")
        return last
    for node in [new] if bias is None else [new, bias]:
        if node.index <= last or node.index in used:
            pair.fail("wiring", kept.label, "it stands in another place than in the original")
        last = max(last, node.index)
        used[node.index] = kept
    pair.regions[end] = Region(members, kept, read.pop(), new, bias)
    return last


def _next_without_output(graph: Graph, last: int) -> Node | None:
    """The next node that gives nothing: such nodes are known by their order alone."""
    return next((node for node in graph.nodes[last + 1 :] if not any(node.outputs)), None)


def _product_behind(pair: GraphPair, add: Node, used: dict[int, Node], op: str = "MatMul") -> Node | None:
    """The MatMul, or a Mul, whose fresh output an inserted Add reads; None where it is not just that."""
    if len(add.inputs) != 2 or add.index in used or set(add.attributes) - {"broadcast", "axis"}:
        return None
    dynamic = [name for name in add.inputs if add.graph.constant(name) is None]
    product = add.graph.producers.get(dynamic[0]) if len(dynamic) == 1 else None
    if product is None or product.op != op or len(product.outputs) != 1 or product.index != add.index - 1:
        return None
    fresh = product.outputs[0]
    alone = len(add.graph.consumers.get(fresh, [])) == 1 and fresh not in add.graph.output_set | add.graph.captured
    return product if alone and pair.old.owner(fresh) is None else None


def _check_names(pair: GraphPair) -> None:
    """Only the two ends of a node that left become one tensor; and both must."""
    made = []
    for index, (x, y) in pair.witness.removed.items():
        if not 0 <= index < len(pair.old.nodes):
            pair.fail("wiring", "", f"the witness says that node {index} left, and there is none")
            continue
        if pair.renamed(x) != pair.renamed(y):
            label = pair.old.nodes[index].label
            pair.fail("wiring", label, f"it left, but {x!r} and {y!r} are not one tensor in the output")
        made.append(y)
    owners: dict[str, object] = {}
    for name in [*pair.witness.names, *made]:
        new, origin = pair.renamed(name), pair.origin(name)
        taken = pair.origin(new) if pair.old.owner(new) is not None else owners.setdefault(new, origin)
        if taken != origin:
            pair.fail("wiring", "", f"{name!r} is renamed to {new!r}, which is another tensor")


def compare_nodes(pair: GraphPair) -> None:
    """Compare the fields and the inputs of each paired node; note which constants changed."""
    for index, nodes in pair.pairs.items():
        old, new = nodes.old, nodes.new
        reset = False
        if not _alike(old, new, _NOTHING, narrowed=pair.narrowed):
            if not _alike(old, new, MAY_CHANGE.get(old.op, frozenset()), opposite=True, narrowed=pair.narrowed):
                pair.fail("wiring", old.label, "its operator, name or attributes are not those of the original")
            reset = True
        changed = set()
        for slot in range(max(len(old.inputs), len(new.inputs))):
            before, after = old.input(slot), new.input(slot)
            if not before and not after:
                continue
            if not before and MAY_APPEAR.get(old.op) == slot and new.constant(slot) is not None:
                changed.add(slot)
            elif not before or not after:
                pair.fail("wiring", old.label, f"its input {slot} is {after!r}, not {before!r}")
            elif not _same_value(pair, before, after):
                if old.constant(slot) is None or new.constant(slot) is None:
                    pair.fail("wiring", old.label, f"its input {slot} is {after!r}, not {pair.renamed(before)!r}")
                changed.add(slot)
        pair.pairs[index] = Pair(old, new, nodes.bias, frozenset(changed), reset)
    for region in pair.regions.values():
        read = [name for name in region.new.inputs if name and region.new.graph.constant(name) is None]
        if len(read) != 1 or not _same_value(pair, region.source, read[0]):
            pair.fail("wiring", region.kept.label, f"what it became reads {list(region.new.inputs)}")


def _slim(storage: Storage) -> Storage:
    """The storage with one element along axes on which it does not vary, channels left as they are."""
    arrays = storage.den, storage.num, storage.off
    if all(array.ndim > 1 and array.size == array.shape[1] for array in arrays):
        return storage
    return storage.map(lambda array: alike(array, [axis for axis in range(array.ndim) if axis != 1]))


def _same_value(pair: GraphPair, before: str, after: str) -> bool:
    """Whether a name of the original and one of the output are the same tensor, made by the same node or data."""
    if pair.scope(before) is None:  # a sparse initializer: those are compared at once
        return before == after and pair.new.owner(after) is None
    return pair.renamed(before) == after and same_tensor(pair, before, after)


def same_tensor(pair: GraphPair, before: str, after: str) -> bool:
    """As `_same_value`, whatever the name."""
    scope, origin = pair.origin(before)
    if scope is None or pair.new.owner(after) is not scope.new:
        return False
    made, producer = scope.old.producers.get(origin), scope.new.producers.get(after)
    if made is not None:
        return producer is not None and after not in scope.new.initializers and producer in scope.made(made.index)
    if producer is not None or (origin in scope.old.input_set) != (after in scope.new.input_set):
        return _both_constant(scope, origin, after) if producer is None else False
    return _both_constant(scope, origin, after) if origin in scope.old.initializers else after == scope.renamed(origin)


def _both_constant(scope: GraphPair, before: str, after: str) -> bool:
    """Whether both are initializers with the same bits."""
    old, new = scope.old.initializers.get(before), scope.new.initializers.get(after)
    if old is None or new is None:
        return False
    if before not in scope.same:
        bases = (scope.old.model.source.base_dir, scope.new.model.source.base_dir)
        scope.same[before] = _same_bits(old, new, bases, scope.narrowed)
    return scope.same[before]


def _same_bits(old: TensorProto, new: TensorProto, bases: Bases, narrowed: int = 0) -> bool:
    if narrowed and new.data_type == narrowed != old.data_type:
        return rounded_once(from_initializer(old, bases[0]), from_initializer(new, bases[1]), narrowed)
    if old.data_type != new.data_type or list(old.dims) != list(new.dims):
        return False
    inline = not is_external(old) and not is_external(new)
    if inline and old == new:
        return True
    if old.data_type == TensorProto.STRING:
        return list(old.string_data) == list(new.string_data)
    if is_beside(old) and is_beside(new):
        here, there = external_range(old, bases[0]), external_range(new, bases[1])
        if here.path.samefile(there.path) and here.offset == there.offset:
            return True
    return identical(from_initializer(old, bases[0]), from_initializer(new, bases[1]))


_FIELDS = ("domain", "overload", "name", "doc_string")


def _alike(old: Node, new: Node, but: frozenset[str], opposite: bool = False, narrowed: int = 0) -> bool:
    """Whether two nodes are equal, apart from the names of their tensors, their bodies, and some attributes.

    And, where `opposite`, apart from the choice between the largest and the smallest.
    """
    one, other = old.proto, new.proto
    if one.op_type != other.op_type and (OPPOSITE.get(old.op) != new.op or not opposite):
        return False
    if any(getattr(one, name, "") != getattr(other, name, "") for name in _FIELDS):
        return False
    if not one.attribute and not other.attribute:
        return True
    first, second = (list(_attributes(node.proto, but)) for node in (old, new))
    bases = (old.graph.model.source.base_dir, new.graph.model.source.base_dir)
    pairs = zip(first, second, strict=True) if len(first) == len(second) else ()
    return len(first) == len(second) and all(_equal(*both, bases, narrowed) for both in pairs)


def _attributes(node: onnx.NodeProto, but: frozenset[str]) -> Iterator[AttributeProto]:
    for attribute in node.attribute:
        if attribute.name in but:
            continue
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            bare = AttributeProto(name=attribute.name, type=attribute.type, doc_string=attribute.doc_string)
            bare.ints.extend(
                [len(attribute.graphs)]
            )  # bodies are compared as graphs; only their number is looked at here
            yield bare
        else:
            yield attribute


def _equal(one: AttributeProto, other: AttributeProto, bases: Bases, narrowed: int = 0) -> bool:
    # A NaN is not equal to itself, but its bytes are.
    if one == other or one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True):
        return True
    if same_but_type(one, other, narrowed):
        return True
    tensors = one.type == other.type == AttributeProto.TENSOR and one.name == other.name
    outside = tensors and (is_external(one.t) or is_external(other.t) or other.t.data_type == narrowed)
    return outside and _same_bits(one.t, other.t, bases, narrowed)
