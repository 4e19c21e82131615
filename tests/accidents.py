"""Real accidents: kill a run between any two file operations, at random moments, on a full disk, or two runs at once.

    python -m tests.accidents steps             killed before every single file operation, in every scenario
    python -m tests.accidents kills [N]         the program, killed N times at random moments (SIGKILL)
    python -m tests.accidents signals [N]       the same with SIGINT and SIGTERM, after which nothing is left behind
    python -m tests.accidents races [N]         two runs at once on one output, N times
    python -m tests.accidents deployments       versions of a model for Triton, killed before every file operation
    python -m tests.accidents full FOLDER       on a small file system that is mounted there

After each: the input is what it was; at the output's name there is nothing, what was there before, or the whole result;
the next run cleans up. Prints how many accidents there were; exits 1 with the first that went wrong. BNFOLD_VERBOSE=1
prints every one.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

import bnfold
from bnfold.deployment.files import put
from bnfold.deployment.repository import Repository
from bnfold.errors import BnfoldError
from tests.program import foldable, listing, names, plain, saved, stubborn

ROOT = Path(__file__).resolve().parent.parent

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "fcntl.flock", "shutil.rmtree")
"""What Python tells its auditors of before it is done."""


@dataclass(frozen=True)
class Scenario:
    """An input, an output, and what lies there before."""

    name: str
    external: bool = False
    over: bool = False
    """Whether the output overwrites an older one."""
    folds: bool = True

    def lay(self, folder: Path) -> tuple[Path, Path]:
        """Make the input, and the older output; returns their paths."""
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        path = saved(foldable() if self.folds else plain(), folder / "in" / "model.onnx", self.external)
        output = folder / "out" / "model.onnx"
        if self.over:
            older = saved(stubborn(seed=1), folder / "older.onnx", self.external)
            bnfold.optimize(older, output, verify=False)
            for each in folder.glob("older.*"):
                each.unlink()
        return path, output


SCENARIOS = [
    Scenario("one file"),
    Scenario("one file over another", over=True),
    Scenario("external data", external=True),
    Scenario("external data over other", external=True, over=True),
    Scenario("nothing folds", folds=False),
    Scenario("nothing folds, external data", folds=False, external=True),
    Scenario("nothing folds, over a result", folds=False, external=True, over=True),
]


class Case:
    """One scenario laid out in a folder, and what may be found there after an accident."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        self.path, self.output = scenario.lay(folder)
        self.inputs = listing(folder / "in")
        self.before = listing(folder / "out")
        self.allowed = [content(self.output)] if scenario.over else []
        self.run()
        self.allowed.append(content(self.output))
        self.after = listing(folder / "out")

    def run(self) -> None:
        """Fold, from file to file."""
        bnfold.optimize(self.path, self.output, verify=False, force=True)

    def reset(self) -> None:
        """Lay the output's folder as it was before the run."""
        for path in sorted((self.folder / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for name, data in self.before.items():
            (self.folder / "out" / name).write_bytes(data)

    def check(self) -> None:
        """The input is intact, and the output old, new or absent."""
        assert listing(self.folder / "in") == self.inputs, "the input changed"
        if self.output.exists():
            assert content(self.output) in self.allowed, "the output is neither the old nor the new one"
        seen = {path.name for path in (self.folder / "out").iterdir() if not path.name.startswith(".")}
        assert seen <= {*self.before, *self.after}, f"{seen} at the output"

    def clean(self) -> None:
        """The next run ends well, and removes what the one before has left."""
        self.run()
        assert listing(self.folder / "out") == {**self.before, **self.after}, "the next run left something behind"
        assert content(self.output) == self.allowed[-1]


def content(path: Path) -> bytes:
    """A model with its external data, in one piece."""
    model = onnx.load(path)
    return bytes(model.SerializeToString(deterministic=True))


def fork(job: Callable[[], object], before: int | None = None) -> tuple[int, int]:
    """Run a job in a fork that kills itself before a file operation; returns the wait status, and how many it had."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            with os.fdopen(writer, "wb", buffering=0) as pipe:
                if before is not None:
                    sys.addaudithook(_killer(before, pipe.fileno()))
                job()
            code = 0
        except BnfoldError:
            code = 2
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return status, len(pipe.read())


def _killer(before: int, pipe: int) -> Callable[[str, tuple[object, ...]], None]:
    count = 0

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            os.write(pipe, b".")
            if count > before:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def steps(_: int = 0) -> Iterator[str]:
    """Kill a run before each of its file operations in turn."""
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory() as scratch:
            case = Case(scenario, Path(scratch))
            before = 0
            while True:
                case.reset()
                status, _ = fork(case.run, before)
                case.check()
                if not os.WIFSIGNALED(status):
                    break
                yield f"{scenario.name}, operation {before}"
                if before % 3 == 0:
                    case.clean()
                before += 1
            assert before > 10, "the auditor heard nothing"
            case.clean()


def kills(times: int, signals: tuple[int, ...] = (signal.SIGKILL,)) -> Iterator[str]:
    """Kill the program at random moments of its life."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        cases = []
        for i, scenario in enumerate(SCENARIOS[:5]):
            (folder := Path(scratch, str(i))).mkdir()
            cases.append(Case(scenario, folder))
        program = [sys.executable, "-m", "bnfold", "optimize", "--force"]
        start = time.perf_counter()
        command = [*program, str(cases[0].path), "-o", str(cases[0].output)]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        life = time.perf_counter() - start
        for _ in range(times):
            case, number = rng.choice(cases), rng.choice(signals)
            case.reset()
            command = [*program, str(case.path), "-o", str(case.output), "--json", str(case.folder / "report.json")]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as process:
                time.sleep(moment := rng.uniform(0, 1.1 * life))
                process.send_signal(number)
                _, said = process.communicate(timeout=60)
            case.check()
            report = case.folder / "report.json"
            assert not report.exists() or report.read_text().endswith("}\n"), "half a report"
            if number != signal.SIGKILL and b"bnfold: " in said:  # it was far enough to have a handler
                left = [path.name for path in (case.folder / "out").iterdir() if path.name.startswith(".")]
                assert not left, f"{left} left behind"
            yield f"{signal.Signals(number).name} after {moment:.2f} s: {process.returncode}"
            if rng.random() < 0.2:
                case.clean()
        for case in cases:
            case.clean()


def signals(times: int) -> Iterator[str]:
    """Interrupt and terminate the program at random moments."""
    yield from kills(times, (signal.SIGINT, signal.SIGTERM))


def races(times: int) -> Iterator[str]:
    """Two runs at once that would write different things to one place."""
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as scratch:
        case = Case(SCENARIOS[2], Path(scratch))
        other = saved(foldable(seed=2), Path(scratch, "other.onnx"), external=True)
        bnfold.optimize(other, Path(scratch, "other.folded.onnx"), verify=False)
        case.allowed.append(content(Path(scratch, "other.folded.onnx")))
        for turn in range(times):
            case.reset()
            force = turn % 2 == 0

            def run(path: Path, force: bool = force) -> None:
                time.sleep(rng.uniform(0, 0.003))
                bnfold.optimize(path, case.output, verify=False, force=force)

            children = []
            for path in (case.path, other, case.path):
                if (child := os.fork()) == 0:
                    code = 1
                    try:
                        run(path)
                        code = 0
                    except BnfoldError:
                        code = 2
                    finally:
                        os._exit(code)
                children.append(child)
                rng.random()
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            assert set(codes) <= {0, 2} and 0 in codes, codes
            assert not force or codes == [0, 0, 0], "a run failed because of another"
            assert force or codes.count(0) == 1, "one output was overwritten by another run"
            case.check()
            assert case.output.exists() and not list((case.folder / "out").glob(".*"))
            yield f"turn {turn}: {codes}"


def deployments(_: int = 0) -> Iterator[str]:
    """Kill a deployment before each of its file operations: a new model, a version more, another configuration."""
    shared = {"warmup/a.raw": b"a"}

    def add(root: Path, config: str = "one") -> int:
        place = Repository(root, "m", force_config=True)
        return place.add(config, shared, lambda folder: put(folder / "model", "a model"))

    whole = {"1/model", "config.pbtxt", "warmup/a.raw"}
    for versions, config in ((0, "one"), (1, "one"), (1, "two")):
        before = 0
        while True:
            with tempfile.TemporaryDirectory() as scratch:
                root, model = Path(scratch, "models"), Path(scratch, "models", "m")
                for _ in range(versions):
                    add(root)
                old = listing(root) if versions else {}
                status, _ = fork(partial(add, root, config), before)
                there = listing(model) if model.is_dir() else {}
                seen = {name for name in there if not name.startswith(".")}
                allowed = (set(), whole) if not versions else (whole, whole | {"2/model"})
                assert seen in allowed, f"{seen} is in the repository"
                assert not seen or there["config.pbtxt"] in (b"one", config.encode())
                kept = {name: data for name, data in old.items() if not name.endswith("config.pbtxt")}
                assert kept.items() <= (listing(root) if root.is_dir() else {}).items(), "an older version changed"
                version = add(root, config)
                assert version == max(int(name) for name in names(model) if name.isdigit())
                assert (model / "config.pbtxt").read_text() == config
                left = [name for place in (Path(scratch), root, model) for name in names(place) if name[0] == "."]
                assert not left, f"{left} left behind"
            if not os.WIFSIGNALED(status):
                break
            yield f"{versions} versions, {config}: operation {before}"
            before += 1
        assert before > 10, "the auditor heard nothing"


def full(folder: Path) -> Iterator[str]:
    """Outputs on a file system that has room for less and less."""
    with tempfile.TemporaryDirectory() as scratch:
        for scenario in SCENARIOS[:5:2]:
            (base := Path(scratch, scenario.name)).mkdir()
            case = Case(scenario, base)
            size = sum(map(len, case.after.values()))
            small = folder / "model.onnx"
            failures = 0
            for room in range(0, size + (1 << 16), max(1, size // 5)):
                filler = folder / "filler"
                stat = os.statvfs(folder)
                free = stat.f_bavail * stat.f_frsize
                filler.write_bytes(bytes(max(0, free - room)))
                said = ""
                try:
                    bnfold.optimize(case.path, small, verify=False)
                except BnfoldError as error:
                    said = str(error)
                if said:
                    failures += 1
                    assert "cannot be written: No space left on device" in said, said
                    assert [path.name for path in folder.iterdir()] == ["filler"], "something is left on the full disk"
                    yield f"{scenario.name}: {room} bytes left, {said}"
                else:
                    assert content(small) == case.allowed[-1]
                for path in folder.iterdir():
                    path.unlink()
                case.check()
            assert failures >= 2, "the disk was never full"


def main() -> int:
    """Run what is asked for."""
    what, *rest = sys.argv[1:]
    verbose = bool(os.environ.get("BNFOLD_VERBOSE"))
    np.seterr(all="ignore")
    accidents: dict[str, Callable[[int], Iterator[str]]] = {
        "steps": steps,
        "kills": kills,
        "signals": signals,
        "races": races,
        "deployments": deployments,
    }
    found = full(Path(rest[0])) if what == "full" else accidents[what](int(rest[0]) if rest else 20)
    count = 0
    for line in found:
        count += 1
        if verbose:
            print(line, flush=True)
    print(f"{what}: {count} accidents, none did any harm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
