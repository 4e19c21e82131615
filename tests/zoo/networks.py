"""Networks written here: the forms of BatchNormalization that the libraries of `tests/zoo/library.py` do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = tuple[Callable[[], Any], tuple[int, ...]]
"""What makes the module, and the shape of its input."""


class FaceBlock(nn.Module):
    """The residual block of ArcFace: BN, Conv, BN, PReLU, Conv, BN, and the sum."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.prelu = nn.PReLU(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.down = None
        if stride != 1 or cin != cout:
            self.down = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.down is None else self.down(x))


class FaceNet(nn.Module):
    """ArcFace with 50 layers: 79 BatchNormalization, one of them behind a Dropout, one behind a Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        blocks, cin = [], 64
        for width, depth in ((64, 3), (128, 4), (256, 14), (512, 3)):
            for i in range(depth):
                blocks.append(FaceBlock(cin, width, 2 if i == 0 else 1))
                cin = width
        self.body = nn.Sequential(*blocks)
        self.bn2 = nn.BatchNorm2d(512)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.body(self.stem(x)))
        return self.features(self.fc(torch.flatten(self.dropout(x), 1)))


class MatMulLinear(nn.Module):
    """A Linear that exports as MatMul and Add, as Keras models do."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(cin, cout) / cin**0.5)
        self.b = nn.Parameter(torch.randn(cout) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.w) + self.b


def mlp(linear: Callable[[int, int], nn.Module]) -> nn.Module:
    """Linear, BN, ReLU."""
    layers, cin = [], 64
    for width in (256, 256, 128):
        layers += [linear(cin, width), nn.BatchNorm1d(width), nn.ReLU()]
        cin = width
    return nn.Sequential(*layers, nn.Linear(cin, 10))


class TokenMLP(nn.Module):
    """BN between transposes, behind a Linear on tokens."""

    def __init__(self, dim: int = 96, hidden: int = 192) -> None:
        super().__init__()
        self.l1, self.b1 = nn.Linear(dim, hidden), nn.BatchNorm1d(hidden)
        self.l2, self.b2 = nn.Linear(hidden, dim), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b1(self.l1(x).transpose(1, 2)).transpose(1, 2)
        y = self.b2(self.l2(F.relu(y)).transpose(1, 2))
        return F.relu(y).mean(-1)


def conv1d() -> nn.Module:
    """One-dimensional convolutions: plain, grouped, depthwise."""
    layers, cin = [], 8
    for width, kernel, groups in ((32, 7, 1), (64, 5, 4), (64, 3, 64)):
        layers += [nn.Conv1d(cin, width, kernel, 2, kernel // 2, groups=groups), nn.BatchNorm1d(width), nn.ReLU()]
        cin = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(cin, 5))


def dcgan() -> nn.Module:
    """ConvTranspose, BN, ReLU."""
    layers, cin = [], 64
    for width, kernel, stride, pad in ((256, 4, 1, 0), (128, 4, 2, 1), (64, 4, 2, 1)):
        layers += [nn.ConvTranspose2d(cin, width, kernel, stride, pad, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        cin = width
    return nn.Sequential(*layers, nn.ConvTranspose2d(cin, 3, 4, 2, 1), nn.Tanh())


class UNet(nn.Module):
    """Up-convolutions with BN, concatenated with the way down, and convolved again."""

    def __init__(self) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = self.double(3, 16), self.double(16, 32), self.double(32, 64)
        self.u2, self.c2 = self.up(64, 32), self.double(64, 32)
        self.u1, self.c1 = self.up(32, 16), self.double(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    @staticmethod
    def double(cin: int, cout: int) -> nn.Module:
        first = [nn.Conv2d(cin, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(cout, cout, 3, padding=1), nn.BatchNorm2d(cout), nn.ReLU())

    @staticmethod
    def up(cin: int, cout: int) -> nn.Module:
        return nn.Sequential(nn.ConvTranspose2d(cin, cout, 2, 2), nn.BatchNorm2d(cout), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.d3(F.max_pool2d(b, 2))
        b = self.c2(torch.cat([self.u2(c), b], 1))
        return self.out(self.c1(torch.cat([self.u1(b), a], 1)))


class PointNet(nn.Module):
    """Shared one-wide convolutions over points, the maximum of them, then Linear and BN."""

    def __init__(self) -> None:
        super().__init__()
        layers, cin = [], 3
        for width in (64, 128, 1024):
            layers += [nn.Conv1d(cin, width, 1), nn.BatchNorm1d(width), nn.ReLU()]
            cin = width
        self.feat = nn.Sequential(*layers)
        head = [nn.Linear(1024, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 40)]
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.feat(x).max(-1)[0])


class TDNN(nn.Module):
    """Conv, ReLU, BN without padding (x-vectors): each BN stands before the next convolution."""

    def __init__(self) -> None:
        super().__init__()
        layers, cin = [], 24
        for width, kernel, dilation in ((128, 5, 1), (128, 3, 2), (128, 3, 3), (128, 1, 1), (256, 1, 1)):
            layers += [nn.Conv1d(cin, width, kernel, dilation=dilation), nn.ReLU(), nn.BatchNorm1d(width)]
            cin = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * cin, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(torch.cat([y.mean(2), y.std(2)], 1))


class ConvMixer(nn.Module):
    """Conv, GELU, BN; every second one inside a residual sum."""

    def __init__(self, dim: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.stem = self.stage(nn.Conv2d(3, dim, 7, 7), dim)
        self.dw = nn.ModuleList(self.stage(nn.Conv2d(dim, dim, 9, groups=dim, padding=4), dim) for _ in range(depth))
        self.pw = nn.ModuleList(self.stage(nn.Conv2d(dim, dim, 1), dim) for _ in range(depth))
        self.fc = nn.Linear(dim, 100)

    @staticmethod
    def stage(conv: nn.Module, dim: int) -> nn.Module:
        return nn.Sequential(conv, nn.GELU(), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for depthwise, pointwise in zip(self.dw, self.pw, strict=True):
            x = pointwise(x + depthwise(x))
        return self.fc(x.mean((2, 3)))


class InputBN(nn.Module):
    """BN straight on the input, before a padded convolution, and one before a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.c1, self.b1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.bnf, self.fc = nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b1(self.c1(self.bn0(x)))).mean((2, 3))
        return self.fc(self.bnf(y))


NETWORKS: dict[str, Network] = {
    "my_iresnet50": (FaceNet, (1, 3, 112, 112)),
    "my_mlp_gemm": (lambda: mlp(nn.Linear), (2, 64)),
    "my_mlp_matmul": (lambda: mlp(MatMulLinear), (2, 64)),
    "my_token_mlp": (TokenMLP, (1, 49, 96)),
    "my_conv1d": (conv1d, (1, 8, 256)),
    "my_tdnn_valid": (TDNN, (1, 24, 200)),
    "my_convmixer": (ConvMixer, (1, 3, 224, 224)),
    "my_input_bn": (InputBN, (1, 3, 64, 64)),
    "my_dcgan": (dcgan, (1, 64, 1, 1)),
    "my_pointnet": (PointNet, (1, 3, 1024)),
    "my_unet": (UNet, (1, 3, 64, 96)),
}
