"""Which samples a verification feeds: the user's own ones, and random ones of a size that the original runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bnfold import samples
from bnfold.errors import BnfoldError, ModelError
from bnfold.oracle import MAX_BYTES, MAX_MACS, Oracle
from bnfold.runtime import Session
from bnfold.samples import Feeds
from bnfold.source import Source

OWN = 4
"""How many of the user's samples are judged at most; labels use all of them."""

# A size is preferred whose whole verification fits into the oracle's limit for one run.
_AFFORDABLE = MAX_MACS / 8


def choose_samples(
    session: Session | None,
    oracle: Oracle,
    specs: Sequence[samples.InputSpec],
    *,
    shapes: Mapping[str, Sequence[int]] | None,
    own: Sequence[Feeds],
    count: int,
    seed: int,
) -> list[Feeds]:
    """`count` samples of the first sizes that the original runs on, behind the user's own ones where there are some.

    Raises `ModelError` where no size that was tried runs: the user must say one.
    """
    if own:
        shapes = {**(shapes or {}), **{name: array.shape for name, array in own[0].items()}}
    first = list(own)
    ranges = samples.integer_ranges(specs)
    fallback: list[Feeds] | None = None
    trouble = ""
    for candidate in samples.candidates(specs, shapes):
        for integers in ranges:
            made = [samples.make(specs, candidate, sample, seed, integers) for sample in range(count)]
            try:
                # Indices may be in range in one sample and not in the next.
                for sample in made if len(ranges) > 1 else made[:1] or first[:1]:
                    _try(session, oracle, sample)
            except BnfoldError as error:
                trouble = str(error)
                continue
            cost = oracle.cost(candidate)
            if cost.macs <= _AFFORDABLE and cost.live_bytes <= MAX_BYTES:
                return first + made
            fallback = fallback or first + made
            break
    if fallback is not None:
        return fallback
    free = [spec for spec in specs if spec.is_free]
    name = free[0].name if free else (specs[0].name if specs else "NAME")
    raise ModelError(
        f"the original runs on none of the input sizes tried ({trouble}); say one with --shape {name}=1x3x224x224, "
        "or give values with --inputs FILE.npz"
    )


def affordable(oracle: Oracle, own: Iterable[Feeds]) -> list[Feeds]:
    """The first of the user's samples, as many as are quickly evaluated in float64, and at least one."""
    found: list[Feeds] = []
    macs = 0.0
    for sample in own:
        macs += oracle.cost({name: array.shape for name, array in sample.items()}).macs
        if found and macs > _AFFORDABLE:
            break
        found.append(sample)
        if len(found) == OWN:
            break
    return found


def any_sample(original: Source, oracle: Oracle, seed: int) -> Feeds:
    """A sample that the float64 evaluator runs on. Raises as `choose_samples` and `samples.input_specs` do."""
    specs = samples.input_specs(original.proto)
    return choose_samples(None, oracle, specs, shapes=None, own=[], count=1, seed=seed)[0]


def _try(session: Session | None, oracle: Oracle, feeds: Feeds) -> None:
    if session is not None:
        session.run(feeds)
    else:
        oracle.run(feeds)
