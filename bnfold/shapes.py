"""Shapes that the operators themselves tell, where shape inference gives up; forwards and backwards to a fixed point.

A convolution's weights say the rank of its input and output and how many channels these have; a BatchNormalization's
parameters likewise; element by element the shape stays; a Reshape says what it keeps. A size that nothing tells gets a
name (`?tensor:axis`), so that it is known to be the same wherever it comes along.

Each size only ever becomes better known (nothing, such a name or one that inference made up, a name of the model's,
a number), and a node is asked again when one at its ends did: the time is linear in the size of the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.sizes import MAX_VALUES, Values, broadcast, evaluate, factors, reshaped
from bnfold.skeleton import aborts

if TYPE_CHECKING:
    from bnfold.graph import Dim, Graph, Node, Shape

_SAME = (
    "Abs BatchNormalization Cast CastLike Celu Ceil Clip CumSum Dropout Elu Erf Exp Floor Gelu GroupNormalization "
    "HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsNaN LRN LayerNormalization LeakyRelu Log "
    "LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg PRelu RMSNormalization Reciprocal Relu Round "
    "Selu Sigmoid Sign Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu"
)

SAME = frozenset(_SAME.split())
"""Operators whose first output has the shape of their first input."""

_BODIES = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})

_COUNTING = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL})

INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32})


def complete(graph: Graph) -> None:
    """Fill in what is missing in ``graph.shapes`` and ``graph.types``."""
    _Completion(graph).run()


class _Completion:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.values: dict[str, Values] = {}
        self.waiting = deque(graph.nodes)
        self.queued = set(graph.nodes)

    def run(self) -> None:
        asked: set[Node] = set()
        while self.waiting:
            node = self.waiting.popleft()
            self.queued.discard(node)
            if node.proto.domain in ("", "ai.onnx"):
                self._visit(node, node in asked)
                asked.add(node)

    def _visit(self, node: Node, again: bool) -> None:
        if not self.graph.type(node.outputs[0]):
            self._inferred(node)
        if self.graph.type(node.outputs[0]) in _COUNTING:
            found = evaluate(node, lambda slot: self._values(node.input(slot)))
            if found is not None:
                self._learn_values(node.outputs[0], found)
        tell, back = _FORWARD.get(node.op), _BACKWARD.get(node.op)
        if tell is not None:
            self._learn(node.outputs[0], tell(node))
        elif (target := _target(node)) is not None and (values := self._values(node.input(target))) is not None:
            self._learn(node.outputs[0], _TARGETS[node.op](node, values))
        if any(self._is_open(name) for name in node.outputs) or (tell is None and again):
            for name, shape in self._inferred(node).items():
                self._learn(name, shape)
        if back is not None:
            self._learn(node.input(0), back(node))
        if node.op == "Concat" and (made := _made(node)) is not None:
            axis = node.get_int("axis", 1) % len(made)
            for name in node.inputs:
                self._learn(name, (*made[:axis], None, *made[axis + 1 :]))

    # -------------------------------------------------------------------------------------------- what is known

    def _is_open(self, name: str) -> bool:
        """Whether something of a tensor's shape is missing."""
        if not name:
            return False
        shape = self.graph.shape(name)
        return shape is None or any(size is None or str(size).startswith(f"?{name}:") for size in shape)

    def _learn(self, name: str, shape: Shape | None) -> None:
        """Take over what is better known than before."""
        if shape is None or not name or self.graph.owner(name) is not self.graph or name in self.graph.initializers:
            return
        old = self.graph.shapes.get(name)
        if old is not None and len(old) != len(shape):
            return
        new = shape if old is None else tuple(max(both, key=_rank) for both in zip(old, shape, strict=True))
        new = tuple(f"?{name}:{axis}" if size is None else size for axis, size in enumerate(new))
        if new != old:
            self.graph.shapes[name] = new
            self._wake(name)

    def _learn_values(self, name: str, values: Values) -> None:
        if values != self.values.get(name):
            self.values[name] = values
            self._wake(name)

    def _wake(self, name: str) -> None:
        made = self.graph.producers.get(name)
        around = [node for node, _ in self.graph.consumers.get(name, [])] + ([] if made is None else [made])
        for node in around:
            if node not in self.queued:
                self.queued.add(node)
                self.waiting.append(node)

    def _values(self, name: str) -> Values | None:
        """The sizes that an integer tensor of at most one axis holds."""
        if name in self.values or not name:
            return self.values.get(name)
        found = _integers(self.graph, name)
        return None if found is None else tuple(int(value) for value in numpy_helper.to_array(found).ravel())

    # ---------------------------------------------------------------------------------------- what onnx infers

    def _inferred(self, node: Node) -> dict[str, Shape]:
        """What the operator's own inference says of one node, given the constants that it reads; types are noted."""
        if aborts(node.proto) or any(a.type in _BODIES for a in node.proto.attribute):
            return {}
        version = max(node.version, 6)  # before opset 6 few operators have shape inference
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for name in filter(None, node.inputs):
            shape = self.graph.shape(name)
            types[name] = helper.make_tensor_type_proto(self.graph.type(name) or TensorProto.FLOAT, shape)
            if (constant := _integers(self.graph, name)) is not None:
                data[name] = constant
        try:
            schema = onnx.defs.get_schema(node.proto.op_type, version)
            found = onnx.shape_inference.infer_node_outputs(schema, node.proto, types, data)
        except Exception:  # noqa: BLE001 - whatever C++ code chokes on: nothing is known
            return {}
        for name, made in found.items():
            if made.tensor_type.elem_type and all(self.graph.type(given) for given in types):
                self.graph.types.setdefault(name, made.tensor_type.elem_type)
        return {name: shape_of(made) for name, made in found.items() if made.tensor_type.HasField("shape")}


