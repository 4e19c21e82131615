"""The files that the pages name: made where a page's blocks speak of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.builder import Builder
from tests.pages import ROOT
from tests.program import bnfold, different, foldable, saved, stubborn

Make = Callable[[Path], object]


def trained(path: Path) -> None:
    """The repository's own models."""
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(ROOT / "models" / "trained")


def inputs(path: Path) -> None:
    np.savez(path, x=np.ones((2, 3, 10, 14), np.float32))


def folder(path: Path) -> None:
    path.mkdir(exist_ok=True)
    saved(foldable(), path / "a.onnx")


def old(path: Path) -> None:
    path.touch()
    os.utime(path, (0, 0))


def images(path: Path) -> None:
    """Two classes of two pictures each."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (path / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path / name / f"{i}.png")


def classifier(path: Path) -> None:
    """Images of any size to two scores."""
    b = Builder(type_=TensorProto.FLOAT)
    y = b.node("Relu", b.bn(b.conv(b.input("N", 3, 224, 224), 4, 3, strides=[2, 2])))
    y = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.bn(b.conv(y, 5, 3)))))
    saved(b.model(b.gemm(y, 2)), path)


def overridable(path: Path) -> None:
    """Every initializer is an input too."""
    model = foldable()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    saved(model, path)


def deconv(path: Path) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    y = b.bn(b.conv_transpose(b.input("N", 4, 10, 14), 5, 3, strides=[2, 2]), name="norm")
    saved(b.model(b.node("Relu", y)), path)


def tokens(path: Path) -> None:
    """As in LeViT: a BatchNormalization on the rows of tokens."""
    b = Builder(type_=TensorProto.FLOAT)
    y = b.bn(b.reshape(b.matmul(b.input("N", 16, 8), 12), -1, 12), name="norm")
    saved(b.model(b.node("Relu", b.reshape(y, -1, 16, 12))), path)


FILES: dict[str, Make] = {
    "models/trained/": trained,
    "models/": folder,
    "model.onnx": lambda path: saved(stubborn(), path),
    "inputs.npz": inputs,
    "images/": images,
    "photos.onnx": classifier,
    "big.onnx": lambda path: saved(stubborn(), path, external=True),
    "deconv.onnx": deconv,
    "tokens.onnx": tokens,
    "overridable.onnx": overridable,
    "other.onnx": lambda path: saved(different(stubborn()), path),
}
"""Makers by name; a name that ends in / is a folder."""

OF_PAGES: dict[str, dict[str, Make]] = {
    "deploy.md": {"ort/": lambda path: bnfold("deploy", path.parent / "model.onnx", "--target", "ort", "-o", path)},
    "fleet.md": {"list.txt": lambda path: path.write_text("models/\n"), "stamp": old},
    "README.md": {"build/demo/": lambda path: path.mkdir(parents=True)},
    "cli.md": {"model.onnx": classifier},
}
"""Files of one page that are other ones, or further ones."""


def prepare(page: str, text: str, where: Path) -> None:
    """Make the files that a page's blocks name. What a block writes itself must not be among them."""
    for name, make in (FILES | OF_PAGES.get(page, {})).items():
        if re.search(rf"(?<![\w./-]){re.escape(name)}", text):
            make(where / name.rstrip("/"))
