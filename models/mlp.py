"""The network of Figure 1: three hidden layers of 100 sigmoid units on binary 28x28 digits."""

import torch
from torch import Tensor, nn

from models.bn import PaperBatchNorm


class MLP(nn.Module):
    """(Linear, BN, sigmoid) x 3, Linear. (N, 784) -> (N, classes).

    BN stands on W u, before the nonlinearity, and replaces the bias (section 3.2): a constant added to W u would be
    taken out again with the mean. Initial W is a small Gaussian (section 4.1); since BN(Wu) = BN((aW)u) (section 3.3)
    its size matters only to the net without BN.
    """

    def __init__(self, norm: str = "torch", classes: int = 10, hidden: int = 100, init_std: float = 0.01) -> None:
        super().__init__()
        norms = {"torch": nn.BatchNorm1d, "paper": PaperBatchNorm, "none": None}
        make_norm = norms[norm]
        layers: list[nn.Module] = []
        width = 784
        for _ in range(3):
            layers.append(nn.Linear(width, hidden, bias=make_norm is None))
            if make_norm is not None:
                layers.append(make_norm(hidden))
            layers.append(nn.Sigmoid())
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, classes))
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=init_std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 784) or (N, 1, 28, 28) to logits (N, classes)."""
        return self.layers(x.flatten(1))

    @torch.no_grad()
    def percentiles(self, x: Tensor, unit: int = 0) -> list[float]:
        """The {15, 50, 85}th percentiles over `x` of one input to a last hidden sigmoid: Figure 1 (b, c)."""
        entering = self.layers[:-2](x.flatten(1))[:, unit]
        return [float(p) for p in torch.quantile(entering, torch.tensor([0.15, 0.50, 0.85], device=x.device))]
