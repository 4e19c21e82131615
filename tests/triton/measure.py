"""Serve models as they are and as bnfold folds them on a real Triton, compare, time, and write the table.

    python -m tests.triton.measure [MODEL...] [--seconds S] [--blocks N] [--no-write]

The trained BN-Inception is always the first model, and its test images are what is sent. Of each model two are served
by the Python backend, as `bnfold deploy` writes them: the original and the folded one. Every answer, over HTTP and over
gRPC, must be what ONNX Runtime gives without a server, bit for bit. Then clients ask both in turns. The exit code is 1
where an answer differs, or where a configuration is none by Triton's own schema.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from tritonclient import grpc, http

import bnfold
from bnfold.deployment import Deployed
from bnfold.inputs import load
from bnfold.samples import input_specs, make
from tests.pages import blocks
from tests.triton.schema import parsed
from tests.triton.server import Server, running

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT / "models" / "trained"
SCRATCH = ROOT / "build" / "triton"
PAGE = ROOT / "docs" / "deploy.md"

THREADS = 1
"""Of ONNX Runtime: the clients need a core too."""

LEVELS = ((1, 1), (8, 1), (4, 8))
"""Clients at a time, and rows in each request."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """One model as it was and folded, in one repository; rows to send, and their classes where they are known."""

    name: str
    before: int
    after: int
    original: Deployed
    folded: Deployed
    rows: Array
    labels: Array | None = None

    @property
    def input(self) -> str:
        return self.original.interface.inputs[0].name

    @property
    def output(self) -> str:
        return self.original.interface.outputs[0].name

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many rows a request may have."""
        batching = self.original.batching
        return (1, 8) if batching is not None and batching.max_batch else (1,)

    @property
    def both(self) -> tuple[Deployed, Deployed]:
        return self.original, self.folded


@dataclass(frozen=True)
class Rate:
    """Rows a second of both, block by block, measured in turns."""

    pair: Pair
    clients: int
    rows: int
    original: list[float]
    folded: list[float]


# ------------------------------------------------------------------------------------------------------------ deploying


def prepared(model: Path, repository: Path) -> Pair:
    """Fold the model, and deploy both."""
    folded = SCRATCH / f"{model.stem}.folded.onnx"
    result = bnfold.optimize(model, folded, force=True)
    proto = onnx.load(model, load_external_data=False)
    specs = input_specs(proto)
    images, labels = TRAINED / "fashion_test_1000.npz", None
    if model.stem == "bn_inception_fashion":
        rows = np.concatenate([sample[specs[0].name] for sample in load(images, specs, proto)])
        labels = np.load(images)["labels"]
    else:
        dims = [dim if isinstance(dim, int) else 224 for dim in (specs[0].dims or ())[1:]]
        rows = make(specs, {specs[0].name: (16, *dims)}, 0, 0, (0, 9))[specs[0].name]
    options: dict[str, Any] = {"triton": repository, "backend": "python", "threads": THREADS}
    made = [
        bnfold.deploy(each, name=f"{model.stem}-{kind}", inputs={specs[0].name: rows[:2]}, **options)
        for each, kind in ((model, "original"), (folded, "folded"))
    ]
    pair = Pair(model.stem, result.batchnorm.before, result.batchnorm.after, made[0], made[1], rows, labels)
    print(f"{pair.name}: {pair.before} -> {pair.after} BatchNormalization, {result.status}")
    return pair


def check_configs(pair: Pair) -> None:
    """Every target's configuration, for either backend, is one by the schema that Triton publishes."""
    place = SCRATCH / "schema"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for backend in ("onnxruntime", "python"):
        for target in ("cpu", "cuda", "tensorrt", "openvino"):
            made = bnfold.deploy(
                pair.folded.model or "", triton=place, target=target, backend=backend, name=f"{target}-{backend}"
            )
            config = parsed((made.output.parent / "config.pbtxt").read_text())
            assert (config.name, config.max_batch_size) == (made.name, 8)
            assert [each.name for each in config.model_warmup] == ["batch-1", "batch-8"]
    print("8 configurations: valid by tritonclient's model_config_pb2")


# -------------------------------------------------------------------------------------------------------------- answers


