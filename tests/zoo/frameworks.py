"""Networks of TensorFlow and Paddle as their own converters write them, with random weights and statistics.

    python tests/zoo/frameworks.py keras OUT [NAME...]      tensorflow-cpu==2.21.0 tf2onnx==1.17.0
    python tests/zoo/frameworks.py paddle OUT [NAME...]     paddlepaddle==3.3.1 paddle2onnx==2.1.0 packaging

Each in an environment of its own. Fold what they write with `bnfold optimize OUT -o FOLDED`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KERAS = (
    "DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionV3 MobileNet MobileNetV2 MobileNetV3Small NASNetMobile "
    "ResNet50 ResNet50V2 Xception"
)
PADDLE = (
    "densenet121 googlenet inception_v3 mobilenet_v1 mobilenet_v2 mobilenet_v3_small resnet18 resnext50_32x4d "
    "shufflenet_v2_x0_5 squeezenet1_0 vgg11"
)

Drawn = Iterator[tuple[Any, Any]]
"""Parameters, and what they are set to: as initialised, a BatchNormalization would do nothing."""


def drawn(rng: np.random.Generator, gamma: Any, beta: Any, mean: Any, variance: Any) -> Drawn:
    """Population statistics as training might leave them; None for a parameter that the layer has not."""
    for parameter, centre, spread in ((gamma, 1.0, 0.5), (beta, 0.0, 0.2), (mean, 0.0, 0.2), (variance, 1.0, 0.5)):
        if parameter is not None:
            yield parameter, rng.uniform(centre - spread, centre + spread, tuple(parameter.shape)).astype(np.float32)


def keras(out: Path, names: Sequence[str]) -> None:
    """Export networks of keras.applications with tf2onnx, opset 13, batch 1."""
    import keras
    import tensorflow as tf
    import tf2onnx

    rng = np.random.default_rng(0)
    for name in names:
        keras.backend.clear_session()
        net = getattr(keras.applications, name)(weights=None)
        for layer in net._flatten_layers(include_self=False):
            if isinstance(layer, keras.layers.BatchNormalization):
                found = drawn(rng, layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
                for parameter, values in found:
                    parameter.assign(values)
            elif (bias := getattr(layer, "bias", None)) is not None:  # tf2onnx leaves out those that are zero
                bias.assign(rng.normal(0, 0.1, tuple(bias.shape)))
        spec = [tf.TensorSpec((1, *net.input_shape[1:]), tf.float32, name="x")]
        function = tf.function(lambda x, net=net: net(x, training=False), input_signature=spec)
        tf2onnx.convert.from_function(function, input_signature=spec, opset=13, output_path=str(out / f"{name}.onnx"))


def paddle(out: Path, names: Sequence[str]) -> None:
    """Export networks of paddle.vision with paddle2onnx, opset 13, a free batch."""
    import paddle

    rng = np.random.default_rng(0)
    for name in names:
        net = getattr(paddle.vision.models, name)(pretrained=False)
        net.eval()
        for layer in net.sublayers():
            if isinstance(layer, paddle.nn.BatchNorm2D | paddle.nn.BatchNorm):
                for parameter, values in drawn(rng, layer.weight, layer.bias, layer._mean, layer._variance):
                    parameter.set_value(paddle.to_tensor(values))
        spec = [paddle.static.InputSpec([-1, 3, 224, 224], "float32", "x")]
        paddle.onnx.export(net, str(out / name), input_spec=spec, opset_version=13)


def main(which: str, out: str, *names: str) -> None:
    """Export networks of one framework into a folder."""
    export, all_ = {"keras": (keras, KERAS), "paddle": (paddle, PADDLE)}[which]
    Path(out).mkdir(parents=True, exist_ok=True)
    export(Path(out), names or all_.split())


if __name__ == "__main__":
    main(*sys.argv[1:])
