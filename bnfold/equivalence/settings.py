"""What a verification is asked to do; `bnfold.verify` says what each setting means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from bnfold import inputs, labels
from bnfold.errors import UsageError
from bnfold.inputs import InputsLike, Own
from bnfold.kernels.base import Array
from bnfold.labels import LabelsLike
from bnfold.samples import InputSpec

Progress = Callable[[str], None]
"""Called with a line of text as the work goes on."""


@dataclass(frozen=True)
class Settings:
    """What both models are fed, where they run, and what else is looked for."""

    providers: Sequence[str] | None = None
    provider_options: Mapping[str, Mapping[str, str]] | None = None
    inputs: InputsLike | None = None
    preprocess: str | Mapping[str, Any] | None = None
    labels: LabelsLike | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    samples: int = 2
    seed: int = 0
    tf32: bool = False
    locate: bool = True
    self_test: bool = False
    ray: str | None = None
    few: bool = False
    """Only those of the user's inputs are run that are judged."""

    def session(self, provider: str) -> dict[str, Any]:
        """What a session on this provider is told."""
        options = (self.provider_options or {}).get(provider)
        return {"provider": provider, "tf32": self.tf32, "options": options}

    def own(self, specs: Sequence[InputSpec], model: onnx.ModelProto) -> tuple[Own | None, Array | None]:
        """The user's samples, and their labels. Raises as both `load` do, and for labels without inputs."""
        if self.inputs is None:
            given = [name for name in ("labels", "preprocess", "ray") if getattr(self, name) is not None]
            if given:
                raise UsageError(f"--{given[0]} is for your own inputs; give them with --inputs")
            return None, None
        own = inputs.load(
            self.inputs, specs, model, self.preprocess, by_row=self.labels is not None or self.ray is not None
        )
        return own, None if self.labels is None else labels.load(self.labels, own, model)
