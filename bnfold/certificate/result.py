"""What a certificate says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Failure:
    """One thing that does not hold."""

    node: str
    """Label of the node at fault in the original; a tensor's name, or '' for the model, where there is none."""
    kind: str
    """'interface', 'boundary', 'wiring', 'constant' or 'node'."""
    text: str
    """One sentence."""
    error: float = 0.0
    """The largest error: of a constant in units in the last place, of a node relative to the sum of magnitudes."""

    def __str__(self) -> str:
        return f"{self.node}: {self.text}" if self.node else self.text

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {"node": self.node, "kind": self.kind, "text": self.text, "error": self.error}


@dataclass(frozen=True)
class Certificate:
    """Whether the optimized model was shown to compute what the original computes, node by node."""

    checked: int
    """Nodes that were tested: those that left, and those that touch a re-stored tensor or have a new constant."""
    constants: int
    """New constants, each compared with its exact value."""
    unchanged: int
    """Initializers that were compared with the original's, bit by bit."""
    failures: tuple[Failure, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.failures

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "ok": self.ok,
            "checked": self.checked,
            "constants": self.constants,
            "unchanged": self.unchanged,
            "failures": [failure.to_json() for failure in self.failures],
        }


class NotCertifiedError(Exception):
    """Ends the test of one node: it does something for which there is no check. Becomes a failure, never a pass."""


class WrongError(Exception):
    """Ends the test of one node: a constant, or the node itself, is not what it should be."""

    def __init__(self, kind: str, text: str, error: float = float("inf")) -> None:
        super().__init__(text)
        self.kind, self.error = kind, error


def require(error: NDArray[np.float64], limit: float, text: str) -> None:
    """Check that every element of `error` is within the limit; NaN never is.

    Raises:
        WrongError: it is not.
    """
    if not error.size or error.max() <= limit:
        return
    worst = float(np.max(np.where(np.isnan(error), np.inf, error), initial=0.0))
    if worst > limit:
        raise WrongError("node", text, worst)


def lost_alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where two results are NaN both, or the same infinity."""
    return np.asarray((np.isnan(one) & np.isnan(other)) | (np.isinf(one) & (one == other)))
