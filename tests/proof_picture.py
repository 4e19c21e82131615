"""The picture of the four proofs: what each of them compares, between which two."""

from __future__ import annotations

from collections.abc import Iterator

WIDE, HIGH, STEP, APART, PANEL = 62, 24, 50, 96, 216
"""A box, the way from one to the next, from the original's to the folded model's, and a panel."""

PANELS = (
    ("1. certificate", "each node alone, in float64,", "on inputs of its own", "nodes"),
    ("2. algebra", "the whole model in float64,", "constants not rounded yet", "tensors"),
    ("3. noise", "the whole model, as stored:", "8 times the original's noise", "outputs"),
    ("4. runtime", "ONNX Runtime, each provider,", "optimisations off and on", "outputs"),
)
"""Name, two lines that say what runs, and what is compared."""

NODES = ("Conv", "BN", "Relu", "Conv")
GONE = 1


def svg(style: str) -> str:
    """The whole picture."""
    width, height = PANEL * len(PANELS), 84 + STEP * len(NODES)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    more = ".same { stroke: #0969da; stroke-width: 2; } .dot { fill: #0969da; } .inner rect { fill: none; }"
    parts = [head, f"<style>{style}\n{more}</style>"]
    for i, panel in enumerate(PANELS):
        parts += [f'<g transform="translate({i * PANEL + 14} 20)">', *_panel(*panel), "</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panel(name: str, first: str, second: str, compared: str) -> Iterator[str]:
    yield f'<text class="head" y="0">{name}</text>'
    yield f'<text class="faint" y="17">{first}</text>'
    yield f'<text class="faint" y="32">{second}</text>'
    for column, x in enumerate((0, APART)):
        yield from _chain(x, after=column == 1, alone=compared == "nodes")
    for i in range(len(NODES)):
        y = _y(i)
        if compared == "nodes" and i != GONE:
            yield _same(y + HIGH / 2, WIDE + 3, APART - 3)
        elif (compared == "tensors" and i) or i == len(NODES) - 1:
            yield _same(y + HIGH + 12, WIDE / 2 + 5, APART + WIDE / 2 - 5)


def _chain(x: float, *, after: bool, alone: bool) -> Iterator[str]:
    """One model, from its first node to its last."""
    shown = [i for i in range(len(NODES)) if not (after and i == GONE)]
    middle = x + WIDE / 2
    for i in shown:
        y = _y(i)
        role = "leaves" if i == GONE else "absorbs" if after and NODES[i] == "Conv" else ""
        above = y - 14 if alone or i == 0 else _y(max(k for k in shown if k < i)) + HIGH
        yield f'<path d="M {middle:g} {above:g} V {y:g}"/>'
        if alone or i == 0:
            yield f'<circle class="dot" cx="{middle:g}" cy="{above:g}" r="3"/>'
        yield f'<g class="{role}"><rect x="{x:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="4"/>'
        yield f'<text x="{middle:g}" y="{y + 16:g}" text-anchor="middle">{NODES[i]}</text></g>'
        if i == shown[-1] or alone:
            yield f'<path d="M {middle:g} {y + HIGH:g} v 10"/>'


def _same(y: float, left: float, right: float) -> str:
    """A double arrow: these are compared."""
    ends = f"M {left + 5:g} {y - 4:g} L {left:g} {y:g} L {left + 5:g} {y + 4:g}"
    other = f"M {right - 5:g} {y - 4:g} L {right:g} {y:g} L {right - 5:g} {y + 4:g}"
    return f'<path class="same" d="M {left:g} {y:g} H {right:g} {ends} {other}"/>'


def _y(i: int) -> float:
    return 60 + i * STEP
