"""`make mutants`: every guard of every rule is removed in turn, and a test must notice.

One process imports bnfold with switches (`tests.switches`) and collects the tests that state the law. It runs each
once, to see which guards it triggers; then, for every mutant, a child runs those that trigger it until one fails. Which
test noticed is kept in build/mutants.json and tried first the next time.

    python -m tests.mutants [--only REGEX] [--jobs N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.switches import Mutant, Switches, install

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "mutants.json"

TRIES = 250
"""How many of the tests that a mutant may change are run, at most."""

SECONDS = 60
"""Of processor time, after which one test counts as failed."""

EQUIVALENT: dict[str, str] = {
    "bnfold.rules.activation.homogeneous: without: np.count_nonzero(lost)  in  np.count_nonzero(lost) and "
    "np.any(lost & (storage.off * storage.den < 0))":
        "where no channel is lost, none is cut off either: it spares the arithmetic",
    "bnfold.rules.border._outside.grow: never: not all((isinstance(size, int) for size in sizes))":
        "no affine that is read varies along an axis of unknown size",
    "bnfold.rules.dense._addend_shape: never: len(known) < 2":
        "what varies along the rows has their number",
    "bnfold.rules.contraction._meet_zeros: without: y.has_encode  in  x.has_encode and y.has_encode and x.is_scale":
        "rows of scale zero come from x, which has no encode either",
    "bnfold.rules.contraction._meet_zeros: without: x.has_encode  in  x.has_encode and y.has_encode and x.is_scale":
        "no way asks for one channel that is constant and another that is lost in one tensor",
    "bnfold.solver.search._Walk._assign: never: not known.agrees(storage)":
        "a node that reads one tensor twice is asked again, and refuses then",
    "bnfold.solver.search._Walk._ask: never: self.search.steps > self.search.limit":
        "the next node that is asked ends the walk: it spares noting thousands of readers first",
    "bnfold.solver.state.State._refused: never: last is None":
        "whatever stands beside a re-stored tensor is among the nodes of a fold; the types do not say so",
    "bnfold.solver.sweep.GraphSolver._ends: never: x is None or y is None":
        "an affine keeps the shape of its input, which is known by then; the types do not say so",
}  # fmt: skip
"""Mutants that change nothing, by key, and why the code reads better with them."""


_SLOW = (
    "bench bench_claims bench_memory binding cli fuzz provider_settings readme runtime samples shown "
    "verify verify_half write zoo"
)
SLOW = {f"test_{name}.py" for name in _SLOW.split()}
"""Test modules that are not asked: each guard needs a row of its own, which no command or random graph replaces."""


def targets(choices: bool) -> dict[str, bool]:
    """The modules whose guards are removed; true for those of which every condition counts."""
    files = [file for package in ("rules", "solver", "merges") for file in (ROOT / "bnfold" / package).glob("*.py")]
    files += [ROOT / "bnfold" / "guards.py", ROOT / "bnfold" / "windows.py"]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sorted(files)]
    return {name.removesuffix(".__init__"): choices and name.startswith("bnfold.rules") for name in names}


def law_tests() -> list[str]:
    """Test modules that build models and fold them, but for slow ones."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [
        str(f)
        for f in files
        if re.search(r"tests\.(law|rows|builder)", f.read_text(encoding="utf-8")) and f.name not in SLOW
    ]


@dataclass
class Memory:
    """What is known from earlier runs."""

    killers: dict[str, str] = field(default_factory=dict)
    """By mutant: the test that noticed."""
    digests: dict[str, str] = field(default_factory=dict)
    """By test module: of it and of bnfold, when its tests were watched."""
    tests: list[str] = field(default_factory=list)
    """Every test, those that trigger the fewest guards first."""
    fired: dict[str, list[int]] = field(default_factory=dict)
    """By mutant: the tests that it may change, by number."""

    @staticmethod
    def read() -> Memory:
        """From the file, empty where there is none."""
        return Memory(**json.loads(CACHE.read_text(encoding="utf-8"))) if CACHE.exists() else Memory()

    def write(self) -> None:
        """To the file."""
        CACHE.parent.mkdir(exist_ok=True)
        CACHE.write_text(json.dumps(vars(self)), encoding="utf-8")

    def by_test(self) -> dict[str, set[str]]:
        """By test: the mutants that may change it."""
        found: dict[str, set[str]] = {test: set() for test in self.tests}
        for key, numbers in self.fired.items():
            for number in numbers:
                found[self.tests[number]].add(key)
        return found

    def learn(self, found: dict[str, set[str]]) -> None:
        """Note, by test, the mutants that may change it."""
        self.tests = sorted(found, key=lambda test: len(found[test]))
        self.fired = {}
        for number, test in enumerate(self.tests):
            for key in found[test]:
                self.fired.setdefault(key, []).append(number)

    def candidates(self, key: str) -> list[str]:
        """Tests that may notice a mutant: of every test function in turn, the most special first."""
        groups: dict[str, list[str]] = {}
        for number in self.fired.get(key, ()):
            groups.setdefault(self.tests[number].split("[")[0], []).append(self.tests[number])
        turns = zip_longest(*groups.values())
        return [test for turn in turns for test in turn if test is not None][:TRIES]


