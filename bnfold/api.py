"""The library: optimize, explain, verify, audit and bench, with typed results. The command line only renders these."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from bnfold import manifest as manifests
from bnfold import record
from bnfold.attempt import Attempt, Clock, Proof, Prove, Result, certificate_of, culprits
from bnfold.auditing import Audit, audit
from bnfold.benchmark import bench
from bnfold.calls import Functions
from bnfold.conversion import Converter
from bnfold.equivalence import Progress, Settings, verified, verify
from bnfold.errors import NotEquivalentError
from bnfold.folding import BATCHNORM, Folded, Folder, Wishes
from bnfold.graph import Model, Node
from bnfold.hashes import Beside
from bnfold.inputs import InputsLike
from bnfold.labels import LabelsLike
from bnfold.merges import is_linear, may_swap
from bnfold.naming import FP32, default_output
from bnfold.patch import Patched, patch, tensors, witness_of
from bnfold.plan import Rewrite
from bnfold.precision import Converted, Wanted, type_of
from bnfold.regions import region
from bnfold.results import Affine, Count, Explained, Facts, Merged, Optimized, Precision
from bnfold.runtime import resolve_providers
from bnfold.solver import Outcome, matches
from bnfold.source import ModelLike, Source, is_beside, is_external, read_lean, stamp_of, tensor_nbytes
from bnfold.stage import Destination, Staged, destination
from bnfold.validity import blames_the_model
from bnfold.witness import Witness

__all__ = [
    "Affine",
    "Audit",
    "Count",
    "Explained",
    "Facts",
    "Optimized",
    "audit",
    "bench",
    "explain",
    "optimize",
    "verify",
]

STRICTER = (6.0, 5.0, 4.0, 3.0, 1.5, 0.0)
"""Bits that tensors of several readers may lose, tried in turn where a certified fold turns out to be too noisy."""


@blames_the_model
def explain(model: ModelLike, *, merge: bool = True, keep: Iterable[str] = (), only: Iterable[str] = ()) -> Explained:
    """Say what `optimize` would fold and why the rest stays; writes nothing and runs nothing.

    Args:
        model: path, bytes or ModelProto; never modified.
        merge: merge linear nodes, as for :func:`optimize`.
        keep: names or globs of nodes that must stay.
        only: names or globs; where given, every other node stays.

    Raises:
        ModelError: the model cannot be read.
    """
    clock, wishes = Clock(), Wishes(tuple(keep), tuple(only), merge=merge)
    given = Model(read_lean(model))
    clock.lap("read")
    folder = Folder(given)
    found = folder.solve(wishes)
    clock.lap("solve")
    patched = Patched(given.proto) if found.rewrite.is_empty else patch(found.rewrite.model, found.rewrite.plan)
    after = Functions(patched.proto)
    return Explained(
        _facts(given.source, folder.functions, after, None, patched.missing_bytes),
        Count(folder.functions.count(BATCHNORM), after.count(BATCHNORM)),
        _affines(folder, found),
        _merged(found),
        clock.laps,
        _unmatched(found, wishes),
    )


@blames_the_model
def optimize(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    *,
    verify: bool = True,
    merge: bool = True,
    keep: Iterable[str] = (),
    only: Iterable[str] = (),
    precision: str = FP32,
    keep_fp32: Iterable[str] = (),
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    inputs: InputsLike | None = None,
    preprocess: str | Mapping[str, Any] | None = None,
    labels: LabelsLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    tf32: bool = False,
    force: bool = False,
    strict: bool = False,
    manifest: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Optimized:
    """Fold every affine that algebra allows, prove the result, and write it.

    Args:
        model: path, bytes or ModelProto; never modified.
        output: where to write. For a path, `NAME.folded.onnx` beside it by default, or `NAME.folded.fp16.onnx`; for
            bytes or a ModelProto the result is only in memory (`Optimized.proto`) unless an output is given.
        verify: run both models (float64, and ONNX Runtime on every provider) before anything is written.
        merge: make one node of parallel convolutions of one tensor, and of one behind another, where that is cheaper.
        keep: names or globs of nodes that must stay.
        only: names or globs; where given, every other node stays.
        precision: `fp16` or `bf16` converts the folded model to that type too, each constant rounded once; its inputs
            and outputs keep their types. `fp32` leaves all types as they are.
        keep_fp32: names or globs of nodes that stay in float32 then.
        providers: execution providers to verify on, each in turn: `cuda`, `tensorrt`, `cpu`. By default the best here.
        provider_options: options for ONNX Runtime by provider: `{"cuda": {"device_id": "1"}}`.
        inputs: inputs to verify with, as for :func:`verify`; seeded random ones by default.
        preprocess: how images among the inputs are prepared, as for :func:`verify`.
        labels: the class of each of the inputs, as for :func:`verify`.
        shapes: sizes for inputs whose shape is free.
        samples: how many random inputs to verify with.
        seed: seed of the random inputs.
        tf32: let CUDA round float32 products to TF32.
        force: overwrite an existing output.
        strict: raise where a fold failed verification, also when the rest could be written without it.
        manifest: write `OUTPUT.manifest.json` beside the output, which :func:`audit` proves anew. There is none for a
            ModelProto of more than 2 GB.
        dry_run: do everything but write.
        progress: called with one line for every step.

    Raises:
        ModelError: the model cannot be read.
        OutputError: the output exists, or cannot be written.
        ProviderError: a provider that was asked for is not available.
        NotEquivalentError: the folded model failed verification, and no set of folds was at fault, or `strict`.
    """
    clock, say = Clock(), progress or (lambda line: None)
    type_ = type_of(precision, keep_fp32 := tuple(keep_fp32))
    wishes = Wishes(tuple(keep), tuple(only), merge=merge, narrow=type_)
    if verify and (providers or provider_options):
        resolve_providers(providers, provider_options)
    asked = partial(
        manifests.options,
        verify=verify,
        merge=merge,
        keep=wishes.keep,
        only=wishes.only,
        strict=strict,
        providers=providers,
        provider_options=provider_options,
        inputs=inputs,
        preprocess=preprocess,
        labels=labels,
        shapes=shapes,
        samples=samples,
        seed=seed,
        tf32=tf32,
        precision=precision,
        keep_fp32=keep_fp32,
    )
    settings = Settings(
        providers=providers,
        provider_options=provider_options,
        inputs=inputs,
        preprocess=preprocess,
        labels=labels,
        shapes=shapes,
        samples=samples,
        seed=seed,
        tf32=tf32,
        locate=False,
    )
    source = read_lean(model)
    where = _destination(source, output, precision, force or dry_run, manifest and not dry_run)
    say("reading")
    folder = Folder(given := Model(source))
    clock.lap("read")
    place = None if dry_run else where
    converter = (
        Converter(given, Wanted(type_, keep_fp32), settings if verify else None, place, clock, say) if type_ else None
    )

    def certified(optimized: ModelLike, base_dir: Path | None, rewrite: Rewrite) -> Proof:
        say("certifying")
        certificate = certificate_of(given, optimized, base_dir, witness_of(rewrite))
        clock.lap("certify")
        return Proof(certificate, None)

    def proved(optimized: ModelLike, base_dir: Path | None, rewrite: Rewrite, final: bool = True) -> Proof:
        proof = certified(optimized, base_dir, rewrite)
        if not proof.ok or not verify:
            return proof
        wanted = settings if final and not type_ else replace(settings, labels=None, few=True)
        run = verified(source.path or model, optimized, wanted, progress, fold=rewrite)
        clock.lap("verify")
        return Proof(proof.certificate, run)

    dropped: dict[str, bool] = {}

    def fold(without: set[str], bits: float = math.inf, prove: Prove = proved) -> Attempt:
        say("solving")
        found = folder.solve(replace(wishes, drop=dropped | dict.fromkeys(without, False), bits=bits))
        clock.lap("solve")
        return Attempt(found, prove, clock, say, converter)

    def tell(stage: Staged, attempt: Attempt, result: Result) -> None:
        record.tell(
            stage,
            source,
            digests,
            options=asked,
            witness=_witness(attempt, result),
            copied=attempt.found.rewrite.is_empty and result.converted is None,
            result=result,
            before=folder.functions,
            warnings=warned(attempt, result),
        )

    def warned(attempt: Attempt, result: Result) -> tuple[str, ...]:
        own = result.converted.warnings if result.converted else ()
        return _unmatched(attempt.found, wishes) + _left_out(dropped, too_noisy) + own

    limits = [] if strict else list(STRICTER)
    with Beside(place.stamps if place is not None and place.with_manifest else ()) as digests:
        attempt, too_noisy = fold(set()), False
        while not (result := attempt.carried_out(place, tell)).proof.ok:
            gentler = _gentler(attempt, fold, limits) if result.proof.exact else None
            if gentler is not None:
                attempt, too_noisy = gentler, True
                continue
            # What the certificate sees it sees at once: nothing has to run before the rest is proved again.
            prove = partial(proved, final=False) if result.proof.certified else certified
            guilty = culprits(partial(fold, prove=prove), say)
            if not guilty or strict:
                raise NotEquivalentError(_failure(result.proof.told, guilty, source))
            dropped |= dict.fromkeys(guilty, result.proof.exact)
            attempt, too_noisy = fold(set()), False
    done = _optimized(folder, attempt, result, place.path if place else None, precision)
    return replace(done, warnings=warned(attempt, result), proto=result.proto if where is None else None)


def _witness(attempt: Attempt, result: Result) -> Witness:
    found, made = witness_of(attempt.found.rewrite), result.converted
    return replace(found, narrowed=made.witness) if made else found


def _optimized(folder: Folder, attempt: Attempt, result: Result, written: Path | None, precision: str) -> Optimized:
    """What there is to say of a result that was proved, and written unless `written` is None."""
    found, made = attempt.found, result.converted
    source, proof = folder.given.source, result.proof.final
    after = result.functions
    return Optimized(
        _facts(source, folder.functions, after, written),
        Count(folder.functions.count(BATCHNORM), after.count(BATCHNORM)),
        _affines(folder, found),
        _merged(found),
        attempt.clock.laps,
        (),
        proof.certificate,
        proof.verification,
        _witness(attempt, result),
        written,
        None,
        None if made is None else _precision(precision, made, result.proof),
    )


def _precision(name: str, made: Converted, proof: Proof) -> Precision:
    return Precision(name, made.nodes, made.casts, made.kept, proof.certificate, proof.verification, proof.final.speed)


def _gentler(attempt: Attempt, fold: Callable[[set[str], float], Attempt], limits: list[float]) -> Attempt | None:
    """The next plan that loses fewer bits; takes the limits that it tries from the list. None where all are tried."""
    while limits:
        other = fold(set(), limits.pop(0))
        if other.changes != attempt.changes:
            return other
    return None


def _left_out(dropped: Mapping[str, bool], too_noisy: bool) -> tuple[str, ...]:
    """A warning for every fold that was dropped, and one where folds were given up for their noise."""
    said = [
        f"the fold of {name} passed the certificate but made too much rounding noise and was dropped"
        if exact
        else f"the fold of {name} failed verification and was dropped; please report it"
        for name, exact in sorted(dropped.items())
    ]
    if too_noisy:
        said.append("some folds passed the certificate but made too much rounding noise; they were left out")
    return tuple(said)


def _failure(proof: Proof, guilty: Sequence[str], source: Source) -> str:
    problem = "the two models differ"
    if proof.certificate is not None and not proof.certificate.ok:
        problem = str(proof.certificate.failures[0])
    elif proof.verification is not None and proof.verification.problems:
        problem = proof.verification.problems[0]
    folds = "the fold of {} is" if len(guilty) == 1 else "the folds of {} are"
    fault = f"{folds.format(', '.join(guilty))} at fault; " if guilty else ""
    return f"{source.label}: {fault}{problem}; nothing was written"


def _destination(
    source: Source, output: str | os.PathLike[str] | None, precision: str, force: bool, with_manifest: bool
) -> Destination | None:
    """Where the result goes; None where it stays in memory. Raises as `destination` does."""
    if output is None:
        if source.path is None:
            return None
        output = default_output(source.path, precision)
    return destination(source, Path(output), force, with_manifest)


def _affines(folder: Folder, found: Folded) -> tuple[Affine, ...]:
    ops = {node.label: node.op for graph in found.rewrite.original.graphs for node in graph.nodes}
    hidden = (Affine(label, op, "kept", reasons=(reason,)) for label, op, reason in folder.hidden())
    gone = {outcome.node.label for outcome in found.outcomes if outcome.folded}
    return (*(_affine(outcome, ops, gone) for outcome in found.outcomes), *hidden)


def _affine(outcome: Outcome, ops: Mapping[str, str], gone: Collection[str]) -> Affine:
    node, into = outcome.node, outcome.into
    if not outcome.folded:
        return Affine(node.label, node.op, "kept", reasons=outcome.reasons, note=outcome.note)
    kinds = tuple(ops[name] for name in into)
    around = region(node, into, gone)
    return Affine(node.label, node.op, "folded", outcome.way, into, kinds, note=outcome.note, region=around)


def _merged(found: Folded) -> tuple[Merged, ...]:
    rewrite = found.rewrite
    made: dict[Node, list[Merged]] = {}
    told = set[Node]()
    for merge in rewrite.merges:
        root, members = rewrite.before_regrouping(merge.root), rewrite.members(merge)
        if rewrite.regrouped is not None and root not in told:
            members = (*members, *rewrite.regrouped.gone(root))
        told.add(root)
        kept = rewrite.before_regrouping(merge.kept)
        own = tuple(node.label for node in sorted(members, key=lambda node: node.index))
        made.setdefault(root, []).append(Merged("merged", root.label, own, kept.label, kept.op))
    for conv, pool in rewrite.regrouped.swapped if rewrite.regrouped is not None else ():
        made.setdefault(pool, []).insert(
            0, Merged("swapped", pool.label, (conv.label, pool.label), conv.label, conv.op)
        )
    for each in found.almost:
        if each.node not in made:
            made[each.node] = [Merged("kept", each.node.label, reason=each.text)]
    return tuple(entry for node in rewrite.original.nodes() for entry in made.get(node, ()))


def _unmatched(found: Folded, wishes: Wishes) -> tuple[str, ...]:
    """A warning for every pattern that names no affine, and no node that could be merged with others."""
    if not (wishes.keep or wishes.only):
        return ()
    labels = {outcome.node.label for outcome in found.outcomes}
    if wishes.merge:
        labels |= {node.label for node in found.rewrite.original.nodes() if is_linear(node) or may_swap(node)}
    return tuple(
        f"{option} {pattern!r} matches no node that could be folded"
        for option, patterns in (("--keep", wishes.keep), ("--only", wishes.only))
        for pattern in patterns
        if not any(matches(pattern, label) for label in labels)
    )


def _facts(source: Source, before: Functions, after: Functions, output: Path | None, missing: int = 0) -> Facts:
    """The facts; `missing` bytes of new constants are not in `after` yet."""
    return Facts(
        str(source.path) if source.path else None,
        str(output) if output else None,
        source.proto.ir_version,
        next((entry.version for entry in source.proto.opset_import if entry.domain in ("", "ai.onnx")), 1),
        f"{source.proto.producer_name} {source.proto.producer_version}".strip(),
        Count(before.count(), after.count()),
        Count(_bytes(source.proto, source.path), _bytes(after.model, output) + missing),
    )


def _bytes(model: onnx.ModelProto, path: Path | None) -> int:
    """Of the model's file where it has one, and of its external data."""
    stamp = None if path is None else stamp_of(path)  # None too where somebody has taken the file away meanwhile
    own, outside = (model.ByteSize(), is_external) if stamp is None else (stamp[2], is_beside)
    return int(own) + sum(tensor_nbytes(tensor) for tensor in tensors(model) if outside(tensor))