def direct(deployed: Deployed, rows: Array) -> Array:
    """ONNX Runtime without a server, as its own default has it but for the threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        str(deployed.output / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    (answer,) = session.run([deployed.interface.outputs[0].name], {deployed.interface.inputs[0].name: rows})
    return np.asarray(answer)


def ask(client: Any, kind: Any, pair: Pair, deployed: Deployed, rows: Array) -> Array:
    """One request."""
    given = kind.InferInput(pair.input, list(rows.shape), "FP32")
    given.set_data_from_numpy(rows)
    answer = client.infer(deployed.name, [given], outputs=[kind.InferRequestedOutput(pair.output)])
    return np.asarray(answer.as_numpy(pair.output))


def compare(server: Server, pair: Pair) -> None:
    """Raise where an answer is not ONNX Runtime's own, on one row and on eight."""
    for deployed in pair.both:
        assert deployed.version == 1 and server.is_ready(deployed.name or "")
        for kind, address in ((http, server.http), (grpc, server.grpc)):
            client = kind.InferenceServerClient(address)
            for size in pair.sizes:
                rows = pair.rows[:size]
                np.testing.assert_array_equal(ask(client, kind, pair, deployed, rows), direct(deployed, rows))
            client.close()
    sizes = " and ".join(map(str, pair.sizes))
    print(f"{pair.name}: HTTP and gRPC, {sizes} rows, original and folded: equal to ONNX Runtime, bit for bit")


def accuracy(server: Server, pair: Pair) -> str:
    """How many labelled rows each gets right over gRPC, and that Triton names the classes from the labels file."""
    if pair.labels is None:
        return ""
    client = grpc.InferenceServerClient(server.grpc)
    right, first = [], []
    for deployed in pair.both:
        parts = [ask(client, grpc, pair, deployed, pair.rows[at : at + 8]) for at in range(0, len(pair.rows), 8)]
        answers = np.concatenate(parts).argmax(axis=1)
        first.append(answers)
        right.append(int((answers == pair.labels).sum()))
    given = grpc.InferInput(pair.input, [1, *pair.rows.shape[1:]], "FP32")
    given.set_data_from_numpy(pair.rows[:1])
    asked = [grpc.InferRequestedOutput(pair.output, class_count=1)]
    named = client.infer(pair.folded.name, [given], outputs=asked).as_numpy(pair.output).ravel()[0].decode()
    changed = int((first[0] != first[1]).sum())
    client.close()
    return (
        f"{len(pair.rows):,} test images over gRPC: the original gets {right[0]} right, the folded model {right[1]}; "
        f"{changed} answers differ. Triton's name for the first: {named.split(':')[2]}."
    )


