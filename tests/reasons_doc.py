"""The page docs/reasons.md, made from the codes and their examples; `python -m tests.reasons_doc` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bnfold import stays
from bnfold.reasons import CODES
from tests.reason_examples import EXAMPLES, Example, told

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reasons.md"

HEAD = """\
# Why a node stays

Every BatchNormalization, and every Mul, Div, Add or Sub by constants, that `bnfold` leaves in a model has a line in the
report of `explain` and `optimize` that says why, and an entry in the [JSON](json.md). This page has every code that a
line may carry: what it means, a small model that gets it, the line, and what was done to that model so that the
node folds. A test makes the page anew and does each of these things.

How to read a line, here that of [`padded-shift`](#padded-shift):

- `bn  BatchNormalization` is the node that stays;
- `padded-shift at conv` is the code, and the node or tensor where the way to fold it ended. That may be far from the
  node: the scale and the shift of `bn` may leave it in both directions and travel until weights take them up;
- the channels behind the sentence are the first of those at fault, counted at that place, with what is wrong there: a
  scale, a shift, a variance, the bits that would be lost;
- `because other left` says that another node's fold is in the way: both wanted to re-store one tensor, each in its own
  way. bnfold keeps the plan that removes the most work; `--keep other` asks for the other plan;
- `to unlock` is what would open this way. Another obstacle may stand behind it.

A node has several ways to go, and the line tells the one that says most. `explain -v` lists the others.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for code in CODES for line in _section(code))])


def _section(code: str) -> Iterator[str]:
    yield f"## {code}\n"
    sentence = CODES[code]
    yield f"{sentence[0].upper()}{sentence[1:]}.\n"
    for example in EXAMPLES:
        if example.code == code:
            yield from _example(example)


def _example(example: Example) -> Iterator[str]:
    found = told(example)[example.node]
    yield f"```\n{example.drawing}\n"
    yield f"{example.node}  {found.op}  {stays.sentence(found.reasons[0], example.node)}\n```\n"
    yield f"It folds with this change: {example.unlocked}.\n" if example.unlocked else "Nothing unlocks it.\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
