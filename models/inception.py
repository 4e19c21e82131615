"""BN-Inception (Figure 5), with and without its batch normalisation.

The printed table contradicts itself: in 4c and 4d the four branches sum to 608 channels where the column "output size"
says 576. `variant="tf-slim"` (the default) projects the pool to 96 there, as tf-slim and the ONNX model zoo do, so that
every printed output size agrees; `variant="paper-literal"` keeps the printed 128, giving 608 / 608 / 1056.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models.bn import PaperBatchNorm, PerActivationNorm

VARIANTS = ("tf-slim", "paper-literal")


@dataclass(frozen=True)
class Row:
    """One module of Figure 5. one = 0 marks stride 2: no 1x1 branch, and the max pool passes through unprojected."""

    name: str
    one: int
    reduce: int
    three: int
    double_reduce: int
    double: int
    pool: str
    project: int

    @property
    def stride(self) -> int:
        """On the 3x3, on the second double 3x3 and on the pool."""
        return 1 if self.one else 2

    def output(self, channels: int) -> int:
        """The output channels for this many input channels."""
        return self.one + self.three + self.double + (self.project or channels)


TABLE = (
    Row("3a", 64, 64, 64, 64, 96, "avg", 32),
    Row("3b", 64, 64, 96, 64, 96, "avg", 64),
    Row("3c", 0, 128, 160, 64, 96, "max", 0),
    Row("4a", 224, 64, 96, 96, 128, "avg", 128),
    Row("4b", 192, 96, 128, 96, 128, "avg", 128),
    Row("4c", 160, 128, 160, 128, 160, "avg", 128),
    Row("4d", 96, 128, 192, 160, 192, "avg", 128),
    Row("4e", 0, 128, 192, 192, 256, "max", 0),
    Row("5a", 352, 192, 320, 160, 224, "avg", 128),
    Row("5b", 352, 192, 320, 192, 224, "max", 128),
)


def rows(variant: str, width: float = 1.0) -> list[Row]:
    """The table of a variant, each printed width times `width`, rounded, at least 1."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    literal = variant == "paper-literal"
    scale = partial(scaled, width=width)
    return [
        Row(
            r.name, scale(r.one), scale(r.reduce), scale(r.three), scale(r.double_reduce), scale(r.double), r.pool,
            scale(96 if r.name in ("4c", "4d") and not literal else r.project),
        )
        for r in TABLE
    ]  # fmt: skip


def scaled(channels: int, width: float) -> int:
    """A printed width under the width multiplier; an absent branch stays absent."""
    return max(1, int(channels * width + 0.5)) if channels else 0


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of stride 1: over channels last it is one matrix product of all positions.

    In training a small one goes to the matrix product directly, which spares what oneDNN's convolution does to the
    weights on each call: 1.3 to 1.9 times faster forward and backward. Large ones, and inference, are left to oneDNN.
    """

    SMALL = 2**23  # multiply-adds

    def forward(self, input: Tensor) -> Tensor:
        """(N, cin, H, W) to (N, cout, H, W)."""
        small = input.numel() * self.out_channels < self.SMALL
        if not (self.training and small and input.is_contiguous(memory_format=torch.channels_last)):
            return super().forward(input)
        last = nn.functional.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return last.permute(0, 3, 1, 2)


Unit = Callable[..., nn.Module]


class ConvUnit(nn.Sequential):
    """g(BN(W u)), or g(W u + b) without BN: a batch normalised layer has no bias, beta plays its part (section 3.2).

    `multiplier` > 0: separable, a depthwise kernel of that depth multiplier, then 1x1, nothing between.
    `activations` > 0: normalise per activation, over maps of that many positions, instead of per map.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int = 1, stride: int = 1,
        *, norm: str = "torch", nonlinearity: str = "relu", multiplier: int = 0, activations: int = 0,
    ) -> None:  # fmt: skip
        bias, padding = norm == "none", kernel // 2
        layers: list[nn.Module]
        if multiplier:
            deep = cin * multiplier
            layers = [
                nn.Conv2d(cin, deep, kernel, stride, padding, groups=cin, bias=False),
                Pointwise(deep, cout, 1, bias=bias),
            ]
        elif kernel == 1:
            layers = [Pointwise(cin, cout, 1, bias=bias)]
        else:
            layers = [nn.Conv2d(cin, cout, kernel, stride, padding, bias=bias)]
        if norm != "none":
            layers.append(_norm(norm, cout, activations))
        super().__init__(*layers, nn.Sigmoid() if nonlinearity == "sigmoid" else nn.ReLU(inplace=True))


