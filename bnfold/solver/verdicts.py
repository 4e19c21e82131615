"""What became of the affines, and in which order they are tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from bnfold.graph import Node
from bnfold.plan import Plan
from bnfold.reasons import Reason
from bnfold.rules import Source
from bnfold.solver.search import Failure

URGENT = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
"""Affine operators, the most expensive at run time first."""


@dataclass(frozen=True)
class Outcome:
    """What became of one affine node."""

    node: Node
    folded: bool
    way: str = ""
    """pull, push or split; merge for one that became part of a merged node."""
    into: tuple[str, ...] = ()
    """Labels of the nodes whose constants took it up."""
    reasons: tuple[Reason, ...] = ()
    """Why it stays: one for each way, the most telling first."""
    note: str = ""
    """What the reader of the report must know of the fold."""


@dataclass
class Solution:
    """The plan, and the outcome for every affine node in graph order."""

    plan: Plan
    outcomes: list[Outcome]


@dataclass(frozen=True, eq=False)
class Stuck:
    """Why an affine stays for now."""

    failures: tuple[Failure, ...]
    """One for each way."""

    def reasons(self, rivals: frozenset[int], labels: tuple[str, ...]) -> tuple[Reason, ...]:
        """Without repetition, the most telling first: those that end at the folds of the rivals, of these labels."""
        behind = [failure for failure in self.failures if rivals and failure.blockers >= rivals]
        others = [failure for failure in self.failures if failure not in behind]
        reasons = [failure.reason.behind(labels[:RIVALS]) for failure in sorted(behind, key=_telling)]
        reasons += [failure.reason for failure in sorted(others, key=_telling)]
        found: dict[tuple[str, str], Reason] = {}
        for reason in reasons:
            found.setdefault((reason.code, reason.at), reason)
        return tuple(found.values())

    @cached_property
    def blockers(self) -> list[frozenset[int]]:
        """For each way that failed because of earlier folds: whose."""
        return [failure.blockers for failure in self.failures if failure.blockers]

    @cached_property
    def all_blockers(self) -> frozenset[int]:
        """Those of all ways."""
        return frozenset().union(*self.blockers)

    @cached_property
    def seen(self) -> frozenset[int]:
        """The nodes that led to the refusals: only a change at one of them can change the answer."""
        return frozenset().union(*(failure.chain for failure in self.failures))


@dataclass(eq=False)
class Verdicts:
    """What is known of every affine by now."""

    done: dict[int, Outcome] = field(default_factory=dict)
    stuck: dict[int, Stuck] = field(default_factory=dict)
    rivals: dict[int, frozenset[int]] = field(default_factory=dict)
    """By affine that stays: those that left, and without whose folds it could."""

    def copy(self) -> Verdicts:
        """A copy to go back to."""
        return Verdicts(dict(self.done), dict(self.stuck), dict(self.rivals))


def priority(source: Source) -> tuple[int, int, str]:
    """Which affine comes first: the most expensive operator, the largest tensor, then the first name."""
    node = source.node
    shape = node.graph.shape(node.outputs[0]) or ()
    elements = math.prod(dim for dim in shape if isinstance(dim, int))
    return URGENT.index(node.op), -elements, node.label


def matches(pattern: str, label: str) -> bool:
    """Whether a name or a glob is meant for a node of this label, which may hold brackets itself."""
    return pattern == label or fnmatchcase(label, pattern)


_NOISY = (
    "its fold passed the certificate, and makes more rounding noise than the original",
    "judge it on your own data with --inputs, or retrain or prune the channels whose gamma is almost zero",
)
_WRONG = "its fold did not pass verification", "nothing in the model: it is a bug, please report it"


def opted_out(node: Node, keep: tuple[str, ...], only: tuple[str, ...], drop: Mapping[str, bool]) -> Reason | None:
    """Why the user's wishes or an earlier verification keep a node."""
    if node.label in drop:
        text, unlock = _NOISY if drop[node.label] else _WRONG
        return Reason("verification-failed", text, node.label, unlock)
    if any(matches(pattern, node.label) for pattern in keep):
        return Reason("kept-by-user", "--keep names it", node.label, "remove --keep")
    if only and not any(matches(pattern, node.label) for pattern in only):
        return Reason("kept-by-user", "--only does not name it", node.label, "add it to --only")
    return None


RIVALS = 4
"""Affines that a reason names at most."""

_TELLING = (
    "overridable-weight",
    "precision-loss",
    "padded-shift",
    "negative-scale",
    "out-of-range",
    "conflict",
    "zero-scale",
)
_LAST = ("shift-through-nonlinear", "graph-input", "graph-output")
"""What most affines meet on one of their ways: what is in the other way says more."""

_RANKS = {code: rank for rank, code in enumerate((*_TELLING, "", *_LAST))}
"""By code; all others stand between the two."""


def _telling(failure: Failure) -> tuple[bool, int]:
    """Rank of a failure: that of the channels that no way serves, then the algebra, then what is met most often."""
    return not failure.partial, _RANKS.get(failure.reason.code, len(_TELLING))
