"""The table at the end of a run over many models."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.documents import Failed, UpToDate
from bnfold.fleet.work import Done
from bnfold.lines import BAD, FAINT, Line, clean, line

NAME = 60
"""Characters of a name that are shown: its end, which tells models apart."""


def table(every: Sequence[Done]) -> list[Line]:
    """A row for each model: name, BatchNormalization before and after, status, seconds, why it failed; and a sum."""
    rows = [_row(done) for done in every]
    counts = [count for done in every if (count := _count(done)) is not None]
    before, after = (sum(count[side] for count in counts) for side in (0, 1))
    rows.append((f"{len(every)} models", f"{before} -> {after}", "", f"{sum(done.seconds for done in every):.1f}", ""))
    head = ("model", "BatchNormalization", "status", "seconds", "")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(4)]
    made = [line(), _line(head, widths, FAINT), *(_line(row, widths, BAD if row[4] else "") for row in rows[:-1])]
    return [*made, _line(rows[-1], widths, FAINT)]


def _line(row: tuple[str, ...], widths: Sequence[int], style: str) -> Line:
    name, counts, status, seconds, why = row
    head = f"  {name:<{widths[0]}}  {counts:<{widths[1]}}  {status:<{widths[2]}}  {seconds:>{widths[3]}}"
    return line(why, style, f"{head}  " if why else head)


def _row(done: Done) -> tuple[str, str, str, str, str]:
    name = clean(str(done.job.model))
    name = name if len(name) <= NAME else f"...{name[3 - NAME :]}"
    count, result = _count(done), done.result
    if isinstance(result, Failed):
        return name, "", "failed", f"{done.seconds:.1f}", result.message.splitlines()[0]
    status = "up to date" if isinstance(result, UpToDate) else result.status
    assert count is not None
    return name, f"{count[0]} -> {count[1]}", status, f"{done.seconds:.1f}", ""


def _count(done: Done) -> tuple[int, int] | None:
    if isinstance(done.result, Failed):
        return None
    if isinstance(done.result, UpToDate):
        return done.result.before, done.result.after
    return done.result.batchnorm.before, done.result.batchnorm.after