def shape_of(type_: onnx.TypeProto) -> Shape:
    """The sizes of a tensor's type. Some exporters write -1 for a size that is free."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in type_.tensor_type.shape.dim
    )


def _rank(size: Dim) -> int:
    """How well a size is known: as a number, by a name of the model's, made up here, made up by inference."""
    if size is None or isinstance(size, int):
        return 0 if size is None else 4
    return min(1 if name.startswith("unk__") else 2 if name.startswith("?") else 3 for name in factors(size)[1])


def _integers(graph: Graph, name: str) -> TensorProto | None:
    constant = graph.constant(name) if graph.type(name) in INTEGERS else None
    small = constant is not None and len(constant.shape) <= 1 and sum(constant.shape) <= MAX_VALUES
    if constant is None or not small or constant.type not in INTEGERS:
        return None
    return numpy_helper.from_array(constant.load(), name)


# ------------------------------------------------------------------------------------- operators, forwards


def _same(node: Node) -> Shape | None:
    return node.graph.shape(node.input(0))


def _normalized(node: Node) -> Shape | None:
    return _with_channels(node, node.graph.shape(node.input(0)) or node.graph.shape(node.outputs[0]))


def _convolved(node: Node) -> Shape | None:
    """N, the channels that the weights make, and the sizes that stay because padding makes up for the window."""
    weight, x = node.graph.shape(node.input(1)), node.graph.shape(node.input(0))
    if weight is None or len(weight) < 3:
        return None
    group = node.get_int("group", 1)
    channels = _times(weight[1], group) if node.op == "ConvTranspose" else weight[0]
    axes = range(len(weight) - 2)
    spatial = [x[2 + i] if x and len(x) == len(weight) and _keeps(node, i, weight[2 + i]) else None for i in axes]
    return (x[0] if x else None, channels, *spatial)


def _keeps(node: Node, axis: int, kernel: Dim) -> bool:
    strides, dilations, pads = (node.get_ints(name) for name in ("strides", "dilations", "pads"))
    same = node.get_string("auto_pad", "NOTSET").startswith("SAME")
    count = len(pads) // 2 if pads else 0
    padded = pads[axis] + pads[axis + count] if pads else 0
    reach = ((dilations[axis] if dilations else 1) * (kernel - 1)) if isinstance(kernel, int) else -1
    return (strides is None or strides[axis] == 1) and (same or padded == reach) and node.op == "Conv"


def _pooled(node: Node) -> Shape | None:
    shape = node.graph.shape(node.input(0))
    return None if shape is None or len(shape) < 3 else (*shape[:2], *(None,) * (len(shape) - 2))


def _pooled_whole(node: Node) -> Shape | None:
    shape = node.graph.shape(node.input(0))
    return None if shape is None or len(shape) < 2 else (*shape[:2], *(1,) * (len(shape) - 2))


def _broadcast(node: Node) -> Shape | None:
    shapes = [node.graph.shape(name) for name in node.inputs if name]
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or not known or (node.version < 7 and "axis" in node.attributes):
        return None
    return broadcast(known)


def _transposed(node: Node) -> Shape | None:
    return _permuted(node, node.graph.shape(node.input(0)), backwards=False)


def _multiplied(node: Node) -> Shape | None:
    """A product by a matrix keeps all axes but the last; of an input of unknown rank nothing is known."""
    x, w = (node.graph.shape(node.input(slot)) for slot in (0, 1))
    return (*x[:-1], w[-1]) if x is not None and w is not None and len(w) == 2 and len(x) >= 2 else None


def _dense(node: Node) -> Shape | None:
    x, w = (node.graph.shape(node.input(slot)) for slot in (0, 1))
    if w is None or len(w) != 2:
        return None
    rows = None if x is None or len(x) != 2 else x[1 if node.get_int("transA", 0) else 0]
    return rows, w[0 if node.get_int("transB", 0) else 1]


# ------------------------------------------------------------------- operators whose input holds the new shape


def _reshape(node: Node, target: Values) -> Shape | None:
    return reshaped(node.graph.shape(node.input(0)), target, bool(node.get_int("allowzero", 0)))


