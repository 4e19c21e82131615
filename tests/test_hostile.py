"""Models from strangers: an error in one line, a refusal or a right fold, in little time and memory. Never a crash."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accidents import ROOT
from tests.hostile import ATTACKS
from tests.program import listing
from tests.zoo.forks import Worker

SECONDS = 20.0
"""Of processor time: far more than any of them takes, for machines that are slow."""

PATIENCE = 120.0
"""Seconds until one is stopped, for machines that are busy."""

MEGABYTES = 700


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker([sys.executable, "-m", "tests.hostile"], cwd=ROOT)
    yield made
    made.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_harmless(name: str, worker: Worker, tmp_path: Path) -> None:
    answer = worker.ask(PATIENCE, name, str(tmp_path), "--no-verify")
    assert "failure" not in answer, answer
    done, words = answer["result"], ATTACKS[name][1]
    assert done["seconds"] < SECONDS
    assert done["peak"] < MEGABYTES << 10, "kilobytes of memory"
    assert not any(text in done["err"] for text in ("internal error", "Traceback", "not enough memory"))
    assert words in done["err"]
    assert done["code"] in ((1, 3) if words else (0, 1)), done["err"]  # 3: a fold that cannot be proved
    if done["code"]:
        lines = done["err"].splitlines()
        assert len(lines) == 1 and lines[0].startswith("bnfold: ") and len(lines[0]) < 700
        assert not any("folded" in path for path in listing(tmp_path))
