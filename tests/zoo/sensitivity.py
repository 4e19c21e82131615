"""Corrupt one channel of one constant by 1e-3 in every folded model of a folder: does a verification see it?

    python -m tests.zoo.sensitivity MODELS [--only REGEX]... [--seconds N] [--write]

Each model is folded as `bnfold optimize` does. Of every kind of constant (`Conv.W`) the first, the middle and the last
one are corrupted; each in its channel of middle size and, where that is not seen, in the largest and the smallest. The
float64 part of the verification is asked first, and all of `bnfold.verify` where that sees nothing. What is measured
is kept in build/zoo/sensitivity.json, and --write puts the table into docs/proof.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import bnfold
from bnfold import samples
from bnfold.equivalence.check import deviation
from bnfold.equivalence.choosing import choose_samples
from bnfold.equivalence.noise import Evidence, K, judge
from bnfold.equivalence.reference import Reference, float64_reference
from bnfold.equivalence.sensitivity import Constant, constants_by_kind
from bnfold.errors import BnfoldError, ModelError
from bnfold.kernels.base import Array, is_float_type, unit_roundoff
from bnfold.oracle import Oracle
from bnfold.runtime import Session
from bnfold.samples import Feeds
from bnfold.source import Source, read
from tests.zoo import tables

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "zoo" / "sensitivity.json"

MAKER = "python -m tests.zoo.sensitivity"

WEIGHTS = frozenset({"Conv.W", "ConvTranspose.W", "Gemm.A", "Gemm.B", "MatMul.A", "MatMul.B"})

WELL = 1e-5
"""Noise below which a network is well-conditioned."""

AMOUNT = 1e-3
"""Of one channel."""

PER_KIND = 3
"""Constants of each kind: the first, the middle, the last."""


@dataclass(frozen=True)
class Try:
    """One channel of one constant was wrong by `AMOUNT`.

    `moved` is what that did to the outputs in float64 (the output that shows it most, norm, relative), `times` how many
    times what storing the weights does; `needed` is the K that the float64 part would have had to allow; `seen_by` is
    "float64", "verify" or "".
    """

    kind: str
    tensor: str
    channel: int
    moved: float
    times: float
    needed: float
    seen_by: str

    @property
    def stored(self) -> float:
        """What storing the weights does to that output."""
        return self.moved / self.times if 0 < self.times < np.inf else 0.0


@dataclass(frozen=True)
class Row:
    """One model. `error` is the original's float32 error (norm, relative; the largest of its outputs)."""

    name: str
    error: float
    tries: tuple[Try, ...]
    seconds: float
    problem: str = ""

    @property
    def noise(self) -> float:
        """Of the original alone: its error, or what rounding its weights once more does, whichever is larger."""
        return max([self.error, *(one.stored for one in self.tries)])


def measure(name: str, path: Path) -> Row:
    """Fold a model and corrupt it."""
    start = time.perf_counter()
    try:
        original = read(onnx.load(path))
        proto = bnfold.optimize(original.proto, verify=False).proto
        assert proto is not None
        error, tries = _corrupt(original, read(proto))
    except BnfoldError as trouble:
        return Row(name, 0.0, (), time.perf_counter() - start, str(trouble))
    return Row(name, error, tries, time.perf_counter() - start)


