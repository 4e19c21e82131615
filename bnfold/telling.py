"""What one operator tells of the shapes at its ends: of its output from its inputs, and of its input from its output.

None stands for a shape, or a size, of which it tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bnfold.sizes import Values, broadcast, product, reshaped

if TYPE_CHECKING:
    from bnfold.graph import Dim, Node, Shape

_SAME = (
    "Abs BatchNormalization Cast CastLike Celu Ceil Clip CumSum Dropout Elu Erf Exp Floor Gelu GroupNormalization "
    "HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsNaN LRN LayerNormalization LeakyRelu Log "
    "LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg PRelu RMSNormalization Reciprocal Relu Round "
    "Selu Sigmoid Sign Softmax Softplus Softsign Sqrt Swish Tanh ThresholdedRelu"
)

SAME = frozenset(_SAME.split())
"""Operators whose first output has the shape of their first input."""


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
    return (x[0] if x else None, channels, *_kept(node, x, weight))


def _kept(node: Node, end: Shape | None, weight: Shape) -> list[Dim]:
    """The spatial sizes of one end, where the other end has the same; None where not."""
    count = len(weight) - 2
    found: list[Dim] = [None] * count
    if not end or len(end) != len(weight) or node.op != "Conv":
        return found
    strides, dilations, pads = (node.get_ints(name) or [] for name in ("strides", "dilations", "pads"))
    if any(len(given) not in (0, count) for given in (strides, dilations, pads[::2])):
        return found
    same = node.get_string("auto_pad", "NOTSET").startswith("SAME")
    for axis, (size, kernel) in enumerate(zip(end[2:], weight[2:], strict=True)):
        padded = pads[axis] + pads[axis + count] if pads else 0
        reach = ((dilations[axis] if dilations else 1) * (kernel - 1)) if isinstance(kernel, int) else -1
        if (not strides or strides[axis] == 1) and (same or padded == reach):
            found[axis] = size
    return found


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


def _sliced(node: Node) -> Shape | None:
    """Axes that are not cut keep their size."""
    shape, axes = node.graph.shape(node.input(0)), node.constant(3)
    if shape is None or axes is None:
        return None
    cut = {axis % len(shape) for axis in axes.ints()}
    return tuple(None if axis in cut else size for axis, size in enumerate(shape))


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


def _tile(node: Node, target: Values) -> Shape | None:
    shape = node.graph.shape(node.input(0))
    if shape is None or len(shape) != len(target) or node.version < 6:
        return None
    return tuple(product([size, n]) for size, n in zip(shape, target, strict=True))


def _resize(node: Node, target: Values) -> Shape | None:
    plain = node.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    return target if plain and node.get_ints("axes") is None else None


def target_slot(node: Node) -> int | None:
    """The input slot that holds the shape of the output, or how often it holds that of the input."""
    slot = {"Reshape": 1, "Expand": 1, "Tile": 1, "Resize": 3, "ConstantOfShape": 0}.get(node.op)
    return slot if slot is not None and node.input(slot) else None


# ------------------------------------------------------------------------------------ operators, backwards


def output_shape(node: Node) -> Shape | None:
    """The shape of the first output, as far as it is known."""
    return node.graph.shape(node.outputs[0]) if node.outputs[0] else None


def _normalized_from(node: Node) -> Shape | None:
    return _with_channels(node, output_shape(node))


def _convolved_from(node: Node) -> Shape | None:
    weight, y = node.graph.shape(node.input(1)), output_shape(node)
    if weight is None or len(weight) < 3:
        return None
    channels = weight[0] if node.op == "ConvTranspose" else _times(weight[1], node.get_int("group", 1))
    return (y[0] if y else None, channels, *_kept(node, y, weight))


def _pooled_from(node: Node) -> Shape | None:
    y = output_shape(node)
    return None if y is None or len(y) < 3 else (*y[:2], *(None,) * (len(y) - 2))


def _transposed_from(node: Node) -> Shape | None:
    return _permuted(node, output_shape(node), backwards=True)


def _multiplied_from(node: Node) -> Shape | None:
    y, w = output_shape(node), node.graph.shape(node.input(1))
    return (*y[:-1], w[0]) if y is not None and w is not None and len(w) == 2 and len(y) >= 2 else None


def _dense_from(node: Node) -> Shape | None:
    y, w = output_shape(node), node.graph.shape(node.input(1))
    if w is None or len(w) != 2:
        return None
    sizes = (y[0] if y is not None and len(y) == 2 else None, w[1 if node.get_int("transB", 0) else 0])
    return sizes[::-1] if node.get_int("transA", 0) else sizes


def _scaled_from(node: Node) -> Shape | None:
    """What an elementwise operator by a constant of fewer axes reads: of any size where the constant is not one."""
    y, constant = output_shape(node), node.constant(1)
    if node.version < 7:
        return y if constant is not None else None
    if y is None or constant is None or len(y) <= len(constant.shape):
        return None
    rest = len(y) - len(constant.shape)
    return (*y[:rest], *(size if own == 1 else None for size, own in zip(y[rest:], constant.shape, strict=True)))


def _squeezed_from(node: Node) -> Shape | None:
    y, axes = output_shape(node), _axes(node)
    if y is None or axes is None:
        return None
    rank, rest = len(y) + len(axes), iter(y)
    return tuple(1 if axis in axes or axis - rank in axes else next(rest) for axis in range(rank))


def _unsqueezed_from(node: Node) -> Shape | None:
    y, axes = output_shape(node), _axes(node)
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

FORWARD: dict[str, Teller] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalized),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolved),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pooled),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pooled_whole),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Sum", "Mean", "Max", "Min", "Where"), _broadcast),
    "Transpose": _transposed,
    "Slice": _sliced,
    "MatMul": _multiplied,
    "Gemm": _dense,
}

BACKWARD: dict[str, Teller] = {
    **dict.fromkeys(SAME, output_shape),
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

TARGETS: dict[str, Callable[[Node, Values], Shape | None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "Resize": _resize,
    "ConstantOfShape": lambda node, target: target,
}
