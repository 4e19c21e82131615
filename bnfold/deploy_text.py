"""The result of a deployment as text for a person."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bnfold.equivalence.noise import K
from bnfold.lines import GOOD, LOUD, Line, fact, line
from bnfold.reasons import plural

if TYPE_CHECKING:  # the other commands, which use this report's module too, deploy nothing
    from bnfold.deployment import Deployed
    from bnfold.deployment.interface import Tensor


def deployed(result: Deployed) -> list[Line]:
    """What was written where, how a server runs it, and how it was checked."""
    title = line(f"{result.model or 'the model'} -> {result.output}")
    title.body.stylize("bold")
    lines = [title, fact("target", _target(result))]
    lines += [fact("input", _tensor(tensor)) for tensor in result.interface.inputs]
    lines += [fact("output", _tensor(tensor)) for tensor in result.interface.outputs]
    lines += _served(result)
    lines += [fact("files", ", ".join(result.files)), _checked(result)]
    lines += [fact("note", note, LOUD) for note in result.notes]
    return [*lines, fact("time", f"{result.seconds:.1f} s")]


def _target(result: Deployed) -> str:
    told = result.settings
    providers = ", ".join(name for name, _ in told.providers)
    backend = "" if result.backend is None else f", Triton's {result.backend} backend"
    return f"{told.target}{backend}: {providers}; optimisations {told.level}"


def _tensor(tensor: Tensor) -> str:
    dims = "?" if tensor.dims is None else ", ".join("?" if dim is None else str(dim) for dim in tensor.dims)
    return f"{tensor.name} {tensor.type} [{dims}]"


def _served(result: Deployed) -> Iterator[Line]:
    batching = result.batching
    if batching is None:
        return
    if not batching.max_batch:
        yield fact("batching", f"none: {batching.reason}")
    else:
        how = "requests put together" if batching.dynamic else "as the client sends them"
        yield fact("batching", f"up to {plural(batching.max_batch, 'row')}, {how}")
    yield fact("warm-up", plural(result.warm_up, "request") if result.warm_up else "none")


def _checked(result: Deployed) -> Line:
    check = result.check
    if check.status != "equivalent":
        return fact("checked", check.status, LOUD)
    how = "with these settings" if check.settings else "the file alone"
    what = f"{plural(check.samples, 'sample')} on {check.provider}, {how}"
    return fact("checked", f"{what}: {check.needed:.2g} times the model's own noise, {K:g} allowed", GOOD)