@dataclass
class Run:
    """The pytest plugin that runs mutants in place of tests."""

    switches: Switches
    only: str
    jobs: int
    memory: Memory = field(default_factory=Memory.read)
    survivors: list[Mutant] = field(default_factory=list)
    killed: list[Mutant] = field(default_factory=list)
    equivalent: list[Mutant] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Tests that fail without a mutant."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of pytest's own loop."""
        items = {item.nodeid: item for item in session.items}
        keys = [k for k, mutant in self.switches.mutants.items() if re.search(self.only, mutant.module)]
        known = {key: [items[test]] for key in keys if (test := self.memory.killers.get(key)) in items}
        left = {*keys} - self._kill(known)
        for watch in (False, True):  # what earlier runs saw may be old, yet lead to a test that notices
            if watch and left:
                self._watch(items)
            tests = {key: [t for t in self.memory.candidates(key) if t in items] for key in keys if key in left}
            left -= self._kill({key: [items[test] for test in found] for key, found in tests.items()})
        for key in keys:
            mutant = self.switches.mutants[key]
            found = self.killed if key not in left else self.equivalent if key in EQUIVALENT else self.survivors
            found.append(mutant)
        self.memory.write()
        return True

    def _watch(self, items: dict[str, pytest.Item]) -> None:
        """Run every test once, unless its module and bnfold are as they were: which mutants may change it."""
        ours = [*ROOT.glob("bnfold/**/*.py"), *(ROOT / "tests").glob("[!t]*.py")]
        parts = [*(file.read_bytes() for file in sorted(ours)), *map(str.encode, self.switches.mutants)]
        same = hashlib.sha256(b"".join(parts)).hexdigest()
        files = {test: str(item.path) for test, item in items.items()}
        digests = {path: hashlib.sha256(same.encode() + Path(path).read_bytes()).hexdigest() for path in files.values()}
        todo = [test for test in items if self.memory.digests.get(files[test]) != digests[files[test]]]
        found = {test: fired for test, fired in self.memory.by_test().items() if test in items}
        for n, test in enumerate(todo):
            if n % 100 == 0:
                print(f"\r{n} of {len(todo)} tests", end="", file=sys.stderr, flush=True)
            self.switches.fired = set()
            if _fails(items[test]):
                self.broken.append(test)
            found[test] = self.switches.fired
        self.memory.learn(found)
        self.memory.digests = digests
        self.memory.write()

    def _kill(self, tests: dict[str, list[pytest.Item]]) -> set[str]:
        """Which of these mutants one of their tests notices."""
        running: dict[int, tuple[str, int]] = {}
        noticed = set[str]()
        waiting = [key for key in tests if tests[key]]
        total = len(waiting)
        while waiting or running:
            if waiting and len(running) < self.jobs:
                key = waiting.pop()
                reader, writer = os.pipe()
                child = os.fork()
                if not child:
                    _mutant(self.switches, key, tests[key], writer)
                os.close(writer)
                running[child] = key, reader
                continue
            child, _ = os.wait()
            key, reader = running.pop(child)
            with os.fdopen(reader, encoding="utf-8") as said:
                lines = said.read().splitlines()  # the tests begun; the last one failed, unless all went well
            if lines[-1] != "":
                noticed.add(key)
                self.memory.killers[key] = lines[-1]
                self.memory.write()
            print(f"\r{total - len(waiting)} of {total} mutants, {len(noticed)} noticed ", end="", file=sys.stderr)
        return noticed


def _mutant(switches: Switches, key: str, tests: list[pytest.Item], writer: int) -> None:
    """The child: run these tests with the mutant active, until one fails or runs out of time."""
    switches.active = key
    for item in tests:
        os.write(writer, f"{item.nodeid}\n".encode())
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process
        if _fails(item):
            os._exit(0)
    os.write(writer, b"\n")
    os._exit(0)


def _fails(item: pytest.Item) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def table(run: Run) -> str:
    """By module, then the survivors."""
    columns = [Counter(mutant.module for mutant in found) for found in (run.killed, run.equivalent, run.survivors)]
    lines = [f"{'module':<30}{'mutants':>8}{'noticed':>8}{'equal':>8}{'survive':>8}"]
    for module in (*sorted(set[str]().union(*columns)), "all"):
        counts = [column.total() if module == "all" else column[module] for column in columns]
        lines.append(f"{module:<30}{sum(counts):>8}" + "".join(f"{count:>8}" for count in counts))
    lines += [f"{one.place}: {one.function}: {one.kind}: {one.text}" for one in run.survivors]
    return "\n".join(lines)


def main() -> int:
    """Run; 1 where a mutant survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default="", metavar="REGEX", help="of module names")
    parser.add_argument("--choices", action="store_true", help="also the conditions of rules that do not refuse")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    options = parser.parse_args()
    run = Run(install(targets(options.choices)), options.only, options.jobs)
    start = time.perf_counter()
    quiet: list[Any] = ["-qq", "-s", "-n", "0", "-p", "no:cacheprovider", "--no-header", "--no-summary"]
    code = pytest.main([*quiet, *law_tests()], plugins=[run])
    print(f"\n{table(run)}\n{time.perf_counter() - start:.0f} s")
    if run.broken or code not in (0, 5):
        print("tests that fail without a mutant:", *run.broken, sep="\n")
    return int(bool(run.survivors or run.broken or code not in (0, 5)))


if __name__ == "__main__":
    sys.exit(main())
