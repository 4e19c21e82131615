"""The model as it runs here: what goes in and comes out, on which samples, and whether requests may share a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold import inputs as own_inputs
from bnfold.deployment import checking
from bnfold.deployment.interface import Interface, interface_of
from bnfold.deployment.result import Batching
from bnfold.equivalence.choosing import affordable, choose_samples
from bnfold.errors import UsageError
from bnfold.inputs import InputsLike
from bnfold.malformed import deadly
from bnfold.oracle import Oracle
from bnfold.runtime import CannotRun, Session
from bnfold.samples import Feeds, input_specs
from bnfold.source import Source

MAX_BATCH = 8
"""Rows that a server may put together, unless asked otherwise."""

SAMPLES = 2


@dataclass(frozen=True)
class Trial:
    """The model as it runs here: its interface, a session on the CPU, samples for it. `own` is the user's first one.

    Where there is no session, `not_run` says why.
    """

    interface: Interface
    session: Session | None
    feeds: tuple[Feeds, ...]
    own: Feeds | None
    notes: tuple[str, ...]
    not_run: str = ""

    @property
    def warm(self) -> tuple[Feeds, ...]:
        """What instances run before they are ready: the user's own sample, else a random one."""
        return self.feeds[:1]


def attempt(
    source: Source,
    verify: bool,
    inputs: InputsLike | None,
    preprocess: str | Mapping[str, Any] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    seed: int,
) -> Trial:
    """Load the model on the CPU, and choose samples as a verification does.

    Raises:
        ModelError: an input or output is no tensor, or no size that was tried runs.
        UsageError: inputs or shapes that do not fit the model.
    """
    notes: list[str] = []
    interface_of(source.proto, {})  # what is no tensor is said at once
    trouble = deadly(source.proto) if verify else "as asked (--no-verify)"
    session, not_run = None, f"not run: {trouble}" if trouble else ""
    if not trouble:
        try:
            session = Session(source.runnable, optimize=False)
        except CannotRun as error:
            not_run = f"not run: {error}"
    interface = interface_of(source.proto, session.output_dims if session is not None else {})
    specs = input_specs(source.proto)
    own = None if inputs is None else own_inputs.load(inputs, specs, source.proto, preprocess)
    if inputs is None and preprocess is not None:
        raise UsageError("--preprocess is for your own inputs; give them with --inputs")
    oracle = Oracle(source)
    judged = [] if own is None else affordable(oracle, own)
    notes += [] if own is None else list(own.notes)
    feeds: tuple[Feeds, ...] = tuple(judged)
    if session is not None:
        try:
            count = max(SAMPLES - len(judged), 1)
            feeds = tuple(choose_samples(session, oracle, specs, shapes=shapes, own=judged, count=count, seed=seed))
        except UsageError as error:
            if shapes or any(tensor.type != "STRING" for tensor in interface.inputs):
                raise
            session, not_run = None, f"not run: {error}"
    return Trial(interface, session, feeds, judged[0] if judged else None, tuple(notes), not_run)


def batching_of(trial: Trial, asked: int | None, dynamic: bool) -> Batching:
    """Whether requests may share a run: by the model's shapes, and by what it computed here.

    Raises:
        UsageError: a number of rows was asked for, and they may not.
    """
    if asked == 0:
        return Batching(0, False, "not asked for")
    reason = trial.interface.cannot_batch()
    if reason is None and trial.session is not None and trial.feeds:
        reason = checking.mixes_rows(trial.interface, trial.session, trial.feeds[0])
    if reason is None:
        return Batching(asked or MAX_BATCH, dynamic)
    if asked is not None:
        raise UsageError(f"--max-batch {asked}: this model takes no batches: {reason}")
    return Batching(0, False, reason)
