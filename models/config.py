"""One dataclass holds everything that decides a run, and the paper's recipes are its named values (section 4.2).

Not given in the paper, so chosen here: momentum 0.9, the L2 weight, the decay rate, eps 1e-5, moving-average rate 0.1.
The paper's rates (0.0015 times 1, 5, 30) belong to ImageNet at 224 px; `BASE_RATE` is the plain small net's best one
of the grid in docs/training.md, and the *ratios* are the paper's.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

PAPER_RATE = 0.0015
BASE_RATE = 0.01


@dataclass(frozen=True)
class Config:
    """A training run; the comments say what each field may hold."""

    name: str = "bn-baseline"
    # the network
    model: str = "inception"  # inception | mlp | preact | repvgg
    norm: str = "torch"  # torch (fused) | paper (models.bn) | none
    nonlinearity: str = "relu"  # relu | sigmoid
    variant: str = "tf-slim"  # tf-slim | paper-literal
    stem: str = "separable"  # separable | dense
    stem_stride: int = 4  # 8 for 224 px
    width: float = 0.25
    lrn: bool = False
    dropout: float = 0.0
    init: str = "he"  # he | default
    init_scale: float = 1.0
    init_std: float = 0.01  # of the MLP
    per_activation: bool = False  # batch normalisation per activation in module 5b
    # the data
    data: str = "fashion"  # fashion | mnist | a directory (IDX files, or an ImageNet folder)
    size: int = 28  # input size of an ImageNet folder; IDX data have their own
    augment: bool = False
    # the optimisation
    seed: int = 0
    steps: int = 3000
    batch: int = 32  # per process
    lr: float = BASE_RATE
    momentum: float = 0.9
    l2: float = 1e-4  # on weights, not on biases, gamma or beta
    decay: float = 0.5  # the rate at step t is lr * exp(-decay * t / steps)
    population_batches: int = 200  # Algorithm 2 at the end; 0 keeps the moving averages
    # the run
    eval_every: int = 100
    eval_batches: int = 0  # evaluate with Algorithm 2 over the last so many mini-batches; 0: with the moving averages
    checkpoint_every: int = 500
    device: str = "cpu"
    amp: str = "off"  # off | bf16 | fp16
    channels_last: bool = True
    compile: bool = False
    threads: int = 1
    tensorboard: bool = False

    def with_(self, **changes: Any) -> "Config":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """What the checkpoint and the model card hold."""
        return asdict(self)


_BASELINE = Config()
# BN-x5 and above: no dropout, L2 divided by 5, decay 6 times faster, no LRN, full shuffling (section 4.2.1).
_FAST = _BASELINE.with_(l2=_BASELINE.l2 / 5, decay=_BASELINE.decay * 6)
_PLAIN = _BASELINE.with_(norm="none", lrn=True, dropout=0.4)

RECIPES: dict[str, Config] = {
    c.name: c
    for c in (
        _PLAIN.with_(name="inception"),
        _PLAIN.with_(name="inception-tuned", decay=3.0),
        _PLAIN.with_(name="inception-default-init", init="default"),
        _PLAIN.with_(name="inception-x5", lr=5 * BASE_RATE),
        _PLAIN.with_(name="inception-paper-rate", lr=PAPER_RATE),
        _PLAIN.with_(name="inception-sigmoid", nonlinearity="sigmoid"),
        _BASELINE.with_(dropout=0.4, lrn=True),  # the same as Inception, with BN before each nonlinearity
        _FAST.with_(name="bn-x5", lr=5 * BASE_RATE),
        _FAST.with_(name="bn-x30", lr=30 * BASE_RATE),
        _FAST.with_(name="bn-tuned", lr=0.015, decay=0.5),
        _FAST.with_(name="bn-x5-sigmoid", lr=5 * BASE_RATE, nonlinearity="sigmoid"),
        # Section 4.1. No momentum, no decay: the paper names neither.
        Config("mnist-mlp", model="mlp", data="mnist", steps=50_000, batch=60, lr=0.1, momentum=0.0, l2=0.0, decay=0.0,
               eval_every=500, checkpoint_every=10_000),
        # For docs/quantisation.md: networks that are none of the paper's.
        *(Config(name, model=name, steps=5000, batch=64, lr=0.1, l2=1e-4, decay=4.0, augment=True, eval_every=1000)
          for name in ("preact", "repvgg")),
        # What --data DIR uses: 224 px, width 1, the paper's rates. Written for ImageNet, never run on it here.
        _FAST.with_(name="imagenet-bn-x5", width=1.0, stem_stride=8, size=224, lr=5 * PAPER_RATE, augment=True,
                    data="imagenet", steps=5_000_000, eval_every=10_000, checkpoint_every=10_000),
    )
}  # fmt: skip


def command(config: Config) -> str:
    """The command line of `models.train` for a configuration: its recipe, and where it departs from it."""
    recipe, words = RECIPES[config.name].as_dict(), [config.name]
    for key, value in config.as_dict().items():
        option = key.replace("_", "-")
        if value != recipe[key]:
            words.append(
                f"--{option}" if value is True else f"--no-{option}" if value is False else f"--{option} {value}"
            )
    return " ".join(words)
