"""Train one network: the loop in plain sight.

    python -m models.train bn-x5 --steps 3000 --seed 1 --out models/runs/mine
    python -m models.train imagenet-bn-x5 --data /data/imagenet --device cuda --amp bf16
    torchrun --nproc_per_node 2 -m models.train bn-baseline --out models/runs/two

SGD with momentum, rate lr * exp(-decay * t / steps). The first argument names a recipe of models.config; every field of
Config is also an option. --out holds the checkpoint, log.jsonl (one object an evaluation) and final.pt. A run that was
stopped, by whatever means, goes on from its last checkpoint when the same command is given again, and ends with the
same weights, bit for bit, as if it had never been stopped (on the same machine and thread count).
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.bn import average_over_ranks, population_statistics
from models.config import RECIPES, Config
from models.data import Data, DataError, Split, batches, inputs, load
from models.inception import Inception
from models.mlp import MLP
from models.residual import Residual


def build(config: Config, data: Data) -> nn.Module:
    """The freshly initialised network of a configuration: a function of the configuration, its seed, and the data."""
    torch.manual_seed(config.seed)
    if config.model == "mlp":
        return MLP(config.norm, len(data.classes), init_std=config.init_std)
    if config.model in ("preact", "repvgg"):
        return Residual(config.model, len(data.classes), data.channels)
    return Inception(
        len(data.classes), data.channels, width=config.width, variant=config.variant, norm=config.norm,
        nonlinearity=config.nonlinearity, stem=config.stem, stem_stride=config.stem_stride, lrn=config.lrn,
        dropout=config.dropout, init=config.init, init_scale=config.init_scale,
        per_activation_size=data.size if config.per_activation else 0,
    )  # fmt: skip


def optimizer(model: nn.Module, config: Config) -> torch.optim.SGD:
    """SGD with momentum; L2 on weights only, not on biases, gamma or beta."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": config.l2}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def rate(config: Config, step: int) -> float:
    """Exponential decay (section 4.2)."""
    return config.lr * math.exp(-config.decay * step / config.steps)


def precision(config: Config) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """The forward pass in bf16 or fp16 where asked, and the loss scaling that fp16 needs."""
    dtype = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]
    scaler = torch.amp.GradScaler(config.device, enabled=config.amp == "fp16")
    return torch.autocast(config.device, dtype, enabled=config.amp != "off"), scaler


@dataclass(frozen=True)
class Ranks:
    """A process's place among those that train together."""

    rank: int = 0
    world: int = 1
    local: int = 0


