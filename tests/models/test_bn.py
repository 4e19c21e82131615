"""Algorithm 1 is torch's BatchNorm in value and gradient, Algorithm 2 the paper's formula; what is left is affine."""

from typing import Any

import pytest

from tests.models.conftest import REASON

torch: Any = pytest.importorskip("torch", reason=REASON)
bn: Any = pytest.importorskip("models.bn")
nn = torch.nn

SHAPES = [(5, 3), (4, 3, 5), (3, 2, 5, 4), (2, 3, 2, 3, 2)]


def randomised(layer: Any, seed: int = 0) -> Any:
    """Awkward on purpose: a zero and a negative gamma."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.num_features, generator=rng))
        layer.weight[0] = 0.0
        layer.weight[-1] = -1.5
        layer.bias.copy_(torch.randn(layer.num_features, generator=rng))
    return layer.double()


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_section_3_pass_gradcheck(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(1)
    x, gamma, beta = (
        torch.randn(s, dtype=torch.float64, generator=rng).requires_grad_() for s in (shape, shape[1], shape[1])
    )
    assert torch.autograd.gradcheck(lambda *a: bn.BatchTransform.apply(*a, 1e-5)[0], (x, gamma, beta))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch_in_value_gradient_and_buffers(shape: tuple[int, ...], training: bool) -> None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    layers = [randomised(cls(shape[1])) for cls in (kind, bn.PaperBatchNorm)]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen = []
    for layer in layers:
        layer.train(training)
        ours = x.clone().requires_grad_()
        for _ in range(3):  # moving averages need more than one step to differ
            y = layer(ours)
        (y**3).sum().backward()
        seen.append([y, ours.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var])
    for theirs, mine in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", ["mlp", "inception"])
def test_nets_with_either_layer_train_to_the_same_weights(model: str) -> None:
    inception: Any = pytest.importorskip("models.inception")
    mlp: Any = pytest.importorskip("models.mlp")
    rng = torch.Generator().manual_seed(4)
    size = 28 if model == "mlp" else 16
    inputs = torch.randn(4, 12, 1, size, size, dtype=torch.float64, generator=rng)
    targets = torch.randint(0, 10, (4, 12), generator=rng)
    trained = []
    for norm in ("torch", "paper"):
        torch.manual_seed(5)
        net = mlp.MLP(norm) if model == "mlp" else inception.Inception(10, 1, width=1 / 32, stem_stride=2, norm=norm)
        net.double()
        sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for x, y in zip(inputs, targets, strict=True):
            sgd.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            sgd.step()
        trained.append(net.state_dict())
    theirs, ours = trained
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        if value.is_floating_point():
            torch.testing.assert_close(ours[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_population_statistics_are_algorithm_2() -> None:
    layer = bn.PaperBatchNorm(3).double()
    net = nn.Sequential(layer, nn.Dropout(0.5))
    rng = torch.Generator().manual_seed(6)
    batches = [torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=rng) * (i + 1) + i for i in range(5)]
    bn.population_statistics(net, batches)
    m = 4 * 5 * 2
    means = torch.stack([b.mean((0, 2, 3)) for b in batches])
    variances = torch.stack([b.var((0, 2, 3), correction=0) for b in batches])
    torch.testing.assert_close(layer.running_mean, means.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var, m / (m - 1) * variances.mean(0), rtol=1e-5, atol=1e-6)
    assert net.training and net[1].training, "the modes are put back"


def test_population_statistics_agree_with_update_bn() -> None:
    from torch.optim.swa_utils import update_bn

    batches = list(torch.randn(7, 12, 2, 6, 6, generator=torch.Generator().manual_seed(7)))
    nets = []
    for collect in (bn.population_statistics, lambda net, xs: update_bn(xs, net)):
        torch.manual_seed(8)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), bn.PaperBatchNorm(3))
        collect(net, batches)
        nets.append(net)
    for ours, theirs in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_population_statistics_need_a_batch() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bn.population_statistics(nn.BatchNorm1d(2), [])


def test_at_inference_it_is_one_affine_map_and_folds_into_the_convolution() -> None:
    rng = torch.Generator().manual_seed(9)
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    layer = randomised(bn.PaperBatchNorm(3)).eval()
    layer.running_mean.copy_(torch.randn(3, generator=rng))
    layer.running_var.copy_(torch.rand(3, generator=rng) + 1e-4)
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64, generator=rng)
    s, t = bn.affine(layer)
    folded = nn.functional.conv2d(x, conv.weight * s[:, None, None, None], t, padding=1)
    torch.testing.assert_close(folded, layer(conv(x)), rtol=1e-12, atol=1e-12)


def test_scale_of_the_weights_does_not_matter() -> None:
    """BN(Wu) = BN((aW)u), section 3.3, up to eps."""
    u = torch.randn(16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(10))
    w = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    layer = randomised(bn.PaperBatchNorm(4, eps=0.0))
    torch.testing.assert_close(layer(u @ w.T), layer(u @ (1000 * w).T), rtol=1e-10, atol=1e-10)


def test_per_activation_has_one_gamma_for_each_position() -> None:
    layer = bn.PerActivationNorm(nn.BatchNorm1d(2 * 3 * 3))
    y = layer(torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(12)) * 5 + 1)
    torch.testing.assert_close(y.mean(0), torch.zeros(2, 3, 3), rtol=0, atol=1e-5)
