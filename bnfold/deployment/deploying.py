"""One deployment from beginning to end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from bnfold.api import explain
from bnfold.calls import Functions
from bnfold.deployment import checking, warmup
from bnfold.deployment.bundle import check_folder, write_folder
from bnfold.deployment.contents import Contents
from bnfold.deployment.interface import Interface
from bnfold.deployment.repository import Repository
from bnfold.deployment.result import Batching, Deployed
from bnfold.deployment.settings import LEVELS, ORT, TARGETS, Wishes, settings_of
from bnfold.deployment.trial import attempt, batching_of
from bnfold.deployment.triton import BACKENDS, ONNXRUNTIME, PYTHON, Service, checked_name, classified, config_of, placed
from bnfold.deployment.warmup import Request
from bnfold.equivalence.settings import Progress
from bnfold.errors import BnfoldError, UsageError
from bnfold.folding import BATCHNORM
from bnfold.inputs import InputsLike
from bnfold.labels import class_names
from bnfold.source import ModelLike, Source, read_sparing
from bnfold.validity import blames_the_model


@blames_the_model
def deploy(
    model: ModelLike,
    output: str | os.PathLike[str] | None = None,
    *,
    triton: str | os.PathLike[str] | None = None,
    target: str = "cpu",
    backend: str = ONNXRUNTIME,
    name: str | None = None,
    max_batch: int | None = None,
    dynamic_batching: bool = True,
    queue_delay: int = 0,
    instances: int = 1,
    versions: int = 1,
    level: str | None = None,
    threads: int = 0,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    tf32: bool = False,
    inputs: InputsLike | None = None,
    preprocess: str | Mapping[str, Any] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    warm_up: bool = True,
    verify: bool = True,
    force_config: bool = False,
    progress: Progress | None = None,
) -> Deployed:
    """Write a model as it is served: a new version in a repository of Triton, or a folder with a program.

    Nothing is folded here, and the model is copied byte for byte (the target `ort` converts it). What was written is
    run from where it lies, and judged by the rule of :func:`bnfold.verify`, before it has its name.

    Args:
        model: path, bytes or ModelProto; never modified.
        output: a folder to make, with the model, `settings.json` and `serve.py`.
        triton: instead of it a model repository, in which a version is added.
        target: what it runs on: `cpu`, `cuda`, `tensorrt`, `openvino`, or `ort` for ONNX Runtime's own format.
        backend: Triton's: `onnxruntime`, or `python` with a `model.py`.
        name: of the model in the repository; by default that of its file.
        max_batch: rows that the server may put together (8 where the batch is free); 0 for none.
        dynamic_batching: let the server put requests together.
        queue_delay: microseconds that a request may wait for others.
        instances: how many of the model run at a time.
        versions: how many of the newest versions are served.
        level: of ONNX Runtime's optimisations: `all`, `extended`, `basic`, `off`; what suits the target by default.
        threads: of ONNX Runtime within an operator; 0 is its own choice.
        provider_options: options for ONNX Runtime by provider, as for :func:`bnfold.verify`.
        tf32: let NVIDIA's TF32 round float32 products to 10 bits.
        inputs: inputs to warm up and to check with, as for :func:`bnfold.verify`; seeded random ones by default.
        preprocess: how images among them are prepared.
        shapes: sizes for inputs whose shape is free.
        seed: of the random inputs.
        warm_up: have instances run requests before they are ready.
        verify: run the model here at all.
        force_config: replace a configuration in the repository that differs.
        progress: called with one line for every step.

    Raises:
        UsageError: options that make no sense together, or for this model.
        ModelError: the model cannot be read, or what it takes cannot be served.
        OutputError: the folder exists, a configuration differs, or they cannot be written.
        NotEquivalentError: what was written does not compute what the model computes.
    """
    start, say = time.perf_counter(), progress or (lambda line: None)
    where, root = (None if path is None else Path(path) for path in (output, triton))
    _check_usage(where, root, target, backend, level)
    say("reading")
    source = read_sparing(model)
    if root is not None:
        name = _checked_name(name, source)
        place = Repository(root, name, force_config)
        place.check()
    elif where is not None:
        check_folder(where)
    say("choosing inputs")
    trial = attempt(source, verify, inputs, preprocess, shapes, seed)
    batching = batching_of(trial, max_batch, dynamic_batching)
    wishes = Wishes(level, threads, tf32, batching.max_batch, provider_options or {})
    settings = settings_of(target, trial.interface, wishes, checking.sizes_of(shapes, trial.own))
    settings = settings if name is None or root is None else placed(settings, name)
    notes = [*trial.notes, *_foldable(model, source)]
    written = Contents(source, settings, trial, seed, say)
    service: Service | None = None
    requests: tuple[Request, ...] = ()
    number: int | None = None
    if where is not None:
        write_folder(where, written.bundle)
        made = where
    else:
        batch, dynamic = batching.max_batch, batching.dynamic
        service = Service(name or "", backend, batch, dynamic, queue_delay, instances, versions)
        requests = warmup.requests(trial.interface, trial.warm, batch) if warm_up else ()
        labels, shared = _labels(source, trial.interface, batching)
        shared |= {f"{warmup.FOLDER}/{each.file}": each.data for request in requests for each in request.inputs}
        config = config_of(service, trial.interface, settings, requests, labels)
        place.check_config(config)
        number = place.add(config, shared, written.python if backend == PYTHON else written.plain)
        made = place.folder / str(number)
    return Deployed(
        None if source.path is None else str(source.path),
        made,
        trial.interface,
        settings,
        written.check,
        written.files,
        None if service is None else service.name,
        None if service is None else service.backend,
        number,
        None if service is None else batching,
        len(requests),
        (*notes, *written.notes),
        time.perf_counter() - start,
    )


def _check_usage(output: Path | None, root: Path | None, target: str, backend: str, level: str | None) -> None:
    if (output is None) == (root is None):
        raise UsageError("say where: --triton DIR for a repository of Triton, or -o DIR for a folder with a program")
    for what, value, known in (
        ("target", target, TARGETS), ("backend", backend, BACKENDS), ("level", level or "all", tuple(LEVELS))
    ):  # fmt: skip
        if value not in known:
            raise UsageError(f"unknown {what} '{value}'; choose from {', '.join(known)}")
    if root is not None and target == ORT:
        raise UsageError("Triton takes no models in ONNX Runtime's own format; use --target ort with -o DIR")


def _checked_name(name: str | None, source: Source) -> str:
    if name is None:
        if source.path is None:
            raise UsageError("a model without a path needs a name")
        name = source.path.name.removesuffix(".onnx").removesuffix(".folded")
    return checked_name(name)


def _foldable(model: ModelLike, source: Source) -> list[str]:
    """A note where a fold was forgotten."""
    if not Functions(source.proto).count(BATCHNORM):
        return []
    try:
        count = explain(model).batchnorm
    except BnfoldError:
        return []
    folds = count.before - count.after
    return [f"{folds} of {count.before} BatchNormalization would fold: run bnfold optimize first"] if folds else []


def _labels(source: Source, interface: Interface, batching: Batching) -> tuple[dict[str, str], dict[str, bytes]]:
    """The file of class names for the output that has their scores; and what is in it."""
    names = class_names(source.proto)
    output = classified(interface, len(names), batching.max_batch > 0) if names else None
    if output is None:
        return {}, {}
    content = "".join(f"{' '.join(each.split())}\n" for each in names).encode()
    file = f"labels-{sha256(content).hexdigest()[:8]}.txt"
    return {output.name: file}, {file: content}
