"""A model that was converted to a smaller float type: only casts came between its nodes, and constants were rounded.

`without_casts` takes the casts out again, and shows what is left under the names that it had: a graph that is certified
like any other fold, except that constants may be of the smaller type (`rounded_once`, and `rounding.compare`). A cast
between float types is the identity on real numbers; what it rounds is no business of a certificate, but of the
verification. That all types fit, so that no cast is missing, ONNX's own inference says.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from bnfold.certificate.result import Failure
from bnfold.certificate.rounding import Exact, compare, in_memory, read_rows
from bnfold.constants import Constant
from bnfold.graph import Model
from bnfold.inference import checked
from bnfold.protos import bodies
from bnfold.skeleton import without_weights
from bnfold.source import FLOATS
from bnfold.witness import Narrowed

FLOAT = int(TensorProto.FLOAT)

_TYPED = frozenset({"to", "dtype"})
"""Attributes that say the type of what a node makes."""


def without_casts(model: Model, told: Narrowed) -> tuple[Model, list[Failure]]:
    """The model with its inserted casts taken out, and what is wrong with them."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    casts = [node for node in graph.node if _is_inserted(node, told)]
    failures = [
        Failure(
            node.name, "wiring", f"it casts to element type {_target(node)}, not between float32 and the smaller type"
        )
        for node in casts
        if _target(node) not in (FLOAT, told.type) or len(node.attribute) != 1 or len(node.input) != 1
    ]
    one = _classes(casts)
    failures += [
        Failure("", "wiring", f"{new!r} is said to hold {old!r}, and no cast says so")
        for new, old in told.carries.items()
        if _root(one, new) != _root(one, old)
    ]
    if failures:
        return model, failures
    kept = [node for node in graph.node if not _is_inserted(node, told)]
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(rest)
    _rename(graph, dict(told.carries))
    return Model(replace(model.source, proto=proto, raw=None)), _untyped(model)


def _is_inserted(node: onnx.NodeProto, told: Narrowed) -> bool:
    """Whether a node does nothing but carry one tensor over into another type."""
    if node.op_type != "Cast" or node.domain not in ("", "ai.onnx") or len(node.input) != 1 or len(node.output) != 1:
        return False
    ends = (node.input[0], node.output[0])
    x, y = (told.carries.get(name, name) for name in ends)
    return bool(x == y)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Show tensors under other names, in a graph and where its bodies capture them."""
    stack = [(graph, names)]
    while stack:
        proto, known = stack.pop()
        for node in proto.node:
            node.input[:] = [known.get(name, name) for name in node.input]
            node.output[:] = [known.get(name, name) for name in node.output]
            for _, body in bodies(node):
                own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
                own |= {name for inner in body.node for name in inner.output}
                captured = {name: old for name, old in known.items() if name not in own}
                for value in body.output:
                    value.name = captured.get(value.name, value.name)
                stack.append((body, captured))


def _target(node: onnx.NodeProto) -> int:
    """The element type that a Cast makes; before opset 6 it is spelled out."""
    found = next((attribute for attribute in node.attribute if attribute.name == "to"), AttributeProto())
    if found.type != AttributeProto.STRING:
        return int(found.i)
    return int(dict(TensorProto.DataType.items()).get(found.s.decode("ascii", "replace"), 0))


def _classes(casts: list[onnx.NodeProto]) -> dict[str, str]:
    """Tensors that casts connect, as a forest."""
    one: dict[str, str] = {}
    for node in casts:
        first, second = _root(one, node.input[0]), _root(one, node.output[0])
        if first != second:
            one[second] = first
    return one


def _root(one: dict[str, str], name: str) -> str:
    while name in one:
        name = one[name]
    return name


def _untyped(model: Model) -> list[Failure]:
    """Types that do not fit, as far as ONNX knows the operators; a node of another domain reads what it read before."""
    try:
        checked(without_weights(model.proto))
    except Exception as error:  # noqa: BLE001 - C++ code raises what it likes
        text = " ".join(str(error).split())
        if "inconsistent type" in text or "Type Error" in text or "typestr" in text or "element type" in text:
            return [Failure("", "wiring", f"a cast is missing: {text[:200]}")]
    return []


def rounded_once(old: Constant, new: Constant, narrowed: int) -> bool:
    """Whether what nodes computed is stored now, or a float32 constant in the smaller type: each value rounded once."""
    stored = old.tensor is None and old.type in FLOATS and new.type == old.type
    smaller = narrowed and old.type == FLOAT and new.type == narrowed
    if not (stored or smaller) or old.shape != new.shape:
        return False
    old = in_memory(old)
    exact = Exact(old.shape, lambda start, stop: read_rows(old, start, stop), np.broadcast_to(0.0, old.shape))
    return compare(new, exact) == 0.0


def same_but_type(one: AttributeProto, other: AttributeProto, type_: int) -> bool:
    """Whether an attribute that says a type says the smaller one instead of float32."""
    if not type_ or one.type != other.type or one.name != other.name or one.type != AttributeProto.INT:
        return False
    return one.name in _TYPED and one.i == FLOAT and other.i == type_
