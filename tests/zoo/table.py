"""Optimise every model of a folder with the command line, and write what happened as a Markdown table.

    python tests/zoo/table.py FOLDER [--only REGEX] > docs/models.md

Every model runs in a process of its own: `bnfold optimize MODEL -o TEMPORARY --json FILE`. The exit code is 1 where one
of them did not end with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEADER = """\
# Models

Every row is one run of `bnfold optimize` with its default settings: folded, certified, compared with the original in
float64 and on ONNX Runtime's CPU provider (optimisations off and on, two random inputs), then written. Made by

```
python tests/zoo/table.py FOLDER > docs/models.md
```

on {machine} with {versions}.
The models have random weights and random, calibrated statistics, about 2% of the gammas
negative, 3% of them a hundred times smaller; `real_` are trained or ship with packages, `__dynamo` come from PyTorch's
newer exporter, `hand_` are small corner cases, some of which must not fold.

- *BN*: BatchNormalization nodes before and after. *scale-shift*: Mul, Div, Add and Sub by constants, before and after.
- *error*: norm of the output's error against the original in float64, relative, original and folded model, worst output
  and sample; *ratio* is the one over the other. *noise*: the folded model's error in units of the original's own
  rounding noise, of which {k:g} are allowed ("ULP" where it is within a few units in the last place).
- *seconds*: all of the command's work; *solve*: reading and solving alone.

| model | BN | scale-shift | error before | after | ratio | noise | seconds | solve | result |
|---|---|---|---|---|---|---|---|---|---|"""


def optimize(path: Path, scratch: Path) -> dict[str, Any]:
    """One row: the JSON report, with the exit code and the seconds of the whole process."""
    report = scratch / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bnfold", "optimize", str(path), "-o", str(scratch / "out.onnx"), "--force"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--json", str(report)], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() and report.stat().st_size else {}
    lines = [line for line in done.stderr.splitlines() if line.startswith("bnfold:")]
    return found | {"exit": done.returncode, "seconds": seconds, "message": lines[-1] if lines else ""}


def row(name: str, found: dict[str, Any]) -> str:
    """The report as a line of the table."""
    if found["exit"] != 0:
        return f"| {name} | | | | | | | {found['seconds']:.1f} | | exit {found['exit']}: {found['message']} |"
    others = [affine for affine in found["affines"] if affine["op"] != "BatchNormalization"]
    kept = sum(affine["status"] == "kept" for affine in others)
    noise = found.get("verify", {}).get("noise", {})
    outputs = [output for output in noise.get("outputs", []) if output["before"] and output["after"]]
    worst = max(outputs, key=lambda output: output["after"]["norm"] or 0.0, default=None)
    error = ["", "", "", ""]
    if worst:
        before, after = worst["before"]["norm"] or 0.0, worst["after"]["norm"] or 0.0
        needed = max(output["k_needed"] or 0.0 for output in outputs)
        ratio = f"{after / before:.2f}" if before else ""
        error = [f"{before:.1e}", f"{after:.1e}", ratio, f"{needed:.2f}" if needed else "ULP"]
    timing = found["timing"]
    status = found["status"] if found.get("verify") or found["status"] != "certified" else "nothing to fold"
    counts = f"{found['batchnorm']['before']} → {found['batchnorm']['after']}"
    cells = [name, counts, f"{len(others)} → {kept}", *error, f"{found['seconds']:.1f}"]
    return "| " + " | ".join([*cells, f"{timing.get('read', 0) + timing.get('solve', 0):.2f}", status]) + " |"


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def main() -> int:
    """Write the table to standard output, progress to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="regular expression on the file name")
    options = parser.parse_args()
    from bnfold.noise import K

    packages = ("bnfold", "onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in packages) + f", Python {platform.python_version()}"
    print(HEADER.format(machine=machine(), versions=versions, k=K), flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(options.folder.glob("*.onnx")):
            if not re.search(options.only, path.stem):
                continue
            found = optimize(path, Path(scratch))
            failed += found["exit"] != 0
            print(row(path.stem, found), flush=True)
            print(f"{path.stem}: {found.get('status', found['message'])}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
