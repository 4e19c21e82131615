"""Training throughput of our BN-Inception beside the same network assembled plainly from torch modules.

    python -m models.throughput [--width 0.25 --size 28 --stem-stride 4]

Forward, backward and SGD on random images; images per CPU-second, one thread, channels_last. The machine may be shared,
so the nets take turns, in an order that turns round each time, and a ratio is taken between neighbours of one round.
"""

import argparse
import time
from statistics import quantiles

import torch
from torch import Tensor, nn

from models.config import Config
from models.inception import Inception, rows, scaled
from models.sweep import machine, table
from models.train import optimizer

PLAIN = "assembled plainly"


def conv_bn_relu(cin: int, cout: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """The block as every tutorial writes it."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
    )


class PlainModule(nn.Module):
    """An Inception module as a list of branches."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def plain(width: float, stem_stride: int, channels: int) -> nn.Sequential:
    """The tf-slim variant with a dense stem, from torch.nn alone."""
    first, reduce, second = (scaled(c, width) for c in (64, 64, 192))
    layers: list[nn.Module] = [conv_bn_relu(channels, first, 7, 2), nn.MaxPool2d(3, 2, 1)]
    layers += [conv_bn_relu(first, reduce, 1), conv_bn_relu(reduce, second, 3)]
    if stem_stride == 8:
        layers.append(nn.MaxPool2d(3, 2, 1))
    cin = second
    for r in rows("tf-slim", width):
        pool: nn.Module = nn.AvgPool2d(3, r.stride, 1, count_include_pad=False)
        if r.pool == "max":
            pool = nn.MaxPool2d(3, r.stride, 1)
        branches: list[nn.Module] = [
            nn.Sequential(conv_bn_relu(cin, r.reduce, 1), conv_bn_relu(r.reduce, r.three, 3, r.stride)),
            nn.Sequential(
                conv_bn_relu(cin, r.double_reduce, 1),
                conv_bn_relu(r.double_reduce, r.double, 3),
                conv_bn_relu(r.double, r.double, 3, r.stride),
            ),
            nn.Sequential(pool, conv_bn_relu(cin, r.project, 1)) if r.project else pool,
        ]
        if r.one:
            branches.insert(0, conv_bn_relu(cin, r.one, 1))
        layers.append(PlainModule(*branches))
        cin = r.output(cin)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, 10))


class Trainer:
    """One net, one batch, as many steps as asked."""

    def __init__(self, model: nn.Module, sgd: torch.optim.SGD, batch: int, channels: int, size: int) -> None:
        self.model, self.sgd = model.train(), sgd
        self.x = torch.randn(batch, channels, size, size).to(memory_format=torch.channels_last)
        self.y = torch.randint(0, 10, (batch,))

    def rate(self, steps: int) -> float:
        """Images per CPU-second over so many steps."""
        started = time.process_time()
        for _ in range(steps):
            self.sgd.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.sgd.step()
        return steps * len(self.y) / (time.process_time() - started)


def middle(values: list[float], form: str) -> str:
    """Median and quartiles."""
    low, half, high = (form.format(q) for q in quantiles(values, n=4))
    return f"{half} ({low} to {high})"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--stem-stride", type=int, choices=(4, 8), default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    nets = {
        "ours": Inception(10, args.channels, width=args.width, stem="dense", stem_stride=args.stem_stride),
        PLAIN: plain(args.width, args.stem_stride, args.channels),
        "ours, BN of models.bn": Inception(
            10, args.channels, width=args.width, stem="dense", stem_stride=args.stem_stride, norm="paper"
        ),
    }
    assert len({sum(p.numel() for p in net.parameters()) for net in nets.values()}) == 1, "the same network"
    trainers = {}
    for name, net in nets.items():
        net.to(memory_format=torch.channels_last)
        ours = isinstance(net, Inception)  # trained as models.train does; the other as every tutorial does
        sgd = optimizer(net, Config()) if ours else torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        trainers[name] = Trainer(net, sgd, args.batch, args.channels, args.size)
    for trainer in trainers.values():
        trainer.rate(3)
    seen: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(args.rounds):
        for name in list(trainers)[:: 1 if turn % 2 else -1]:
            seen[name].append(trainers[name].rate(args.steps))
    lines = [
        [name, middle(rates, "{:.0f}"), middle([r / p for r, p in zip(rates, seen[PLAIN], strict=True)], "{:.3f}")]
        for name, rates in seen.items()
    ]
    print(table(["network", "images per CPU-second", "ratio within a round"], lines))
    print(f"\nMedian and quartiles of {args.rounds} rounds of {args.steps} steps; ", end="")
    print(f"width {args.width:g}, {args.size} px, stem stride {args.stem_stride}, batch {args.batch}. {machine()}.")


if __name__ == "__main__":
    main()