def _norm(norm: str, channels: int, activations: int) -> nn.Module:
    if activations:
        size = channels * activations
        return PerActivationNorm(nn.BatchNorm1d(size) if norm == "torch" else PaperBatchNorm(size))
    return nn.BatchNorm2d(channels) if norm == "torch" else PaperBatchNorm(channels)


class Module(nn.Module):
    """One Inception module: 1x1, 3x3, double 3x3 and pool branches, concatenated on the channels."""

    def __init__(self, cin: int, row: Row, unit: Unit) -> None:
        super().__init__()
        stride = row.stride
        self.one = unit(cin, row.one) if row.one else None
        self.three = nn.Sequential(unit(cin, row.reduce), unit(row.reduce, row.three, 3, stride))
        self.double_three = nn.Sequential(
            unit(cin, row.double_reduce),
            unit(row.double_reduce, row.double, 3),
            unit(row.double, row.double, 3, stride),
        )
        pool = nn.MaxPool2d(3, stride, 1) if row.pool == "max" else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        self.pool = nn.Sequential(pool, unit(cin, row.project)) if row.project else pool

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) to (N, row.output(cin), H / stride, W / stride), rounded up."""
        branches = [self.three(x), self.double_three(x), self.pool(x)]
        return torch.cat(branches if self.one is None else [self.one(x), *branches], 1)


class Inception(nn.Module):
    """Figure 5: (N, channels, S, S) -> (N, classes) logits.

    norm          "torch" (fused), "paper" (models.bn) or "none"; with "none" every convolution has a bias
    stem          "separable" (7x7 with depth multiplier 8, as in the paper) or "dense"
    stem_stride   8 as printed, for 224 px; 4, 2 or 1 leave out its later strides, for 28 to 64 px
    lrn, dropout  local response normalisation behind the stem's stages and dropout before the classifier: the plain
                  Inception has both (0.4), the batch normalised ones neither
    init          "he": Gaussian with std init_scale * sqrt(2 / fan_in); "default": what torch.nn does
    per_activation_size  > 0: the input size, and module 5b normalises per activation
    """

    def __init__(
        self, classes: int = 1000, channels: int = 3, *, width: float = 1.0, variant: str = "tf-slim",
        norm: str = "torch", nonlinearity: str = "relu", stem: str = "separable", stem_stride: int = 8,
        lrn: bool = False, dropout: float = 0.0, init: str = "he", init_scale: float = 1.0,
        per_activation_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if stem_stride not in (1, 2, 4, 8):
            raise ValueError(f"stem_stride {stem_stride}: choose 1, 2, 4 or 8")
        unit: Unit = partial(ConvUnit, norm=norm, nonlinearity=nonlinearity)
        response = nn.LocalResponseNorm(5) if lrn else nn.Identity()
        first, reduce, second = (scaled(c, width) for c in (64, 64, 192))
        self.stem = nn.Sequential(
            unit(channels, first, 7, 2 if stem_stride >= 2 else 1, multiplier=8 if stem == "separable" else 0),
            nn.MaxPool2d(3, 2, 1) if stem_stride >= 4 else nn.Identity(),
            response,
            unit(first, reduce),
            unit(reduce, second, 3),
            response,
            nn.MaxPool2d(3, 2, 1) if stem_stride >= 8 else nn.Identity(),
        )
        self.blocks = nn.Sequential()
        cin = second
        for row in rows(variant, width):
            last = row.name == "5b" and per_activation_size
            side = -(-per_activation_size // (4 * stem_stride))
            self.blocks.add_module(row.name, Module(cin, row, partial(unit, activations=side**2) if last else unit))
            cin = row.output(cin)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(cin, classes)
        if init == "he":
            self._he(init_scale)

    def _he(self, scale: float) -> None:
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, std=scale * (2 / m.weight[0].numel()) ** 0.5)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, S, S) to logits (N, classes)."""
        features = self.blocks(self.stem(x)).mean((2, 3))
        return self.classifier(self.dropout(features))