@contextmanager
def ranks(config: Config) -> Iterator[Ranks]:
    """The process's place under torchrun (gloo on CPU, nccl on CUDA), or alone."""
    if "RANK" not in os.environ:
        yield Ranks()
        return
    if config.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if config.device == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
        dist.barrier()  # the others wait while the first one evaluates
    finally:
        dist.destroy_process_group()


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, *, batch: int = 250, device: str = "cpu") -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) over the whole split, in inference mode."""
    return accuracy(logits(model, split, batch=batch, device=device), split.labels)


def accuracy(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """(top-1 accuracy, mean cross-entropy) of logits (N, classes)."""
    loss = nn.functional.cross_entropy(outputs, labels).item()
    return (outputs.argmax(1) == labels).double().mean().item(), loss


@torch.inference_mode()
def logits(model: nn.Module, split: Split, *, batch: int = 250, device: str = "cpu") -> Tensor:
    """The outputs (N, classes), float32 on the CPU, over the whole split in inference mode."""
    mode = model.training
    model.eval()
    parts = [model(x.to(device)).float().cpu() for x in inputs(split, batch)]
    model.train(mode)
    return torch.cat(parts)


def watch(model: MLP, split: Split, device: str) -> list[float]:
    """Figure 1 (b, c): percentiles over the whole split, in inference mode."""
    mode = model.training
    found = model.eval().percentiles(split.fetch(np.arange(len(split)), 0)[0].to(device))
    model.train(mode)
    return found


def train(config: Config, out: Path, data: Data | None = None, *, quiet: bool = False) -> nn.Module:
    """Train to `config.steps`, from the last checkpoint in `out` if there is one.

    Returns the network with population statistics in its BN layers, also saved as `out/final.pt`. Under torchrun every
    rank returns the same.
    """
    torch.set_num_threads(config.threads)
    data = data or load(config.data, size=config.size, augment=config.augment)
    with ranks(config) as place:
        return _train(config, out, data, place, quiet=quiet or place.rank > 0)


def _train(config: Config, out: Path, data: Data, place: Ranks, *, quiet: bool) -> nn.Module:
    device = f"cuda:{place.local}" if config.device == "cuda" else config.device
    layout = torch.channels_last if config.channels_last and config.model == "inception" else torch.contiguous_format
    model = build(config, data).to(device=device, memory_format=layout)
    torch.manual_seed(config.seed * 1_000_003 + place.rank)  # dropout differs between ranks, the weights do not
    sgd = optimizer(model, config)
    amp, scaler = precision(config)
    run = Run(config, out, place, model, sgd, scaler, running=torch.zeros((), device=device))
    run.resume()
    # BN buffers are each rank's own while training (nn.SyncBatchNorm raises on CPU) and averaged when they are used.
    parallel = model
    if place.world > 1:
        parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    forward = torch.compile(parallel) if config.compile else parallel
    log = _Log(run, quiet=quiet)

    def population(steps: range) -> None:
        """Algorithm 2 over the mini-batches of some steps. Training never looks at what it writes."""
        if config.norm != "none":
            again = batches(data.train, config.with_(steps=steps.stop), steps.start, place.rank, place.world)
            population_statistics(model, (x.to(device, memory_format=layout) for x, _ in again))

    model.train()
    started, since = time.perf_counter(), run.step
    for x, y in batches(data.train, config, run.step, place.rank, place.world):
        for group in sgd.param_groups:
            group["lr"] = rate(config, run.step)
        x, y = x.to(device, memory_format=layout, non_blocking=True), y.to(device, non_blocking=True)
        with amp:
            loss = nn.functional.cross_entropy(forward(x), y)
        sgd.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(sgd)
        scaler.update()
        run.running += loss.detach()
        run.step += 1

        if run.step % config.eval_every == 0 or run.step == config.steps:
            seconds = time.perf_counter() - started
            average_over_ranks(model)
            if config.eval_batches:
                population(range(max(0, run.step - config.eval_batches), run.step))
            if place.rank == 0:
                top1, test_loss = evaluate(model, data.test, device=device)
                figure1 = {"percentiles": watch(model, data.test, device)} if isinstance(model, MLP) else {}
                log.write(
                    step=run.step, lr=rate(config, run.step - 1), test_accuracy=top1, test_loss=test_loss, **figure1,
                    train_loss=run.running.item() / ((run.step - 1) % config.eval_every + 1),
                    images_per_second=(run.step - since) * config.batch * place.world / seconds,
                )  # fmt: skip
            run.running.zero_()
            started, since = time.perf_counter(), run.step
        if run.step % config.checkpoint_every == 0 or run.step == config.steps:
            run.save()

    if config.population_batches:
        population(range(config.population_batches))
    if place.rank == 0:
        top1, test_loss = evaluate(model, data.test, device=device)
        log.write(step=run.step, final=True, test_accuracy=top1, test_loss=test_loss)
        _write(out / "final.pt", {"config": config.as_dict(), "model": model.state_dict(), "test_accuracy": top1})
    return model


FREE_ON_RESUME = {"device", "threads", "tensorboard", "checkpoint_every"}


@dataclass
class Run:
    """Everything that decides what a training run does next; `running` is the loss summed since the last evaluation.

    The sampler and the augmentation are functions of (seed, step), so they need no state of their own.
    """

    config: Config
    out: Path
    place: Ranks
    model: nn.Module
    sgd: torch.optim.SGD
    scaler: Any
    running: Tensor
    step: int = 0

    def path(self, step: int, rank: int) -> Path:
        """One file a rank: BN buffers and random numbers differ between ranks."""
        return self.out / f"checkpoint-{rank}-{step:09d}.pt"

    def save(self) -> None:
        """Write this step's checkpoint; the one before goes once every rank has written."""
        cuda = torch.cuda.get_rng_state(self.place.local) if self.config.device == "cuda" else None
        state = {
            "config": self.config.as_dict(), "world": self.place.world, "step": self.step, "running": self.running,
            "model": self.model.state_dict(), "optimizer": self.sgd.state_dict(), "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(), "cuda_rng": cuda,
        }  # fmt: skip
        mine = self.path(self.step, self.place.rank)
        _write(mine, state)
        if self.place.world > 1:
            dist.barrier()
        for old in self.out.glob(f"checkpoint-{self.place.rank}-*.pt"):
            if old != mine:
                old.unlink()

    def resume(self) -> None:
        """Load the last step that every rank has saved, if there is one.

        Raises:
            DataError: the directory holds another run.
        """
        saved = [
            {int(p.stem.split("-")[2]) for p in self.out.glob(f"checkpoint-{r}-*.pt")} for r in range(self.place.world)
        ]
        common = set.intersection(*saved)
        if not common:
            return
        path = self.path(max(common), self.place.rank)
        state = torch.load(path, map_location=self.running.device, weights_only=True)
        was, now = state["config"] | {"world": state["world"]}, self.config.as_dict() | {"world": self.place.world}
        differ = sorted(k for k in now if now[k] != was.get(k) and k not in FREE_ON_RESUME)
        if differ:
            changes = ", ".join(f"{k}: {was.get(k)} then, {now[k]} now" for k in differ)
            raise DataError(f"{self.out} holds another run ({changes}): choose another --out, or delete it")
        self.model.load_state_dict(state["model"])
        self.sgd.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and self.config.device == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.place.local)
        self.step, self.running = state["step"], state["running"]


