"""The program as a test runs it, and the small models that it runs on."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import TensorProto

from bnfold.cli import main
from tests.builder import Builder


@dataclass(frozen=True)
class Done:
    """How a run of the program ended."""

    code: int
    out: str
    err: str


def bnfold(*arguments: object) -> Done:
    """Run a command in this process."""
    # click 8.2 keeps stderr apart by itself.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    result = CliRunner(**apart).invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    return Done(result.exit_code, result.stdout, result.stderr)


def complaint(done: Done) -> str:
    """The error of a run that failed: one or two lines, the first of which begins with the program's name."""
    lines = done.err.splitlines()
    assert 1 <= len(lines) <= 2, done.err
    assert lines[0].startswith("bnfold: "), done.err
    return lines[0].removeprefix("bnfold: ")


def foldable(seed: int = 0) -> onnx.ModelProto:
    """Two convolutions with a BatchNormalization each; both fold."""
    b = Builder(type_=TensorProto.FLOAT, seed=seed)
    y = b.node("Relu", b.bn(b.conv(b.input("N", 3, 10, 14), 4, 3, pads=[1, 1, 1, 1])))
    return b.model(b.node("Relu", b.bn(b.conv(y, 5, 3))))


def stubborn(seed: int = 0) -> onnx.ModelProto:
    """Three BatchNormalization; the one between a Relu and a padded convolution has to stay."""
    b = Builder(type_=TensorProto.FLOAT, seed=seed)
    y = b.node("Relu", b.bn(b.conv(b.input("N", 3, 10, 14), 4, 3), name="first"))
    y = b.bn(y, name="middle", beta=b.normal(4) + 3)
    return b.model(b.node("Relu", b.bn(b.conv(y, 5, 3, pads=[1, 1, 1, 1]), name="last")))


def plain() -> onnx.ModelProto:
    """Nothing to fold."""
    b = Builder(type_=TensorProto.FLOAT)
    return b.model(b.node("Relu", b.conv(b.input(2, 3, 10, 14), 4, 3)))


def classifier(off: float = 0.0) -> onnx.ModelProto:
    """Class scores that are the input's 7 numbers; the first class may get something on top."""
    b = Builder(type_=TensorProto.FLOAT)
    bias = b.constant(off * np.eye(7)[0], "bias")
    return b.model(b.node("Gemm", b.input("N", 7), b.constant(np.eye(7), "weight"), bias, name="scores"))


def different(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that is off by a little in one weight."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = copy.graph.initializer[0]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += np.float32(0.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return copy


def saved(model: onnx.ModelProto, path: Path, external: bool = False) -> Path:
    """The model in a file; with all its weights in `NAME.bin` where `external`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(
        copy, path, save_as_external_data=external, location=f"{path.stem}.bin" if external else None, size_threshold=0
    )
    return path


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names(folder: Path) -> list[str]:
    """What lies in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def model_files(folder: Path) -> list[str]:
    """Every file below a folder, but for manifests."""
    return [name for name in listing(folder) if not name.endswith(".manifest.json")]
