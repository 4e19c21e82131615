"""BN-Inception against Figure 5: parameter counts, output sizes, recipes."""

from typing import Any

import pytest

from tests.models.conftest import REASON

torch: Any = pytest.importorskip("torch", reason=REASON)
inception: Any = pytest.importorskip("models.inception")
config: Any = pytest.importorskip("models.config")
train: Any = pytest.importorskip("models.train")
bn: Any = pytest.importorskip("models.bn")
nn = torch.nn

PRINTED = {"3a": (28, 256), "3b": (28, 320), "3c": (14, 576), "4a": (14, 576), "4b": (14, 576), "4c": (14, 576),
           "4d": (14, 576), "4e": (7, 1024), "5a": (7, 1024), "5b": (7, 1024)}  # fmt: skip
LITERAL = PRINTED | {"4c": (14, 608), "4d": (14, 608), "4e": (7, 1056)}


@pytest.mark.parametrize(
    ("variant", "stem", "parameters"),
    [
        ("paper-literal", "dense", 11_285_224),
        ("tf-slim", "dense", 11_194_984),
        # A 7x7 of multiplier 8 (3*8*49) and a 1x1 (24*64) for a dense 7x7 (3*64*49).
        ("paper-literal", "separable", 11_285_224 - 9408 + 1176 + 1536),
        ("tf-slim", "separable", 11_194_984 - 9408 + 1176 + 1536),
    ],
)
def test_parameter_counts(variant: str, stem: str, parameters: int) -> None:
    with torch.device("meta"):
        net = inception.Inception(variant=variant, stem=stem, init="default")
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(("variant", "expected"), [("tf-slim", PRINTED), ("paper-literal", LITERAL)])
def test_output_sizes_are_the_printed_ones(variant: str, expected: dict[str, tuple[int, int]]) -> None:
    with torch.device("meta"):
        net = inception.Inception(variant=variant, init="default")
        x = net.stem(torch.empty(1, 3, 224, 224))
        assert x.shape == (1, 192, 28, 28)
        for name, block in net.blocks.named_children():
            x = block(x)
            assert x.shape == (1, expected[name][1], expected[name][0], expected[name][0]), name


@pytest.mark.parametrize(("size", "stride", "side"), [(28, 4, 7), (28, 2, 14), (32, 1, 32), (64, 8, 8), (64, 4, 16)])
def test_small_stems(size: int, stride: int, side: int) -> None:
    net = inception.Inception(10, 1, width=1 / 16, stem_stride=stride).eval()
    x = net.stem(torch.zeros(2, 1, size, size))
    assert x.shape[2:] == (side, side)
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_width_scales_every_row() -> None:
    quarter = inception.rows("tf-slim", 0.25)
    assert quarter[0].output(48) == 64
    assert quarter[0].one == 16
    assert quarter[2].one == 0, "an absent branch stays absent"


@pytest.mark.parametrize("norm", ["torch", "paper"])
def test_batch_normalised_layers_have_no_bias(norm: str) -> None:
    net = inception.Inception(10, 1, width=1 / 16, norm=norm)
    assert len(bn.batchnorms(net)) == 69
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_without_bn_every_convolution_but_the_depthwise_has_a_bias() -> None:
    net = inception.Inception(10, 1, width=1 / 16, norm="none")
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert not bn.batchnorms(net)
    assert [m for m in convolutions if m.bias is None] == [convolutions[0]]


@pytest.mark.parametrize("bad", [{"variant": "v9"}, {"stem_stride": 3}])
def test_refuses_what_it_does_not_know(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"choose"):
        inception.Inception(10, 1, width=1 / 16, **bad)


def test_the_paper_names_these_networks() -> None:
    recipes = config.RECIPES
    plain, baseline, x5, x30 = (recipes[n] for n in ("inception", "bn-baseline", "bn-x5", "bn-x30"))
    assert plain.norm == "none" and plain.lrn and plain.dropout == 0.4
    assert baseline == plain.with_(name="bn-baseline", norm="torch")
    assert (x5.lr / plain.lr, x30.lr / plain.lr) == pytest.approx((5, 30))
    assert x5.dropout == 0 and not x5.lrn
    assert (plain.l2 / x5.l2, x5.decay / plain.decay) == pytest.approx((5, 6))
    assert recipes["bn-x5-sigmoid"].nonlinearity == recipes["inception-sigmoid"].nonlinearity == "sigmoid"


@pytest.mark.parametrize(
    "recipe", ["inception", "bn-baseline", "bn-x5", "bn-x30", "bn-x5-sigmoid", "inception-sigmoid"]
)
def test_every_named_network_learns_a_step(recipe: str, idx_folder: Any) -> None:
    data: Any = pytest.importorskip("models.data")
    loaded = data.load(str(idx_folder))
    chosen = config.RECIPES[recipe].with_(width=1 / 16)
    net = train.build(chosen, loaded)
    x, y = next(data.batches(loaded.train, chosen, 0))
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_per_activation_in_the_last_module() -> None:
    net = inception.Inception(10, 1, width=1 / 16, stem_stride=4, per_activation_size=28)
    norms = [m for m in net.blocks[-1].modules() if isinstance(m, bn.PerActivationNorm)]
    assert len(norms) == 7
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_pointwise_is_a_convolution_in_value_and_gradient(bias: bool, channels_last: bool) -> None:
    layer = inception.Pointwise(5, 3, 1, bias=bias).double()
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    seen = []
    for forward in (layer, lambda x: nn.functional.conv2d(x, layer.weight, layer.bias)):
        layer.zero_grad()
        x.requires_grad_().grad = None
        y = forward(x)
        (y**3).sum().backward()
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        seen.append([y, x.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("training", "channels_last", "positions", "matrix_product"),
    [(True, True, 4, True), (True, True, 2**12, False), (True, False, 4, False), (False, True, 4, False)],
)
def test_only_a_small_pointwise_in_training_is_a_matrix_product(
    training: bool, channels_last: bool, positions: int, matrix_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolved = []
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: convolved.append(x))
    x = torch.zeros(2, 32, positions, 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inception.Pointwise(32, 32, 1).train(training)(x.contiguous(memory_format=layout))
    assert bool(convolved) != matrix_product
