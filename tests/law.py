"""The one law: a folded model computes what the original did, and every tensor in it is stored as the plan says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from bnfold import rules
from bnfold.affine import Storage
from bnfold.certificate import certify
from bnfold.equivalence.algebra import rounds
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import witness_of
from bnfold.plan import Rewrite
from bnfold.reasons import Reason
from bnfold.rules import Source
from bnfold.solver import Solution, is_matmul_bias, solve
from bnfold.source import read
from bnfold.write import folded

Arrays = dict[str, NDArray[np.generic]]

TOLERANCE = 1e-12
"""Of the largest magnitude in a tensor: some thousand roundings of float64."""


@dataclass(frozen=True)
class Folded:
    """A model before and after."""

    original: onnx.ModelProto
    model: onnx.ModelProto
    solution: Solution

    @property
    def left(self) -> int:
        """How many affine nodes are left."""
        return affines(self.model)

    @property
    def ops(self) -> list[str]:
        """Operators of the folded main graph, in order."""
        return [node.op_type for node in self.model.graph.node]

    def codes(self) -> dict[str, set[str]]:
        """Why nodes stay: codes by node label."""
        return {o.node.label: {r.code for r in o.reasons} for o in self.solution.outcomes if not o.folded}

    def reason(self, code: str) -> Reason:
        """The refusal with this code."""
        found = [r for o in self.solution.outcomes for r in o.reasons if r.code == code]
        assert found, f"no {code} among {self.codes()}"
        return found[0]


def affines(model: onnx.ModelProto) -> int:
    """Every BatchNormalization, and every constant Mul, Add, Sub, Div that keeps the shape (design, section 1)."""
    count = 0
    for node in Model(read(model)).nodes():
        found = None if is_matmul_bias(node) else rules.as_source(node)
        count += isinstance(found, Source) or node.op == "BatchNormalization"
    return count


def fold(
    model: onnx.ModelProto, keep: tuple[str, ...] = (), only: tuple[str, ...] = (), drop: tuple[str, ...] = ()
) -> Folded:
    """Solve and write in memory; the original must come through unchanged."""
    before = model.SerializeToString(deterministic=True)
    read_model = Model(read(model))
    solution = solve(read_model, keep=keep, only=only, drop=dict.fromkeys(drop, False))
    result = Folded(model, folded(Rewrite.of(solution.plan)), solution)
    assert model.SerializeToString(deterministic=True) == before
    return result


def feeds(model: onnx.ModelProto, seed: int = 7) -> Arrays:
    """Signed values for every input that has no default; symbolic dimensions are 3."""
    rng, given = np.random.default_rng(seed), {tensor.name for tensor in model.graph.initializer}
    found: Arrays = {}
    for value in model.graph.input:
        if value.name not in given:
            shape = [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            found[value.name] = rng.normal(0.3, 1.5, shape).astype(dtype)
    return found


def check(case: Folded, tolerance: float = TOLERANCE) -> None:
    """The law, at every tensor of the main graph: ``den * v' = num * v + off``; the surface of the model stays.

    And the certificate, which shares nothing with the rules, says the same.

    Raises:
        AssertionError: the folded model is wrong, or not a valid model.
    """
    old, new = case.original.graph, case.model.graph
    if not any(node.op_type == "GroupNormalization" for node in old.node) or case.original.opset_import[0].version > 20:
        onnx.checker.check_model(case.model, full_check=True)  # it refuses GroupNormalization-18, which is deprecated
    assert [v.SerializeToString() for v in old.output] == [v.SerializeToString() for v in new.output]
    given = {tensor.name for tensor in [*old.initializer, *new.initializer]}
    assert [v.name for v in old.input if v.name not in given] == [v.name for v in new.input if v.name not in given]
    assert case.left <= affines(case.original), "affine nodes grew"
    proof = certify(Model(read(case.original)), Model(read(case.model)), witness_of(Rewrite.of(case.solution.plan)))
    assert proof.ok, proof.failures
    own = case.solution.plan.graphs[0]
    names = own.names()
    here = {name for node in new.node for name in node.output if name} | {value.name for value in new.input}
    wanted = [name for node in old.node for name in node.output if name and names.get(name, name) in here]
    wanted += [value.name for value in old.output if value.name not in wanted]
    values = feeds(case.original)
    before = Oracle(case.original).run(values, wanted)
    after = Oracle(case.model).run(values, [names.get(name, name) for name in wanted])
    for name in wanted:
        x, y = before[name], after[names.get(name, name)]
        storage = own.storage.get(name) or Storage.identity(x.ndim)
        assert x.shape == y.shape, name
        assert np.broadcast_shapes(storage.den.shape, storage.num.shape, storage.off.shape, x.shape) == x.shape, name
        if x.dtype.kind != "f":
            assert np.array_equal(x, y), name
            continue
        terms = storage.den * y, storage.num * x, storage.off
        size = max(float(np.max(np.abs(term), initial=0.0)) for term in terms)
        worst = float(np.max(np.abs(terms[0] - terms[1] - terms[2]), initial=0.0))
        assert worst <= tolerance * size, f"{name} is off by {worst} of {size}"


def law(model: onnx.ModelProto, left: int | None = None, tolerance: float = TOLERANCE, rounded: float = 0.0) -> Folded:
    """Fold, check, count what is left; `rounded` is allowed where an attribute, which is a float32, has to round."""
    case = fold(model)
    check(case, max(tolerance, rounded if rounds(case.solution.plan) else 0.0))
    if left is not None:
        assert case.left == left, f"{case.left} affine nodes left, not {left}: {case.codes()}"
    return case
