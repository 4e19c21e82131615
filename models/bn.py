"""Batch Normalization as the paper writes it: Algorithm 1 for training, Algorithm 2 before inference.

During training the output for one example depends on its whole mini-batch, so nothing can be folded. Algorithm 2 then
freezes the statistics, and what is left is one affine map per channel,

    y = s*x + t,    s = gamma / sqrt(Var[x] + eps),    t = beta - s * E[x]        (Algorithm 2, line 11)

and an affine map behind a linear one is linear again: s*(W u) + t = (s*W) u + t. That is all that bnfold needs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class BatchTransform(torch.autograd.Function):
    """BN_{gamma,beta} of Algorithm 1, with the gradients of section 3 written out.

    `x` is (N, C) or (N, C, *spatial). One mean and variance per feature map, over m' = N * prod(spatial) values
    (section 3.2). Returns (y, batch mean, batch variance); the last two, (C,), carry no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1."""
        over, per_channel = _axes(x)
        mean = x.mean(over)
        centred = x - mean.view(per_channel)
        var = centred.square().mean(over)  # biased: 1/m
        inv_std = (var + eps).rsqrt()
        x_hat = centred * inv_std.view(per_channel)
        ctx.save_for_backward(x_hat, inv_std, gamma)
        ctx.mark_non_differentiable(mean, var)
        return x_hat * gamma.view(per_channel) + beta.view(per_channel), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        """The six equations of section 3. `centred` = x - mu is x_hat / inv_std, so only x_hat was kept."""
        dy: Tensor = grads[0]
        x_hat, inv_std, gamma = ctx.saved_tensors
        over, per_channel = _axes(dy)
        m = dy.numel() // dy.shape[1]
        inv = inv_std.view(per_channel)
        centred = x_hat / inv

        dx_hat = dy * gamma.view(per_channel)
        dvar = (dx_hat * centred).sum(over).view(per_channel) * -0.5 * inv**3
        dmean = -(dx_hat * inv).sum(over).view(per_channel) + dvar * -2 * centred.mean(over).view(per_channel)
        dx = dx_hat * inv + dvar * 2 * centred / m + dmean / m
        return dx, (dy * x_hat).sum(over), dy.sum(over), None


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes that statistics run over, and the shape under which a (C,) array broadcasts against `x`."""
    return [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)


class PaperBatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm*d` with `BatchTransform` in training, for (N, C) and (N, C, *spatial) alike.

    At inference it is torch's own node, so that export sees one BatchNormalization.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Algorithm 1 in training, with moving averages of its statistics; line 11 of Algorithm 2 at inference."""
        if not self.training:
            return super().forward(input)
        y, mean, var = BatchTransform.apply(input, self.weight, self.bias, self.eps)
        m = input.numel() // input.shape[1]
        with torch.no_grad():
            mean_average, var_average = _buffers(self)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            mean_average.lerp_(mean, share)
            var_average.lerp_(var * (m / (m - 1)), share)
        return y


class PerActivationNorm(nn.Module):
    """BN with one gamma, beta per *activation* of a (N, C, H, W) map, as in two nets of the Figure 4 ensemble."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        return self.norm(x.flatten(1)).view_as(x)


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """Every BN layer of a network, torch's and ours, in the order of its modules."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


def affine(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """(s, t) in float64 with bn(x) = s*x + t per channel: Algorithm 2, line 11."""
    assert bn.running_mean is not None and bn.running_var is not None
    s = bn.weight.detach().double() / (bn.running_var.double() + bn.eps).sqrt()
    return s, bn.bias.detach().double() - s * bn.running_mean.double()


@torch.no_grad()
def population_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Algorithm 2, lines 7 to 10: E[x] = E_B[mu_B], Var[x] = m/(m-1) * E_B[var_B], written into every BN of `model`.

    The network runs in training mode (each BN sees inputs normalised by *batch* statistics, as it did in training) but
    with dropout off, over training mini-batches. Under torch.distributed the averages are over all ranks' batches.
    """
    sums = {bn: [torch.zeros_like(b, dtype=torch.float64) for b in _buffers(bn)] for bn in batchnorms(model)}

    def add(bn: nn.Module, args: tuple[Tensor]) -> None:
        x = args[0].float()
        over, _ = _axes(x)
        var, mean = torch.var_mean(x, over, correction=1)  # correction=1 is the m/(m-1) of line 10
        total = sums[bn]
        total[0] += mean
        total[1] += var

    hooks = [bn.register_forward_pre_hook(add) for bn in sums]
    count = 0
    try:
        with only_batchnorm_training(model):
            for x in batches:
                model(x)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise ValueError("population_statistics needs at least one mini-batch")
    for bn, totals in sums.items():
        for buffer, total in zip(_buffers(bn), totals, strict=True):
            buffer.copy_(total / count)
    average_over_ranks(model)


def _buffers(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert bn.running_mean is not None and bn.running_var is not None
    return bn.running_mean, bn.running_var


@contextmanager
def only_batchnorm_training(model: nn.Module) -> Iterator[None]:
    """Batch statistics in every BN, inference everywhere else; the mode of each module is put back afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    for bn in batchnorms(model):
        bn.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def average_over_ranks(model: nn.Module) -> None:
    """Every rank saw other mini-batches, so its moving averages differ: E_B is the mean over ranks. Alone: nothing."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for bn in batchnorms(model):
        for buffer in _buffers(bn):
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