def _write(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint is whole or absent, also when the process is killed while it writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class _Log:
    """log.jsonl, progress on stderr, and TensorBoard where asked. After a resume, lines past the checkpoint go."""

    def __init__(self, run: Run, *, quiet: bool) -> None:
        self.path, self.config, self.quiet = run.out / "log.jsonl", run.config, quiet
        self.board: Any = None
        if run.place.rank > 0:
            return
        run.out.mkdir(parents=True, exist_ok=True)
        kept = [e for e in read_log(run.out) if e["step"] <= run.step and not e.get("final")] if run.step else []
        self.path.write_text("".join(json.dumps(e) + "\n" for e in kept))
        if run.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.out), purge_step=run.step)

    def write(self, **entry: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self.board is not None:
            for key, value in entry.items():
                if isinstance(value, float):
                    self.board.add_scalar(key, value, entry["step"])
            self.board.flush()
        if not self.quiet:
            shown = " ".join(f"{k} {v:.4g}" for k, v in entry.items() if isinstance(v, float))
            print(f"{self.config.name} {entry['step']}/{self.config.steps} {shown}", file=sys.stderr, flush=True)


def read_log(out: Path) -> list[dict[str, Any]]:
    """The entries of a run's log.jsonl, oldest first; none where there is no run."""
    path = out / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def restore(out: Path) -> tuple[Config, nn.Module, Data]:
    """A finished run: its configuration, its network in inference mode on the CPU, and its data."""
    state = torch.load(out / "final.pt", map_location="cpu", weights_only=True)
    config = Config(**state["config"])
    data = load(config.data, size=config.size, augment=config.augment)
    model = build(config, data)
    model.load_state_dict(state["model"])
    return config, model.eval(), data


def parse(argv: list[str] | None = None) -> tuple[Config, Path]:
    """(configuration, output directory) of a command line: a recipe, and every field of Config as an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, help="default: models/runs/RECIPE-SEED")
    for field in fields(Config):
        option = "--" + field.name.replace("_", "-")
        if field.type is bool or field.type == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        elif field.name != "name":
            parser.add_argument(option, type=type(field.default), default=None)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    recipe = RECIPES[given.pop("recipe")]
    out = given.pop("out", None)
    config = recipe.with_(**given)
    return config, out or Path("models/runs") / f"{config.name}-{config.seed}"


def main() -> None:
    """The command line."""
    config, out = parse()
    try:
        train(config, out)
    except DataError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
