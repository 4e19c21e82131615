"""The manifest beside an output: its form, and reading one that a stranger may have written.

`record` makes it, `auditing` proves anew what it says. Only what both need stands here; nothing heavy is imported.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeGuard

from bnfold.errors import ModelError
from bnfold.hashes import Digest, digest_of_all
from bnfold.naming import FP32

SCHEMA = 1

KIND = "bnfold manifest"

HEAD = f'{{\n "kind": "{KIND}",\n "schema": '
"""What every manifest begins with."""

MOST_BYTES = 1 << 30
"""Of a manifest that is read."""

MOST_VALUES = 8_000_000
"""Values that it may hold: each takes some dozens of bytes of memory, however short it is written."""


def path_for(output: Path) -> Path:
    """Where the manifest of an output is."""
    return output.with_name(output.name + ".manifest.json")


def is_manifest(path: Path) -> bool:
    """Whether a file begins as the manifests that bnfold writes."""
    try:
        with _opened(path) as file:
            return file.read(len(HEAD)) == HEAD.encode()
    except OSError:
        return False


def options(
    *,
    verify: bool = True,
    merge: bool = True,
    keep: Iterable[str] = (),
    only: Iterable[str] = (),
    strict: bool = False,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    inputs: object = None,
    preprocess: str | Mapping[str, Any] | None = None,
    labels: object = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    tf32: bool = False,
    precision: str = FP32,
    keep_fp32: Iterable[str] = (),
) -> dict[str, Any]:
    """The options of `optimize` that bear on the result or on its proof, as the manifest holds them.

    Reads inputs and labels once, for their digests.
    """
    found: dict[str, Any] = {"merge": merge, "keep": sorted(keep), "only": sorted(only), "strict": strict}
    found |= {"precision": precision, "keep_fp32": sorted(keep_fp32)}
    found["verify"] = None
    if verify:
        found["verify"] = {
            "providers": list(providers or ()),
            "provider_options": {name: dict(sorted(given.items())) for name, given in (provider_options or {}).items()},
            "inputs": _named(inputs),
            "inputs_sha256": _content(inputs),
            "preprocess": dict(preprocess) if isinstance(preprocess, Mapping) else preprocess,
            "labels": _named(labels),
            "labels_sha256": _content(labels),
            "shapes": {name: list(sizes) for name, sizes in (shapes or {}).items()},
            "samples": samples,
            "seed": seed,
            "tf32": tf32,
        }
    return found


def _named(given: object) -> str | None:
    """The last part of a path; what lies in memory has no name."""
    if given is None:
        return None
    return Path(given).name if is_path(given) else "in memory"


def _content(given: object) -> str | None:
    return digest_of_all(Path(given)) if is_path(given) else None


def is_path(given: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether inputs or labels are in a file or folder, whose content a manifest can tell."""
    return isinstance(given, str | os.PathLike)


@dataclass(frozen=True)
class Artifact:
    """A model as the manifest knows it."""

    file: str | None
    """Its path relative to the manifest; None for one that was given in memory."""
    digest: Digest
    data: Mapping[str, Digest]
    """Its external data, by path relative to the model."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        data = [{"file": name, **digest.to_json()} for name, digest in sorted(self.data.items())]
        return {"file": self.file, **self.digest.to_json(), "data": data}


@dataclass(frozen=True)
class Manifest:
    """What one says; the witness is still plain data (`witness_data`)."""

    path: Path
    versions: Mapping[str, Any]
    options: Mapping[str, Any]
    original: Artifact
    optimized: Artifact
    counts: Mapping[str, Any]
    witness: object

    @property
    def original_path(self) -> Path:
        """Where the original was when the manifest was written.

        Raises:
            ModelError: it was not in a file.
        """
        if self.original.file is None:
            raise ModelError(f"{self.path} is of a model that was given in memory; give the path of the original")
        return self.path.parent / self.original.file

    @property
    def optimized_path(self) -> Path:
        """The output beside the manifest."""
        assert self.optimized.file is not None
        return self.path.parent / self.optimized.file


def read(path: Path) -> Manifest:
    """Read a manifest, whoever wrote it.

    Raises:
        ModelError: it is missing, or no manifest.
    """
    data = _bytes(path)
    if sum(map(data.count, (b"[", b"{", b","))) > MOST_VALUES:
        raise ModelError(f"{path} is no manifest that bnfold would write: it holds too many values")
    try:
        found = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is no manifest: it is not JSON, or it is cut off") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ModelError(f"{path} is no manifest of bnfold")
    if found.get("schema") != SCHEMA:
        raise ModelError(f"{path} has schema {str(found.get('schema'))[:20]}; this bnfold reads {SCHEMA}: update it")
    try:
        original, optimized = (_artifact(found[name]) for name in ("original", "optimized"))
        versions, asked, counts = (_dict(found[name]) for name in ("versions", "options", "counts"))
        if optimized.file is None or "/" in optimized.file:
            raise ValueError("the optimized model stands elsewhere")
        return Manifest(path, versions, asked, original, optimized, counts, found["witness"])
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} is no manifest that bnfold would write: {str(error)[:200]}") from None


def _bytes(path: Path) -> bytes:
    try:
        with _opened(path) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
                raise ModelError(f"{path} is no manifest: it is not a file of at most {MOST_BYTES >> 20} MB")
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder; give the manifest inside it") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # a pipe is not waited for


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _artifact(entry: object) -> Artifact:
    found = _dict(entry)
    if not isinstance(found["data"], list):
        raise ValueError("'data' is no list")
    data = {}
    for each in map(_dict, found["data"]):
        name = _file(each["file"])
        if name is None or ".." in Path(name).parts:
            raise ValueError("external data lies elsewhere")
        data[name] = _digest(each)
    return Artifact(_file(found["file"]), _digest(found), data)


def _file(name: object) -> str | None:
    if name is not None and (not isinstance(name, str) or not name or "\0" in name or Path(name).is_absolute()):
        raise ValueError("'file' is no relative path")
    return name


def _digest(entry: Mapping[str, Any]) -> Digest:
    size, sha256 = entry["bytes"], entry["sha256"]
    if type(size) is not int or not isinstance(sha256, str) or len(sha256) != 64:
        raise ValueError("'bytes' or 'sha256' is none")
    return Digest(size, sha256)


def _dict(entry: object) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("an object is missing")
    return entry
