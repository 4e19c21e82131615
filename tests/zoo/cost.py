"""What bnfold itself costs: whole processes, in turns with processes that only read and write the same files.

    python tests/zoo/cost.py [--turns 5] [--model MODEL.onnx]... [--rivals PYTHON] [--gigabytes 3]

Prints the tables of docs/cost.md: CPU seconds (user and system, of the process and those that it started), peak memory,
and both relative to the first row, turn by turn: median (lowest to highest). Models that are not given are made; they
need TMPDIR to have room for three times the gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import machine, python_version
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

LIMIT = 120
"""Seconds that a rival may take."""

LOAD_AND_SAVE = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"
COPY = """
import os, shutil, sys
for suffix in (".onnx", ".data"):
    source, target = (os.path.splitext(path)[0] + suffix for path in sys.argv[1:])
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
"""
WITHOUT_CERTIFICATE = """
import sys
from bnfold import api
from bnfold.cli import main
api.certificate_of = lambda *given: None
main(["optimize", sys.argv[1], "-o", sys.argv[2], "--no-verify", "--force"])
"""
COUNT = """
import sys, onnx
print(sum(node.op_type == "BatchNormalization" for node in onnx.load(sys.argv[1], load_external_data=False).graph.node))
"""


@dataclass(frozen=True)
class Cost:
    """Of one process: seconds, and bytes at its peak. `anonymous` leaves out pages of files, which it need not keep."""

    cpu: float
    wall: float
    peak: int
    anonymous: int


@dataclass
class Row:
    """One way to get from a file to another, and what each turn cost."""

    name: str
    command: Sequence[str]
    stdin: str = ""
    writes: bool = True
    costs: list[Cost] = field(default_factory=list)
    failed: str = ""


def measured(row: Row) -> Cost:
    """Run it once; whatever it says is thrown away.

    This process stays small: its own size would count as a peak of the processes that it starts.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled once
    start = time.perf_counter()
    process = subprocess.Popen(
        row.command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdin is not None
    process.stdin.write(row.stdin.encode())
    process.stdin.close()
    anonymous = 0
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, _anonymous(process.pid))
        time.sleep(0.01)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}")
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start, used.ru_maxrss * 1024, anonymous)


def _anonymous(pid: int) -> int:
    """Bytes that a process holds in memory and that are not pages of files, now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def compare(title: str, rows: Sequence[Row], output: Path, turns: int) -> None:
    """Measure the rows in turns and print their table."""
    left: dict[str, str] = {}
    for turn in range(turns + 1):  # the first fills the caches and does not count
        for row in rows:
            if row.failed:
                continue
            for old in output.parent.glob(f"{output.stem}*"):
                old.unlink()
            try:
                cost = measured(row)
            except RuntimeError as error:
                row.failed = str(error)
                continue
            if row.writes and not output.exists():
                row.failed = f"no result within {LIMIT} s" if cost.wall > LIMIT else "no result"
            elif turn:
                row.costs.append(cost)
            elif row.writes:
                left[row.name] = _python(COUNT, output).strip()
    print(f"\n{title}\n")
    print("| | BN left | CPU s | ratio | wall s | ratio | peak MB | ratio | not of files, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    base = rows[0].costs
    for row in rows:
        if row.failed:
            print(f"| {row.name} | {row.failed} | | | | | | | |")
            continue
        cells = [left.get(row.name, "")]
        for what, scale in (("cpu", 1.0), ("wall", 1.0), ("peak", 1e6)):
            values = [getattr(cost, what) / scale for cost in row.costs]
            ratios = [getattr(cost, what) / getattr(first, what) for cost, first in zip(row.costs, base, strict=True)]
            digits = 0 if scale > 1 else 2
            cells += [_spread(values, digits), "1" if row is rows[0] else _spread(ratios, 2)]
        print(
            f"| {row.name} | {' | '.join(cells)} | {max(cost.anonymous for cost in row.costs) / 1e6:.0f} |", flush=True
        )


def _spread(values: Iterable[float], digits: int) -> str:
    found = sorted(values)
    return f"{median(found):.{digits}f} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


def _python(code: str, *arguments: object) -> str:
    return subprocess.check_output([sys.executable, "-c", code, *map(str, arguments)], text=True, cwd=ROOT)


def code(name: str, text: str, source: Path, output: Path) -> Row:
    """A row that is a few lines of Python."""
    return Row(name, [sys.executable, "-c", text, str(source), str(output)])


def bnfold(command: str, *arguments: object) -> list[str]:
    """The command line of the bnfold that this file belongs to."""
    return [sys.executable, "-m", "bnfold", command, *map(str, arguments)]


def ours(source: Path, output: Path) -> list[Row]:
    """bnfold, with its certificate and without."""
    return [
        Row("bnfold", bnfold("optimize", source, "-o", output, "--no-verify", "--force")),
        code("bnfold without its certificate", WITHOUT_CERTIFICATE, source, output),
    ]


def rivals(python: Path, source: Path, output: Path) -> list[Row]:
    """What is installed of tests/zoo/rivals.txt."""
    if not python.exists():
        return []
    script = [str(python), "-m", "tests.zoo.rivals"]
    found = json.loads(subprocess.check_output([*script, "--versions"], text=True, cwd=ROOT))
    task = json.dumps([LIMIT, str(source), str(output)]) + "\n"
    return [Row(versions, [*script, rival], task) for rival, versions in found.items()]


def make(kind: str, path: Path, size: float) -> Path:
    """Write a model, in a process of its own."""
    subprocess.run([sys.executable, HERE / "cost_models.py", kind, path, f"{size:g}"], check=True, cwd=ROOT)
    return path


def main() -> int:
    """Make what is not given, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of external data; 0 leaves it out")
    parser.add_argument("--model", type=Path, action="append", default=[], help="one more model; also explained")
    parser.add_argument("--rivals", type=Path, default=ROOT / ".venv-rivals/bin/python", help="the rivals' Python")
    options = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("bnfold", "onnx", "protobuf", "numpy"))
    print(
        f"{packages}, Python {python_version()}, {os.cpu_count()} cores of {_processor()}, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "folded.onnx")
        stacks = [make(kind, Path(scratch, f"{kind}.onnx"), options.nodes) for kind in ("residual", "preactivation")]
        for source in [*stacks, *map(Path.resolve, options.model)]:
            rows = [code("onnx loads and saves it", LOAD_AND_SAVE, source, output), *ours(source, output)]
            rows.append(Row("bnfold explain", bnfold("explain", source), writes=False))
            title = f"{source.stem}, {source.stat().st_size / 1e6:.0f} MB in the file"
            compare(title, rows + rivals(options.rivals, source, output), output, options.turns)
        if options.gigabytes:
            source = make("external", Path(scratch, "external.onnx"), options.gigabytes)
            size = source.with_suffix(".data").stat().st_size / 1e9
            rows = [code("copied and synced", COPY, source, output), *ours(source, output)]
            compare(f"{size:.2f} GB of external data, all of it scaled", rows, output, options.turns)
    return 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), machine())


if __name__ == "__main__":
    sys.exit(main())
