"""The HTML page in a real browser: nothing is fetched, nothing runs, nothing sticks out, be it light or dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import browser
from tests.browser import Browser
from tests.builder import Builder
from tests.program import bnfold, different, foldable, saved, stubborn

PHONE, TABLET, DESKTOP = 390, 820, 1400

STICKS_OUT = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map(e => e.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = browser.found()
    if program is None:
        pytest.skip("no chromium here: the HTML page was not looked at (apt-get install chromium)")
    with browser.browser(program, tmp_path_factory.mktemp("profile")) as running:
        yield running


def deep() -> onnx.ModelProto:
    """Forty layers, with long names that try to break out of the page."""
    b = Builder(type_=onnx.TensorProto.FLOAT)
    y = b.input(2, 3, 10, 14)
    for layer in range(40):
        y = b.node(
            "Relu", b.bn(b.conv(y, 4, 1), gamma=np.ones(4), name=f"<img src=x onerror=alert({layer})>{'long' * 30}")
        )
    return b.model(y)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every kind."""
    folder = tmp_path_factory.mktemp("pages")
    model, hard = saved(foldable(), folder / "model.onnx"), saved(stubborn(), folder / "hard.onnx")
    other, large = saved(different(foldable()), folder / "other.onnx"), saved(deep(), folder / f"{'wide' * 30}.onnx")
    commands: dict[str, tuple[int, list[Any]]] = {
        "optimize": (0, ["optimize", hard]),
        "several": (1, ["optimize", model, large, folder / "missing.onnx", "-o", folder / "out"]),
        "explain": (0, ["explain", hard]),
        "verify": (3, ["verify", model, other]),
        "bench": (0, ["bench", model, model, "--seconds", "0", "--batch", "1,2,4"]),
    }
    for name, (code, command) in commands.items():
        assert bnfold(*command, "--html", folder / f"{name}.html").code == code
    return {name: folder / f"{name}.html" for name in commands}


@pytest.mark.parametrize("width", [PHONE, TABLET, DESKTOP])
@pytest.mark.parametrize("kind", ["optimize", "several", "explain", "verify", "bench"])
def test_a_page_fits_its_window_and_fetches_nothing(
    kind: str, width: int, tab: Browser, pages: dict[str, Path]
) -> None:
    tab.open(pages[kind], width)
    tab.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert tab.value("window.innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.value(STICKS_OUT) == []
    assert tab.requests == [pages[kind].as_uri()]
    assert tab.complaints == []
    assert tab.value("document.scripts.length + document.images.length") == 0
    assert tab.value("document.querySelector('h1').textContent").endswith(".onnx")


def test_the_browser_would_notice(tab: Browser, tmp_path: Path, pages: dict[str, Path]) -> None:
    text = pages["optimize"].read_text(encoding="utf-8")
    (tmp_path / "wide.html").write_text(text.replace("<footer>", '<div style="width:900px">wide</div><footer>'))
    tab.open(tmp_path / "wide.html", PHONE)
    assert tab.value("document.documentElement.scrollWidth") > PHONE
    assert tab.value(STICKS_OUT) != []
    (tmp_path / "other.png").write_bytes(b"")
    (tmp_path / "fetch.html").write_text('<title>x</title><img src="other.png">')
    tab.open(tmp_path / "fetch.html", PHONE)
    assert (tmp_path / "other.png").as_uri() in tab.requests
    forbidden = text.replace("<footer>", '<img src="other.png"><script>document.title = "run"</script><footer>')
    (tmp_path / "forbidden.html").write_text(forbidden)
    tab.open(tmp_path / "forbidden.html", PHONE)
    assert tab.value("document.title") != "run"
    assert len(tab.complaints) == 2, "the page's own policy forbids the image and the script"


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_the_light_and_in_the_dark(dark: bool, tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["several"], PHONE, dark=dark)
    page = luminance(tab, "body", "backgroundColor")
    assert (page < 0.05) == dark
    for selector in ("body", ".faint", ".kind", ".alert.bad", ".badge.good", ".badge.bad", "dt"):
        behind = luminance(tab, selector, "backgroundColor", page)
        text = luminance(tab, selector, "color")
        contrast = (max(text, behind) + 0.05) / (min(text, behind) + 0.05)
        assert contrast >= 4.5, f"{selector}: WCAG 2 asks for 4.5, it has {contrast:.1f}"


def luminance(tab: Browser, selector: str, what: str, clear: float = 0.0) -> float:
    """Relative luminance (WCAG 2) of an element's colour; `clear` where it is transparent."""
    colour = tab.value(f"getComputedStyle(document.querySelector({selector!r})).{what}")
    numbers = [float(each) for each in colour[colour.index("(") + 1 : -1].split(",")]
    if numbers[3:] == [0.0]:
        return clear
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (n / 255 for n in numbers[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_reads_letters_of_a_sane_size(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["optimize"], PHONE)
    sizes = """[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"""
    assert min(tab.value(sizes)) >= 9.5
