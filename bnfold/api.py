"""The library: optimize, explain, verify and bench a model, with typed results. The command line only renders these."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from bnfold.bench import bench
from bnfold.certificate import Certificate, certify
from bnfold.errors import NotEquivalentError
from bnfold.graph import Model, bodies
from bnfold.patch import tensors, witness_of
from bnfold.reasons import Reason
from bnfold.runtime import resolve_providers
from bnfold.solver import Outcome, Solution, solve
from bnfold.source import ModelLike, Source, is_external, read, tensor_nbytes
from bnfold.verify import DIFFERENT, Verification, verify
from bnfold.witness import Witness
from bnfold.write import Staged, destination, folded, staged, write

__all__ = ["Affine", "Count", "Explained", "Facts", "Optimized", "bench", "explain", "optimize", "verify"]

SCHEMA = 1
"""Version of the JSON that `optimize` and `explain` give."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Affine:
    """What became of one affine node of the original."""

    node: str
    op: str
    status: str
    """`folded` or `kept`."""
    way: str = ""
    into: tuple[str, ...] = ()
    """The nodes whose constants took it up."""
    into_ops: tuple[str, ...] = ()
    """Their operators."""
    reasons: tuple[Reason, ...] = ()
    """Why it was kept; the most telling reason first."""

    def to_json(self) -> dict[str, Any]:
        """The entry of the report's `affines` list."""
        entry: dict[str, Any] = {"node": self.node, "op": self.op, "status": self.status}
        if self.status == "folded":
            return entry | {"way": self.way, "into": list(self.into)}
        first, *others = (_reason_json(reason) for reason in self.reasons)
        return entry | first | ({"also": others} if others else {})


def _reason_json(reason: Reason) -> dict[str, Any]:
    entry: dict[str, Any] = {"code": reason.code, "reason": reason.text, "at": reason.at, "unlock": reason.unlock}
    return entry | ({"channels": list(reason.channels)} if reason.channels else {})


@dataclass(frozen=True)
class Count:
    """How many before and after."""

    before: int
    after: int

    def to_json(self) -> dict[str, int]:
        """As the report has it."""
        return {"before": self.before, "after": self.after}


@dataclass(frozen=True)
class Facts:
    """What the model is."""

    path: str | None
    output: str | None
    ir_version: int
    opset: int
    producer: str
    nodes: Count
    bytes: Count
    """Model file and external data together."""

    def to_json(self) -> dict[str, Any]:
        """The report's `model`."""
        return {
            "path": self.path,
            "output": self.output,
            "ir_version": self.ir_version,
            "opset": self.opset,
            "producer": self.producer,
            "nodes": self.nodes.to_json(),
            "bytes": self.bytes.to_json(),
        }


