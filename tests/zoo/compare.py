"""Fold every model of a folder with bnfold and with every rival, check each result, and write the tables.

    python -m tests.zoo.compare MODELS [--only REGEX]

Each tool runs in a process of its own with a time limit; bnfold with its default settings. Results are kept in
MODELS/../results.json, and only what changed runs again: a model, a rival's version, bnfold's code. Without --only the
tables of docs/rivals.md and docs/models.md are written. The exit code is 1 where bnfold leaves more than a rival or
than is possible, or where one of its results is not a right, verified model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from tests.zoo import hand, results, tables
from tests.zoo.count import count
from tests.zoo.forks import Worker
from tests.zoo.results import Outcome, Report, Row

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PACKAGES = ("onnx", "onnxruntime", "numpy")


def digest(*paths: Path) -> str:
    """Of the files' names and contents."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                found.update(block)
    return found.hexdigest()


class Comparison:
    """One run over a folder."""

    def __init__(self, rivals_python: Path, limit: float, scratch: Path) -> None:
        self.limit, self.scratch = limit, scratch
        self.judging = digest(*(HERE / name for name in ("rivals.py", "judge.py", "count.py")))[:16]
        packages = " ".join(f"{name} {version(name)}" for name in PACKAGES)
        self.ours = f"{digest(*sorted((ROOT / 'bnfold').rglob('*.py')))[:16]} {self.judging} {packages}"
        self.versions: dict[str, str] = {}
        script = [str(rivals_python), "-m", "tests.zoo.rivals"]
        if rivals_python.exists():
            self.versions = json.loads(subprocess.check_output([*script, "--versions"], text=True, cwd=ROOT))
        self.rivals = {rival: Worker([*script, rival], cwd=ROOT) for rival in self.versions}
        self.judge = Worker([sys.executable, "-m", "tests.zoo.judge"], cwd=ROOT)

    def close(self) -> None:
        """End the workers."""
        for worker in (*self.rivals.values(), self.judge):
            worker.close()

    def update(self, row: Row, path: Path) -> bool:
        """Run what is missing; return whether anything was."""
        changed = False
        for rival, worker in self.rivals.items():
            key = f"{row.sha256[:16]} {self.versions[rival]} {self.judging}"
            if rival not in row.rivals or row.rivals[rival].key != key:
                target = self._target()
                row.rivals[rival] = self._judged(key, path, worker.ask(self.limit, str(path), str(target)))
                changed = True
        key = f"{row.sha256[:16]} {self.ours}"
        if row.bnfold is None or row.bnfold.key != key:
            report = self.scratch / "report.json"
            report.unlink(missing_ok=True)
            done = self._fold(path, self._target(), report)
            row.bnfold = self._judged(key, path, done)
            row.report = read_report(report, done.get("detail", ""))
            changed = True
        return changed

    def _target(self) -> Path:
        """Where the tools write; nothing is there."""
        for old in self.scratch.glob("out.onnx*"):
            old.unlink()
        return self.scratch / "out.onnx"

    def _fold(self, path: Path, target: Path, report: Path) -> dict[str, Any]:
        """bnfold with its default settings, as a user runs it; the answer is like that of a worker."""
        command = [sys.executable, "-m", "bnfold", "optimize", str(path), "-o", str(target), "--json", str(report)]
        start = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.limit, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return {"failure": "timeout", "detail": f"stopped after {self.limit:.0f} s", "seconds": self.limit}
        answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("bnfold:")]
            answer |= {"failure": "crash", "detail": (said or [f"exit code {done.returncode}"])[-1][:200]}
        return answer

    def _judged(self, key: str, path: Path, answer: dict[str, Any]) -> Outcome:
        """What the judge says of the result."""
        seconds, target = round(answer["seconds"], 2), self.scratch / "out.onnx"
        if "failure" in answer:
            return Outcome(key, answer["failure"], seconds, answer["detail"])
        if not target.exists():
            return Outcome(key, "crash", seconds, "wrote nothing")
        said = self.judge.ask(self.limit, str(path), str(target))
        if "failure" in said:
            return Outcome(key, "does not load", seconds, f"the judge: {said['failure']}, {said['detail']}")
        return Outcome(key=key, seconds=seconds, **said["result"])


def read_report(path: Path, message: str) -> Report:
    """The facts that the tables need, out of the JSON that bnfold wrote."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() and path.stat().st_size else {}
    if "status" not in found:
        return Report("failed", message or "no report", (0, 0), None, None, 0.0, {})
    others = [affine for affine in found["affines"] if affine["op"] != "BatchNormalization"]
    batchnorms = [affine for affine in found["affines"] if affine["op"] == "BatchNormalization"]
    kept = Counter(affine["code"] for affine in batchnorms if affine["status"] == "kept")
    outputs = found["verify"].get("noise", {}).get("outputs", [])
    outputs = [output for output in outputs if output["before"] and output["after"]]
    worst = max(outputs, key=lambda output: output["after"]["norm"] or 0.0, default=None)
    timing, exact = found["timing"], found["verify"].get("algebra")
    return Report(
        status="nothing to fold" if not found["verify"] and found["status"] == "certified" else found["status"],
        message=message,
        scale_shift=(len(others), sum(affine["status"] == "kept" for affine in others)),
        deviation=(worst["before"]["norm"] or 0.0, worst["after"]["norm"] or 0.0) if worst else None,
        noise=max(output["k_needed"] or 0.0 for output in outputs) if outputs else None,
        solve=timing.get("read", 0.0) + timing.get("solve", 0.0),
        codes=dict(sorted(kept.items())),
        algebra=max((entry["error"] for entry in exact["worst"]), default=None) if exact else None,
    )


def main() -> int:
    """Run what is missing, say what is wrong, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", help="regular expression on the model's name; writes no tables")
    parser.add_argument("--rivals", type=Path, default=ROOT / ".venv-rivals/bin/python", help="the rivals' Python")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one tool may take for one model")
    options = parser.parse_args()
    kept = options.models.resolve().parent / "results.json"
    rows = results.load(kept)
    chosen = []
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(options.rivals, options.limit, Path(scratch))
        for path in sorted(options.models.resolve().glob("*.onnx")):
            if not re.search(options.only, path.stem):
                continue
            sha256 = digest(path, *path.parent.glob(f"{path.name}.data"))
            row = rows.get(path.stem)
            if row is None or row.sha256 != sha256:
                row = Row(path.stem, sha256, count(onnx.load(path, load_external_data=False)))
            row.ideal = hand.ideal(path.stem)
            rows[row.name] = row
            chosen.append(row)
            if comparison.update(row, path):
                results.save(kept, rows)
                print(tables.line(row), *row.problems(), sep="; ", file=sys.stderr, flush=True)
        comparison.close()
    if not options.only:
        tables.write(ROOT / "docs", chosen, comparison.versions)
    print(tables.summary(chosen, comparison.versions))
    for row in chosen:
        for problem in row.problems():
            print(f"{row.name}: {problem}")
    return 1 if any(row.problems() for row in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