def _corrupt(original: Source, folded: Source) -> tuple[float, tuple[Try, ...]]:
    oracle = Oracle(original.proto)
    session = Session(original.runnable, optimize=False)
    specs = samples.input_specs(original.proto)
    feeds = choose_samples(session, oracle, specs, shapes=None, own=[], count=1, seed=0)
    reference = float64_reference(oracle, feeds, 0, lambda text: None)
    truth, before = reference.truth[0], session.run(feeds[0])
    error = max(_norm(before[name], value, value) for name, value in truth.items() if is_float_type(value.dtype))
    right = Oracle(folded.proto).run(feeds[0])
    tries: list[Try] = []
    for kind, constants in sorted(constants_by_kind(folded.proto).items()):
        chosen = sorted({0, len(constants) // 2, len(constants) - 1})[:PER_KIND]
        for constant in (constants[index] for index in chosen):
            tries += _channels(kind, constant, original, folded, feeds, reference, right)
    return error, tuple(tries)


def _channels(
    kind: str,
    constant: Constant,
    original: Source,
    folded: Source,
    feeds: Sequence[Feeds],
    reference: Reference,
    right: dict[str, Array],
) -> Iterator[Try]:
    """Channels of one constant, until one is seen; none where the corruption changes shapes (a Resize)."""
    values = constant.values(None)
    for channel in constant.channels(values):
        with constant.corrupted(values, channel, AMOUNT):
            try:
                after = Oracle(folded.proto).run(feeds[0])
            except ModelError:
                return
            needed = _needed(reference, after)
            by = "float64" if needed > K else ""
            if not by and not bnfold.verify(original.proto, folded.proto, samples=1, locate=False).passed:
                by = "verify"
        moved, times = _moved(reference, right, after)
        yield Try(kind, constant.name, channel, moved, times, needed, by)
        if by:
            return


def _needed(reference: Reference, after: dict[str, Array]) -> float:
    """How many times the noise of storing its weights the stored model is off, as a verification judges it."""
    unit = unit_roundoff(np.dtype(np.float32))
    noisy = reference.stored[0]
    return max(
        judge(Evidence(name, 0, value, value, after[name], [run[name] for run in noisy], unit=unit)).k_needed
        for name, value in reference.truth[0].items()
    )


def _moved(reference: Reference, right: dict[str, Array], wrong: dict[str, Array]) -> tuple[float, float]:
    """How far the corruption moves the outputs: relative, and in times of what storing the weights does."""
    found = [(0.0, 0.0)]
    for name, truth in reference.truth[0].items():
        if is_float_type(truth.dtype) and truth.shape == wrong[name].shape and truth.size:
            moved = _norm(wrong[name], right[name], truth)
            stored = max((_norm(run[name], truth, truth) for run in reference.stored[0]), default=0.0)
            found.append((moved, moved / stored if stored else np.inf if moved else 0.0))
    return max(found, key=lambda pair: pair[1])


def _norm(run: Any, truth: Array, reference: Array) -> float:
    """NaN counts as nothing."""
    value = deviation(np.asarray(run).astype(np.float64), truth, reference).norm
    return value if np.isfinite(value) else 0.0


def load() -> dict[str, Row]:
    """What was measured, by name."""
    if not KEPT.exists():
        return {}
    rows = [Row(**{**row, "tries": tuple(Try(**one) for one in row["tries"])}) for row in json.loads(KEPT.read_text())]
    return {row.name: row for row in rows}


def save(rows: dict[str, Row]) -> None:
    """Keep it."""
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps([asdict(rows[name]) for name in sorted(rows)], indent=1) + "\n")


def line(row: Row) -> str:
    """For the terminal."""
    blind = [f"{one.kind}[{one.channel}] moved {one.moved:.1e}" for one in row.tries if not one.seen_by]
    return f"{row.name}: noise {row.noise:.1e}, {len(row.tries)} tries, {row.seconds:.0f} s {row.problem} {blind}"


def constants(row: Row) -> dict[str, list[Try]]:
    """By constant: the channels that were tried."""
    found: dict[str, list[Try]] = {}
    for one in row.tries:
        found.setdefault(f"{one.kind} {one.tensor}", []).append(one)
    return found


def table(rows: Sequence[Row]) -> str:
    """Every model, and what all of them say together."""
    measured = [row for row in rows if row.tries]
    head = ("model", "noise", "weights", "seen from", "others", "seen from", "not seen: moved at most")
    return f"{summary(measured)}\n\n{tables.table(head, [_cells(row) for row in measured])}"


def _cells(row: Row) -> list[str]:
    groups: tuple[list[list[Try]], list[list[Try]]] = [], []
    for tries in constants(row).values():
        groups[tries[0].kind not in WEIGHTS].append(tries)
    cells = [row.name, f"{row.noise:.1e}"]
    for group in groups:
        seen = [smallest for tries in group if (smallest := _smallest(tries)) is not None]
        cells += [f"{len(seen)} of {len(group)}" if group else "", f"{max(seen):.0e}" if seen else ""]
    unseen = [one for tries in constants(row).values() if _smallest(tries) is None for one in tries]
    worst = max(unseen, key=lambda one: one.moved, default=None)
    return [*cells, "" if worst is None else f"{worst.moved:.1e} ({worst.kind})"]


def _smallest(tries: Sequence[Try]) -> float | None:
    """The corruption from which on a constant is seen: the error grows with it in proportion. None where it is not."""
    return next((min(AMOUNT, AMOUNT * K / one.needed) if one.needed else AMOUNT for one in tries if one.seen_by), None)


def summary(rows: Sequence[Row]) -> str:
    """Of single channels in well-conditioned networks, by how far they move the output."""
    sound = [row for row in rows if row.noise < WELL]
    every = [(row, one) for row in sound for one in row.tries]
    lines = []
    for name, low, high in (("more than 8 times", K, np.inf), ("1 to 8 times", 1.0, K), ("less than", 0.0, 1.0)):
        seen = [bool(one.seen_by) for row, one in every if low * row.noise <= one.moved < high * row.noise]
        lines.append([f"{name} the noise", str(len(seen)), str(sum(seen))])
    weights = [(row, tries) for row in sound for tries in constants(row).values() if tries[0].kind in WEIGHTS]
    hidden = [(row, tries) for row, tries in weights if _smallest(tries) is None]
    furthest = max((one.moved / row.noise for row, tries in hidden for one in tries), default=0.0)
    blind = [row.name for row in sound if not any(one.seen_by for one in row.tries if one.kind in WEIGHTS)]
    told = (
        f"{len(rows)} models, {len(sound)} of them well-conditioned. In these {len(weights) - len(hidden)} of "
        f"{len(weights)} weights are seen in one of the channels that were tried; the others move the output by "
        f"{furthest:.1f} times the noise at most. No weight is seen in {', '.join(blind) or 'none'}. By channel:"
    )
    head = ("in float64 the corruption moves the output by", "channels tried", "seen")
    return f"{told}\n\n{tables.table(head, lines)}"


def main() -> int:
    """Measure what was not measured yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="REGEX", help="in this order; default: all")
    parser.add_argument("--seconds", type=float, default=np.inf, help="start no further model after this time")
    parser.add_argument("--write", action="store_true", help="put the table into docs/proof.md")
    options = parser.parse_args()
    paths = sorted(options.models.glob("*.onnx"))
    wanted = [path for pattern in options.only or [""] for path in paths if re.search(pattern, path.stem)]
    rows, start = load(), time.perf_counter()
    for path in dict.fromkeys(wanted):
        known = path.stem in rows and not rows[path.stem].problem
        if known or time.perf_counter() - start > options.seconds:
            continue
        rows[path.stem] = measure(path.stem, path)
        save(rows)
        print(line(rows[path.stem]), file=sys.stderr, flush=True)
    found = table([rows[path.stem] for path in sorted(set(wanted)) if path.stem in rows])
    print(found)
    if options.write:
        tables.replace(ROOT / "docs" / "proof.md", found, MAKER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
