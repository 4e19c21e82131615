"""Nodes that break ONNX's own rules: of no known operator form, so nothing is said, told or changed about them.

Exporters do not write such nodes; files that were damaged or made to do harm hold them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import onnx
from onnx import AttributeProto

from bnfold.calls import Functions
from bnfold.errors import ModelError
from bnfold.protos import every_node

if TYPE_CHECKING:
    from bnfold.graph import Graph

_COUNTS = ("kernel_shape", "strides", "dilations")
"""Attributes with one positive number for each axis that a window moves along."""

_POSITIVE = frozenset({"group", "blocksize", "num_outputs", "hidden_size", "num_groups"})
"""Attributes that are a positive number."""


_TERM = rb"[A-Za-z]*(?:\.\.\.[A-Za-z]*)?"

_EQUATION = re.compile(rb"%b(?:,%b)*(?:->%b)?" % (_TERM, _TERM, _TERM))
"""Of an Einsum, without spaces. ONNX's inference (1.23) never comes back from one with a dot elsewhere."""

PADDED = 1 << 16
"""Places that padding may make of each one."""

ENDLESS = "the model's functions call each other in a circle, too deep, or too often to be run"

_MOST_OF_BATCHNORM = 5
"""Outputs, before opset 14."""

_NO_STATISTICS = 14
"""The opset from which on BatchNormalization has outputs for training only."""


@dataclass(frozen=True)
class _Form:
    """What ONNX says of an operator."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    types: Mapping[str, int]
    required: frozenset[str]


def check_names(graph: Graph) -> None:
    """See that the names of a graph are text: protobuf lets anything through, and gives what is not UTF-8 as bytes.

    Raises:
        ModelError: one is not UTF-8.
    """
    for node in graph.nodes:
        _check_text(graph, (node.label, node.proto.op_type, node.proto.domain, *node.inputs, *node.outputs))
    _check_text(graph, (*graph.initializers, *graph.inputs, *graph.outputs))


def _check_text(graph: Graph, names: Iterable[str | bytes]) -> None:
    for name in names:
        if not isinstance(name, str):
            what = f"the name '{name.decode('utf-8', 'backslashreplace')}', which is not UTF-8"
            raise ModelError(f"{graph.model.source.label} holds {what}; export it again")


def is_malformed(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node of ONNX's own domain has a number of inputs or outputs, or attributes, that its operator has not.

    Attributes that the operator does not know are passed over: exporters leave those of older opsets behind.
    """
    form = _form(node.op_type, opset)
    if form is None:
        return False
    if not form.inputs[0] <= len(node.input) <= form.inputs[1]:
        return True
    if not form.outputs[0] <= len(node.output) <= form.outputs[1]:
        return True
    if not node.attribute:
        return bool(form.required)
    found = {attribute.name: attribute for attribute in node.attribute}
    if form.required - found.keys():
        return True
    # A reference to an attribute of a function means nothing outside of it; what is in one comes here without any.
    odd = (a for name, a in found.items() if a.ref_attr_name or (a.type and a.type != form.types.get(name, a.type)))
    return any(odd) or _has_odd_numbers(found) or has_odd_equation(node)


def _has_odd_numbers(found: Mapping[str, AttributeProto]) -> bool:
    if any(found[name].i < 1 for name in _POSITIVE & found.keys()):
        return True
    lists = [found[name].ints for name in _COUNTS if name in found]
    if any(min(each, default=0) < 1 for each in lists):
        return True
    if "pads" in found and pads_too_much(found["pads"].ints):
        return True
    lengths = {len(each) for each in lists}
    if lists and "pads" in found:
        lengths.add(len(found["pads"].ints) // 2)
    return len(lengths) > 1 or ("pads" in found and len(found["pads"].ints) % 2 == 1)


def pads_too_much(pads: Sequence[int]) -> bool:
    """Whether there are more padded places than any model needs, and than the certificate would lay out."""
    half = len(pads) // 2
    return math.prod(1 + max(0, begin) + max(0, end) for begin, end in zip(pads, pads[half:], strict=False)) > PADDED


def has_odd_equation(node: onnx.NodeProto) -> bool:
    """Whether the equation of an Einsum is none."""
    given = (a.s for a in node.attribute if node.op_type == "Einsum" and a.name == "equation")
    return not all(_EQUATION.fullmatch(text.replace(b" ", b"")) for text in given)


def deadly(model: onnx.ModelProto) -> str:
    """Why ONNX Runtime (1.32) would not survive a model: it ends the process, or never ends. '' where it would."""
    if Functions(model).too_large:
        return ENDLESS
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    for node in every_node([*model.graph.node, *(node for function in model.functions for node in function.node)]):
        left_out = len(node.output) == _MOST_OF_BATCHNORM and not all(node.output)
        if left_out and opset < _NO_STATISTICS and node.op_type == "BatchNormalization":
            name = node.name or node.output[0]
            return f"ONNX Runtime does not survive the node '{name}', which leaves outputs out: drop them"
        if has_odd_equation(node):
            name = node.name or "".join(node.output[:1])
            return f"ONNX Runtime never comes back from the node '{name}', whose equation is none"
    return ""


@lru_cache(maxsize=4096)
def _form(op: str, opset: int) -> _Form | None:
    """None where onnx does not know the operator."""
    try:
        schema = onnx.defs.get_schema(op, min(opset, onnx.defs.onnx_opset_version()))
    except onnx.defs.SchemaError:
        return None
    return _Form(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        {name: int(cast("Any", attribute.type).value) for name, attribute in schema.attributes.items()},
        frozenset(
            name for name, attribute in schema.attributes.items() if attribute.required and name != "consumed_inputs"
        ),
    )
