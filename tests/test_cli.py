"""The command line: streams, exit codes, several models, the documented options."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import onnx
import pytest

from bnfold import api, folding
from bnfold.cli import main
from bnfold.errors import NotEquivalentError
from tests.builder import Builder
from tests.program import bnfold, complaint, different, foldable, listing, names, plain, saved, stubborn

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "bnfold"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and what became of it."""
    model = saved(foldable(), tmp_path / "model.onnx")
    assert bnfold("optimize", model).code == 0
    return model, tmp_path / "model.folded.onnx"


def batchnorms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


# ------------------------------------------------------------------------------------------------------------ starting


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*PROGRAM, "--help"], check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(seconds) < 0.25, "the promise is 0.3 s of CPU time"
    code = (
        "import sys, bnfold.cli; print(*{'numpy', 'onnx', 'onnxruntime', 'onnx_graphsurgeon', 'rich'} & {*sys.modules})"
    )
    heavy = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert heavy.stdout.strip() == ""


def test_explain_does_not_load_onnxruntime(tmp_path: Path) -> None:
    model = saved(stubborn(), tmp_path / "model.onnx")
    code = f"import sys, bnfold; bnfold.explain({str(model)!r}); print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_version_is_the_last_word() -> None:
    assert bnfold("--version").out.split()[-1] == version("bnfold")


def test_without_a_command_there_is_help() -> None:
    done = bnfold()
    assert (done.code, done.err) == (0, "")
    assert all(name in done.out for name in main.commands)


