"""Is the optimized model the original? Noise against float64, and both on every asked provider.

`verifier` is the order of events; `choosing`, `runs` and `reference` say what runs, `noise` and `judging` what passes,
`result` what was found. `algebra`, `answers`, `parting` and `sensitivity` each ask one thing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnfold.equivalence.check import OutputCheck
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT, EQUIVALENT, NoiseCheck, RuntimeCheck, Verification
from bnfold.equivalence.settings import Progress, Settings
from bnfold.equivalence.verifier import Verifier
from bnfold.inputs import InputsLike
from bnfold.labels import LabelsLike
from bnfold.plan import Rewrite
from bnfold.source import ModelLike, read_sparing

__all__ = [
    "CERTIFIED_ONLY",
    "DIFFERENT",
    "EQUIVALENT",
    "NoiseCheck",
    "OutputCheck",
    "Progress",
    "RuntimeCheck",
    "Settings",
    "Verification",
    "verified",
    "verify",
]


def verify(
    original: ModelLike,
    optimized: ModelLike,
    *,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    inputs: InputsLike | None = None,
    preprocess: str | Mapping[str, Any] | None = None,
    labels: LabelsLike | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    samples: int = 2,
    seed: int = 0,
    tf32: bool = False,
    locate: bool = True,
    self_test: bool = False,
    ray: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare two models. Nothing that is found to differ raises: it is in the result. Neither model is modified.

    Args:
        original: path, bytes or ModelProto of the model that is right by definition.
        optimized: the model to judge.
        providers: "cuda", "tensorrt", "cpu"; each is a verification of its own. Default: the best one here.
        provider_options: options by provider name, passed on to ONNX Runtime.
        inputs: the user's own samples: a dict of arrays or several, an .npz, an .npy for a model with one input, the
            JSON of `polygraphy run --save-inputs`, or a folder of images.
        preprocess: how images become what the model reads (`bnfold.preprocess`); what the model's metadata say by
            default.
        labels: the class of each image or row of `inputs`, for the accuracy of both models (`bnfold.labels`).
        shapes: sizes by input name, where the model leaves them free.
        samples: how many random samples to make (at least one, unless `inputs` is given).
        seed: of the random samples.
        tf32: let NVIDIA's TF32 round float32 products to 10 bits.
        locate: where the two differ, look for the first tensor that does (`bnfold.equivalence.parting`).
        self_test: where the two agree, say how small a corruption of each kind of constant would have been seen
            (`bnfold.equivalence.sensitivity`).
        ray: the address of a Ray cluster whose nodes share the files: both models then run there on all of `inputs`,
            streamed through Ray Data.
        progress: called with a line of text as the work goes on.

    Raises:
        UsageError: shapes, inputs or labels that do not fit the model; an unknown provider.
        ModelError: a model that cannot be read, or runs on no size that was tried.
        ProviderError: a provider that is not available here, or silently fell back to another.
        ClusterError: Ray is not installed, or no cluster answers.
    """
    settings = Settings(
        providers=providers,
        provider_options=provider_options,
        inputs=inputs,
        preprocess=preprocess,
        labels=labels,
        shapes=shapes,
        samples=samples,
        seed=seed,
        tf32=tf32,
        locate=locate,
        self_test=self_test,
        ray=ray,
    )
    return verified(original, optimized, settings, progress)


def verified(
    original: ModelLike,
    optimized: ModelLike,
    settings: Settings,
    progress: Progress | None = None,
    fold: Rewrite | None = None,
) -> Verification:
    """As `verify`. `fold` is what `optimized` was made from: how tensors are stored, and the unrounded constants."""
    say = progress or (lambda text: None)
    return Verifier(read_sparing(original), read_sparing(optimized), settings, say, fold).verify()
