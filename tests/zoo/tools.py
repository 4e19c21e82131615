"""bnfold and its rivals, each in a process of its own with a time limit, and what the judge says of their results."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.zoo.forks import Worker
from tests.zoo.results import Outcome

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OURS = "bnfold"
PACKAGES = ("onnx", "onnxruntime", "numpy")

Answer = dict[str, Any]
"""What a worker answers (tests/zoo/forks.py)."""


def digest(*paths: Path) -> str:
    """Of the files' names and contents."""
    found = hashlib.sha256()
    for path in paths:
        found.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                found.update(block)
    return found.hexdigest()


class Tools:
    """Those that are installed in an environment of rivals, and bnfold as it is here."""

    def __init__(self, rivals_python: Path, limit: float) -> None:
        self.limit = limit
        self.judging = digest(*(HERE / name for name in ("rivals.py", "judge.py", "count.py")))[:16]
        packages = " ".join(f"{name} {version(name)}" for name in PACKAGES)
        self.ours = f"{digest(*sorted((ROOT / 'bnfold').rglob('*.py')))[:16]} {self.judging} {packages}"
        self.rivals: dict[str, str] = {}
        """Package and version of each."""
        script = [str(rivals_python), "-m", "tests.zoo.rivals"]
        if rivals_python.exists():
            self.rivals = json.loads(subprocess.check_output([*script, "--versions"], text=True, cwd=ROOT))
        self._workers = {rival: Worker([*script, rival], cwd=ROOT) for rival in self.rivals}
        self._judge = Worker([sys.executable, "-m", "tests.zoo.judge"], cwd=ROOT)

    def close(self) -> None:
        """End the workers."""
        for worker in (*self._workers.values(), self._judge):
            worker.close()

    def key(self, tool: str, sha256: str) -> str:
        """What a tool's result for a model depends on."""
        release = self.ours if tool == OURS else f"{self.rivals[tool]} {self.judging}"
        return f"{sha256[:16]} {release}"

    def run(self, tool: str, model: Path, target: Path, report: Path | None = None) -> Answer:
        """Let a tool write what it makes of a model; bnfold with its default settings, and with a report if asked."""
        for old in target.parent.glob(f"{target.name}*"):
            old.unlink()
        if tool != OURS:
            return self._workers[tool].ask(self.limit, str(model), str(target))
        return self._fold(model, target, report)

    def _fold(self, model: Path, target: Path, report: Path | None) -> Answer:
        """As a user runs it; the answer is like that of a worker."""
        command = [sys.executable, "-m", "bnfold", "optimize", str(model), "-o", str(target)]
        command += ["--json", str(report)] if report else []
        start = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.limit, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return {"failure": "timeout", "detail": f"stopped after {self.limit:.0f} s", "seconds": self.limit}
        answer: Answer = {"seconds": time.perf_counter() - start}
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("bnfold:")]
            answer |= {"failure": "crash", "detail": (said or [f"exit code {done.returncode}"])[-1][:200]}
        return answer

    def judged(self, key: str, model: Path, target: Path, answer: Answer) -> Outcome:
        """What the judge says of the result."""
        seconds = round(answer["seconds"], 2)
        if "failure" in answer:
            return Outcome(key, answer["failure"], seconds, answer["detail"])
        if not target.exists():
            return Outcome(key, "crash", seconds, "wrote nothing")
        said = self._judge.ask(self.limit, str(model), str(target))
        if "failure" in said:
            return Outcome(key, "does not load", seconds, f"the judge: {said['failure']}, {said['detail']}")
        return Outcome(key=key, seconds=seconds, **said["result"])