def snippet(server: Server) -> None:
    """The client of docs/deploy.md, as it stands there."""
    (block,) = (each for each in blocks(PAGE, "python") if "server" in each.marks)
    code = block.text.replace("localhost:8001", server.grpc).replace(
        '"bn_inception_fashion"', '"bn_inception_fashion-folded"'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d\n", done.stdout), done.stdout
    print("the client of docs/deploy.md runs")


def polled(pair: Pair) -> None:
    """A server that polls its repository finds a new model, and a new version, and never half of one."""
    repository = SCRATCH / "polled"
    options: dict[str, Any] = {"triton": repository, "backend": "python", "threads": THREADS, "verify": False}
    options |= {"inputs": {pair.input: pair.rows[:1]}}
    bnfold.deploy(pair.original.model or "", name="first", **options)
    polling = ("--model-control-mode=poll", "--repository-poll-secs=1")
    (scratch := SCRATCH / "polling").mkdir()
    with running(repository, scratch, *polling) as server:
        bnfold.deploy(pair.original.model or "", name="second", **options)
        bnfold.deploy(pair.folded.model or "", name="first", **options)
        client = grpc.InferenceServerClient(server.grpc)
        end = time.monotonic() + 60
        while not (client.is_model_ready("first", "2") and client.is_model_ready("second", "1")):
            assert time.monotonic() < end, server.log.read_text()[-3000:]
            time.sleep(0.2)
        answer = ask(client, grpc, pair, replace(pair.folded, name="first"), pair.rows[:8])
        np.testing.assert_array_equal(answer, direct(pair.folded, pair.rows[:8]))
        client.close()
    trouble = re.findall(r"^E\d.*|.*failed to (?:load|poll).*", server.log.read_text(), re.MULTILINE)
    trouble = [line for line in trouble if "CudaDriverHelper" not in line]  # there is no GPU
    assert not trouble, trouble
    print("a server that polls: a new model and a new version came while it ran, no error in its log")


# --------------------------------------------------------------------------------------------------------------- timing


def rate(server: Server, pair: Pair, deployed: Deployed, clients: int, size: int, seconds: float) -> float:
    """Rows a second that so many clients get, each with one request at a time."""
    counts, start = [0] * clients, threading.Barrier(clients + 1)
    end = threading.Event()

    def client(number: int) -> None:
        connection = grpc.InferenceServerClient(server.grpc)
        rows = np.ascontiguousarray(np.take(pair.rows, range(number, number + size), axis=0, mode="wrap"))
        ask(connection, grpc, pair, deployed, rows)
        start.wait()
        while not end.is_set():
            ask(connection, grpc, pair, deployed, rows)
            counts[number] += size
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    end.set()
    total, taken = sum(counts), time.perf_counter() - begun
    for thread in threads:
        thread.join()
    return total / taken


def timed(server: Server, pair: Pair, clients: int, size: int, seconds: float, blocks: int) -> Rate:
    """Both in turns, a block being original, folded, folded, original: what else runs here disturbs both alike."""
    found = Rate(pair, clients, size, [], [])
    for _ in range(blocks):
        turns = [
            rate(server, pair, deployed, clients, size, seconds / 4)
            for deployed in (pair.original, pair.folded, pair.folded, pair.original)
        ]
        found.original.append((turns[0] + turns[3]) / 2)
        found.folded.append((turns[1] + turns[2]) / 2)
    print(f"{pair.name}, {clients} clients of {size} rows: {_spread(found.original)} -> {_spread(found.folded)}")
    return found


def _spread(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):,.0f} ({low:,.0f} to {high:,.0f})"


def ratio(found: Rate) -> str:
    """Folded over original, block by block: the median with its 95% interval, or that they do not differ."""
    ratios = sorted(folded / original for original, folded in zip(found.original, found.folded, strict=True))
    low, high = (ratios[2], ratios[-3]) if len(ratios) >= 12 else (ratios[0], ratios[-1])
    middle = statistics.median(ratios)
    if low <= 1 <= high or abs(middle - 1) < 0.02:
        return f"no difference ({low:.2f} to {high:.2f})"
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


# ---------------------------------------------------------------------------------------------------------------- table


def table(rates: Sequence[Rate], sentences: Sequence[str]) -> str:
    """The measured table, with the machine and the versions."""
    lines = [
        "| model | BatchNormalization | clients | rows each | original, rows/s | folded, rows/s | folded over it |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {each.pair.name} | {each.pair.before} → {each.pair.after} | {each.clients} | {each.rows} | "
        f"{_spread(each.original)} | {_spread(each.folded)} | {ratio(each)} |"
        for each in rates
    ]
    names = ("bnfold", "onnxruntime", "nvidia-pytriton", "tritonclient", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    made = (
        f"({_cores()}, {versions}, Python {platform.python_version()}; {len(rates[0].original)} blocks each, in turns.)"
    )
    return "\n".join([*lines, "", *[f"{sentence}\n" for sentence in sentences if sentence], made])


def _cores() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    count = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    return f"{count} shared cores of {found.group(1) if found else platform.machine()}"


def main() -> int:
    """Everything, in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--no-write", action="store_true")
    asked = parser.parse_args()
    repository = SCRATCH / "models"
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    pairs = [prepared(model, repository) for model in (TRAINED / "bn_inception_fashion.onnx", *asked.models)]
    check_configs(pairs[0])
    polled(pairs[0])
    with running(repository, SCRATCH) as server:
        for pair in pairs:
            compare(server, pair)
        snippet(server)
        sentences = [accuracy(server, pair) for pair in pairs]
        print("\n".join(filter(None, sentences)))
        rates = [
            timed(server, pair, clients, size, asked.seconds, asked.blocks)
            for pair in pairs
            for clients, size in LEVELS
            if size in pair.sizes
        ]
    text = table(rates, sentences)
    print(text)
    if not asked.no_write:
        begin, end = "<!-- made by make triton: begin -->", "<!-- end -->"
        before, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
