"""What a node computes in float64, and the sum of magnitudes that its rounding errors are measured by.

Where a wrong kernel could hide a wrong fold (windows and borders, groups, matrix products, BatchNormalization) the
certificate has its own. Functions of single elements and operators that move elements come from `bnfold.kernels`,
which are checked against ONNX Runtime and know nothing of folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from bnfold.affine import Array
from bnfold.certificate.result import NotCertifiedError
from bnfold.errors import BnfoldError
from bnfold.graph import Node
from bnfold.kernels import KERNELS, Call, to_float64
from bnfold.kernels.graphs import Schema, attribute_value, schema_of
from bnfold.kernels.growth import elements

Inputs = Sequence[Array | None]

MOST_ELEMENTS = 1 << 25
"""Elements of what enters or leaves a node in a test, at most."""

_BOUND_AS = {"Sub": "Add", "Min": "Max", "Clip": "Max", "ReduceMin": "ReduceMax", "Neg": "Identity", "Abs": "Identity"}
"""Operators whose magnitude is that of another operator on magnitudes."""

_SUMS = frozenset(
    {"Add", "Sum", "Mean", "Mul", "Max", "MatMul", "Einsum", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2"}
)
_PICKS = frozenset(
    {"Relu", "Where", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "Resize", "Upsample"}
)
_COPIES = frozenset(
    {"Identity", "Dropout", "Cast", "CastLike", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Pad", "Tile"}
)
_MOVES = frozenset({"Concat", "Split", "Slice", "Gather", "Transpose", "Expand", "DepthToSpace", "SpaceToDepth"})

MONOTONE: frozenset[str] = _SUMS | _PICKS | _COPIES | _MOVES
"""Operators that grow with operands that are all positive: their magnitude is what they make of magnitudes."""


def evaluate(node: Node, inputs: Inputs, attributes: Mapping[str, float] = MappingProxyType({})) -> list[Array]:
    """The node's outputs, with some attributes as given instead of as they are stored.

    Raises:
        NotCertifiedError: there is no kernel, or the inputs do not fit it.
    """
    own = {"BatchNormalization": _batchnorm, "Gemm": _gemm, "MatMul": _matmul}.get(node.op)
    try:
        if own is not None:
            return [own(node, inputs, False)]
        return _kernel(node, node.op, inputs, attributes)
    except (ValueError, IndexError, TypeError, KeyError, AssertionError, BnfoldError) as error:
        raise NotCertifiedError(f"{node.op} cannot be evaluated: {error}") from error


def magnitudes(node: Node, inputs: Inputs, sizes: Inputs, outputs: Sequence[Array]) -> list[Array]:
    """As `magnitude`, for every output of which more is known than that it is as large as it is."""
    if node.op == "Split":
        return [np.abs(part) for part in _kernel(node, node.op, sizes)]
    return [magnitude(node, inputs, sizes, outputs[0])]


def magnitude(node: Node, inputs: Inputs, sizes: Inputs, output: Array) -> Array:
    """A bound, up to a small factor, of what enters the first output: rounding errors are relative to this.

    Args:
        node: the node.
        inputs: its inputs.
        sizes: for each input the magnitudes of the terms that it was made of.
        output: what it made of `inputs`.
    """
    op = node.op
    own = {"BatchNormalization": _batchnorm, "Gemm": _gemm, "MatMul": _matmul}.get(op)
    if own is not None:
        return own(node, sizes, True)
    if op in ("Resize", "Upsample"):  # a region and scales are no terms
        sizes = [sizes[0], *inputs[1:]]
    if op in ("LeakyRelu", "PRelu"):
        assert sizes[0] is not None
        if op == "LeakyRelu":
            return sizes[0] * max(1.0, abs(node.get_float("alpha", 0.01)))
        slope = inputs[1]
        assert slope is not None
        return np.abs(_kernel(node, op, [-sizes[0], 1.0 + np.abs(slope)])[0])
    if op in ("Pow", "Sqrt", "Reciprocal"):  # no shift passes: the relative error grows with the exponent
        exponent = inputs[1] if op == "Pow" else None
        return np.abs(output) * (2.0 if exponent is None else 1.0 + np.abs(exponent))
    if op == "Resize" and node.get_string("mode", "nearest") == "cubic":  # some of its weights are negative
        assert sizes[0] is not None
        return np.full(output.shape, 4.0 * np.max(sizes[0]))
    if op in MONOTONE or op in _BOUND_AS:
        return np.abs(_kernel(node, _BOUND_AS.get(op, op), sizes)[0])
    worst = _sensitivity(node, inputs, sizes, output)
    if op in _CENTERED and inputs[0] is not None and sizes[0] is not None:
        worst = worst + np.abs(output) * _lost_to_the_mean(node, inputs[0], sizes[0])
    return worst + 1.0 if op in _LOGARITHMS else worst


_LOGARITHMS = frozenset({"LogSoftmax", "ReduceLogSumExp"})
"""The logarithm of a sum that is 1 at least: however little that is more, it has been rounded."""


_CENTERED = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization"})


def _lost_to_the_mean(node: Node, x: Array, size: Array) -> Array:
    """How large x is beside its spread: subtracting the mean loses as much, however little the result may move."""
    first = {"InstanceNormalization": 2, "GroupNormalization": 1}.get(node.op, node.get_int("axis", -1) % x.ndim)
    axes = tuple(range(first, x.ndim))
    spread = np.ptp(x, axis=axes, keepdims=True)
    largest = np.max(size, axis=axes, keepdims=True)
    return np.where(spread > 0, largest / np.where(spread > 0, spread, 1.0), 0.0)


def _sensitivity(node: Node, inputs: Inputs, sizes: Inputs, output: Array) -> Array:
    """As `magnitude`, for any other function: how far the output moves when the inputs move by a millionth."""
    step, rng = 2.0**-20, np.random.default_rng(1)
    worst = np.abs(output)
    for turn in range(4):
        moved = [
            x
            if x is None or size is None or x.dtype != np.float64
            else x + step * size * (rng.choice([-1.0, 1.0], x.shape) if turn else _alternating(x.shape))
            for x, size in zip(inputs, sizes, strict=True)
        ]
        worst = np.maximum(worst, 4 * np.abs(evaluate(node, moved)[0] - output) / step)
    return worst + np.abs(output)


def _alternating(shape: tuple[int, ...]) -> Array:
    """1 and -1 by turns along every axis: what matters to a softmax of two is that they move apart."""
    return np.asarray(1.0 - 2.0 * (np.indices(shape).sum(axis=0) % 2))


def _kernel(
    node: Node, op: str, inputs: Inputs, given_attributes: Mapping[str, float] = MappingProxyType({})
) -> list[Array]:
    """One of the oracle's kernels, with this node's attributes."""
    domain = "" if node.proto.domain == "ai.onnx" else node.proto.domain
    kernel = KERNELS.get((domain, op))
    if kernel is None:
        raise NotCertifiedError(f"there is no kernel for {node.op}")
    schema = schema_of(node.proto.op_type, domain, node.version) or Schema(node.version, {}, None)
    attributes = {name: attribute_value(value) for name, value in node.attributes.items()}
    attributes |= given_attributes
    call = Call(
        node.op, domain, schema.version, attributes, tuple(bool(name) for name in node.outputs), schema.defaults
    )
    given = [value for value in inputs if value is not None] if op == "Max" else inputs  # a Clip may lack a bound
    if elements(call, given) > MOST_ELEMENTS:
        raise NotCertifiedError("what it makes is too large to be tested")
    found = kernel(call, *given)
    return [np.asarray(to_float64(value)) for value in (found if isinstance(found, tuple) else (found,))]


def _need(inputs: Inputs, slot: int) -> Array:
    found = inputs[slot] if slot < len(inputs) else None
    if found is None:
        raise ValueError(f"input {slot} is missing")
    return found


def _batchnorm(node: Node, inputs: Inputs, absolute: bool) -> Array:
    """scale * (x - mean) / sqrt(variance + epsilon) + bias; of magnitudes, the sum of the terms."""
    x, scale, bias, mean, variance = (_need(inputs, slot) for slot in range(5))
    along = (1, -1) + (1,) * (x.ndim - 2)
    factor = scale / np.sqrt(variance + node.get_float("epsilon", float(np.float32(1e-5))))
    centred = x + mean.reshape(along) if absolute else x - mean.reshape(along)
    return centred * factor.reshape(along) + bias.reshape(along)


def _gemm(node: Node, inputs: Inputs, absolute: bool) -> Array:
    """alpha A B + beta C, A and B transposed where asked."""
    a, b = _need(inputs, 0), _need(inputs, 1)
    c = inputs[2] if len(inputs) > 2 else None
    p, q = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
    p, q = (abs(p), abs(q)) if absolute else (p, q)
    product = (a.T if node.get_int("transA", 0) else a) @ (b.T if node.get_int("transB", 0) else b) * p
    if c is None or q == 0:
        return np.asarray(product)
    if node.version < 7 and not node.get_int("broadcast", 0) and c.shape != product.shape:
        raise ValueError(f"C of shape {c.shape} is not broadcast")
    y = product + q * c
    if y.shape != product.shape:
        raise ValueError(f"C of shape {c.shape} enlarges the product")
    return np.asarray(y)


def _matmul(node: Node, inputs: Inputs, absolute: bool) -> Array:
    return np.asarray(np.matmul(_need(inputs, 0), _need(inputs, 1)))
