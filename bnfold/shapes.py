"""Ranks and channel counts that the operators themselves tell, where shape inference gives up.

A convolution's weights say the rank of its input and output and how many channels these have; a BatchNormalization's
parameters likewise; element by element the shape stays. Sizes that nothing tells stay unknown (None).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.graph import Graph, Node, Shape

SAME = frozenset(
    {
        "Abs",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Gelu",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LeakyRelu",
        "Mish",
        "Neg",
        "PRelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Sqrt",
        "Tanh",
    }
)
"""Operators whose first output has the shape of their first input."""


def complete(graph: Graph) -> None:
    """Fill in what is missing in ``graph.shapes``: forwards in node order, then backwards to what convolutions read."""
    for node in graph.nodes:
        if node.outputs and node.outputs[0] and graph.shape(node.outputs[0]) is None:
            tell = _TELLERS.get(node.op) or (_same if node.op in SAME else None)
            shape = None if tell is None else tell(node)
            if shape is not None:
                graph.shapes[node.outputs[0]] = shape
    for node in reversed(graph.nodes):
        name = node.input(0)
        if not name or graph.shape(name) is not None or graph.owner(name) is not graph:
            continue
        shape = _read_by(node)
        if shape is not None:
            graph.shapes[name] = shape


def _read_by(node: Node) -> Shape | None:
    if node.op in ("Conv", "ConvTranspose"):
        weight = node.graph.shape(node.input(1))
        if weight is None or len(weight) < 3:
            return None
        channels = weight[0] if node.op == "ConvTranspose" else _times(weight[1], node.get_int("group", 1))
        return (None, channels, *(None,) * (len(weight) - 2))
    return node.graph.shape(node.outputs[0]) if node.op in SAME and node.outputs else None


def _same(node: Node) -> Shape | None:
    return node.graph.shape(node.input(0))


def _convolution(node: Node) -> Shape | None:
    weight = node.graph.shape(node.input(1))
    if weight is None or len(weight) < 3:
        return None
    channels = _times(weight[1], node.get_int("group", 1)) if node.op == "ConvTranspose" else weight[0]
    return (None, channels, *(None,) * (len(weight) - 2))


def _pool(node: Node) -> Shape | None:
    shape = node.graph.shape(node.input(0))
    return None if shape is None or len(shape) < 3 else (*shape[:2], *(None,) * (len(shape) - 2))


def _broadcast(node: Node) -> Shape | None:
    shapes = [node.graph.shape(name) for name in node.inputs if name]
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or (node.version < 7 and "axis" in node.attributes):
        return None
    rank = max(len(shape) for shape in known)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in known]
    return tuple(_dimension(dims) for dims in zip(*padded, strict=True))


def _dimension(dims: tuple[int | str | None, ...]) -> int | str | None:
    """The size that these broadcast to: one that is larger than one wins; None where it may be any."""
    fixed = [dim for dim in dims if isinstance(dim, int) and dim != 1]
    if fixed:
        return fixed[0]
    rest = {dim for dim in dims if dim != 1}
    return rest.pop() if len(rest) == 1 else None if rest else 1


def _transposed(node: Node) -> Shape | None:
    shape, perm = node.graph.shape(node.input(0)), node.get_ints("perm")
    if shape is None:
        return None
    return tuple(shape[axis] for axis in perm) if perm else tuple(reversed(shape))


def _times(size: int | str | None, factor: int) -> int | None:
    return size * factor if isinstance(size, int) else None


_TELLERS: dict[str, Callable[[Node], Shape | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "Transpose": _transposed,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum"), _broadcast),
}
