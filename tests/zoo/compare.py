"""Fold every model of a folder with bnfold and with every rival, check each result, and write the tables.

    python -m tests.zoo.compare MODELS [--only REGEX]

Each tool runs in a process of its own with a time limit; bnfold with its default settings. Results are kept in
MODELS/../results.json, and only what changed runs again: a model, a rival's version, bnfold's code. Without --only the
tables of docs/rivals.md and docs/models.md are written. The exit code is 1 where bnfold leaves more than a rival or
than is possible, or where one of its results is not a right, verified model.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from tests.keyed import Merge, exchanged, unintended
from tests.zoo import hand, results, tables
from tests.zoo.count import count
from tests.zoo.results import Report, Row
from tests.zoo.tools import OURS, ROOT, Tools, digest


class Comparison:
    """One run over a folder."""

    def __init__(self, tools: Tools, scratch: Path) -> None:
        self.tools, self.scratch = tools, scratch

    def update(self, row: Row, path: Path) -> bool:
        """Run what is missing; return whether anything was."""
        changed = False
        target, report = self.scratch / "out.onnx", self.scratch / "report.json"
        for rival in self.tools.rivals:
            key = self.tools.key(rival, row.sha256)
            if rival not in row.rivals or row.rivals[rival].key != key:
                done = self.tools.run(rival, path, target)
                row.rivals[rival] = self.tools.judged(key, path, target, done)
                changed = True
        key = self.tools.key(OURS, row.sha256)
        if row.bnfold is None or row.bnfold.key != key:
            report.unlink(missing_ok=True)
            done = self.tools.run(OURS, path, target, report)
            row.bnfold = self.tools.judged(key, path, target, done)
            row.report = read_report(report, done.get("detail", ""))
            if row.bnfold.is_model:
                row.report = replace(row.report, changed=changes(path, self.scratch / "out.onnx", report))
            changed = True
        return changed


def changes(path: Path, output: Path, report: Path) -> tuple[str, ...]:
    """What changed that no fold and no merge asks for: a few lines. Not asked where functions were inlined."""
    found = json.loads(report.read_text())
    before, after = (onnx.load(each, load_external_data=False) for each in (path, output))
    if len(before.functions) != len(after.functions):
        return ()
    left = [affine["node"] for affine in found["affines"] if affine["status"] == "folded"]
    merged = [entry for entry in found["merges"] if entry["status"] == "merged"]
    merges = [Merge(entry["node"], tuple(entry["nodes"]), entry["into"], entry["op"]) for entry in merged]
    pairs = [(entry["nodes"][0], entry["nodes"][1]) for entry in found["merges"] if entry["status"] == "swapped"]
    before = exchanged(before, after, pairs)
    return tuple(unintended(before, after, left, numbers=True, merges=merges)[:5])


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
        tools = Tools(options.rivals, options.limit)
        comparison = Comparison(tools, Path(scratch))
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
        tools.close()
    if not options.only:
        tables.write(ROOT / "docs", chosen, tools.rivals)
    print(tables.summary(chosen, tools.rivals))
    for row in chosen:
        for problem in row.problems():
            print(f"{row.name}: {problem}")
    return 1 if any(row.problems() for row in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
