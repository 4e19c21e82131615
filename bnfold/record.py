"""The manifest of an output, made: what went in, what came out, by whom, how, and all it takes to prove it again.

The same input, options and versions give the same bytes: no times, no absolute paths.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bnfold import witness_data
from bnfold.attempt import Result
from bnfold.calls import Functions
from bnfold.certificate import Certificate
from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.result import Verification
from bnfold.errors import ModelError
from bnfold.hashes import Beside, Digest
from bnfold.manifest import HEAD, SCHEMA, Artifact
from bnfold.runtime import runtime_version
from bnfold.source import Source
from bnfold.stage import Staged
from bnfold.witness import Witness

PACKAGES = ("bnfold", "onnx", "onnx-graphsurgeon", "numpy", "ml_dtypes", "protobuf")
"""What takes part in a fold and in its certificate."""


def tell(
    stage: Staged,
    source: Source,
    digests: Beside,
    *,
    options: Callable[[], Mapping[str, Any]],
    witness: Witness,
    copied: bool,
    result: Result,
    before: Functions,
    warnings: Sequence[str],
) -> None:
    """Put the manifest into the stage, where one is wanted: none for a model in memory that is too large for a file.

    Raises:
        ModelError: a file of the original is gone.
        OutputError: the disk is full.
    """
    original = _given(source, stage.where.path, digests) if stage.where.with_manifest else None
    if original is None:
        return
    proof = result.proof.final
    certificate, verification = proof.certificate, proof.verification
    after = result.functions
    counts = {"nodes": "", "batchnorm": "BatchNormalization"}
    found = {
        "versions": _versions(verification is not None),
        "options": dict(options()),
        "original": original.to_json(),
        "optimized": _made(stage, original, copied).to_json(),
        "counts": {kind: {"before": before.count(op), "after": after.count(op)} for kind, op in counts.items()},
        "certificate": certificate and _certified(certificate),
        "verification": verification and _verified(verification),
        "warnings": list(warnings),
    }
    head = json.dumps(found, indent=1, allow_nan=False).removeprefix("{").removesuffix("\n}")
    data = json.dumps(witness_data.to_data(witness), separators=(",", ":"), allow_nan=False)
    stage.tell(f'{HEAD}{SCHEMA},{head},\n "witness": {data}\n}}\n')


def _given(source: Source, output: Path, digests: Beside) -> Artifact | None:
    """The original, of whose files there are digests."""
    if source.path is None:
        try:
            raw = source.raw if source.raw is not None else source.proto.SerializeToString()
        except ValueError:
            return None
        return Artifact(None, Digest.of(raw), {})
    assert source.base_dir is not None
    try:
        found = dict(digests.result())
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read any more: {error.strerror}; try again") from error
    digest, own = found.pop(source.path), source.path.parent.resolve() / source.path.name
    data = {path.relative_to(source.base_dir).as_posix(): each for path, each in found.items()}
    return Artifact(os.path.relpath(own, output.parent.resolve()), digest, data)


def _made(stage: Staged, original: Artifact, copied: bool) -> Artifact:
    """The output as it lies in the stage. One that is a `copied` input may have the input's external data as it is."""
    found, name = dict(stage.digests), stage.where.path.name
    own = found.pop(Path(name))
    data = {path.as_posix(): each for path, each in found.items()}
    if copied and stage.where.sidecar.name not in data:
        data = dict(original.data)
    return Artifact(name, own, data)


def _versions(ran: bool) -> dict[str, str | None]:
    found: dict[str, str | None] = {name: version(name) for name in PACKAGES}
    found["onnxruntime"] = runtime_version() if ran else None
    found["python"] = platform.python_version()
    return found


def _certified(certificate: Certificate) -> dict[str, Any]:
    found = certificate.to_json()
    del found["failures"]  # else nothing would have been written
    return found


def _verified(run: Verification) -> dict[str, Any]:
    answers, algebra = run.answers, run.algebra
    return {
        "status": run.status,
        "providers": [check.provider for check in run.runtime],
        "reference": run.noise.status,
        "samples": run.samples,
        "allowed": run.noise.k,
        "outputs": [_compared(check) for check in run.noise.outputs or run.noise.stored],
        "algebra": algebra
        and {
            "status": algebra.status,
            "compared": algebra.compared,
            "tolerance": algebra.tolerance,
        },
        "answers": answers
        and {
            "samples": answers.samples,
            **{name: share.to_json() for name, share in answers.shares},
            "changed": answers.changed,
        },
        "notes": list(run.notes),
    }


def _compared(check: OutputCheck) -> dict[str, Any]:
    before, after = check.before, check.after
    return {
        "output": check.output,
        "before": None if before is None else _short(before.max),
        "after": None if after is None else _short(after.max),
        "noise_used": _short(check.k_needed),
        "mismatches": check.mismatches,
    }


def _short(value: float) -> float | None:
    """Three digits: what is behind them depends on how many threads computed it."""
    return None if not math.isfinite(value) else float(f"{value:.2e}")
