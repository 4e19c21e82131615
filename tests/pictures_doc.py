"""The pictures of docs/how-it-works.md, drawn from folds that bnfold makes here: `make pictures`.

Each is a small model before and after, every node with its constants, every tensor with how it is stored. The models
have one channel, so that a weight is a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold.affine import Storage
from bnfold.page.pictures import TALL, WIDE, pictures
from bnfold.regions import Place, Region
from bnfold.results import Affine, Optimized
from tests import proof_picture
from tests.builder import Builder

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"

STYLE = """\
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; }
text { fill: #1f2328; } .faint { fill: #656d76; } .head { font-weight: 600; font-size: 13px; }
rect { fill: #f6f8fa; stroke: #8c959f; } path { fill: none; stroke: #8c959f; }
.leaves rect { fill: #ffebe9; stroke: #cf222e; stroke-dasharray: 4 3; }
.absorbs rect { fill: #dafbe1; stroke: #1a7f37; }
.stored { fill: #0969da; font-style: italic; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .faint { fill: #9198a1; } rect { fill: #161b22; } .stored { fill: #58a6ff; }
  .leaves rect { fill: #3c1618; } .absorbs rect { fill: #12301a; }
}"""

TOP, SPREAD, MARGIN, BETWEEN = 34, 1.25, 14, 70
BOX = TALL * SPREAD
"""Room above a half, how much taller than in a report, and around and between the halves."""


@dataclass(frozen=True)
class Half:
    """A model as it is drawn."""

    title: str
    model: onnx.ModelProto
    roles: Mapping[str, str]
    """`leaves` or `absorbs`, by node name."""
    stored: Mapping[str, Storage]
    """By node name, how what it makes is stored where that is otherwise."""


def pull() -> onnx.ModelProto:
    """Behind a convolution."""
    b = _builder()
    return b.model(b.node("Relu", _bn(b, _conv(b, _input(b), 2, 1), 3, -1)))


def push() -> onnx.ModelProto:
    """In front of a convolution without padding."""
    b = _builder()
    y = _bn(b, b.node("Relu", _conv(b, _input(b), 2, 1)), 3, -1)
    return b.model(_conv(b, y, 0.5, 4))


def split() -> onnx.ModelProto:
    """In front of a ReLU, where a skip connection reads the tensor too and leads to the graph's output."""
    b = _builder()
    stream = _conv(b, _input(b), 2, 1)
    inner = b.node("Relu", _bn(b, stream, 3, 6))
    return b.model(b.node("Add", stream, _conv(b, inner, 0.5, 4, 3)))


def residual() -> onnx.ModelProto:
    """A pre-activation residual block: two BatchNormalization in front of ReLU, the first on the stream itself."""
    b = _builder()
    stream = _conv(b, _input(b), 2, 1)
    inner = b.node("Relu", _bn(b, stream, 3, 6, "bn1"))
    inner = b.node("Relu", _bn(b, _conv(b, inner, 0.5, 4, 3), 2, -1, "bn2"))
    y = b.node("Add", stream, _conv(b, inner, 1.5, 0, 3))
    return b.model(b.node("Relu", _bn(b, y, 4, -8, "bn3")))


def branches() -> onnx.ModelProto:
    """A block of RepVGG as it is trained: three branches, each with its BatchNormalization."""
    b = _builder()
    x = b.node("Relu", _conv(b, _input(b), 1, 0))
    three = _bn(b, _conv(b, x, 2, None, 3), 3, -1, "bn1")
    one = _bn(b, _conv(b, x, 0.5, None), 2, 4, "bn2")
    y = b.node("Add", b.node("Add", three, one), _bn(b, x, 5, 1, "bn3"))
    return b.model(b.node("Relu", y))


PICTURES = {"pull": pull, "push": push, "split": split, "residual": residual, "branches": branches}


def _builder() -> Builder:
    return Builder(type_=TensorProto.FLOAT)


def _input(b: Builder) -> str:
    return b.input("N", 1, 8, 8)


def _conv(b: Builder, x: str, weight: float, bias: float | None, kernel: int = 1) -> str:
    """A kernel of one number, in the middle of zeros, and padding that keeps the size."""
    values = np.zeros((1, 1, kernel, kernel), np.float32)
    values[0, 0, kernel // 2, kernel // 2] = weight
    inputs = [x, b.constant(values, "W")] + ([] if bias is None else [b.constant([float(bias)], "B")])
    return b.node("Conv", *inputs, pads=[kernel // 2] * 4)


def _bn(b: Builder, x: str, scale: float, shift: float, name: str = "bn") -> str:
    return b.bn(x, [scale], [shift], [0.0], [1.0], name=name, epsilon=0.0)


# ------------------------------------------------------------------------------------------------------------- drawing


def halves(model: onnx.ModelProto) -> tuple[Half, Half]:
    """A model before and after its fold; raises where a BatchNormalization stays or the fold was not verified."""
    result = bnfold.optimize(model)
    assert result.proto is not None
    assert (result.batchnorm.after, result.status) == (0, "verified"), [a.to_json() for a in result.affines]
    roles = _roles(result)
    made = {name: node.name for node in model.graph.node for name in node.output}
    storage = result.witness.main.storage
    stored = {made[name]: how for name, how in storage.items() if name in made and not how.is_identity}
    after = {name: role for name, role in roles.items() if role == "absorbs"}
    return Half("before", model, roles, {}), Half("after", result.proto, after, stored)


def _roles(result: Optimized) -> dict[str, str]:
    roles = {name: "absorbs" for affine in result.affines for name in affine.into}
    roles |= {name: "leaves" for merge in result.merges for name in merge.nodes}
    roles |= {affine.node: "leaves" for affine in result.affines}
    return roles | {merge.into: "absorbs" for merge in result.merges if merge.status == "merged"}


def svg(model: onnx.ModelProto) -> str:
    """The picture of a model's fold."""
    parts: list[str] = []
    left, tallest = float(MARGIN), 0.0
    for half in halves(model):
        drawn, width, height = _half(half, left)
        parts += drawn
        left += width + BETWEEN
        tallest = max(tallest, height)
    width, height = left - BETWEEN + MARGIN + 50, TOP + tallest + MARGIN
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def _half(half: Half, left: float) -> tuple[list[str], float, float]:
    """The lines of a half, and its size."""
    graph, nodes = half.model.graph, list(half.model.graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    edges = {(makers[name], i) for i, node in enumerate(nodes) for name in node.input if name in makers}
    places = tuple(Place(f"{i}", node.op_type, half.roles.get(node.name, "")) for i, node in enumerate(nodes))
    region = Region(places, tuple(sorted(edges)))
    (picture,) = pictures([Affine("", "", "folded", region=region)])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    out = [f'<g transform="translate({left:g} {TOP})">', f'<text class="head" x="0" y="-14">{half.title}</text>']
    out += [f'<path d="{_stretched(line)}"/>' for line in picture.before.lines]
    bottom = right = 0.0
    for box in picture.before.boxes:
        node, y = nodes[int(box.place.label)], box.y * SPREAD
        right, bottom = max(right, box.x + WIDE), max(bottom, y + BOX)
        out.append(f'<g class="{box.place.role}" transform="translate({box.x:g} {y:g})">')
        out.append(f'<rect width="{WIDE}" height="{BOX:g}" rx="5"/>')
        out += _lines(node.op_type, _numbers(node, constants))
        out += _note(half.stored.get(node.name))
        out.append("</g>")
    return [*out, "</g>"], right, bottom


def _lines(first: str, second: str) -> Iterable[str]:
    middle = f'x="{WIDE / 2:g}" text-anchor="middle"'
    if not second:
        yield f'<text {middle} y="26">{escape(first)}</text>'
        return
    yield f'<text {middle} y="18">{escape(first)}</text>'
    yield f'<text class="faint" {middle} y="34">{escape(second)}</text>'


def _note(storage: Storage | None) -> Iterable[str]:
    """Beside the line that leaves a box: how its tensor is stored."""
    if storage is not None:
        a, b = float(storage.a.reshape(-1)[0]), float(storage.b.reshape(-1)[0])
        scale = "" if a == 1 else "-" if a == -1 else f"{_number(a)} "
        shift = "" if b == 0 else f" {'+' if b > 0 else '-'} {_number(abs(b))}"
        place = f'x="{WIDE / 2 - 7:g}" text-anchor="end" y="{BOX + 16:g}"'
        yield f'<text class="stored" {place}>v\' = {scale}v{shift}</text>'


def _numbers(node: onnx.NodeProto, constants: Mapping[str, Any]) -> str:
    """The constants of a node, as numbers."""
    names = {"Conv": ("", "W", "B"), "BatchNormalization": ("", "s", "t")}.get(node.op_type, ())
    said = []
    for what, name in zip(names, node.input, strict=False):
        if what and name:
            values = constants[name]
            kernel = f"{values.shape[-1]}x{values.shape[-1]} " if values.ndim == 4 and values.shape[-1] > 1 else ""
            (value,) = {float(v) for v in values.flat if v} or {0.0}
            said.append(f"{what} {kernel}{_number(value)}")
    return ", ".join(said)


def _number(value: float) -> str:
    return f"{value:.3g}"


def _stretched(line: str) -> str:
    """A path of the report's picture, taller: its every second number is a height."""
    tokens = line.replace("M", " M ").replace("C", " C ").replace("V", " V ").split()
    out, across = [], True
    for token in tokens:
        if token in "MCV":
            out.append(token)
            across = token != "V"
        else:
            out.append(token if across else f"{float(token) * SPREAD:g}")
            across = not across
    return " ".join(out)


def drawn() -> dict[str, str]:
    """All of them, by name of the file."""
    return {f"how-{name}.svg": svg(make()) for name, make in PICTURES.items()} | {
        "how-proof.svg": proof_picture.svg(STYLE)
    }


if __name__ == "__main__":
    for name, text in drawn().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
