"""A release proved anew from its manifest: the hashes of its files, then the certificate. Nothing is run."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold import manifest as manifests
from bnfold import witness_data
from bnfold.calls import Functions
from bnfold.certificate import Certificate, certify
from bnfold.equivalence.result import DIFFERENT, EQUIVALENT
from bnfold.errors import ModelError
from bnfold.graph import Model
from bnfold.hashes import Digest, digest
from bnfold.manifest import Artifact, Manifest
from bnfold.source import ModelLike, Source, Stamp, read_lean, stamp_of
from bnfold.stage import external_data
from bnfold.validity import blames_the_model

ROOM = 16
"""Times the size of the original that the storages of a witness may take; and at least `LEAST_ROOM`."""

LEAST_ROOM = 1 << 27

_OF_A_FORGED_WITNESS = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """What was found."""

    manifest: Path
    original: Path
    optimized: Path
    problems: tuple[str, ...]
    """Why the release is not what its manifest says."""
    certificate: Certificate | None
    """None where the files are others already."""
    made_by: Mapping[str, Any]
    """The versions that the manifest names."""
    seconds: float

    @property
    def status(self) -> str:
        """`equivalent` or `different`."""
        return DIFFERENT if self.problems else EQUIVALENT

    @property
    def passed(self) -> bool:
        """Whether every hash and the proof hold."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The whole report."""
        return {
            "schema": 1,
            "manifest": str(self.manifest),
            "original": str(self.original),
            "optimized": str(self.optimized),
            "status": self.status,
            "problems": list(self.problems),
            "certificate": self.certificate.to_json() if self.certificate else {},
            "made_by": dict(self.made_by),
            "seconds": round(self.seconds, 3),
        }


def audit(
    manifest: str | os.PathLike[str],
    original: str | os.PathLike[str] | None = None,
    optimized: str | os.PathLike[str] | None = None,
) -> Audit:
    """Prove a release anew: its files are those of the manifest, and the certificate holds for the witness in it.

    ONNX Runtime is not loaded. What is found not to hold is in the result.

    Args:
        manifest: `OUTPUT.manifest.json`, whoever wrote it.
        original: where the original is now; where the manifest says by default.
        optimized: likewise.

    Raises:
        ModelError: a file is missing, changes meanwhile, or is no manifest or model.
    """
    start, told = time.perf_counter(), manifests.read(Path(manifest))
    before = told.original_path if original is None else Path(original)
    after = told.optimized_path if optimized is None else Path(optimized)
    stamps: dict[Path, Stamp | None] = {}
    problems = [
        problem
        for what, path, artifact in (("original", before, told.original), ("optimized model", after, told.optimized))
        for problem in _other_files(what, path, artifact, stamps)
    ]
    certificate = None
    if not problems:
        certificate, problems = _proved(before, after, told)
    for path, stamp in stamps.items():
        if stamp_of(path) != stamp:
            raise ModelError(f"{path} changed while it was read, or is gone; try again")
    seconds = time.perf_counter() - start
    return Audit(Path(manifest), before, after, tuple(problems), certificate, told.versions, seconds)


@blames_the_model
def _proved(before: ModelLike, after: ModelLike, told: Manifest) -> tuple[Certificate | None, list[str]]:
    """The certificate of two files that are those of the manifest, and what speaks against it."""
    models = read_lean(before), read_lean(after)
    problems = list(_other_data(models, told))
    if problems:
        return None, problems
    certificate = _certificate(Model(models[0]), Model(models[1]), told)
    problems += [f"the certificate does not hold: {failure}" for failure in certificate.failures]
    return certificate, problems + list(_other_counts(models, told))


def _other_files(what: str, model: Path, told: Artifact, stamps: dict[Path, Stamp | None]) -> Iterator[str]:
    """How the files of a model differ from what the manifest says."""
    folder = model.resolve().parent
    files = [(what, model, told.digest)]
    files += [(f"external data {name} of the {what}", folder / name, found) for name, found in told.data.items()]
    for which, path, digest_ in files:
        stamps[path] = stamp_of(path)
        size = _size(which, path, folder if path is not model else None)
        if size != digest_.size:
            yield f"the {which} is another file: {size} bytes, not {digest_.size} ({path})"
        elif (found := _digest(path).sha256) != digest_.sha256:
            yield f"the {which} is another file: SHA-256 {found[:16]}..., not {digest_.sha256[:16]}... ({path})"


def _size(which: str, path: Path, folder: Path | None) -> int:
    try:
        if folder is not None and not path.resolve().is_relative_to(folder):
            raise ModelError(f"{path} lies outside of the model's folder; refusing to read it")
        found = path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ModelError(f"the {which} {why}: {path}; say where it is: verify --manifest FILE ORIGINAL") from None
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"the {which} is no regular file: {path}")
    return found.st_size


def _digest(path: Path) -> Digest:
    try:
        return digest(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _other_data(models: tuple[Source, Source], told: Manifest) -> Iterator[str]:
    """A model must need just the external data that the manifest has hashes of."""
    for source, artifact in zip(models, (told.original, told.optimized), strict=True):
        assert source.base_dir is not None
        base = source.base_dir
        needed = {place.path.relative_to(base).as_posix() for place in external_data(source)}
        if needed != set(artifact.data):
            yield f"the manifest has hashes of other external data than {source.label} needs"


def _certificate(original: Model, optimized: Model, told: Manifest) -> Certificate:
    room = max(LEAST_ROOM, ROOM * sum(each.size for each in (told.original.digest, *told.original.data.values())))
    try:
        witness = witness_data.from_data(told.witness, room // 24)
    except ValueError as error:
        raise ModelError(f"{told.path} is no manifest that bnfold would write: {str(error)[:200]}") from None
    if witness.calls and Functions(original.proto).too_large:
        raise ModelError(f"{told.path} is no manifest that bnfold would write: it replaces calls without end")
    try:
        return certify(original, optimized, witness)
    except _OF_A_FORGED_WITNESS as error:
        if os.environ.get("BNFOLD_TRACEBACK"):
            raise
        raise ModelError(f"{told.path} has a witness that does not fit the model ({type(error).__name__})") from None


def _other_counts(models: tuple[Source, Source], told: Manifest) -> Iterator[str]:
    """How the numbers of nodes differ from what the manifest says."""
    before, after = (Functions(source.proto) for source in models)
    for kind, op in (("nodes", ""), ("batchnorm", "BatchNormalization")):
        found = {"before": before.count(op), "after": after.count(op)}
        if told.counts.get(kind) != found:
            yield f"the manifest lies about {kind}: there are {found['before']} before and {found['after']} after"
