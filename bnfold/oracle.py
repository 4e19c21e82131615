"""A float64 evaluator of ONNX graphs: what a model computes when nothing is rounded.

Every float tensor is float64: inputs, constants, and what lies between. A Cast between float types changes nothing.
Ops come from `bnfold.kernels`; an op that ONNX defines by a function is run through that body, and what remains goes to
onnx.reference where it is known to be right. An op that none of them covers raises `Unsupported`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from bnfold import source
from bnfold.calls import Functions
from bnfold.errors import BnfoldError, ModelError
from bnfold.kernels import KERNELS, Array, Call, Unsupported, is_float, to_float64
from bnfold.kernels.base import flat, is_float_type, unit_roundoff
from bnfold.kernels.control import run_if, run_loop, run_scan
from bnfold.kernels.cost import Cost, estimate, multiply_adds
from bnfold.kernels.fallback import by_reference
from bnfold.kernels.graphs import (
    Prepared,
    Schema,
    Step,
    attribute_value,
    constant_value,
    dense,
    prepare,
    schema_of,
)
from bnfold.kernels.growth import elements
from bnfold.kernels.rounding import Nearest, Rounding, result_unit
from bnfold.malformed import ENDLESS

__all__ = ["MAX_BYTES", "MAX_MACS", "Cost", "Oracle", "TooLarge", "Unsupported"]

MAX_MACS = 3e11
"""Multiply-adds above which the oracle refuses: about 10 s on one core."""

STEP = 1e5
"""Multiply-adds that a node counts for beside its own, and a turn of a loop: those of some 10 us."""

MAX_BYTES = 6 << 30
"""Bytes of live tensors above which the oracle refuses."""

_CONTROL: dict[str, Callable[..., tuple[Any, ...]]] = {"If": run_if, "Loop": run_loop, "Scan": run_scan}


class TooLarge(BnfoldError):
    """The model takes too much time or memory to be evaluated in float64 here."""


@dataclass
class _Scope:
    """The tensors of one graph, and those of the graphs around it. `units`: see `Rounding`."""

    graph: Prepared
    opsets: Mapping[str, int]
    outer: _Scope | None = None
    values: dict[str, Any] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    stored: dict[str, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Oracle:
    """One model, ready to be evaluated in float64 any number of times. The model is never modified."""

    def __init__(
        self,
        model: source.ModelLike | source.Source,
        *,
        base_dir: Path | None = None,
        constants: Mapping[int, Callable[[], Array]] = MappingProxyType({}),
        max_macs: float = MAX_MACS,
        max_bytes: float = MAX_BYTES,
    ) -> None:
        """A model; `constants` makes the values of initializers that hold none yet, by the id of their tensor."""
        read = model if isinstance(model, source.Source) else source.read(model)
        self._proto = read.proto
        self._base_dir = base_dir or read.base_dir
        self._map = read.mapped  # its tensors live as long
        self._constants = constants
        self._opsets = _opsets(read.proto.opset_import)
        self._functions = {(f.domain, f.name, f.overload): f for f in read.proto.functions}
        self._endless = Functions(read.proto).too_large
        self._prepared: dict[tuple[int, tuple[str, ...]], tuple[Any, Prepared]] = {}
        self.max_macs, self.max_bytes = max_macs, max_bytes
        self._macs = 0.0
        self._bytes = 0.0

    @property
    def outputs(self) -> list[str]:
        """The graph's output names, in order."""
        return [value.name for value in self._proto.graph.output]

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        *,
        rounding_seed: int | None = None,
        weights_only: bool = False,
        unit: float | None = None,
        nearest: bool = False,
        watch: Callable[[str, Any], None] | None = None,
    ) -> dict[str, Array]:
        """The tensors named (the graph's outputs; any other tensor of the main graph too), as `flat` gives them.

        `rounding_seed` rounds every weight and result once at random (`bnfold.kernels.rounding`), to see how much the
        model's own precision moves the outputs; with `weights_only`, what storing the weights does; with `unit`, what a
        type of this unit roundoff does. `nearest` rounds every result to the type that the model has it in. `watch` is
        called with each tensor of the main graph as it is made.

        Raises:
            Unsupported: an op has no float64 kernel.
            TooLarge: more work or memory than allowed.
            ModelError: the graph is broken, or a feed is missing.
        """
        if self._endless:
            raise ModelError(ENDLESS)
        wanted = list(outputs) if outputs is not None else self.outputs
        graph = self._prepare(self._proto.graph, wanted)
        self._macs = self._bytes = 0.0
        scope = _Scope(graph, self._opsets)
        for name in graph.inputs:
            if name in feeds:
                scope.values[name] = to_float64(np.asarray(feeds[name]))
                scope.units[name] = _unit_of(np.asarray(feeds[name]).dtype)
            elif name not in graph.initializers:
                raise ModelError(f"input '{name}' was not given")
        rounding = None if rounding_seed is None else Rounding(rounding_seed, weights_only=weights_only, unit=unit)
        rounding = Nearest() if nearest else rounding
        with np.errstate(all="ignore"):
            self._execute(scope, rounding, watch)
            return flat({name: self._lookup(scope, name) for name in wanted})

    def cost(self, shapes: Mapping[str, Sequence[int]]) -> Cost:
        """What `run` would take on inputs of these shapes, by shape inference."""
        return estimate(self._proto, shapes)

    def _prepare(self, graph: onnx.GraphProto | onnx.FunctionProto, kept: Sequence[str] = ()) -> Prepared:
        key = (id(graph), tuple(kept))
        if key not in self._prepared:
            # The graph is kept beside its preparation, so that its id stays its own.
            self._prepared[key] = (graph, prepare(graph, kept))
        return self._prepared[key][1]

    def _execute(
        self, scope: _Scope, rounding: Rounding | None, watch: Callable[[str, Any], None] | None = None
    ) -> None:
        for step in scope.graph.steps:
            self._spend(STEP)
            results = self._step(step, scope, rounding)
            for name, value in zip(step.node.output, results, strict=False):
                if name:
                    scope.values[name] = value
                    self._bytes += getattr(value, "nbytes", 0)
                    if watch is not None:
                        watch(name, value)
            self._check_bytes()
            for name in step.frees:
                self._bytes -= getattr(scope.values.pop(name, None), "nbytes", 0)

    def _lookup(self, scope: _Scope, name: str) -> Any:
        at: _Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            tensor = at.graph.initializers.get(name)
            if isinstance(tensor, onnx.SparseTensorProto):
                return dense(tensor)
            if tensor is not None:
                make = self._constants.get(id(tensor))
                array = source.array_of(tensor, self._base_dir) if make is None else make()
                scope.stored[name] = _unit_of(array.dtype)
                return to_float64(np.asarray(array))
            at = at.outer
        raise ModelError(f"tensor '{name}' is used, and nothing makes it; export the model again")

    def _is_held(self, scope: _Scope, name: str) -> bool:
        """Whether what `_lookup` gives belongs to somebody else too."""
        at: _Scope | None = scope
        while at is not None and name not in at.values:
            tensor = at.graph.initializers.get(name)
            if tensor is not None:
                return id(tensor) in self._constants
            at = at.outer
        return at is not None

    def _step(self, step: Step, scope: _Scope, rounding: Rounding | None) -> tuple[Any, ...]:
        node = step.node
        domain = "" if node.domain == "ai.onnx" else node.domain
        attributes = dict(step.attributes)
        attributes |= {name: scope.attributes[at] for name, at in step.references.items() if at in scope.attributes}
        inputs = [self._lookup(scope, name) if name else None for name in node.input]
        if rounding is None:
            return self._apply(node, domain, attributes, inputs, scope, None)
        held = {name for name in node.input if self._is_held(scope, name)}
        inputs = rounding.inputs(node.op_type, node.input, inputs, scope.units, scope.stored, held)
        results = self._apply(node, domain, attributes, inputs, scope, rounding)
        unit = result_unit(node.op_type, step.reads, scope.units, _cast_unit(node.op_type, attributes))
        if unit is None:
            scope.stored |= _constant_units(node, step.attributes)
            return results
        for name, value in zip(node.output, results, strict=False):
            scope.units[name] = unit if is_float(value) else 0.0
        return tuple(rounding.output(node.op_type, value, unit) for value in results)

    def _apply(
        self,
        node: onnx.NodeProto,
        domain: str,
        attributes: Mapping[str, Any],
        inputs: list[Any],
        scope: _Scope,
        rounding: Rounding | None,
    ) -> tuple[Any, ...]:
        """Find who computes the node: a control op, a model function, a kernel, ONNX's own body, onnx.reference."""
        op = node.op_type
        if domain == "" and op == "Constant":
            return (constant_value(attributes),)
        function = self._functions.get((node.domain, op, node.overload))
        if function is not None:
            return self._call_function(function, attributes, inputs, scope, node.input, rounding)
        opset = scope.opsets.get(domain, 0)
        schema = schema_of(op, domain, opset) or Schema(opset, {}, None)
        call = Call(op, domain, schema.version, attributes, tuple(bool(name) for name in node.output), schema.defaults)
        if domain == "" and op in _CONTROL:
            return _CONTROL[op](call, lambda graph, values: self._call_graph(graph, values, scope, rounding), *inputs)
        kernel = KERNELS.get((domain, op))
        if kernel is not None:
            self._check_bytes(8 * elements(call, inputs))
            results = _checked(call, node, kernel, inputs)
            self._spend(multiply_adds(op, [np.shape(value) for value in inputs], np.shape(results[0])))
            return results
        if schema.body is not None:
            return self._call_function(schema.body, {**schema.defaults, **attributes}, inputs, scope, node.input, None)
        return by_reference(call, node, opset, inputs)

    def _check_bytes(self, more: int = 0) -> None:
        if self._bytes + more > self.max_bytes:
            raise TooLarge(f"its tensors need more than {self.max_bytes / 2**30:.1f} GiB in float64")

    def _spend(self, macs: float) -> None:
        self._macs += macs
        if self._macs > self.max_macs:
            raise TooLarge(f"it takes more than {self.max_macs:.1g} multiply-adds in float64")

    def _call_graph(
        self, graph: onnx.GraphProto, values: Sequence[Any], outer: _Scope, rounding: Rounding | None
    ) -> list[Any]:
        self._spend(STEP)
        scope = _Scope(self._prepare(graph), outer.opsets, outer, attributes=outer.attributes)
        scope.values.update(zip(scope.graph.inputs, values, strict=False))
        if rounding is not None:
            scope.units.update(outer.units)
            scope.units.update((name, _unit_of(np.float32)) for name in scope.graph.inputs)
        self._execute(scope, rounding)
        return [self._lookup(scope, name) for name in scope.graph.outputs]

    def _call_function(
        self,
        function: onnx.FunctionProto,
        attributes: Mapping[str, Any],
        inputs: Sequence[Any],
        caller: _Scope,
        names: Sequence[str],
        rounding: Rounding | None,
    ) -> tuple[Any, ...]:
        defaults = {entry.name: attribute_value(entry) for entry in function.attribute_proto}
        scope = _Scope(self._prepare(function), _opsets(function.opset_import), attributes={**defaults, **attributes})
        if len(inputs) > len(scope.graph.inputs):
            raise ModelError(f"a call of the function {function.name!r} has more inputs than the function")
        padded = [*inputs, *[None] * (len(scope.graph.inputs) - len(inputs))]
        scope.values.update(zip(scope.graph.inputs, padded, strict=True))
        if rounding is not None:
            known = caller.units
            scope.units.update(
                (inner, known[name]) for inner, name in zip(scope.graph.inputs, names, strict=False) if name in known
            )
        self._execute(scope, rounding)
        return tuple(self._lookup(scope, name) for name in scope.graph.outputs)


