"""Pictures of a region of the graph before and after its fold: where each node stands, and the lines between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bnfold.regions import Place, Region
from bnfold.results import Affine

WIDE, TALL, GAP, STEP, LANE = 132, 34, 10, 20, 14
"""Size of a box, the gap beside it, the step below it, and the lane for lines that pass other boxes."""

BESIDE, APART = 440, 30
"""Up to this width the two halves stand side by side, and so far apart."""

LETTERS = 20
"""What fits into a box."""

PICTURES = 4
"""Forms of one kind of fold that are drawn, the most frequent first."""


@dataclass(frozen=True)
class Box:
    """A node in a picture."""

    place: Place
    x: float
    y: float

    @property
    def name(self) -> str:
        """As much of the end of the label as fits: names of a model begin alike."""
        label = self.place.label
        return label if len(label) <= LETTERS else "…" + label[1 - LETTERS :]

    @property
    def op(self) -> str:
        """As much of the operator as fits."""
        return self.place.op[:LETTERS]


@dataclass(frozen=True)
class Half:
    """The region at one time."""

    title: str
    boxes: tuple[Box, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A form of region, as its first example, and how many folds have it; the half after stands at `(right, down)`."""

    count: int
    width: float
    height: float
    before: Half
    after: Half
    right: float
    down: float
    hidden: int


def pictures(affines: Iterable[Affine]) -> tuple[Picture, ...]:
    """The forms of region that these affines fold in."""
    forms: dict[object, list[Region]] = {}
    for affine in affines:
        if affine.region is not None:
            forms.setdefault(affine.region.form, []).append(affine.region)
    often = sorted(forms.values(), key=lambda regions: -len(regions))
    return tuple(_picture(regions[0], len(regions)) for regions in often[:PICTURES])


def _picture(region: Region, count: int) -> Picture:
    rows = _rows(region)
    depth_of = {place: depth for depth, row in enumerate(rows) for place in row}
    passing = any(depth_of[below] - depth_of[above] > 1 for above, below in region.edges)
    width = max(map(len, rows)) * (WIDE + GAP) - GAP + (2 * LANE if passing else 0)
    spots: dict[int, tuple[float, float]] = {}
    for depth, row in enumerate(rows):
        left = (width - (len(row) * (WIDE + GAP) - GAP)) / 2
        for i, place in enumerate(row):
            spots[place] = left + i * (WIDE + GAP), depth * (TALL + STEP)
    leaving = {i for i, place in enumerate(region.places) if place.role == "leaves"}
    stay = {i: spot for i, spot in spots.items() if i not in leaving}
    before = _half("before", region, spots, region.edges, width)
    after = _half("after", region, stay, _without(region.edges, leaving), width)
    height = len(rows) * (TALL + STEP) - STEP
    right, down = (width + APART, 0) if width <= BESIDE else (0, height + APART)
    return Picture(count, right + width, down + height, before, after, right, down, region.hidden)


def _half(
    title: str, region: Region, spots: dict[int, tuple[float, float]], edges: Iterable[tuple[int, int]], width: float
) -> Half:
    boxes = tuple(Box(region.places[i], *spots[i]) for i in sorted(spots))
    return Half(title, boxes, tuple(_line(spots[above], spots[below], boxes, width) for above, below in edges))


def _line(above: tuple[float, float], below: tuple[float, float], boxes: Iterable[Box], width: float) -> str:
    """From the lower edge of one box to the upper edge of another; in the nearer lane where a box is in the way."""
    x0, y0, x1, y1 = above[0] + WIDE / 2, above[1] + TALL, below[0] + WIDE / 2, below[1]
    left, right = min(x0, x1), max(x0, x1)
    if any(y0 < box.y < y1 and box.x <= right and left <= box.x + WIDE for box in boxes):
        lane = LANE / 2 if left < width - right else width - LANE / 2
        down, up = y0 + STEP, y1 - STEP
        out = f"M{x0:g} {y0:g}C{x0:g} {down:g} {lane:g} {y0:g} {lane:g} {down:g}"
        return f"{out}V{up:g}C{lane:g} {y1:g} {x1:g} {up:g} {x1:g} {y1:g}"
    bend = (y1 - y0) / 2
    return f"M{x0:g} {y0:g}C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}"


def _rows(region: Region) -> list[list[int]]:
    """Places by the longest way down to them, each row in the order of what stands above."""
    depth = [0] * len(region.places)
    for above, below in region.edges:  # in graph order: whatever is read stands before its readers
        depth[below] = max(depth[below], depth[above] + 1)
    for place in reversed(range(len(depth))):  # what nobody here feeds stands right above its reader
        readers = [depth[below] for above, below in region.edges if above == place]
        if readers and not any(below == place for _, below in region.edges):
            depth[place] = min(readers) - 1
    rows: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    for place, at in enumerate(depth):
        rows[at].append(place)
    column = {place: i for i, place in enumerate(rows[0])}
    for row in rows[1:]:
        parents = {p: [column[a] for a, b in region.edges if b == p and a in column] for p in row}
        row.sort(key=lambda place: sum(parents[place]) / max(len(parents[place]), 1))
        column |= {place: i for i, place in enumerate(row)}
    return rows


def _without(edges: Iterable[tuple[int, int]], leaving: set[int]) -> list[tuple[int, int]]:
    """The edges where these places are gone: who read them reads what they read."""
    left = set(edges)
    for place in leaving:
        above = [a for a, b in left if b == place]
        below = [b for a, b in left if a == place]
        left = {(a, b) for a, b in left if place not in (a, b)} | {(a, b) for a in above for b in below}
    return sorted(left)