@dataclass(frozen=True)
class Explained:
    """What can be folded, and why the rest stays."""

    model: Facts
    batchnorm: Count
    affines: tuple[Affine, ...]
    timing: Mapping[str, float] = field(default_factory=dict)
    """Seconds by step."""
    warnings: tuple[str, ...] = ()
    """What the caller should know, a line each."""

    def to_json(self) -> dict[str, Any]:
        """The whole report; see the README for its schema."""
        return {
            "schema": SCHEMA,
            "bnfold": version("bnfold"),
            "model": self.model.to_json(),
            "batchnorm": self.batchnorm.to_json(),
            "affines": [affine.to_json() for affine in self.affines],
            "merges": [],
            "timing": {step: round(seconds, 4) for step, seconds in self.timing.items()},
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Optimized(Explained):
    """The result of :func:`optimize`."""

    certificate: Certificate | None = None
    verification: Verification | None = None
    witness: Witness = field(default_factory=Witness)
    output: Path | None = None
    """The file that was written; None where the result is only in memory, or for a dry run."""
    proto: onnx.ModelProto | None = None
    """The folded model, where it was asked for in memory."""

    @property
    def status(self) -> str:
        """`verified`, `certified-only` (no runtime here ran the original) or `certified` (not asked to verify)."""
        if self.verification is None:
            return "certified"
        return "verified" if self.verification.status == "equivalent" else self.verification.status

    def to_json(self) -> dict[str, Any]:
        """The whole report; see the README for its schema."""
        return super().to_json() | {
            "status": self.status,
            "certificate": self.certificate.to_json() if self.certificate else {},
            "verify": self.verification.to_json() if self.verification else {},
        }


def explain(model: ModelLike, *, keep: Iterable[str] = (), only: Iterable[str] = ()) -> Explained:
    """Say what `optimize` would fold and why the rest stays; writes nothing and runs nothing.

    Args:
        model: path, bytes or ModelProto; never modified.
        keep: names or globs of nodes that must stay.
        only: names or globs; where given, every other node stays.

    Raises:
        ModelError: the model cannot be read.
    """
    clock = _Clock()
    keep, only = tuple(keep), tuple(only)
    given = Model(read(model))
    clock.lap("read")
    solution = solve(given, keep, only)
    clock.lap("solve")
    after = given.proto if solution.plan.is_empty else None
    return Explained(
        _facts(given.source, after, None, _left(solution, given)),
        Count(count_batchnorm(given.proto), count_batchnorm(given.proto) - _gone(solution)),
        _affines(given, solution),
        clock.laps,
        _unmatched(solution, keep, only),
    )


def optimize(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    merge: bool = True,
    keep: Iterable[str] = (),
    only: Iterable[str] = (),
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    inputs: str | Path | Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    tf32: bool = False,
    force: bool = False,
    strict: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Optimized:
    """Fold every affine that algebra allows, prove the result, and write it.

    Args:
        model: path, bytes or ModelProto; never modified.
        output: where to write. For a path, `NAME.folded.onnx` beside it by default; for bytes or a ModelProto the
            result is only in memory (`Optimized.proto`) unless an output is given.
        verify: run both models (float64, and ONNX Runtime on every provider) before anything is written.
        merge: merge linear nodes that folding brought together (nothing to merge yet).
        keep: names or globs of nodes that must stay.
        only: names or globs; where given, every other node stays.
        providers: execution providers to verify on, each in turn: `cuda`, `tensorrt`, `cpu`. By default the best here.
        provider_options: options for ONNX Runtime by provider.
        inputs: inputs to verify with, as a `.npz` file or arrays by name; seeded random ones by default.
        shapes: sizes for inputs whose shape is free.
        samples: how many random inputs to verify with.
        seed: seed of the random inputs.
        tf32: let CUDA round float32 products to TF32.
        force: overwrite an existing output.
        strict: raise where a fold failed verification, also when the rest could be written without it.
        dry_run: do everything but write.
        progress: called with one line for every step.

    Raises:
        ModelError: the model cannot be read.
        OutputError: the output exists, or cannot be written.
        ProviderError: a provider that was asked for is not available.
        NotEquivalentError: the folded model failed verification and no single fold was at fault, or `strict`.
    """
    clock, say = _Clock(), progress or (lambda line: None)
    keep, only = tuple(keep), tuple(only)
    if verify and providers:
        resolve_providers(providers)
    source = read(model)
    path = Path(output) if output is not None else _default_output(source)
    where = destination(source, path, force or dry_run) if path is not None else None
    say("reading")
    given = Model(source)
    clock.lap("read")

    def prove(optimized: ModelLike, base_dir: Path | None, witness: Witness) -> _Proof:
        say("certifying")
        made = read(optimized)
        made = Source(made.proto, made.path, made.base_dir or base_dir)
        certificate = certify(given, Model(made), witness)
        clock.lap("certify")
        if not certificate.ok or not verify:
            return _Proof(certificate, None)
        before: ModelLike = model if source.path is None else source.path
        run = _verify(before, optimized, providers=providers, provider_options=provider_options, inputs=inputs,
                      shapes=shapes, samples=samples, seed=seed, tf32=tf32, progress=progress)  # fmt: skip
        clock.lap("verify")
        return _Proof(certificate, run)

    dropped: set[str] = set()
    while True:
        say("solving")
        solution = solve(given, keep, only, dropped)
        clock.lap("solve")
        attempt = _Attempt(given, solution, prove, clock, say)
        if where is None or dry_run:
            result = attempt.in_memory()
        else:
            with staged(where) as stage:
                result = attempt.on_disk(stage)
                if result.proof.ok:
                    stage.keep()
        if result.proof.ok:
            break
        culprit = _culprit(given, keep, only, dropped, prove, clock, say)
        if culprit is None or strict:
            raise NotEquivalentError(_failure(result.proof, culprit, source))
        dropped.add(culprit)
    warnings = _unmatched(solution, keep, only) + tuple(
        f"the fold of {name} failed verification and was dropped; please report it" for name in sorted(dropped)
    )
    written = None if where is None or dry_run else where.path
    return Optimized(
        _facts(source, result.proto, written, _left(solution, given)),
        Count(count_batchnorm(source.proto), count_batchnorm(result.proto)),
        _affines(given, solution),
        clock.laps,
        warnings,
        result.proof.certificate,
        result.proof.verification,
        witness_of(solution.plan),
        written,
        result.proto if where is None else None,
    )


_verify = verify  # `optimize` has an option of the same name


@dataclass(frozen=True)
class _Proof:
    certificate: Certificate | None
    verification: Verification | None

    @property
    def ok(self) -> bool:
        certified = self.certificate is None or self.certificate.ok
        return certified and (self.verification is None or self.verification.status != DIFFERENT)


@dataclass(frozen=True)
class _Result:
    proto: onnx.ModelProto
    proof: _Proof


@dataclass(frozen=True)
class _Attempt:
    """One plan, carried out and proved, in memory or on disk."""

    model: Model
    solution: Solution
    prove: Callable[[ModelLike, Path | None, Witness], _Proof]
    clock: _Clock
    say: Progress

    def in_memory(self) -> _Result:
        if self.solution.plan.is_empty:
            return _Result(self.model.proto, _Proof(None, None))
        self.say("writing")
        proto = folded(self.model, self.solution.plan)
        self.clock.lap("write")
        if any(is_external(tensor) for tensor in tensors(proto)) and self.model.source.path is not None:
            return _Result(proto, self._beside(proto))
        return _Result(proto, self.prove(proto, self.model.source.base_dir, witness_of(self.solution.plan)))

    def _beside(self, proto: onnx.ModelProto) -> _Proof:
        """Prove a model whose external data is the original's: from a temporary file in the original's folder."""
        assert self.model.source.path is not None
        temporary = self.model.source.path.with_name(f".{self.model.source.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(proto.SerializeToString())
            return self.prove(temporary, None, witness_of(self.solution.plan))
        finally:
            temporary.unlink(missing_ok=True)

    def on_disk(self, stage: Staged) -> _Result:
        self.say("writing")
        write(self.model, self.solution.plan, stage)
        self.clock.lap("write")
        if self.solution.plan.is_empty:
            return _Result(self.model.proto, _Proof(None, None))
        proof = self.prove(stage.path, None, witness_of(self.solution.plan))
        return _Result(read(stage.path).proto, proof)


def _culprit(
    model: Model,
    keep: Iterable[str],
    only: Iterable[str],
    dropped: set[str],
    prove: Callable[[ModelLike, Path | None, Witness], _Proof],
    clock: _Clock,
    say: Progress,
) -> str | None:
    """The one fold without which the rest passes: by halves. None where there is none."""

    def passes(without: set[str]) -> bool:
        solution = solve(model, keep, only, dropped | without)
        return _Attempt(model, solution, prove, clock, say).in_memory().proof.ok

    suspects = [o.node.label for o in solve(model, keep, only, dropped).outcomes if o.folded]
    while len(suspects) > 1:
        say(f"looking for the fold at fault among {len(suspects)}")
        half = suspects[: len(suspects) // 2]
        suspects = half if passes(set(half)) else suspects[len(half) :]
    return suspects[0] if suspects and passes(set(suspects)) else None


def _failure(proof: _Proof, culprit: str | None, source: Source) -> str:
    problem = "the two models differ"
    if proof.certificate is not None and not proof.certificate.ok:
        problem = str(proof.certificate.failures[0])
    elif proof.verification is not None and proof.verification.problems:
        problem = proof.verification.problems[0]
    fault = f"the fold of {culprit} is at fault; " if culprit else ""
    return f"{source.label}: {fault}{problem}; nothing was written"


def _default_output(source: Source) -> Path | None:
    if source.path is None:
        return None
    stem = source.path.name.removesuffix(".onnx")
    return source.path.with_name(f"{stem}.folded.onnx")


def count_batchnorm(model: onnx.ModelProto) -> int:
    """BatchNormalization nodes anywhere in a model: main graph, bodies and functions."""
    count, stack = 0, [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        for node in stack.pop():
            count += node.op_type == "BatchNormalization"
            stack += [body.node for _, body in bodies(node)]
    return count


def _affines(model: Model, solution: Solution) -> tuple[Affine, ...]:
    ops = {node.label: node.op for graph in model.graphs for node in graph.nodes}
    found = [_affine(outcome, ops) for outcome in solution.outcomes]
    for function in model.proto.functions:
        for node in function.node:
            if node.op_type == "BatchNormalization":
                name = node.name or next(iter(node.output), "")
                reason = Reason(
                    "inside-function",
                    f"it is part of the model-local function {function.name!r}",
                    function.name,
                    "inline the functions first: onnx.inliner.inline_local_functions(model)",
                )
                found.append(Affine(f"{function.name}/{name}", node.op_type, "kept", reasons=(reason,)))
    return tuple(found)


def _affine(outcome: Outcome, ops: Mapping[str, str]) -> Affine:
    node, into = outcome.node, outcome.into
    status = "folded" if outcome.folded else "kept"
    return Affine(node.label, node.op, status, outcome.way, into, tuple(ops[name] for name in into), outcome.reasons)


def _unmatched(solution: Solution, keep: Iterable[str], only: Iterable[str]) -> tuple[str, ...]:
    """A warning for every pattern that names no affine."""
    names = [outcome.node.label for outcome in solution.outcomes]
    return tuple(
        f"{option} {pattern!r} matches no node that could be folded"
        for option, patterns in (("--keep", keep), ("--only", only))
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    )


def _gone(solution: Solution) -> int:
    return sum(outcome.folded and outcome.node.op == "BatchNormalization" for outcome in solution.outcomes)


def _left(solution: Solution, model: Model) -> int:
    return sum(1 for _ in model.nodes()) - sum(len(plan.removed) for plan in solution.plan.graphs)


def _facts(source: Source, after: onnx.ModelProto | None, output: Path | None, left: int) -> Facts:
    before = _nodes(source.proto)
    return Facts(
        str(source.path) if source.path else None,
        str(output) if output else None,
        source.proto.ir_version,
        next((entry.version for entry in source.proto.opset_import if entry.domain in ("", "ai.onnx")), 1),
        f"{source.proto.producer_name} {source.proto.producer_version}".strip(),
        Count(before, left if after is None else _nodes(after)),
        Count(_bytes(source.proto), _bytes(source.proto if after is None else after)),
    )


def _nodes(model: onnx.ModelProto) -> int:
    count, stack = 0, [model.graph]
    while stack:
        graph = stack.pop()
        count += len(graph.node)
        stack += [body for node in graph.node for _, body in bodies(node)]
    return count


def _bytes(model: onnx.ModelProto) -> int:
    return int(model.ByteSize()) + sum(tensor_nbytes(tensor) for tensor in tensors(model) if is_external(tensor))


class _Clock:
    """Seconds by step; a step that comes again adds up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.laps[step] = self.laps.get(step, 0.0) + now - self._last
        self._last = now


# Importing the modules `bnfold.verify` and `bnfold.bench` bound them to the package, over the functions of that name.
vars(sys.modules["bnfold"]).update(bench=bench, verify=verify)