def test_python_m_is_the_same_program(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    done = subprocess.run([*PROGRAM, "optimize", str(model)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'model.folded.onnx'}\n")
    again = subprocess.run([*PROGRAM, "optimize", str(model)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (again.returncode, again.stdout, len(again.stderr.splitlines())) == (1, "", 1)


# ------------------------------------------------------------------------------------------------------------ optimize


def test_optimize_writes_beside_the_model_and_prints_the_path(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    before = model.read_bytes()
    done = bnfold("optimize", model)
    assert done.code == 0
    assert done.out == f"{tmp_path / 'model.folded.onnx'}\n"
    assert re.search(r"BatchNormalization +2 -> 0", done.err)
    assert re.search(r"certificate +holds", done.err)
    assert re.search(r"verified +cpu", done.err)
    assert batchnorms(tmp_path / "model.folded.onnx") == 0
    assert model.read_bytes() == before


def test_optimize_into_a_file_and_into_a_folder(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    assert bnfold("optimize", model, "-o", tmp_path / "a.onnx").code == 0
    (tmp_path / "there").mkdir()
    assert bnfold("optimize", model, "-o", tmp_path / "there").code == 0
    assert bnfold("optimize", model, "-o", f"{tmp_path / 'new'}/").code == 0
    assert set(listing(tmp_path)) == {"model.onnx", "a.onnx", "there/model.onnx", "new/model.onnx"}


def test_force_overwrites(pair: tuple[Path, Path]) -> None:
    assert bnfold("optimize", pair[0]).code == 1
    assert bnfold("optimize", pair[0], "--force").code == 0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("optimize", model, "--dry-run", "-o", f"{tmp_path / 'new'}/")
    assert (done.code, done.out, names(tmp_path)) == (0, "", ["model.onnx"])
    assert re.search(r"BatchNormalization +2 -> 0", done.err)


def test_nothing_to_fold_is_a_copy(tmp_path: Path) -> None:
    model = saved(plain(), tmp_path / "model.onnx")
    done = bnfold("optimize", model)
    assert (done.code, (tmp_path / "model.folded.onnx").read_bytes()) == (0, model.read_bytes())
    assert "the output is the input, byte for byte" in done.err


@pytest.mark.parametrize(("option", "left"), [("--keep", "first"), ("--only", "last")])
def test_keep_and_only(option: str, left: str, tmp_path: Path) -> None:
    model = saved(stubborn(), tmp_path / "model.onnx")
    entries = json.loads(bnfold("explain", model, option, left, "--json", "-").out)["affines"]
    kept = {entry["node"] for entry in entries if entry.get("code") == "kept-by-user"}
    assert kept == ({"first"} if option == "--keep" else {"first", "middle"})


def test_a_pattern_that_matches_nothing_is_a_warning(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("optimize", model, "--keep", "layer9*", "--json", tmp_path / "report.json")
    assert done.code == 0
    warning = "--keep 'layer9*' matches no node that could be folded"
    assert warning in done.err
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == [warning]


def test_no_verify_has_the_certificate_alone(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("optimize", model, "--no-verify", "--no-merge", "--json", "-")
    report = json.loads(done.out)
    assert (report["status"], report["certificate"]["ok"], report["verify"]) == ("certified", True, {})
    assert "no, as asked (--no-verify)" in done.err


def test_the_sampling_options_arrive(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    report = json.loads(
        bnfold("optimize", model, "--shape", "x=2x3x10x14", "--samples", 1, "--seed", 5, "--json", "-").out
    )
    assert report["verify"]["inputs"] == [{"name": "x", "type": "float32", "shape": [2, 3, 10, 14]}]
    assert (report["verify"]["samples"], report["verify"]["seed"]) == (1, 5)
    np.savez(tmp_path / "own.npz", x=np.ones((1, 3, 10, 14), np.float32))
    own = ["--inputs", tmp_path / "own.npz", "--samples", 0, "--tf32", "--provider", "cpu", "--provider", "cpu"]
    report = json.loads(bnfold("verify", model, tmp_path / "model.folded.onnx", *own, "--json", "-").out)
    assert (report["samples"], report["inputs"][0]["shape"], report["tf32"]) == (1, [1, 3, 10, 14], True)


def test_verbose_lists_everything_and_tells_every_step(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("optimize", model, "-v")
    assert all(f"bnfold: {step}\n" in done.err for step in ("reading", "solving", "writing", "certifying"))
    assert re.search(r"bn +BatchNormalization: pull into conv\n", done.err)


def test_an_interrupt_is_one_word_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "verified", interrupted)
    model = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("optimize", model)
    assert (done.code, done.out, done.err.strip(), names(tmp_path)) == (
        130,
        "",
        "bnfold: interrupted",
        ["model.onnx"],
    )


def test_a_real_interrupt(pair: tuple[Path, Path]) -> None:
    command = [*PROGRAM, "bench", *map(str, pair), "--seconds", "60", "-v"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        while "measuring" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.strip()) == (130, "", "bnfold: interrupted")


def test_a_bug_is_two_lines_and_the_traceback_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setattr(folding, "solve", broken)
    model = saved(foldable(), tmp_path / "model.onnx")
    done = bnfold("optimize", model)
    assert (done.code, complaint(done)) == (1, "internal error, ZeroDivisionError: one over nothing")
    monkeypatch.setenv("BNFOLD_TRACEBACK", "1")
    with pytest.raises(AssertionError, match="one over nothing"):
        bnfold("optimize", model)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(28, "No space left on device", "/there/x"), "/there/x: No space left on device"),
    ],
)
def test_the_machine_runs_out(error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(folding, "solve", failing)
    done = bnfold("explain", saved(foldable(), tmp_path / "model.onnx"))
    assert done.code == 1
    assert words in complaint(done)


# ----------------------------------------------------------------------------------------------------- several models


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Three good models, one of them in a folder of its own, and a bad one."""
    folder = tmp_path / "zoo"
    (folder / "inner").mkdir(parents=True)
    saved(foldable(1), folder / "a.onnx")
    saved(stubborn(), folder / "inner" / "c.onnx")
    saved(plain(), folder / "d.onnx")
    (folder / "b.onnx").write_text("no model")
    (folder / "a.folded.onnx").write_text("an output, not a model")
    return folder


def test_a_folder_of_models_and_one_is_bad(zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bnfold("optimize", zoo, "-o", out, "--json", tmp_path / "report.json")
    assert done.code == 1
    assert set(listing(out)) == {"a.onnx", "d.onnx", "inner/c.onnx"}
    assert done.out.split() == [str(out / name) for name in ("a.onnx", "d.onnx", "inner/c.onnx")]
    assert "b.onnx is not an ONNX model" in done.err
    assert done.err.endswith("bnfold: 3 of 4 models done\n")
    models = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [Path(entry["model"]["path"]).name for entry in models] == ["a.onnx", "b.onnx", "d.onnx", "c.onnx"]
    assert models[1]["error"]["exit_code"] == 1
    assert [entry.get("status") for entry in models] == ["verified", None, "certified", "verified"]


def test_a_glob_and_the_default_output(zoo: Path) -> None:
    done = bnfold("optimize", zoo / "[ad].onnx", "--force", "--no-verify")
    assert done.code == 0
    assert done.out.split() == [str(zoo / "a.folded.onnx"), str(zoo / "d.folded.onnx")]


def test_the_same_model_twice_is_one_model(zoo: Path, tmp_path: Path) -> None:
    done = bnfold("optimize", zoo / "d.onnx", zoo / "inner" / ".." / "d.onnx", "-o", tmp_path / "out")
    assert (done.code, len(done.out.splitlines())) == (0, 1)


def test_a_folder_made_for_nothing_goes_again(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_text("no model")
    done = bnfold("optimize", tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", tmp_path / "deep" / "out")
    assert (done.code, names(tmp_path)) == (1, ["a.onnx", "b.onnx"])


def test_the_worst_code_wins(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = api.optimize

    def sometimes(model: Path, *args: object, **kwargs: object) -> object:
        if model.name == "a.onnx":
            raise NotEquivalentError(f"{model}: the two models differ; nothing was written")
        return whole(model, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(api, "optimize", sometimes)
    done = bnfold("optimize", zoo, "-o", tmp_path / "out", "--no-verify")
    assert (done.code, set(listing(tmp_path / "out"))) == (3, {"d.onnx", "inner/c.onnx"})


# -------------------------------------------------------------------------------------------- explain, verify and bench


def test_explain_says_why_and_what_would_unlock_it(tmp_path: Path) -> None:
    model = saved(stubborn(), tmp_path / "model.onnx")
    done = bnfold("explain", model)
    assert (done.code, done.err) == (0, "")
    (line,) = (line for line in done.out.splitlines() if line.startswith("  middle"))
    assert re.match(r"  middle  BatchNormalization  padded-shift at conv2?: .*; to unlock: ", line)
    assert names(tmp_path) == ["model.onnx"]


def test_verify_says_equivalent(pair: tuple[Path, Path]) -> None:
    done = bnfold("verify", *pair)
    assert (done.code, done.out) == (0, "equivalent\n")
    assert re.search(r"placement +\d+ nodes on CPUExecutionProvider", done.err)


def test_verify_exits_3_where_they_differ(tmp_path: Path) -> None:
    model = foldable()
    other = saved(different(model), tmp_path / "b.onnx")
    done = bnfold("verify", saved(model, tmp_path / "a.onnx"), other, "--json", tmp_path / "report.json")
    assert (done.code, done.out) == (3, "different\n")
    assert "DIFFERENT" in done.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["status"], report["original"]) == ("different", str(tmp_path / "a.onnx"))
    assert report["problems"]


def test_verify_cannot_where_nothing_runs(tmp_path: Path) -> None:
    model = foldable()
    model.graph.node[0].domain = "of.my.own"
    model.opset_import.append(onnx.helper.make_opsetid("of.my.own", 1))
    path = saved(model, tmp_path / "model.onnx")
    done = bnfold("verify", path, path)
    assert (done.code, done.out) == (1, "certified-only\n")
    assert "CERTIFIED ONLY, no runtime ran the original: nothing could be compared" in done.err


def test_verify_compares_in_float64_where_no_runtime_can(tmp_path: Path) -> None:
    b = Builder(opset=1, type_=onnx.TensorProto.FLOAT, ir=3)  # ONNX Runtime knows no BatchNormalization of opset 1
    model = saved(b.model(b.node("Relu", b.bn(b.conv(b.input(2, 3, 8, 9), 4, 3)))), tmp_path / "model.onnx")
    assert bnfold("optimize", model).code == 0
    done = bnfold("verify", model, tmp_path / "model.folded.onnx")
    assert (done.code, done.out) == (0, "certified-only\n")
    assert "CERTIFIED ONLY, no runtime ran the original: compared in float64 only" in done.err


def test_optimize_is_loud_where_nothing_runs(tmp_path: Path) -> None:
    model = foldable()
    model.graph.node.append(onnx.helper.make_node("Mine", ["x"], ["mine"], domain="of.my.own"))
    model.opset_import.append(onnx.helper.make_opsetid("of.my.own", 1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("mine", 1, None))
    done = bnfold("optimize", saved(model, tmp_path / "model.onnx"))
    assert done.code == 0
    assert "CERTIFIED ONLY" in done.err
    assert batchnorms(tmp_path / "model.folded.onnx") == 0


def test_bench_has_a_verdict_for_every_batch(pair: tuple[Path, Path]) -> None:
    done = bnfold("bench", *pair, "--batch", "1,4", "--seconds", "0.05", "--provider", "cpu")
    assert done.code == 0
    one, four = done.out.splitlines()
    assert re.fullmatch(r"cpu, batch 1: (no difference|\d\.\d\dx (faster|slower))", one)
    assert four.startswith("cpu, batch 4: ")
    assert re.search(r"milliseconds +p50 +p90 +p95 +p99 +items/s\n", done.err)
    assert done.err.count("settings          not deterministic") == 1


@pytest.mark.parametrize("command", ["optimize", "explain", "verify", "bench"])
def test_json_on_stdout_is_nothing_but_json(command: str, pair: tuple[Path, Path]) -> None:
    arguments: dict[str, list[object]] = {
        "optimize": [pair[0], "--dry-run"],
        "explain": [pair[0]],
        "verify": [*pair],
        "bench": [*pair, "--seconds", 0],
    }
    done = bnfold(command, *arguments[command], "--json", "-")
    assert done.code == 0
    assert json.loads(done.out)["schema"] == 1
    assert done.err


# ----------------------------------------------------------------------------------------------------------- terminals


def on_a_terminal(columns: int, *arguments: str) -> str:
    """What the program writes to a terminal of that width."""
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [*PROGRAM, *arguments]
    with subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, cwd=ROOT, env=environment) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not part:
                break
            written += part
    os.close(master)
    assert process.returncode == 0
    return written.decode()


def test_on_a_terminal_there_is_colour_and_no_line_is_too_long(tmp_path: Path) -> None:
    model = saved(stubborn(), tmp_path / "model.onnx")
    text = on_a_terminal(60, "explain", str(model))
    assert "\x1b[" in text
    visible = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "to unlock" in " ".join(visible.split())
    assert max(map(len, visible.replace("\r", "").splitlines())) <= 60
    narrow = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal(30, "explain", str(model))).split())
    assert "BatchNormalization" in narrow


def test_in_a_pipe_there_is_no_colour(tmp_path: Path) -> None:
    model = saved(stubborn(), tmp_path / "model.onnx")
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40"}
    command = [*PROGRAM, "optimize", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert any(len(line) > 100 for line in done.stderr.splitlines()), "one fact, one line"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    model = saved(stubborn(), tmp_path / "model.onnx")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROGRAM, "explain", str(model)], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(writing)
    assert done.stderr == b""


# ----------------------------------------------------------------------------------------------------------- documents


def documents() -> str:
    return "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def options() -> list[tuple[str, str]]:
    found = []
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found += [(name, option) for option in parameter.opts + parameter.secondary_opts]
    return found


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_stands_in_the_document_of_its_command(command: str, option: str) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    section = text.split(f"\n## {command}\n")[1].split("\n## ")[0]
    assert re.search(rf"`{option}[ `]|, `{option}[ `]", section), f"{option} of {command}"


def test_the_documents_name_no_option_that_is_not_there() -> None:
    known = {option for _, option in options()} | {"--help", "--version"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", (ROOT / "docs" / "cli.md").read_text()))
    assert named <= known
    assert {f"bnfold {name}" for name in main.commands} <= set(re.findall(r"bnfold [a-z]+", documents()))


def test_the_exit_codes_are_documented() -> None:
    assert all(f"| {code} |" in (ROOT / "README.md").read_text() for code in (0, 1, 2, 3, 130, 143))
