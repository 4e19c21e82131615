"""What changes in the node that becomes the merged one: its constants and attributes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold import rules
from bnfold.affine import Array
from bnfold.graph import Node
from bnfold.merges.nodes import weight_of, weight_slot
from bnfold.merges.terms import Diagonal, Kernel
from bnfold.plan import Edit, NewBias, NewConstant, SetAttribute
from bnfold.rules import Source


def convolution_edits(kept: Node, kernel: Kernel) -> tuple[Edit, ...]:
    """Of a Conv."""
    axes = kernel.axes
    attributes: dict[str, int | list[int]] = {
        "group": kernel.group,
        "kernel_shape": list(kernel.taps),
        "strides": [axis.stride for axis in axes],
        "dilations": [axis.dilation for axis in axes],
        "pads": [axis.begin for axis in axes] + [axis.end for axis in axes],
    }
    weight = kept.constant(1)
    assert weight is not None
    edits: list[Edit] = [SetAttribute("auto_pad", None), *(SetAttribute(*each) for each in attributes.items())]
    edits.append(NewConstant(1, "weight", weight.type, kernel.shape, weight, values=kernel.rows, read=kernel.parts))
    return (*edits, *_bias(kept, kernel, weight.type))


def _bias(kept: Node, kernel: Kernel, type_: int) -> tuple[Edit, ...]:
    old, bias = kept.constant(2), kernel.bias
    if old is None and bias is None:
        return ()

    def values(start: int, stop: int) -> Array:
        return np.zeros(stop - start) if bias is None else bias()[start:stop]

    return (NewConstant(2, "bias", type_, (kernel.outputs,), old, values=values, read=kernel.shifts),)


def product_edits(kept: Node, kernel: Kernel) -> tuple[Edit, ...]:
    """Of a Gemm or MatMul."""
    weight, slot = weight_of(kept), weight_slot(kept)
    assert weight is not None
    turned = slot == 0 or (kept.op == "Gemm" and bool(kept.get_int("transB", 0)))
    shape = kernel.shape if turned else kernel.shape[::-1]

    def values(start: int, stop: int) -> Array:
        return kernel.rows(start, stop) if turned else kernel.rows(0, kernel.outputs).T[start:stop]

    edits: list[Edit] = [NewConstant(slot, "weight", weight.type, shape, weight, values=values, read=kernel.parts)]
    if kept.op == "MatMul":
        bias = [] if kernel.bias is None else [kernel.bias() if slot else kernel.bias().reshape(-1, 1)]
        return (*edits, *(NewBias(weight.type, shift) for shift in bias))
    edits += [SetAttribute(name, 1.0) for name in ("alpha", "beta") if kept.get_float(name, 1.0) != 1.0]
    if kept.version < 7 and kernel.bias is not None:
        edits.append(SetAttribute("broadcast", 1))
    return (*edits, *_bias(kept, kernel, weight.type))


def fits_scale(kept: Node, made: Diagonal) -> bool:
    """Whether a Mul can hold the scale: before opset 7 its constant lies along an axis that is an attribute."""
    return kept.op != "Mul" or kept.version >= 7 or _lies_along(kept, made) or is_uniform(made.scale)


def _lies_along(kept: Node, made: Diagonal) -> bool:
    """Whether the constant of a Mul varies along the channels."""
    source = rules.as_source(kept)
    return isinstance(source, Source) and 1 < source.affine.scale.size == made.scale.size


def is_uniform(values: Array) -> bool:
    """Whether all are one number."""
    return bool((values == values[0]).all())


def scale_edits(kept: Node, made: Diagonal, along: tuple[int, ...]) -> tuple[Edit, ...]:
    """Of a BatchNormalization, or of a Mul, which has no shift; `along` is the shape of a number for each channel."""
    scale, shift = made.scale, made.shift
    source = rules.as_source(kept)
    assert isinstance(source, Source)
    if kept.op == "Mul":
        constant = kept.constant(1 - source.slot)
        assert constant is not None
        uniform = is_uniform(scale)
        shape = constant.shape if uniform or _lies_along(kept, made) else along
        made_of = _rows(np.full(shape, scale[0]) if uniform else scale, shape)
        return (NewConstant(1 - source.slot, "factor", constant.type, shape, constant, values=made_of),)
    gamma, beta = kept.constant(1), kept.constant(2)
    assert gamma is not None and beta is not None and source.spread is not None and source.mean is not None
    sigma, mean = source.spread.reshape(-1), source.mean.reshape(-1)
    return (
        NewConstant(1, "scale", gamma.type, gamma.shape, gamma, values=_rows(scale * sigma, gamma.shape)),
        NewConstant(2, "bias", beta.type, beta.shape, beta, values=_rows(shift + scale * mean, beta.shape)),
    )


def _rows(values: Array, shape: tuple[int, ...]) -> Callable[[int, int], Array]:
    whole = values.reshape(shape)
    return lambda start, stop: whole[start:stop] if shape else whole