def _checked(call: Call, node: onnx.NodeProto, kernel: Callable[..., Any], inputs: list[Any]) -> tuple[Any, ...]:
    """A kernel's results as a tuple; a failure inside is the model's (shapes that do not fit), said with the node."""
    try:
        results = kernel(call, *inputs)
    except BnfoldError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, AssertionError) as error:
        raise ModelError(f"node '{node.name}' ({call.op}) cannot be evaluated: {error}") from error
    return results if isinstance(results, tuple) else (results,)


def _opsets(entries: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """By domain; a model older than opset imports is of opset 1."""
    return {"": 1} | {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in entries}


def _unit_of(dtype: Any) -> float:
    return unit_roundoff(dtype) if is_float_type(dtype) else 0.0


def _cast_unit(op: str, attributes: Mapping[str, Any]) -> float | None:
    if op != "Cast" or not isinstance(attributes.get("to"), int):
        return None
    return _unit_of(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _constant_units(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> dict[str, float]:
    """The roundoff of what a Constant node holds (its attribute is float64 by now)."""
    if node.op_type != "Constant" or not is_float(attributes.get("value")):
        return {}
    for attribute in node.attribute:
        if attribute.name == "value":
            dtype = onnx.helper.tensor_dtype_to_np_dtype(attribute.t.data_type)
            return {node.output[0]: _unit_of(dtype)}
    return {}
