"""Which nodes stay in float32, and why: what ONNX or a runtime does not compute in less, what would not fit, wishes."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, TensorProto

from bnfold.calls import Functions, callee
from bnfold.graph import Graph, Node
from bnfold.kernels.graphs import captured
from bnfold.precision.types import LONG, Ports, allowed_from, largest, ports_of, smallest
from bnfold.precision.values import trouble, variance_trouble
from bnfold.precision.wishes import Kept, Wanted
from bnfold.protos import bodies
from bnfold.reasons import plural
from bnfold.runtime.half import blocked_operators
from bnfold.solver import matches

FLOAT = int(TensorProto.FLOAT)

_SEQUENCES = frozenset(
    {"SequenceConstruct", "SequenceAt", "SequenceInsert", "SequenceErase", "SequenceEmpty", "SplitToSequence"}
    | {"ConcatFromSequence", "SequenceLength", "SequenceMap", "Optional", "OptionalGetElement", "OptionalHasElement"}
)
_UNTYPED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "EyeLike"}
    | {"HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"}
)
"""Operators whose results have a type of their own, whatever they read."""

_EPSILONS = frozenset(
    {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"}
)


class Choice:
    """What of the main graph stays in float32. `kept` has the reasons, by index of the node."""

    def __init__(self, graph: Graph, wanted: Wanted) -> None:
        self.graph, self.wanted = graph, wanted
        self.kept: dict[int, tuple[str, str]] = {}
        self._functions = set(Functions(graph.model.proto).by_key)
        self._blocked = blocked_operators()
        self._quantized = self._around_quantization()
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in self.reads(node):
                self._readers.setdefault(name, []).append(node)
        for rule in (self._unknown, self._by_user, self._by_operator, self._by_constants):
            for node in graph.nodes:
                if node.index not in self.kept and self.has_floats(node) and (why := rule(node)) is not None:
                    self.kept[node.index] = why
        self._sizes()
        self._too_large()
        self._constant_nodes()

    @property
    def reasons(self) -> tuple[Kept, ...]:
        """One entry for every node that stays, in graph order."""
        found = [(self.graph.nodes[index], why) for index, why in sorted(self.kept.items()) if why[0]]
        return tuple(Kept(node.label, node.op, *why) for node, why in found)

    def reads(self, node: Node) -> list[str]:
        """What a node reads, and what its bodies capture."""
        inner = [name for _, body in bodies(node.proto) for name in sorted(captured(body))]
        return [name for name in (*node.inputs, *inner) if name]

    def is_float(self, name: str) -> bool:
        """Whether a tensor is a float32."""
        return bool(name) and self.graph.type(name) == FLOAT

    def has_floats(self, node: Node) -> bool:
        """Whether a node reads or makes a float32."""
        return any(map(self.is_float, (*self.reads(node), *node.outputs)))

    def ports(self, node: Node) -> Ports | None:
        """What of a node may have the smaller type; None where nobody knows."""
        return ports_of(node.proto.op_type, node.proto.domain, node.version, self.wanted.type)

    def stays(self, node: Node, slot: int) -> bool:
        """Whether an input is read as a float32."""
        ports = self.ports(node)
        return node.index in self.kept or ports is None or not ports.input(slot)

    # -------------------------------------------------------------------------------------------------------- reasons

    def _unknown(self, node: Node) -> tuple[str, str] | None:
        proto = node.proto
        if callee(proto) in self._functions:
            return "function", "it calls a function of the model, whose body is written for float32"
        if bodies(proto):
            return "body", "it has bodies, and the converter puts the casts of a body outside of it"
        if self.ports(node) is None or node.op.startswith("malformed."):
            return "domain", "ONNX does not define this operator, so nobody knows what it computes in less"
        unknown = next((name for name in node.inputs if name and not self.graph.type(name)), None)
        if unknown is not None or node.op in _SEQUENCES:
            return "unknown-type", f"the type of {unknown!r} is not known" if unknown else "it reads or makes sequences"
        return None

    def _by_user(self, node: Node) -> tuple[str, str] | None:
        asked = any(matches(pattern, node.label) for pattern in self.wanted.keep)
        return ("kept-by-user", "--keep-fp32 asked for it") if asked else None

    def _by_operator(self, node: Node) -> tuple[str, str] | None:
        if node.op in self._blocked or node.op in _UNTYPED:
            return "operator", f"ONNX Runtime's converter leaves {node.op} in float32"
        if node.index in self._quantized:
            return "quantized", "it is part of the quantized model, whose scales stay as they were calibrated"
        ports, long = self.ports(node), LONG[self.wanted.type]
        assert ports is not None
        made = [slot for slot, name in enumerate(node.outputs) if self.is_float(name)]
        read = [slot for slot, name in enumerate(node.inputs) if self.is_float(name)]
        fits = all(map(ports.output, made[:1])) and (any(map(ports.input, read)) or not read)
        if not fits:
            later = allowed_from(node.op, node.proto.domain, node.version, self.wanted.type)
            hint = f", only from opset {later} on" if later else ""
            return "type", f"ONNX has no {node.op} in {long} in opset {node.version}{hint}"
        if node.op == "ConstantOfShape" and "value" not in node.attributes:
            return "type", "without a value it makes float32"
        if node.op == "Cast" and "to" in node.attributes and node.attributes["to"].type != AttributeProto.INT:
            return "type", "before opset 6 a Cast names its type in letters"
        return None

    def _by_constants(self, node: Node) -> tuple[str, str] | None:
        if node.op in _EPSILONS and 0 < node.get_float("epsilon", 1e-5) < smallest(self.wanted.type):
            least = smallest(self.wanted.type)
            text = f"its epsilon {node.get_float('epsilon', 1e-5):.2g} is below {LONG[self.wanted.type]}'s {least:.2g}"
            return "epsilon", text
        if node.op == "Constant":
            return None  # its readers are asked
        for slot, name in enumerate(node.inputs):
            constant = node.constant(slot) if self.is_float(name) and not self.stays(node, slot) else None
            if constant is None:
                continue
            if node.op == "BatchNormalization" and slot == 4:
                found = variance_trouble(constant, node.get_float("epsilon", 1e-5), self.wanted.type)
            else:
                found = trouble(constant, self.wanted.type)
            if found is not None:
                return found
        return None

    def _around_quantization(self) -> set[int]:
        """Quantizing nodes, and those between a DequantizeLinear and a QuantizeLinear, or with dequantized weights."""
        found = set()
        for node in self.graph.nodes:
            if node.op not in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
                continue
            found.add(node.index)
            if node.op == "DequantizeLinear":
                found |= {reader.index for name in node.outputs for reader, _ in self.graph.consumers.get(name, [])}
            elif node.inputs and (maker := self.graph.producers.get(node.inputs[0])) is not None:
                found.add(maker.index)
        return found

    # ------------------------------------------------------------------------------------------------ what follows

    def _sizes(self) -> None:
        """Sizes and indices that are computed in floats: integers above 2048 are no float16."""
        scalars: set[str] = set()
        for node in self.graph.nodes:
            floats = [name for name in node.inputs if self.is_float(name)]
            known = [name for name in floats if self.graph.constant(name) is None]
            small = all(
                (constant := self.graph.constant(name)) is None or constant.shape in ((), (1,)) for name in floats
            )
            counted = (
                node.op == "Cast" and not floats and all(self.graph.constant(name) is None for name in node.inputs)
            )
            if counted or (known and small and scalars.issuperset(known)):
                scalars.update(name for name in node.outputs if self.is_float(name))
        stack = [
            name
            for node in self.graph.nodes
            for slot, name in enumerate(node.inputs)
            if name in scalars and self._counts(node, slot)
        ]
        seen = set(stack)
        while stack:
            maker = self.graph.producers[stack.pop()]
            self.kept.setdefault(maker.index, ("sizes", "it computes sizes or indices, which have to be exact"))
            more = {name for name in maker.inputs if name in scalars} - seen
            seen |= more
            stack += more

    def _counts(self, node: Node, slot: int) -> bool:
        """Whether an input becomes an integer, or is one of those that ONNX reads as a float32 always."""
        ports = self.ports(node)
        whole = node.op == "Cast" and bool(node.outputs) and not self.is_float(node.outputs[0])
        return whole or (ports is not None and not ports.input(slot))

    def _too_large(self) -> None:
        """Tensors that overflow, or come near to it, on the inputs that were run: their makers and their readers."""
        limit = largest(self.wanted.type) / 2  # other inputs may be larger
        end = f"{LONG[self.wanted.type]} ends at {largest(self.wanted.type):.5g}"
        for tensor, peak in self.wanted.peaks.items():
            if not peak > limit or not self.is_float(tensor):
                continue
            maker = self.graph.producers.get(tensor)
            text = f"{tensor!r} reached {peak:.3g} on the inputs that were run, and {end}"
            if self.graph.constant(tensor) is None:
                for node in ([maker] if maker is not None else []) + self._readers.get(tensor, []):
                    self.kept.setdefault(node.index, ("overflow", text))

    def _constant_nodes(self) -> None:
        """A Constant that some node reads in float32 stays one: it would have been rounded for nothing."""
        for node in self.graph.nodes:
            if node.op != "Constant" or node.index in self.kept or not node.outputs:
                continue
            readers = self._readers.get(node.outputs[0], [])
            exact = [reader for reader in readers if any(self._reads_whole(reader, node.outputs[0]))]
            if exact or not readers:
                self.kept[node.index] = ("", "")

    def _reads_whole(self, node: Node, name: str) -> Iterator[bool]:
        yield node.index in self.kept
        yield from (self.stays(node, slot) for slot, used in enumerate(node.inputs) if used == name)


def warnings(choice: Choice) -> tuple[str, ...]:
    """A warning for every wish that names no node, and one for what a newer opset would unlock."""
    graph, wanted = choice.graph, choice.wanted
    labels = [node.label for node in graph.nodes]
    found = [
        f"--keep-fp32 {pattern!r} matches no node of the folded model"
        for pattern in wanted.keep
        if not any(matches(pattern, label) for label in labels)
    ]
    old = [graph.nodes[index] for index, (code, _) in choice.kept.items() if code == "type"]
    later = [allowed_from(node.proto.op_type, node.proto.domain, node.version, wanted.type) for node in old]
    if any(later):
        count = sum(map(bool, later))
        found.append(
            f"{plural(count, 'node')} stay in float32 because opset {graph.model.opset} does not have them in "
            f"{LONG[wanted.type]}; opset {max(later)} has: onnx.version_converter.convert_version(model, {max(later)})"
        )
    return tuple(found)
