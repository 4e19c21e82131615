"""Why an affine node stays: refusals as data.

Every refusal has a stable code (part of the JSON surface), the node at fault, one sentence, and what would unlock it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CODES: dict[str, str] = {
    "training-mode": "the BatchNormalization normalises with batch statistics, which no constant can replace",
    "dynamic-parameters": "scale, bias, mean or variance are computed at run time",
    "overridable-parameter": "a parameter has a default value, which a caller or a training step may replace",
    "invalid-statistics": "var + epsilon is not positive, or a parameter is not finite",
    "unsupported-form": "the node has outputs, attributes or types that make it something else than an affine map",
    "unknown-shape": "the rank or the channel count of a tensor is not known",
    "changes-shape": "the constant enlarges the tensor, so that removing the node would change its shape",
    "part-of-operator": "the node is part of an operator that is written out, which runtimes compute as one",
    "graph-input": "the demand reached a graph input, whose meaning must stay",
    "graph-output": "the demand reached a graph output, whose values must stay",
    "captured": "the tensor is also read inside a subgraph",
    "annotated": "an annotation of quantization, devices or training names the tensor",
    "opaque-op": "the operator has no rule, or is not affine in the tensor that would change",
    "dynamic-weight": "the weights are computed at run time",
    "overridable-weight": "the weights have a default value, which a caller or a training step may replace",
    "padded-shift": "zero padding stands between the shift and the weights that would absorb it",
    "negative-scale": "the operator passes only positive scales",
    "shift-through-nonlinear": "the operator does not pass a shift",
    "shift-refused": "the node can absorb a scale, but not a shift",
    "not-uniform": "the operator mixes channels that would be stored differently",
    "lacks-axis": "an operand has no axis on which the demand varies",
    "zero-scale": "a channel with scale zero cannot be undone here",
    "conflict": "the tensor would have to be stored in two different ways",
    "row-axis": "the demand varies on an axis that the weights do not have",
    "would-only-move": "the addition would only move to another place",
    "quantized": "the tensor is quantized, and only some scales pass that",
    "out-of-range": "the new constants would overflow or lose digits in the type they are stored in",
    "precision-loss": "the tensor would be stored so far from zero that its readers lose too many of its digits",
    "inside-function": "the node is part of a model-local function that cannot be inlined",
    "kept-by-user": "--keep or --only asked for it",
    "search-limit": "more tensors would change, or more numbers would have to be worked out, than one fold may take",
    "verification-failed": "the fold did not pass verification and was dropped",
}
"""Every code, with the sentence that explains it in general."""


@dataclass(frozen=True)
class Reason:
    """One refusal: where a way to fold an affine ended, and what would open it."""

    code: str
    text: str
    at: str
    """Name of the node or tensor at fault."""
    unlock: str
    """What the user could change to make the fold possible, or "nothing", and why."""
    channels: tuple[int, ...] = ()
    """The channels at fault, at most the first eight, as they are counted where it ended."""
    values: tuple[float, ...] = ()
    """What is wrong in each of these channels, where it is a number: its scale, its shift, the bits that it loses."""
    because: tuple[str, ...] = ()
    """Affine nodes, at most four, but for whose folds this could have gone on."""

    def __post_init__(self) -> None:
        assert self.code in CODES and self.unlock, self
        assert len(self.values) in (0, len(self.channels)), self

    def on(self, channels: tuple[int, ...]) -> Reason:
        """This reason, of these channels where it names none itself."""
        return self if self.channels or not channels else replace(self, channels=channels)

    def behind(self, rivals: tuple[str, ...]) -> Reason:
        """This reason, where affines that left stand in the way."""
        if not rivals:
            return self
        instead = f"--keep {'it' if len(rivals) == 1 else 'them'}, so that another leaves instead"
        return replace(self, because=rivals, unlock=f"{self.unlock}, or {instead}")


def plural(count: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
