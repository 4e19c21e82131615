"""Switches around conditions: what each mutant of `make mutants` changes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.switches import Finder, Switches

SOURCE = """
def refuse(n):
    if n < 0:
        raise ValueError("negative")

def guarded(x, y):
    refuse(x)
    if x > 5 and not (y is None or y > 5):
        raise ValueError("large")
    if y is None:
        return "one"
    return "two"
"""

KEYS = {
    "refuse: never: n < 0": (-1, 1),
    "guarded: skipped: refuse(x)": (-1, 1),
    "guarded: never: x > 5 and (not (y is None or y > 5))": (6, 1),
    "guarded: without: x > 5  in  x > 5 and (not (y is None or y > 5))": (5, 1),
    "guarded: without: not (y is None or y > 5)  in  x > 5 and (not (y is None or y > 5))": (6, 6),
    "guarded: never: y is None": (1, None),
}
"""By mutant: operands for which it makes a difference."""


def outcome(function: object, operands: tuple[int, int | None]) -> str:
    assert callable(function)
    try:
        return str(function(*operands))
    except ValueError as error:
        return f"refused: {error}"


def test_every_mutant_changes_what_its_condition_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "bnfold.rules.guarded_by_a_test"
    (tmp_path / "guarded_by_a_test.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr("bnfold.rules.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    switches = Switches()
    monkeypatch.setattr(sys, "meta_path", [Finder(switches, {name: True}), *sys.meta_path])
    guarded = importlib.import_module(name).guarded
    monkeypatch.delitem(sys.modules, name)
    for text, operands in KEYS.items():
        key = next(key for key in switches.mutants if key == f"{name}.{text}")
        switches.active, switches.fired = "", set()
        before = outcome(guarded, operands)
        assert key in switches.fired
        switches.active = key
        assert outcome(guarded, operands) != before
    switches.active, switches.fired = "", set()
    outcome(guarded, (1, 1))
    assert not any("skipped" in key for key in switches.fired), "a call that refuses nothing"
    assert not list(tmp_path.rglob("*.pyc"))
