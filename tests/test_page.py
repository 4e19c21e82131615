"""The HTML page: what it says, that nothing in a model can change what it is, and that it needs nothing but itself."""

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bnfold import page
from bnfold.api import Affine
from bnfold.benchmark import Bench, BenchRow, Compared, Memory, Timing
from bnfold.documents import Failed, Pair
from bnfold.equivalence.result import CERTIFIED_ONLY, DIFFERENT
from bnfold.equivalence.spread import Histogram, Layer
from bnfold.reasons import CODES, Reason
from tests.program import bnfold, foldable, saved
from tests.test_report import CHECK, NODES, PLACED, RUN, VERIFIED, bn, kept, result

HOSTILE = "</code></style><script>alert(1)</script>\" onload='x' {{ 7*7 }} {% raw %} \x00\x1b\u202e\ud800"
VOID = {"meta", "link"}


class Page(HTMLParser):
    """What a browser would read: tags, attributes, text; every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def shown(found: Any, command: str = "optimize") -> Page:
    return Page(page.render([page.section(found, command)]))


DRAWN = replace(CHECK, histogram=Histogram(-9.5, (1, 5, 3), (2, 4, 0), (10, 12)))
LAYERS = (Layer("conv", "Conv", 1e-7, 2e-7), Layer("flat", "Relu", 0.0, 1e-7), Layer("far", "Conv", 0.5, 1e-7))
FULL = replace(
    VERIFIED,
    noise=replace(VERIFIED.noise, outputs=(DRAWN,), stored=(DRAWN,), layers=LAYERS),
    runtime=(replace(RUN, outputs={"off": (DRAWN,), "on": (DRAWN,)}),),
)
ROW = BenchRow(
    "cpu", 4, {"x": (4, 3, 8, 9)}, 120, Timing(2.5, 2.4, 2.6, 80), Timing(2, 1.9, 2.1, 70), 1.25, 1.2, 1.3,
    "1.25x faster",
)  # fmt: skip


def test_the_summary_and_what_folds() -> None:
    said = shown(result(bn(1), bn(2), verification=FULL)).text
    for words in (
        "net.onnx", "to net.folded.onnx", "verified", "BatchNormalization 2 → 0", "nodes 9 → 7",
        "size 4.5 MB → 4.4 MB", "certificate holds 12 nodes, 6 constants",
        "error to float64 2.0e-07 → 3.0e-07 1.50 times",
        "noise used 1.2 times the model's own, 8 allowed", "2 BatchNormalization pull into Conv", "bn_1 into conv_1",
        "opset 17, IR 8", "pytorch 2.13.0", "2 samples of x 3x3x8x9 float32, seed 0", "1.5 s (solve 0.5, verify 1.0)",
    ):  # fmt: skip
        assert words in said
    assert "What stays" not in said


def test_what_stays_has_everything_that_is_known() -> None:
    first = Reason(
        "negative-scale",
        "a sign",
        "relu",
        "be positive",
        tuple(range(8)),
        tuple(map(float, range(8))),
        ("bn_1", "bn_2"),
    )
    other = Reason("graph-input", "it is the input", "x", "scale it", (7,))
    two = Affine("bn_20", "BatchNormalization", "kept", reasons=(first, other))
    said = shown(result(bn(1), two)).text
    for words in (
        "1 BatchNormalization negative-scale bn_20 , because bn_1 , bn_2 left", "ended at relu", "why a sign",
        "channel: value 0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7", "because bn_1 , bn_2 left",
        "to unlock be positive", "its other ways ended: 1", "graph-input ended at x why it is the input channels 7",
    ):  # fmt: skip
        assert words in said


def test_those_of_one_reason_are_one_group() -> None:
    said = shown(result(*(kept(f"bn_{n}") for n in range(14)))).text
    assert f"14 BatchNormalization padded-shift {CODES['padded-shift']}" in said
    assert all(f" bn_{n} " in said for n in range(14))


def test_every_comparison_with_its_charts_and_providers() -> None:
    found = shown(Pair("a.onnx", "b.onnx", FULL), "verify")
    for words in (
        "b.onnx against a.onnx equivalent", "cpu, optimisations off logits 3x10 float32 1.0e-07 / 2.0e-07",
        "float64, as stored logits", "1.2 of 8 same", "10 exact before, 12 after", "1e-9", "1 ULP",
        "2 tensors in the order of the model", "1 more are stored in another scale", "Largest: 1.0e-07 at Conv conv",
        "cpu CPUExecutionProvider 1,200 1200 Conv", "cpu OtherProvider 1 1 Shape",
    ):  # fmt: skip
        assert words in found.text
    assert found.tags.count("svg") == 3
    assert found.tags.count("circle") == 2


def test_a_difference_is_loud_and_says_which_tensor_is_beyond_rounding() -> None:
    bad = replace(DRAWN, passed=False, problem="its error is 1", k_needed=1234.0)
    elsewhere = replace(PLACED, elsewhere=("Shape 's' ran on CPU",))
    found = replace(
        FULL, status=DIFFERENT, problems=("cpu: wrong",), notes=("a note",),
        runtime=(replace(RUN, outputs={"off": (bad,)}, placement=elsewhere),),
        noise=replace(FULL.noise, outputs=(bad,)),
    )  # fmt: skip
    seen = shown(Pair("a.onnx", "b.onnx", found), "verify")
    for words in (
        "different", "cpu: wrong", "a note", "1,234 of 8 DIFFERENT",
        "The first beyond rounding is Conv far , error 5.0e-01", "not on cpu: 1", "Shape 's' ran on CPU",
    ):  # fmt: skip
        assert words in seen.text
    assert seen.tags.count("circle") == 3


def test_many_problems_fold_away() -> None:
    found = replace(FULL, status=DIFFERENT, problems=tuple(f"problem {n}" for n in range(9)))
    assert "problem 5 3 more problem 6" in shown(Pair("a", "b", found), "verify").text


def test_certified_only_and_nothing_folded() -> None:
    alone = replace(VERIFIED, status=CERTIFIED_ONLY, runtime=(), notes=("opset 1 is too old for it",))
    said = shown(result(bn(1), verification=alone)).text
    assert "certified-only" in said
    assert "opset 1 is too old for it" in said
    assert "certificate" not in shown(result(certificate=None, verification=None)).text


def test_integers_count_their_differences() -> None:
    top = replace(CHECK, before=None, after=None, noise=None, mismatches=3, note="near ties")
    run = replace(VERIFIED, runtime=(replace(RUN, outputs={"off": (top,)}),))
    said = shown(Pair("a", "b", run), "verify").text
    assert "none none none 3 differ same near ties" in said


def test_the_bench_has_spread_and_interval() -> None:
    found = shown(Pair("a.onnx", "b.onnx", Bench((ROW,), 1000, 900, None, ("a note",), 6.0)), "bench")
    for words in (
        "cpu, batch 4 2.5 → 2 ms 1.25x faster", "x 4x3x8x9; 120 pairs", "original optimized median 2.500 2.000",
        "quartiles 2.400 to 2.600 1.900 to 2.100", "ratio 1.250, 95%: 1.200 to 1.300", "1.0 kB -> 900 bytes", "a note",
    ):  # fmt: skip
        assert words in found.text
    assert found.tags.count("svg") == 2


def test_the_bench_has_percentiles_sessions_and_memory() -> None:
    row = replace(
        ROW,
        optimized=Timing(2, 1.9, 2.1, 70, 2.25, 2.5, None, 2000),
        create=Compared(80, 70, 11, 1.14, 1.1, 1.2, "1.14x quicker"),
        memory=Memory(10**8, Compared(3e6, 2e6, 3, 1.5, 1.25, 1.75, "1.50x smaller")),
        settings={"use_tf32": "0", "mine": HOSTILE},
        provider="cuda",
    )
    found = shown(Pair("a.onnx", "b.onnx", Bench((row,), 1000, 900, None, (), 6.0)), "bench")
    for words in (
        "p90 - 2.250 p95 - 2.500 p99 - - items a second 0 2,000", "session made 1.14x quicker (80.00 -> 70.00 ms, 11",
        "peak memory 1.50x smaller (3.0 MB -> 2.0 MB;", "settings TF32 off, not deterministic, mine=",
    ):  # fmt: skip
        assert words in found.text
    assert "script" not in found.tags


def test_a_bench_too_short_for_an_interval_has_none() -> None:
    row = replace(ROW, low=None, high=None, verdict="too few to tell")
    found = shown(Pair("a.onnx", "b.onnx", Bench((row,), 1000, 900, None, (), 6.0)), "bench")
    assert "ratio 1.250, too few runs for an interval" in found.text
    assert "95%: " not in found.text


@pytest.mark.parametrize("ratio", [1.0, 0.999, 30.0])
def test_a_bench_of_any_ratio_has_ticks_on_both_sides_of_one(ratio: float) -> None:
    row = replace(ROW, ratio=ratio, low=min(ratio, 0.99), high=ratio * 1.01)
    text = page.render([page.section(Pair("a", "b", Bench((row,), 1, 1, 2, (), 1.0)), "bench")])
    assert 'text-anchor="middle">1</text>' in text
    assert 'text-anchor="middle">-' not in text, "no ratio is below 0"
    assert "nan" not in text


def test_a_failure_is_on_the_page_and_models_have_a_list() -> None:
    sections = [page.section(each, "optimize") for each in (result(bn(1)), Failed("b.onnx", "it is no model", 1))]
    found = Page(page.render(sections))
    assert "2 models" in found.text
    assert "b.onnx failed it is no model" in found.text
    assert {value for _, name, value in found.attributes if name == "href"} == {"#model-1", "#model-2", "data:,"}


def hostile() -> Page:
    """Every text that a model or its runtime can choose."""
    reason = Reason("conflict", HOSTILE, HOSTILE, HOSTILE, (1,), (float("nan"),), (HOSTILE,))
    folded = Affine(HOSTILE, HOSTILE, "folded", "pull", (HOSTILE,), (HOSTILE,), note=HOSTILE)
    check = replace(DRAWN, output=HOSTILE, problem=HOSTILE, note=HOSTILE)
    nodes = ({"op": HOSTILE, "provider": HOSTILE, "nodes": 3}, *NODES)
    run = replace(RUN, outputs={"off": (check,)}, nodes=nodes, placement=replace(PLACED, elsewhere=(HOSTILE,)))
    found = replace(
        FULL, runtime=(run,), notes=(HOSTILE,), problems=(HOSTILE,),
        inputs=({"name": HOSTILE, "type": "float32", "shape": [1]},),
        noise=replace(FULL.noise, stored=(check,), layers=(Layer(HOSTILE, HOSTILE, 1e-7, 1e-7),)),
    )  # fmt: skip
    whole = result(folded, kept(HOSTILE, reason), verification=found, warnings=(HOSTILE,))
    whole = replace(whole, model=replace(whole.model, path=HOSTILE, output=HOSTILE, producer=HOSTILE))
    row = replace(ROW, shapes={HOSTILE: (1,)})
    bench = Bench((row,), 1, 1, None, (HOSTILE,), 1.0)
    return Page(
        page.render(
            [
                page.section(whole, "optimize"),
                page.section(Pair(HOSTILE, HOSTILE, found), "verify"),
                page.section(Pair(HOSTILE, HOSTILE, bench), "bench"),
                page.section(Failed(HOSTILE, HOSTILE, 1), "optimize"),
            ]
        )
    )


def test_a_name_cannot_leave_its_place() -> None:
    found = hostile()
    assert "script" not in found.tags
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") > 25
    assert "{{ 7*7 }}" in found.text
    assert not re.search("[\x00\x1b\u202e\ud800]", found.text)


def test_nothing_is_fetched_from_elsewhere() -> None:
    found = hostile()
    assert not {"script", "img", "iframe", "object", "embed", "base", "form", "image", "use"} & set(found.tags)
    links = [value for _, name, value in found.attributes if name in ("href", "src", "srcset", "action", "xlink:href")]
    assert all(value.startswith(("#model-", "data:,")) for value in links)
    policy = [value for tag, name, value in found.attributes if (tag, name) == ("meta", "content")]
    assert any(value.startswith("default-src 'none'") for value in policy)
    style = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    assert not re.search(r"url\(|@import|@font-face", style)


@pytest.mark.parametrize("command", ["optimize", "explain", "verify", "bench"])
def test_every_command_writes_a_page(command: str, tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    other = tmp_path / "model.folded.onnx"
    if command in ("verify", "bench"):
        assert bnfold("optimize", model, "--no-verify").code == 0
    arguments: dict[str, list[object]] = {"verify": [model, other], "bench": [model, other, "--seconds", "0"]}
    assert bnfold(command, *arguments.get(command, [model]), "--html", tmp_path / "page.html").code == 0
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"bnfold {command}" in found.text
    assert "svg" in found.tags


def test_a_run_that_fails_has_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    assert bnfold("optimize", tmp_path / "model.onnx", "--html", tmp_path / "page.html").code == 1
    assert "failed" in Page((tmp_path / "page.html").read_text()).text


def test_the_template_library_is_loaded_only_for_a_page(tmp_path: Path) -> None:
    saved(foldable(), tmp_path / "model.onnx")
    code = (
        "import sys\nfrom bnfold.cli import main\n"
        f"try: main(['explain', {str(tmp_path / 'model.onnx')!r}])\n"
        "except SystemExit: print('jinja2' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
