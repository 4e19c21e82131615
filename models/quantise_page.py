"""The tables of docs/quantisation.md, from what models.quantise measured."""

import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

NAMES = {"bn-x5": "BN-Inception", "preact": "pre-activation ResNet", "repvgg": "RepVGG, as trained"}
FORMS = ("exported", "ort", "bnfold")
VARIANTS = ("tensor", "channel", "weights", "activations")
ANSWERS = ("BN left", "float32 %", "tensor %", "channel %", "changed, tensor %", "changed, channel %", "int8 kB")
NOISE = ("tensor dB", "channel dB", "weights alone dB", "activations alone dB", "peak of 3x3 kernels")
BEGIN, END = "<!-- made by make quantise: begin -->\n", "<!-- made by make quantise: end -->"

Rows = Sequence[dict[str, Any]]


def write(page: Path, results: Rows) -> None:
    """The tables between the page's markers."""
    text = page.read_text()
    head, _, rest = text.partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{tables(results)}\n{END}{rest.partition(END)[2]}")


def tables(results: Rows) -> str:
    """Mean and standard deviation over the seeds."""
    every = [row for result in results for row in result["rows"]]
    seeds = len({row["seed"] for row in every})
    versions = f"Python {platform.python_version()}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    return "\n".join([
        *_table(every, ANSWERS, _answers),
        "",
        *_table(every, NOISE, _noise),
        "",
        *_times([result["speed"] for result in results]),
        "",
        f"Fashion-MNIST, 10,000 test images, {seeds} seeds, mean ± standard deviation; {versions}, one thread.",
        "",
    ])  # fmt: skip


def _table(every: Rows, columns: Sequence[str], cells: Callable[[Rows], Iterator[str]]) -> Iterator[str]:
    yield f"| network | form | {' | '.join(columns)} |"
    yield f"| --- | --- |{' ---: |' * len(columns)}"
    for network, name in NAMES.items():
        for form in FORMS:
            mine = [row for row in every if row["network"] == network and row["form"] == form]
            if mine:
                yield f"| {name} | {form} | {' | '.join(cells(mine))} |"


def _answers(mine: Rows) -> Iterator[str]:
    yield "/".join(str(left) for left in sorted({row["batchnorm"] for row in mine}))
    for variant in ("float32", "tensor", "channel"):
        yield _mean(mine, variant, "accuracy", 100, 2)
    for variant in ("tensor", "channel"):
        yield _mean(mine, variant, "changed", 100, 2)
    yield f"{statistics.mean(row['bytes'] for row in mine if row['variant'] == 'channel') / 1e3:.0f}"


def _noise(mine: Rows) -> Iterator[str]:
    for variant in VARIANTS:
        yield _mean(mine, variant, "snr")
    yield _mean(mine, "float32", "peak")


def _mean(mine: Rows, variant: str, key: str, scale: float = 1.0, digits: int = 1) -> str:
    values = [row[key] * scale for row in mine if row["variant"] == variant]
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _times(found: Rows) -> Iterator[str]:
    yield "| network | seed | exported, ms | ort, ms | bnfold, ms | bnfold against exported | bnfold against ort |"
    yield "| --- | ---: | ---: | ---: | ---: | --- | --- |"
    for network, name in NAMES.items():
        for row in (row for row in found if row["network"] == network):
            ms = " | ".join(f"{row[form]['ms']:.3f}" for form in FORMS)
            verdicts = " | ".join(_verdict(row[form]) for form in ("exported", "ort"))
            yield f"| {name} | {row['seed']} | {ms} | {verdicts} |"


def _verdict(found: dict[str, Any]) -> str:
    return (
        found["verdict"] if found["low"] is None else f"{found['verdict']} ({found['low']:.2f} to {found['high']:.2f})"
    )