def _expand(node: Node, target: Values) -> Shape | None:
    shape = node.graph.shape(node.input(0))
    return None if shape is None else broadcast([shape, target])


def _resize(node: Node, target: Values) -> Shape | None:
    return target if node.get_ints("axes") is None else None


def _target(node: Node) -> int | None:
    """The input slot that holds the shape of the output."""
    slot = {"Reshape": 1, "Expand": 1, "Resize": 3, "ConstantOfShape": 0}.get(node.op)
    return slot if slot is not None and node.input(slot) else None


# ------------------------------------------------------------------------------------ operators, backwards


def _made(node: Node) -> Shape | None:
    return node.graph.shape(node.outputs[0]) if node.outputs[0] else None


def _normalized_from(node: Node) -> Shape | None:
    return _with_channels(node, _made(node))


def _convolved_from(node: Node) -> Shape | None:
    weight, y = node.graph.shape(node.input(1)), _made(node)
    if weight is None or len(weight) < 3:
        return None
    channels = weight[0] if node.op == "ConvTranspose" else _times(weight[1], node.get_int("group", 1))
    axes = range(len(weight) - 2)
    spatial = [y[2 + i] if y and len(y) == len(weight) and _keeps(node, i, weight[2 + i]) else None for i in axes]
    return (y[0] if y else None, channels, *spatial)


def _pooled_from(node: Node) -> Shape | None:
    y = _made(node)
    return None if y is None or len(y) < 3 else (*y[:2], *(None,) * (len(y) - 2))


def _transposed_from(node: Node) -> Shape | None:
    return _permuted(node, _made(node), backwards=True)


def _multiplied_from(node: Node) -> Shape | None:
    y, w = _made(node), node.graph.shape(node.input(1))
    return (*y[:-1], w[0]) if y is not None and w is not None and len(w) == 2 and len(y) >= 2 else None


def _dense_from(node: Node) -> Shape | None:
    y, w = _made(node), node.graph.shape(node.input(1))
    if w is None or len(w) != 2:
        return None
    sizes = (y[0] if y is not None and len(y) == 2 else None, w[1 if node.get_int("transB", 0) else 0])
    return sizes[::-1] if node.get_int("transA", 0) else sizes


def _scaled_from(node: Node) -> Shape | None:
    """What an elementwise operator by a constant of fewer axes reads: of any size where the constant is not one."""
    y, constant = _made(node), node.constant(1)
    if y is None or constant is None or len(y) <= len(constant.shape):
        return None
    rest = len(y) - len(constant.shape)
    return (*y[:rest], *(size if own == 1 else None for size, own in zip(y[rest:], constant.shape, strict=True)))


def _squeezed_from(node: Node) -> Shape | None:
    y, axes = _made(node), _axes(node)
    if y is None or axes is None:
        return None
    rank, rest = len(y) + len(axes), iter(y)
    return tuple(1 if axis in axes or axis - rank in axes else next(rest) for axis in range(rank))


def _unsqueezed_from(node: Node) -> Shape | None:
    y, axes = _made(node), _axes(node)
    if y is None or axes is None:
        return None
    return tuple(size for axis, size in enumerate(y) if axis not in axes and axis - len(y) not in axes)


def _axes(node: Node) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze, where they are given and constant."""
    given, constant = node.get_ints("axes"), node.constant(1)
    return given if given is not None or constant is None else constant.ints()


def _with_channels(node: Node, shape: Shape | None) -> Shape | None:
    """The parameters of a BatchNormalization or InstanceNormalization tell how many channels there are."""
    scale = node.graph.shape(node.input(1))
    if shape is None or len(shape) < 2 or scale is None or len(scale) != 1:
        return shape
    return (shape[0], scale[0], *shape[2:])


def _permuted(node: Node, shape: Shape | None, backwards: bool) -> Shape | None:
    perm: Sequence[int] | None = node.get_ints("perm")
    if shape is None or (perm is not None and sorted(perm) != list(range(len(shape)))):
        return None
    order = list(perm or reversed(range(len(shape))))
    return tuple(shape[order.index(axis) if backwards else order[axis]] for axis in range(len(shape)))


def _times(size: Dim, factor: int) -> int | None:
    return size * factor if isinstance(size, int) else None


Teller = Callable[["Node"], "Shape | None"]

_FORWARD: dict[str, Teller] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalized),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolved),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pooled),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pooled_whole),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min", "Where"), _broadcast),
    "Transpose": _transposed,
    "MatMul": _multiplied,
    "Gemm": _dense,
}

_BACKWARD: dict[str, Teller] = {
    **dict.fromkeys(SAME, _made),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalized_from),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolved_from),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pooled_from),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _scaled_from),
    "Squeeze": _squeezed_from,
    "Unsqueeze": _unsqueezed_from,
    "Transpose": _transposed_from,
    "MatMul": _multiplied_from,
    "Gemm": _dense_from,
}

_TARGETS: dict[str, Callable[[Node, Values], Shape | None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Resize": _resize,
    "ConstantOfShape": lambda node, target: target,
}
