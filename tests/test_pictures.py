"""The part of the graph that a fold concerns, and its picture before and after."""

import re

import numpy as np
import onnx
import pytest

from bnfold import explain, page
from bnfold.page.pictures import LETTERS, PICTURES, TALL, WIDE, pictures
from bnfold.regions import SIZE, Place, Region
from bnfold.results import Affine
from tests.builder import Builder
from tests.program import foldable
from tests.test_report import bn, result

LEAVES, ABSORBS = "leaves", "absorbs"


def regions(model: onnx.ModelProto) -> dict[str, Region]:
    found = {affine.node: affine.region for affine in explain(model).affines if affine.region is not None}
    assert found
    return found


def residual() -> onnx.ModelProto:
    """A BatchNormalization with a negative scale, whose Conv is read by a skip connection too."""
    b = Builder(type_=onnx.TensorProto.FLOAT)
    y = b.conv(b.input(2, 3, 10, 14), 4, 3)
    inner = b.conv(b.node("Relu", b.bn(y, name="bn", gamma=np.array([1.0, 2, 3, 4]))), 4, 1)
    return b.model(b.node("Relu", b.conv(b.node("Add", y, inner), 4, 1)))


def test_a_region_has_what_leaves_what_absorbs_and_the_neighbours() -> None:
    first, second = regions(foldable()).values()
    assert [(place.op, place.role) for place in first.places] == [
        ("Conv", ABSORBS), ("BatchNormalization", LEAVES), ("Relu", ""),
    ]  # fmt: skip
    assert first.edges == ((0, 1), (1, 2))
    assert first.form == second.form
    assert first.places != second.places


def test_a_region_reaches_all_that_took_the_affine_up() -> None:
    (affine,) = (affine for affine in explain(residual()).affines if affine.region is not None)
    region = affine.region
    assert region is not None
    assert {place.label for place in region.places if place.role == ABSORBS} == set(affine.into)
    assert len(affine.into) > 1
    assert region.hidden == 0


def test_a_region_stays_small() -> None:
    b = Builder(type_=onnx.TensorProto.FLOAT)
    y = b.bn(b.node("Relu", b.input(2, 4, 10, 14)), name="bn")
    wide = explain(b.model(*(b.conv(y, 4, 1) for _ in range(30))))
    (region,) = (affine.region for affine in wide.affines)
    assert region is not None
    assert len(region.places) == SIZE
    assert region.hidden == 30 - (SIZE - 1)


def chain(*roles: str) -> Region:
    places = tuple(Place(f"node_{i}", "Op", role) for i, role in enumerate(roles))
    return Region(places, tuple((i, i + 1) for i in range(len(roles) - 1)))


def drawn(*many: Region) -> list[Affine]:
    return [Affine(f"bn_{i}", "BatchNormalization", "folded", "pull", region=each) for i, each in enumerate(many)]


def test_the_picture_after_has_no_node_that_left_and_joins_its_ends() -> None:
    (picture,) = pictures(drawn(chain(ABSORBS, LEAVES, LEAVES, "")))
    assert [box.place.label for box in picture.before.boxes] == ["node_0", "node_1", "node_2", "node_3"]
    assert [box.place.label for box in picture.after.boxes] == ["node_0", "node_3"]
    assert (len(picture.before.lines), len(picture.after.lines)) == (3, 1)
    at = {box.place.label: (box.x, box.y) for box in picture.before.boxes}
    assert all((box.x, box.y) == at[box.place.label] for box in picture.after.boxes), "nothing moves"


def test_a_form_is_drawn_once_the_most_frequent_first() -> None:
    rare, often = chain(LEAVES, ABSORBS), chain(ABSORBS, LEAVES)
    assert [picture.count for picture in pictures(drawn(rare, often, often))] == [2, 1]
    forms = [chain(LEAVES, *[""] * length) for length in range(2 * PICTURES)]
    assert len(pictures(drawn(*forms))) == PICTURES
    assert pictures([bn(1)]) == ()


def test_boxes_do_not_overlap_and_lie_in_the_picture() -> None:
    for region in (*regions(residual()).values(), chain(LEAVES), chain(ABSORBS, LEAVES, "")):
        (picture,) = pictures(drawn(region))
        corners = [(box.x, box.y) for box in picture.before.boxes]
        half = picture.width - picture.right
        assert all(0 <= x <= half - WIDE and 0 <= y <= picture.height - picture.down - TALL for x, y in corners)
        for i, (x, y) in enumerate(corners):
            assert not [1 for u, v in corners[:i] if abs(x - u) < WIDE and abs(y - v) < TALL]


def test_a_wide_picture_has_its_halves_one_above_the_other() -> None:
    places = tuple(Place(f"{i}", "Op", "") for i in range(6))
    wide = Region(places, tuple((0, i) for i in range(1, 6)))
    narrow, stacked = (pictures(drawn(each))[0] for each in (chain(ABSORBS, LEAVES), wide))
    assert (narrow.right > WIDE, narrow.down) == (True, 0)
    assert (stacked.right, stacked.down > 2 * TALL) == (0, True)
    assert stacked.height > 4 * TALL


def test_a_line_goes_around_the_boxes_in_its_way() -> None:
    places = tuple(Place(name, "Op", "") for name in "abc")
    (picture,) = pictures(drawn(Region(places, ((0, 1), (0, 2), (1, 2)))))
    (around,) = (line for line in picture.before.lines if "V" in line)
    lane = float(re.findall(r" ([\d.]+) [\d.]+V", around)[0])
    assert not any(box.x <= lane <= box.x + WIDE for box in picture.before.boxes)
    assert 0 <= lane <= picture.width - picture.right


@pytest.mark.parametrize("edges", [((1, 0),), ((0, 1), (1, 0)), ()])
def test_any_graph_has_a_picture(edges: tuple[tuple[int, int], ...]) -> None:
    places = Place("a", "Op", LEAVES), Place("b", "Op", ABSORBS)
    (picture,) = pictures(drawn(Region(places, edges)))
    assert len(picture.before.boxes) == 2


def test_names_are_cut_at_the_front_and_escaped() -> None:
    region = Region((Place("<b>" + "x" * 50 + "/tail", "Op" * 40, LEAVES),), (), hidden=3)
    (picture,) = pictures(drawn(region))
    (box,) = picture.before.boxes
    assert box.name == "…" + "x" * (LETTERS - 6) + "/tail"
    assert len(box.name) == len(box.op) == LETTERS
    text = page.render([page.section(result(*drawn(region)), "optimize")])
    assert "<b>" not in text
    assert "&lt;b&gt;xxx" in text
    assert "3 more took it up" in text
