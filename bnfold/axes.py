"""Types that grow with the graph: ONNX's inference writes one for every tensor, with a record for each axis.

A tensor of ten thousand axes and twenty thousand nodes behind it take gigabytes, and so do a few thousand that add
axes, or one axis with a long name. So what has more axes than any runtime takes has no shape here, long names of
sizes are short ones, and where axes could be too many in all, nodes that may make too many for one tensor are opaque.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from bnfold.calls import Functions, Key
from bnfold.protos import bodies, every_graph, inner_graphs
from bnfold.source import MOST_AXES

MOST_IN_ALL = 1 << 21
"""Axes of all tensors of a model."""

MOST_VISITS = 100_000
"""Nodes in functions that are looked at, one for each kind of call."""

MOST_TEXT = 64
"""Characters in the name of a size."""

OPAQUE = "bnfold.opaque"
"""The domain of nodes of which inference is not asked."""

_BY_LENGTH = frozenset({"Reshape", "Expand", "ConstantOfShape"})
"""Operators that make as many axes as they read numbers."""

_FIXED = {"Shape": 1, "Size": 0, "NonZero": 2, "Range": 1, "Flatten": 2, "Gemm": 2, "Compress": 1, "Unique": 1}
"""Axes that operators make, or fewer than they read."""

_ONE_MORE = frozenset({"OneHot", "OneHotEncoder", "ConcatFromSequence", "SequenceInsert", "SplitToSequence", "DFT"})


def opaque(node: NodeProto) -> NodeProto:
    """A node in place of another one, about which nothing is known."""
    return NodeProto(op_type="Opaque", domain=OPAQUE, input=node.input, output=node.output)


def limit_types(model: ModelProto) -> None:
    """See that inference writes types of few axes with short names. The model is changed: it is a skeleton."""
    short = _Aliases()
    inside = (graph for function in model.functions for graph in inner_graphs(function.node))
    for graph in (*every_graph(model.graph), *inside):
        for value in (*graph.input, *graph.output, *graph.value_info):
            short.rename(value)
            if _axes_of(value.type) > MOST_AXES:
                _hide(value.type)
        for i in reversed([i for i, tensor in enumerate(graph.initializer) if len(tensor.dims) > MOST_AXES]):
            tensor = graph.initializer[i]
            if graph is model.graph and all(value.name != tensor.name for value in graph.input):
                graph.input.add(name=tensor.name).type.tensor_type.elem_type = tensor.data_type
            del graph.initializer[i]
    for function in model.functions:
        for value in function.value_info:
            short.rename(value)
            if _axes_of(value.type) > MOST_AXES:
                _hide(value.type)
    if _Bounds(model, limited=False).total > MOST_IN_ALL:
        _Bounds(model, limited=True)
        if all(entry.domain != OPAQUE for entry in model.opset_import):
            model.opset_import.add(domain=OPAQUE, version=1)


def _tensor_type(type_: TypeProto) -> TypeProto.Tensor | TypeProto.SparseTensor:
    """The type of a tensor, or of those in a sequence, an optional or a map."""
    while (kind := type_.WhichOneof("value")) in ("sequence_type", "optional_type", "map_type"):
        inner = getattr(type_, kind)
        type_ = inner.value_type if kind == "map_type" else inner.elem_type
    return type_.sparse_tensor_type if type_.HasField("sparse_tensor_type") else type_.tensor_type


def _axes_of(type_: TypeProto) -> int:
    return len(_tensor_type(type_).shape.dim)


def _hide(type_: TypeProto) -> None:
    _tensor_type(type_).ClearField("shape")


class _Aliases:
    """Short names for long ones of sizes, the same for the same."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def rename(self, value: ValueInfoProto) -> None:
        for dim in _tensor_type(value.type).shape.dim:
            if len(dim.dim_param) > MOST_TEXT:
                end = f"#{len(self._given)}"
                dim.dim_param = self._given.setdefault(dim.dim_param, dim.dim_param[: MOST_TEXT - len(end)] + end)


