"""Why affines stay, in words: a line for each, or for each kind of reason where they are many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bnfold.reasons import CODES, Reason
from bnfold.results import Affine

SHOWN = 3
"""Channels that a line names without being asked for more."""


def one(affine: Affine) -> str:
    """The most telling reason why an affine stays."""
    return f"{affine.op}  {sentence(affine.reasons[0], affine.node)}"


def others(affine: Affine) -> Iterator[str]:
    """Where the other ways of an affine ended."""
    for reason in affine.reasons[1:]:
        yield f"also {sentence(reason, affine.node)}"


def groups(affines: Iterable[Affine]) -> list[list[Affine]]:
    """Affines that stay for one reason, the most first."""
    found: dict[object, list[Affine]] = {}
    for affine in affines:
        reason = affine.reasons[0]
        found.setdefault((affine.op, reason.code, reason.because), []).append(affine)
    return sorted(found.values(), key=lambda group: -len(group))


def group(affines: Sequence[Affine]) -> str:
    """One line for affines that stay for one reason; the one itself where it is alone."""
    first = affines[0]
    if len(affines) == 1:
        return f"{first.node}  {one(first)}"
    reasons = [affine.reasons[0] for affine in affines]
    places = {reason.at for reason in reasons}
    own = all(reason.at == affine.node for reason, affine in zip(reasons, affines, strict=True))
    where = "" if own else f" at {reasons[0].at}" if len(places) == 1 else f" at {len(places)} nodes"
    texts = {reason.text for reason in reasons}
    text = reasons[0].text if len(texts) == 1 else CODES[reasons[0].code]
    unlocks = {reason.unlock for reason in reasons}
    unlock = reasons[0].unlock if len(unlocks) == 1 else ""
    head = f"{len(affines)} {first.op}, from {first.node} to {affines[-1].node}"
    return f"{head}  {reasons[0].code}{where}: {text}{_because(reasons[0])}{_unlock(unlock)}"


def sentence(reason: Reason, node: str) -> str:
    """Why and where a way to fold this node ended, and what would open it."""
    where = f" at {reason.at}" if reason.at and reason.at != node else ""
    return f"{reason.code}{where}: {reason.text}{_channels(reason)}{_because(reason)}{_unlock(reason.unlock)}"


def _channels(reason: Reason) -> str:
    """The first channels at fault, with what is wrong in them."""
    shown = [str(channel) for channel in reason.channels[:SHOWN]]
    if reason.values:
        shown = [f"{channel}: {value:.3g}" for channel, value in zip(shown, reason.values, strict=False)]
    if not shown:
        return ""
    noun = "channels" if len(shown) > 1 and not reason.values else "channel"
    return f" ({noun} {', '.join(shown)}{', ...' if len(reason.channels) > SHOWN else ''})"


def _because(reason: Reason) -> str:
    return f", because {' and '.join(reason.because)} left" if reason.because else ""


def _unlock(unlock: str) -> str:
    return f"; to unlock: {unlock}" if unlock else ""
