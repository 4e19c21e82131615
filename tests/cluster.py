"""A real Ray cluster of two nodes on this machine, and what bnfold does on it: `make ray`.

    python -m tests.cluster [MODELS]

MODELS (200) small models, three of them broken, are folded on it, while one of its nodes is killed; then once more,
which must do nothing; then with an interruption; and beside --jobs, which must give the same bytes. Labelled samples
are counted on it and here, which must give the same numbers. Prints a line for each, exits 1 at the first that fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.accidents import ROOT
from tests.program import classifier, different, foldable, listing, plain, saved, stubborn

BROKEN = 3

QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@contextmanager
def cluster() -> Iterator[Any]:
    """Two nodes of one core each: the head, and one that may be lost."""
    os.environ.update(QUIET)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        made.add_node(**node)
        yield made
    finally:
        made.shutdown()


def zoo(folder: Path, count: int) -> Path:
    """Small models of three kinds, some with external data, and three files that are none."""
    (folder / "deep").mkdir(parents=True)
    for i in range(count):
        path = folder / ("deep" if i % 7 == 0 else ".") / f"m{i:03}.onnx"
        if i % (count // BROKEN) == 5:
            path.write_bytes(foldable(i).SerializeToString()[:-100])
        else:
            model = plain() if i % 50 == 1 else stubborn(i) if i % 3 else foldable(i)
            saved(model, path, external=i % 4 == 0)
    return folder


def command(*arguments: object) -> list[str]:
    """The program, on the command line."""
    return [sys.executable, "-m", "bnfold", *map(str, arguments)]


def run(*arguments: object) -> tuple[int, str, float]:
    """Exit code, stderr, seconds."""
    start = time.perf_counter()
    done = subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, check=False)
    return done.returncode, done.stderr, time.perf_counter() - start


def models(folder: Path) -> set[str]:
    """The outputs in a folder."""
    return {name for name in listing(folder) if name.endswith(".onnx")}


def say(text: str) -> None:
    """One thing that holds."""
    print(text, flush=True)  # noqa: T201


def main(count: int) -> None:
    """All of it."""
    with tempfile.TemporaryDirectory() as scratch, cluster() as nodes:
        base = Path(scratch)
        given, address = zoo(base / "zoo", count), nodes.address
        say(f"a cluster of two nodes at {address}, {count} models, {BROKEN} broken")

        with subprocess.Popen(
            command("optimize", given, "-o", base / "out", "--ray", address),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        ) as process:  # fmt: skip
            start = time.perf_counter()
            while not (base / "out").exists() or len(models(base / "out")) < count // 4:
                assert process.poll() is None, process.communicate()[1][-2000:]
                time.sleep(0.1)
            (worker,) = nodes.worker_nodes
            nodes.remove_node(worker, allow_graceful=False)
            left = len(models(base / "out"))
            _, said = process.communicate(timeout=1800)
        good = count - BROKEN
        assert process.returncode == 1 and said.endswith(f"bnfold: {good} of {count} models done\n"), said[-2000:]
        assert said.count("is not an ONNX model") == 2 * BROKEN and len(models(base / "out")) == good
        assert not list((base / "out").rglob(".*"))
        say(f"{good} done, {BROKEN} reported, a node killed after {left}: {time.perf_counter() - start:.0f} s")

        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        before = {path: path.stat().st_mtime_ns for path in (base / "out").rglob("*")}
        code, said, seconds = run("optimize", given, "-o", base / "out", "--ray", address)
        assert code == 1 and said.endswith(f"bnfold: {good} of {count} models done, {good} of them before\n"), said
        assert {path: path.stat().st_mtime_ns for path in (base / "out").rglob("*")} == before
        say(f"a second run does nothing: {seconds:.1f} s")
        for path in given.rglob("*.onnx"):
            if not is_model(path):
                path.unlink()
        code, said, seconds = run("optimize", given, "-o", base / "out", "--ray", address)
        assert code == 0, said
        say(f"without the broken ones it ends with 0, and needs no cluster: {seconds:.1f} s")

        resumed(given, base, address)
        code, said, seconds = run("optimize", given, "-o", base / "here", "--jobs", 2)
        assert code == 0 and listing(base / "here") == listing(base / "out") == listing(base / "again")
        say(f"--jobs 2 gives the same bytes, manifests too: {seconds:.0f} s")
        counted(base, address)


def is_model(path: Path) -> bool:
    """Whether a file parses."""
    try:
        return bool(onnx.load(path, load_external_data=False).graph.node)
    except Exception:  # noqa: BLE001 - protobuf's own
        return False


def resumed(given: Path, base: Path, address: str) -> None:
    """Interrupted and started anew: the rest is done, and nothing twice."""
    arguments = ("optimize", given, "-o", base / "again", "--ray", address)
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        while not (base / "again").exists() or len(models(base / "again")) < 10:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        ended = process.communicate(timeout=120)
    assert process.returncode == 130, (process.returncode, ended)
    whole = set((base / "again").rglob("*.manifest.json"))
    before = {path: path.stat().st_mtime_ns for path in whole}
    code, said, seconds = run(*arguments)
    assert code == 0 and {path: path.stat().st_mtime_ns for path in whole} == before, said
    assert not list((base / "again").rglob(".*"))
    say(f"interrupted after {len(whole)}, then the rest: {seconds:.0f} s")


def counted(base: Path, address: str) -> None:
    """Accuracy by Ray Data, and here; and the same without labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 5000)
    inputs = (np.eye(7)[labels] + 0.4 * rng.normal(size=(5000, 7))).astype(np.float32)
    np.save(base / "x.npy", inputs)
    np.save(base / "y.npy", labels)
    one, two = saved(classifier(), base / "one.onnx"), saved(different(classifier()), base / "two.onnx")
    found = []
    for more in ((), ("--ray", address)):
        report = base / f"report{len(more)}.json"
        run("verify", one, two, "--inputs", base / "x.npy", "--labels", base / "y.npy", "--json", report, *more)
        found.append(json.loads(report.read_text())["answers"])
    assert found[0] == found[1] and found[0]["samples"] == 5000 and found[0]["changed"] > 0, found
    say(f"the same numbers of {found[0]['samples']} labelled samples by Ray Data: {found[0]['top1']}")
    report = base / "unlabelled.json"
    run("verify", one, two, "--inputs", base / "x.npy", "--json", report, "--ray", address)
    unlabelled = json.loads(report.read_text())["answers"]
    assert unlabelled == found[0] | {"top1": None, "top5": None}, unlabelled
    say(f"and without labels: {unlabelled['changed']} answers changed")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
