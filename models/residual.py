"""Two small residual networks whose BatchNormalization ordinary tools leave: for docs/quantisation.md.

    PreAct    BN stands in front of ReLU, on the residual stream (He et al. 2016, arXiv 1603.05027, Figure 4e)
    RepVGG    each block is a sum of branches, each with its BN, one of them a BN alone (Ding et al. 2021, arXiv
              2101.03697, Figure 2b): the form in which it is trained

Both take (N, channels, 28, 28), have three stages at 14, 7 and 4 pixels, and begin with a convolution of stride 2.
"""

from torch import Tensor, nn

WIDTHS = (16, 32, 64)


def conv(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A padded convolution without bias: BN is near."""
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)


class PreActBlock(nn.Module):
    """x + W2 g(BN(W1 g(BN(x)))); where the shape changes the first term is W g(BN(x))."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(cin), nn.ReLU())
        self.rest = nn.Sequential(conv(cin, cout, 3, stride), nn.BatchNorm2d(cout), nn.ReLU(), conv(cout, cout, 3))
        self.shortcut = conv(cin, cout, 1, stride) if stride > 1 or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        entering = self.first(x)
        return self.rest(entering) + (x if self.shortcut is None else self.shortcut(entering))


class RepBlock(nn.Module):
    """g(BN(W3 x) + BN(W1 x) + BN(x)), the last branch only where the shape stays."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(conv(cin, cout, kernel, stride), nn.BatchNorm2d(cout)) for kernel in (3, 1)
        )
        if stride == 1 and cin == cout:
            self.branches.append(nn.BatchNorm2d(cin))

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        first, *others = (branch(x) for branch in self.branches)
        return nn.functional.relu(sum(others, first))


class Residual(nn.Module):
    """A stem, three stages of `depth` blocks each, the mean of each channel, a linear layer."""

    def __init__(self, form: str, classes: int = 10, channels: int = 1, depth: int = 2) -> None:
        super().__init__()
        block = {"preact": PreActBlock, "repvgg": RepBlock}[form]
        cin = WIDTHS[0]
        layers: list[nn.Module] = [conv(channels, cin, 3, 2) if form == "preact" else RepBlock(channels, cin, 2)]
        for stage, cout in enumerate(WIDTHS):
            for place in range(depth):
                layers.append(block(cin, cout, 2 if stage and not place else 1))
                cin = cout
        if form == "preact":
            layers += [nn.BatchNorm2d(cin), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 28, 28) to logits (N, classes)."""
        return self.classifier(self.layers(x).mean((2, 3)))
