"""The hooks of pre-commit, `make lint` and CI run the same."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8").split("      - id: ")[1:]


def targets(stage: str) -> list[str]:
    """What the hooks of a stage have make do, in order; a hook without a stage is one of commits."""
    chosen = [hook for hook in HOOKS if (re.findall(r"stages: \[(.*)\]", hook) or ["pre-commit"]) == [stage]]
    return [re.findall(r"entry: make --no-print-directory ([\w-]+)$", hook, re.MULTILINE)[0] for hook in chosen]


def prerequisites(target: str) -> list[str]:
    (found,) = re.findall(rf"^{target}: (.*?) ##", MAKEFILE, re.MULTILINE)
    return [name for name in found.split() if "/" not in name]


def test_a_commit_runs_what_make_lint_runs() -> None:
    assert targets("pre-commit") == prerequisites("lint")
    assert len(targets("pre-commit")) == 4


def test_a_push_runs_what_ci_runs() -> None:
    ci = re.findall(r"^make --no-print-directory ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets("pre-push") == ci == ["test", "wheel-check"]
    assert prerequisites("test") == ["lint"]


def test_every_hook_runs_in_the_project_and_is_given_no_files() -> None:
    for hook in HOOKS:
        assert "language: system" in hook
        assert "pass_filenames: false" in hook
        assert ("files: '" in hook) != ("always_run: true" in hook)
