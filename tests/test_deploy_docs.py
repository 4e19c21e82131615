"""docs/deploy.md: its snippets run where their provider is, its commands run, its table is what `make triton` wrote."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnfold.deployment import checking
from bnfold.deployment.settings import TARGETS
from tests.program import bnfold, foldable, plain, saved

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "deploy.md").read_text()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page names."""
    saved(foldable(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_in_order(place: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (place / "models").mkdir()
    for line in block.splitlines():
        program, *arguments = shlex.split(line.split("#")[0])
        done = bnfold(*arguments)
        assert (program, done.code) == ("bnfold", 0), done.err
    assert (place / "models" / "model" / "1" / "model.onnx").exists()
    assert {path.name for path in (place / "served").iterdir()} == {
        "model.onnx", "model.onnx.manifest.json", "settings.json", "serve.py",
    }  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_the_snippet_of_a_target_runs(target: str, place: Path) -> None:
    section = PAGE.split(f"\n### {target}\n")[1].split("\n## ")[0].split("\n### ")[0]
    (code,) = re.findall(r"```python[^\n]*\n(.*?)```", section, re.DOTALL)
    compile(code, target, "exec")
    if (problem := checking.not_here(target)) is not None:
        pytest.skip(problem)
    assert bnfold("optimize", "model.onnx").code == 0
    fixed = plain()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    saved(fixed, place / "fixed.onnx")
    assert bnfold("deploy", "model.folded.onnx", "-o", "ort", "--target", "ort").code == 0
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\(\d, \d+, \d+, \d+\)\n", done.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_its_section_and_its_row(target: str) -> None:
    assert f"\n### {target}\n" in PAGE
    assert re.search(rf"^\| .*`{target}`", PAGE.split("## What was watched")[1], re.MULTILINE)
    assert target == "ort" or f"| `--target {target}` |" in PAGE


def test_the_table_was_measured() -> None:
    table = PAGE.split("<!-- made by make triton: begin -->")[1].split("<!-- end -->")[0]
    rows = re.findall(r"^\| bn_inception_fashion \| 69 → 0 \| (\d) \| (\d) \|", table, re.MULTILINE)
    assert rows == [("1", "1"), ("8", "1"), ("4", "8")]
    assert "the original gets 901 right, the folded model 901; 0 answers differ" in table
    assert np.all([word in table for word in ("bnfold ", "onnxruntime ", "nvidia-pytriton ", "Python ")])
