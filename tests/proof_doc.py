"""The table of docs/proof.md, which layer sees which bug, measured; `python -m tests.proof_doc` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.seeded import LAYERS, Bug, measured
from tests.seeded_bugs import BUGS
from tests.zoo.tables import replaced

PAGE = Path(__file__).resolve().parent.parent / "docs" / "proof.md"


def page() -> str:
    """The whole page, with the table made anew."""
    return replaced(PAGE.read_text(encoding="utf-8"), "\n".join(_table()), "make proof")


def _table() -> Iterator[str]:
    proofs = {bug: measured(bug) for bug in BUGS}
    counts = [sum(layer in proof.seen for proof in proofs.values()) for layer in LAYERS]
    yield f"| bug | it changes | in | {' | '.join(LAYERS)} |"
    yield "|---" * (3 + len(LAYERS)) + "|"
    for bug, proof in proofs.items():
        marks = " | ".join("sees" if layer in proof.seen else "-" for layer in LAYERS)
        yield f"| {bug.name} | {bug.changes} | {_place(bug)} | {marks} |"
    yield f"| **seen, of {len(BUGS)}** | | | {' | '.join(f'**{count}**' for count in counts)} |"
    yield "\nWhere a layer sees nothing:\n"
    for bug in BUGS:
        if bug.blind:
            yield f"- *{bug.name}*: {bug.blind}."


def _place(bug: Bug) -> str:
    module, _, name = bug.where.partition(":")
    return f"`{module.removeprefix('bnfold.')}:{name}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
