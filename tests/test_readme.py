"""The tables of README and docs/json.md are what the code does. That their commands run: tests/test_pages.py."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold import bench, deploy, explain, optimize, verify
from bnfold.reasons import CODES
from bnfold.rules import RULES
from tests.program import bnfold, classifier, different, foldable, saved, stubborn
from tests.reason_examples import rivals

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
JSON = (ROOT / "docs" / "json.md").read_text()


def test_every_operator_with_a_rule_stands_in_the_table() -> None:
    table = README.split("## What folds")[1].split("## What is proved")[0]
    assert all(re.search(rf"\b{op}\b", table) for op in [*RULES, "Mul", "Div", "Dropout"])


# ---------------------------------------------------------------------------------------------------------------- JSON

DYNAMIC = {"shapes", "timing"}
"""Objects whose keys are the model's or the run's own."""


def keys(value: Any) -> Iterator[str]:
    """Every key in some JSON, however deep."""
    if isinstance(value, list):
        for each in value:
            yield from keys(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            if key not in DYNAMIC:
                yield from keys(each)


def codes_section() -> str:
    return JSON.split("### Codes")[1].split("\n## ")[0]


def test_the_json_is_documented_key_by_key(tmp_path: Path) -> None:
    model, other = saved(stubborn(), tmp_path / "model.onnx"), saved(different(stubborn()), tmp_path / "other.onnx")
    results = [
        explain(model).to_json(),
        optimize(model, keep=["first"]).to_json(),
        explain(rivals(False)).to_json(),
        verify(model, other).to_json(),
        verify(classifier(), classifier(), inputs={"x": np.eye(7, dtype=np.float32)}, labels=range(7)).to_json(),
        verify(model, model, self_test=True).to_json(),
        bench(model, other, seconds=0).to_json(),
        deploy(model, triton=tmp_path / "models").to_json(),
    ]
    (tmp_path / "bad.onnx").write_text("no")
    several = bnfold("optimize", tmp_path / "bad.onnx", model, "-o", tmp_path / "out", "--json", "-").out
    seen = {key for each in [*results, json.loads(several)] for key in keys(each)}
    written = {word for token in re.findall(r"`([^`]+)`", JSON) for word in re.findall(r"\w+", token)}
    assert seen <= written, f"not in docs/json.md: {sorted(seen - written)}"
    fields = re.findall(r"^\| (`.*?`) \|", JSON.replace(codes_section(), ""), re.MULTILINE)
    promised = {
        name.removesuffix("[]").split(".")[-1].removesuffix("[]")
        for row in fields
        for name in re.findall(r"`(.*?)`", row)
    }
    assert promised <= seen | {"original", "optimized"}, f"only in docs/json.md: {sorted(promised - seen)}"


def test_every_code_stands_in_the_document() -> None:
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", codes_section(), re.MULTILINE)) == CODES


def test_the_commands_of_the_ci_example_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "ci.md").read_text()
    (workflow,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    lines = [shlex.split(line) for line in workflow.splitlines() if line.strip().startswith("bnfold ")]
    assert [line[1] for line in lines] == ["optimize", "verify"]
    monkeypatch.chdir(tmp_path)
    for folder in ("models", "reports"):
        (tmp_path / folder).mkdir()
    model = saved(foldable(), tmp_path / "models" / "net.onnx")
    assert bnfold("optimize", model).code == 0
    for _, *arguments in lines:
        done = bnfold(*arguments)
        assert done.code == 0, done.err
    assert {path.name for path in Path("reports").iterdir()} == {"fold.xml", "fold.html", "verify.xml", "verify.html"}
    assert re.findall(r"path: \|\n +(\S+)\n +(\S+)", workflow) == [("reports/", "folded/")]
