"""Architectures of torchvision, timm, ultralytics and segmentation-models-pytorch, without their weights."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from tests.zoo.networks import Network

IMAGE = (1, 3, 224, 224)

TORCHVISION: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "resnet50": ("resnet50", {}, IMAGE),
    "mobilenet_v2": ("mobilenet_v2", {}, IMAGE),
    "mobilenet_v3_small": ("mobilenet_v3_small", {}, IMAGE),
    "densenet121": ("densenet121", {}, IMAGE),
    "mnasnet0_5": ("mnasnet0_5", {}, IMAGE),
    "resnext50_32x4d": ("resnext50_32x4d", {}, IMAGE),
    "googlenet": ("googlenet", {"aux_logits": False, "init_weights": False}, IMAGE),
    "inception_v3": ("inception_v3", {"init_weights": False}, IMAGE),
    "vgg11_bn": ("vgg11_bn", {}, IMAGE),
    "deeplabv3_mobilenet": ("segmentation.deeplabv3_mobilenet_v3_large", {"weights_backbone": None}, IMAGE),
    "fcn_resnet50": ("segmentation.fcn_resnet50", {"weights_backbone": None}, (1, 3, 128, 128)),
}

TIMM = (
    "resnetv2_50",
    "repvgg_a0",
    "mobileone_s0",
    "mobileone_s1",
    "ghostnet_100",
    "ghostnetv3_100",
    "repghostnet_050",
    "legacy_xception",
    "levit_128s",
    "efficientvit_b0",
    "tf_efficientnet_lite0",
    "inception_resnet_v2",
    "cspdarknet53",
    "skresnet18",
    "vovnet39a",
    "repvit_m0_9",
    "efficientformerv2_s0",
    "mobilenetv4_conv_small",
    "fastvit_t8",
)

REPARAMETERISED = (
    "timm_repvgg_a0",
    "timm_mobileone_s0",
    "timm_mobileone_s1",
    "timm_repvit_m0_9",
    "timm_fastvit_t8",
    "timm_ghostnetv3_100",
    "timm_repghostnet_050",
    "timm_levit_128s",
)
"""What timm can re-parameterise for inference; it writes these too, as `reparam/NAME`, with the same weights."""

DYNAMO = (
    "tv_resnet50",
    "tv_mobilenet_v2",
    "tv_densenet121",
    "timm_resnetv2_50",
    "my_iresnet50",
    "my_mlp_gemm",
    "my_token_mlp",
    "my_dcgan",
)
"""What PyTorch's newer exporter writes too, as `NAME__dynamo`: graphs of another shape."""


class First(nn.Module):
    """The first output of a network that has several: of a dict, `out`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.m = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.m(x)
        if isinstance(y, dict):
            return y["out"]
        return y[0] if isinstance(y, tuple | list) else y


@functools.cache
def define_operators() -> Any:
    """torchvision imports only where its two box operators are known, which its compiled part defines.

    A torchvision that was compiled for CUDA cannot load that part beside a torch for the CPU. No network here uses
    them, so a schema without a kernel will do. The library object must stay alive: it takes its schemas with it.
    """
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return library
    return torchvision


def torchvision_network(path: str, options: dict[str, Any]) -> nn.Module:
    define_operators()
    import torchvision.models

    return First(functools.reduce(getattr, path.split("."), torchvision.models)(weights=None, **options))


def timm_network(name: str) -> nn.Module:
    define_operators()
    import timm

    return timm.create_model(name, pretrained=False, exportable=True)


def reparameterised(network: nn.Module) -> nn.Module:
    """timm's own form of it for inference: branches summed, BN folded."""
    from timm.models import reparameterize_model

    return reparameterize_model(network).eval()


def yolo() -> nn.Module:
    define_operators()
    from ultralytics.nn.tasks import DetectionModel

    network = DetectionModel("yolov8n.yaml", verbose=False)
    network.model[-1].export = True
    return First(network)


def deeplab() -> nn.Module:
    define_operators()
    import segmentation_models_pytorch

    return segmentation_models_pytorch.DeepLabV3Plus("resnet18", encoder_weights=None, classes=2)


NETWORKS: dict[str, Network] = {
    **{
        f"tv_{name}": (functools.partial(torchvision_network, path, options), shape)
        for name, (path, options, shape) in TORCHVISION.items()
    },
    **{
        f"timm_{name}": (functools.partial(timm_network, name), (1, 3, 256, 256) if name == "fastvit_t8" else IMAGE)
        for name in TIMM
    },
    "ul_yolov8n": (yolo, (1, 3, 320, 320)),
    "smp_deeplabv3plus_resnet18": (deeplab, (1, 3, 128, 128)),
}
