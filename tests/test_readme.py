"""README: every command in it runs, its tables are what the code does, and its links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold import audit, bench, explain, optimize, verify
from bnfold.reasons import CODES
from bnfold.rules import RULES
from tests.program import bnfold, classifier, different, foldable, saved, stubborn
from tests.reason_examples import rivals

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
JSON = (ROOT / "docs" / "json.md").read_text()

EXCEPTED = {
    "make demo": "makes an environment; run by hand and by whoever clones",
    "make test": "runs this test",
    "pip install .": "installs; the wheel is built and installed in test_packaging",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> Iterator[str]:
    for block in blocks("sh"):
        for line in block.splitlines():
            yield line.split("#")[0].strip()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that README's commands name."""
    saved(stubborn(), tmp_path / "model.onnx")
    (tmp_path / "models").mkdir()
    saved(foldable(), tmp_path / "models" / "a.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.ones((2, 3, 10, 14), np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_runs_in_the_order_of_the_page(workplace: Path) -> None:
    run = [command for command in commands() if command not in EXCEPTED]
    assert len(run) >= 5
    for command in run:
        program, *arguments = shlex.split(command)
        assert program == "bnfold", f"{command}: run it, or say in EXCEPTED why not"
        if arguments[0] == "bench":
            arguments += ["--seconds", "0"]
        done = bnfold(*arguments)
        assert done.code == 0, done.err
    assert (workplace / "model.folded.onnx").exists()
    assert (workplace / "folded" / "a.onnx").exists()


def test_the_exceptions_are_on_the_page() -> None:
    assert set(EXCEPTED) <= set(commands())


@pytest.mark.parametrize("code", blocks("python"))
@pytest.mark.usefixtures("workplace")
def test_the_python_runs(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 -> ")


def shown(command: str) -> list[str]:
    """The output that the page shows for a command, without numbers that differ from run to run."""
    (block,) = re.findall(rf"```\n\$ {re.escape(command)}.*?\n(.*?)```", README, re.DOTALL)
    return [comparable(line) for line in block.splitlines()]


def comparable(line: str) -> str:
    return re.sub(r"\(.*\)|[\d.e+-]+", "#", line) if line.strip().startswith(("error", "algebra", "time")) else line


@pytest.mark.usefixtures("workplace")
def test_explain_prints_what_the_page_shows() -> None:
    assert bnfold("explain", "model.onnx").out.splitlines() == shown("bnfold explain model.onnx")


def test_optimize_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model, folded = "models/trained/bn_inception_fashion.onnx", tmp_path / "bn_inception_fashion.folded.onnx"
    done = bnfold("optimize", model, "-o", folded)
    lines = [comparable(line.replace(str(tmp_path), "build/demo")) for line in done.err.splitlines()]
    assert lines == shown(f"bnfold optimize {model}")


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in commands() if command.startswith("make")} <= targets


def test_every_operator_with_a_rule_stands_in_the_table() -> None:
    table = README.split("## What folds")[1].split("## What is proved")[0]
    assert all(re.search(rf"\b{op}\b", table) for op in [*RULES, "Mul", "Div", "Dropout"])


def test_links_lead_somewhere() -> None:
    pages = [
        ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("cli", "fleet", "json", "manifest", "reasons")),
    ]  # fmt: skip
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


# ---------------------------------------------------------------------------------------------------------------- JSON

DYNAMIC = {"shapes", "timing", "made_by"}
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
        audit(f"{optimize(model, force=True).output}.manifest.json").to_json(),
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