class _Bounds:
    """How many axes tensors may have at most, and how many numbers vectors, in the order of the nodes.

    As inference goes: what is read before it is made has the shape that was declared. Where it is `limited`, nodes
    that may make too many axes become opaque.
    """

    def __init__(self, model: ModelProto, *, limited: bool) -> None:
        self.limited = limited
        self.total = 0
        self._functions = Functions(model)
        self._visits = 0
        self._called: dict[tuple[object, ...], tuple[int, int]] = {}
        self._running: set[Key] = set()
        self._run(model.graph, {}, {})

    def _run(self, part: GraphProto | onnx.FunctionProto, axes: dict[str, int], numbers: dict[str, int]) -> None:
        """Go through a graph; `axes` and `numbers` are those of the tensors that are known, and of its own then."""
        given = (*part.input, *part.output) if isinstance(part, GraphProto) else ()
        for value in (*part.value_info, *given):
            axes[value.name] = max(axes.get(value.name, 0), _axes_of(value.type))
            dims = _tensor_type(value.type).shape.dim
            length = dims[0].dim_value if len(dims) == 1 and dims[0].HasField("dim_value") else 1
            numbers[value.name] = max(numbers.get(value.name, 0), min(max(length, 1), 1 << 20))
        for tensor in part.initializer if isinstance(part, GraphProto) else ():
            axes[tensor.name], numbers[tensor.name] = len(tensor.dims), _size(tensor)
        for node in part.node:
            self._visit(node, axes, numbers)

    def _visit(self, node: NodeProto, axes: dict[str, int], numbers: dict[str, int]) -> None:
        ranks = [axes.get(name, 0) for name in node.input]
        lengths = [numbers.get(name, 1) for name in node.input]
        inner = [body for _, body in bodies(node)]
        for body in inner:
            for value in body.input:
                axes[value.name] = max(ranks, default=0)
            self._run(body, axes, numbers)
        if inner:
            returned = [axes.get(value.name, 0) for body in inner for value in body.output]
            made, length = max([*ranks, *returned], default=0), max(lengths, default=1)
            made += node.op_type != "If"  # loops stack what their bodies return
        elif self._functions.get(node) is not None:
            made, length = self._call(node, ranks, lengths)
        else:
            made, length = _made(node, ranks, lengths), _length(node, ranks, lengths)
        if self.limited and made > MOST_AXES:
            node.CopyFrom(opaque(node))
            made = 0
        self.total += made * len(node.output)
        for name in node.output:
            axes[name], numbers[name] = max(axes.get(name, 0), made), length

    def _call(self, node: NodeProto, ranks: Sequence[int], lengths: Sequence[int]) -> tuple[int, int]:
        """The most axes, and numbers, of what a function makes of such inputs on its way."""
        function = self._functions.by_key[key := (node.domain, node.op_type, node.overload)]
        asked = (key, *ranks, *lengths)
        if asked not in self._called:
            self._visits += len(function.node)
            if self._visits > MOST_VISITS or key in self._running:
                return MOST_AXES + 1, MOST_AXES
            self._running.add(key)
            axes = dict(zip(function.input, ranks, strict=False))
            numbers = dict(zip(function.input, lengths, strict=False))
            was, self.limited = self.limited, False
            self._run(function, axes, numbers)
            self.limited = was
            self._running.discard(key)
            most = max(axes.values(), default=0)
            made = max((axes.get(name, 0) for name in function.output), default=0)
            self._called[asked] = (
                made if most <= 2 * MOST_AXES else most,
                max((numbers.get(name, 1) for name in function.output), default=1),
            )
        return self._called[asked]


def _size(tensor: TensorProto) -> int:
    return math.prod(max(0, dim) for dim in tensor.dims)


def _made(node: NodeProto, ranks: Sequence[int], lengths: Sequence[int]) -> int:
    """The most axes that an operator makes."""
    op, most = node.op_type, max(ranks, default=0)
    if op in _FIXED:
        return max(_FIXED[op], most) if op in ("Compress", "Unique") else _FIXED[op]
    if op in _BY_LENGTH:
        by = max((len(a.ints) for a in node.attribute if a.name == "shape"), default=lengths[-1] if lengths else 0)
        return max(by, most) if op == "Expand" else by
    if op == "Unsqueeze" and ranks:
        attribute = next((len(a.ints) for a in node.attribute if a.name == "axes"), 0)
        return ranks[0] + max(attribute, *lengths[1:2], 0)
    if op == "Squeeze" and ranks:
        given = max([len(a.ints) for a in node.attribute if a.name == "axes"], default=0)
        return max(ranks[0] - given, 0)
    if op in ("Gather", "GatherND"):
        return max(sum(ranks) - 1, 0)
    if op == "Einsum":
        return _of_equation(next((a.s for a in node.attribute if a.name == "equation"), b""), most)
    if op == "Constant":
        return max((len(a.t.dims) or len(a.sparse_tensor.dims) or 1 for a in node.attribute), default=0)
    attributes = max((len(a.ints) for a in node.attribute if a.name == "shape"), default=0)  # RandomNormal
    return max(most + (op in _ONE_MORE), attributes)


def _of_equation(equation: bytes, most: int) -> int:
    given, arrow, made = equation.replace(b" ", b"").partition(b"->")
    ellipsis = most if b"." in (made if arrow else given) else 0
    return ellipsis + (len(made) if arrow else len(set(given)))


def _length(node: NodeProto, ranks: Sequence[int], lengths: Sequence[int]) -> int:
    """The most numbers in a vector that an operator makes, where those are sizes."""
    op = node.op_type
    if op == "Shape":
        return max(ranks, default=1)
    if op == "Concat":
        return sum(lengths)
    if op == "Gather" and len(lengths) == 2:
        return lengths[1]
    if op == "Constant":
        return max(
            (_size(a.t) if a.HasField("t") else max(len(a.ints), len(a.floats), 1) for a in node.attribute), default=1
        )
    return max(lengths, default=1)
