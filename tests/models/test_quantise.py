"""The tables of docs/quantisation.md; the measuring itself is `make quantise`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from models import quantise_page
from tests.builder import Builder
from tests.models.conftest import REASON


def result(seed: int) -> dict[str, Any]:
    """As models.quantise writes it: three forms of one network."""
    numbers = {
        "accuracy": 0.9 + seed / 100,
        "changed": 0.01,
        "snr": 30.0 + seed,
        "peak": 3.0,
        "bytes": 2000,
        "nodes": 9,
    }
    rows = [
        {"network": "preact", "seed": seed, "form": form, "variant": variant, "batchnorm": left, **numbers}
        for form, left in zip(quantise_page.FORMS, (13, 7, 0), strict=True)
        for variant in ("float32", *quantise_page.VARIANTS)
    ]
    timed = {"ms": 0.2, "verdict": "1.20x faster", "ratio": 1.2, "low": 1.1, "high": 1.3}
    speed = {"network": "preact", "seed": seed, "exported": timed, "ort": timed | {"low": None}, "bnfold": {"ms": 0.1}}
    return {"rows": rows, "speed": speed}


def test_the_tables_have_mean_and_deviation_over_the_seeds(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{quantise_page.BEGIN}stale{quantise_page.END}\nafter\n")
    quantise_page.write(page, [result(0), result(2)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert "| pre-activation ResNet | bnfold | 0 | 91.00 ± 1.41 | 91.00 ± 1.41 |" in text
    assert "| 31.0 ± 1.4 | 31.0 ± 1.4 |" in text
    assert "| 0.200 | 0.200 | 0.100 | 1.20x faster (1.10 to 1.30) | 1.20x faster |" in text
    assert "10,000 test images, 2 seeds" in text


def test_the_committed_tables_are_whole() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quantisation.md").read_text()
    table = page.split(quantise_page.BEGIN)[1].split(quantise_page.END)[0]
    for name in quantise_page.NAMES.values():
        assert table.count(f"| {name} | bnfold | 0 |") == 1
        assert sum(line.startswith(f"| {name} |") for line in table.splitlines()) == 3 + 3 + 3


def test_a_peak_is_the_largest_weight_over_the_spread() -> None:
    pytest.importorskip("torch", reason=REASON)
    quantise: Any = pytest.importorskip("models.quantise")
    b = Builder(type_=TensorProto.FLOAT)
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 1, 1] = 5
    model = b.model(b.node("Conv", b.input(1, 1, 5, 5), b.constant(kernel, "W")))
    assert quantise.peak(model) == pytest.approx(5 / np.std([5] + [0] * 8))
