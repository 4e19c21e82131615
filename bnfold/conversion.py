"""A fold in a smaller float type: converted by `bnfold.precision`, certified, and compared with what the type allows.

What it is allowed is the noise of the original converted by the same converter under the same rules: folding must not
make it worse. The original as it was given says what is right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bnfold.attempt import Clock, Proof, certificate_of, runnable
from bnfold.benchmark import BenchRow, bench
from bnfold.equivalence import EQUIVALENT, Progress, Settings, Verification
from bnfold.equivalence.verifier import Verifier, sampled
from bnfold.errors import BnfoldError, ModelError, ProviderError
from bnfold.graph import Model
from bnfold.oracle import Oracle
from bnfold.patch import Patched, patch, witness_of
from bnfold.plan import Plan, Rewrite
from bnfold.precision import LONG, Converted, Wanted, converted, peaks
from bnfold.precision.types import roundoff
from bnfold.samples import Feeds
from bnfold.source import ModelLike, Source, read_sparing
from bnfold.stage import Destination, staged
from bnfold.write import unwritten, write

MEASURED = 1.0
"""Seconds on every provider, to say whether the smaller type is quicker; making sessions may take as long again."""


@dataclass
class Converter:
    """Converts folds of one model, and proves them.

    Args:
        given: the model as given.
        wanted: the type, and what stays in float32.
        settings: of the verification; None where nothing is to run.
        where: where the result goes, whose folder has room for what is compared with it; None to stay in memory.
        clock, say: told what goes on.
    """

    given: Model
    wanted: Wanted
    settings: Settings | None
    where: Destination | None
    clock: Clock
    say: Progress

    @cached_property
    def _feeds(self) -> list[Feeds] | str:
        """What is run, or why nothing is."""
        if self.settings is None:
            return "nothing was run (--no-verify)"
        try:
            return sampled(self._truth, self.settings, self.say)
        except ProviderError:
            raise
        except BnfoldError as error:
            return str(error)

    @property
    def _truth(self) -> Source:
        source = self.given.source
        return read_sparing(source.path if source.path is not None else source.proto)

    def convert(self, rewrite: Rewrite) -> Converted:
        """The folded model in the smaller type; what overflows on the samples stays in float32.

        Raises:
            ModelError: nothing of it can be converted.
        """
        made = self._converted(rewrite)
        if not made.nodes:
            raise ModelError(self._nothing(made, rewrite.model.source))
        return made

    def _converted(self, rewrite: Rewrite) -> Converted:
        self.say(f"converting to {LONG[self.wanted.type]}")
        source = rewrite.model.source
        patched = patch(rewrite.model, rewrite.plan)
        reached, trouble = self._reached(patched, source)
        made = converted(patched, source, replace(self.wanted, peaks=reached))
        self.clock.lap("convert")
        if trouble:
            text = f"whether tensors overflow in {LONG[self.wanted.type]} was not looked for: {trouble}"
            made.warnings = (*made.warnings, text)
        return made

    def _nothing(self, made: Converted, source: Source) -> str:
        """What to say where all stays in float32."""
        name = LONG[self.wanted.type]
        if not made.kept:
            return f"{source.label} has no float32 to convert to {name}; leave --precision out"
        first, hint = made.kept[0], "".join(f"\n{warning}" for warning in made.warnings[-1:])
        return f"{source.label}: nothing of it can be converted to {name}: {first.node} stays, {first.reason}{hint}"

    def _reached(self, patched: Patched, source: Source) -> tuple[dict[str, float], str]:
        """The largest magnitude of each tensor on the samples, and why that is not known."""
        if isinstance(self._feeds, str):
            return {}, self._feeds
        self.say("looking for what overflows")
        source = replace(source, proto=patched.proto, raw=None)
        oracle = Oracle(source, constants=unwritten(patched))
        found: dict[str, float] = {}
        graph = Model(source).main
        try:
            for feeds in self._feeds:
                own = peaks(graph, lambda watch, feeds=feeds: oracle.run(feeds, watch=watch))  # type: ignore[misc]
                own |= {name: float(abs(array).max()) for name, array in feeds.items() if array.size}
                found = {name: max(peak, found.get(name, 0.0)) for name, peak in own.items()}
        except BnfoldError as error:
            return found, str(error)
        return found, ""

    def prove(self, made: Converted, optimized: ModelLike, base_dir: Path | None, rewrite: Rewrite) -> Proof:
        """The certificate of the result, and its noise beside that of the original in the same type."""
        self.say("certifying the conversion")
        witness = replace(witness_of(rewrite), narrowed=made.witness)
        certificate = certificate_of(self.given, optimized, base_dir, witness)
        self.clock.lap("certify")
        if self.settings is None or not certificate.ok:
            return Proof(certificate, None)
        with self._unfolded(rewrite, optimized) as original:
            verifier = Verifier(
                read_sparing(original),
                read_sparing(optimized),
                self.settings,
                self.say,
                truth=self._truth,
                unit=roundoff(self.wanted.type),
                witness=witness_of(rewrite),
            )
            found = verifier.verify()
        self.clock.lap("verify")
        return Proof(certificate, found, speed=self._speed(optimized, found))

    def _speed(self, optimized: ModelLike, found: Verification) -> tuple[BenchRow, ...]:
        """The original and the result in turns, wherever both ran and are the same; of inputs given, on the first."""
        if self.settings is None or found.status != EQUIVALENT or not found.runtime or isinstance(self._feeds, str):
            return ()
        given = {name: array.shape for name, array in self._feeds[0].items()}
        self.say("measuring the speed")
        try:
            measured = bench(
                self._truth.path or self._truth.proto,
                optimized,
                providers=[check.provider for check in found.runtime],
                provider_options=self.settings.provider_options,
                shapes=self.settings.shapes if self.settings.inputs is None else given,
                seconds=MEASURED,
                seed=self.settings.seed,
                tf32=self.settings.tf32,
                memory=False,
            )
        except BnfoldError as error:
            self.say(f"the speed was not measured: {error}")
            return ()
        finally:
            self.clock.lap("measure")
        return measured.rows

    @contextlib.contextmanager
    def _unfolded(self, rewrite: Rewrite, optimized: ModelLike) -> Iterator[ModelLike]:
        """The original in the smaller type: what is compared with."""
        if rewrite.is_empty:
            yield optimized
            return
        self.say(f"the original in {LONG[self.wanted.type]}")
        plain = Rewrite(rewrite.original, rewrite.original, Plan([]), calls=rewrite.calls)
        made = self._converted(plain)
        if self.where is not None:
            with staged(self.where) as stage:
                write(plain, stage, made.patched)
                yield stage.path
            return
        with runnable(plain, made.patched) as (_, model):
            yield model
