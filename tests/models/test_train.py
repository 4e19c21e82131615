"""The loop: a killed run resumes to identical weights, two processes train as one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.models.conftest import REASON

torch: Any = pytest.importorskip("torch", reason=REASON)
train: Any = pytest.importorskip("models.train")
config: Any = pytest.importorskip("models.config")
data: Any = pytest.importorskip("models.data")
bn: Any = pytest.importorskip("models.bn")

ROOT = Path(__file__).parents[2]
# Dropout and augmentation on, so that every kind of random number must survive.
SMALL = ["bn-baseline", "--width", "0.04", "--dropout", "0.3", "--augment", "--batch", "8", "--eval-every", "15",
         "--population-batches", "3"]  # fmt: skip


def command(idx_folder: Path, out: Path, *options: str) -> list[str]:
    return ["-m", "models.train", *SMALL, "--data", str(idx_folder), "--out", str(out), *options]


def weights(out: Path, name: str = "final.pt") -> dict[str, Any]:
    return torch.load(out / name, weights_only=True)["model"]  # type: ignore[no-any-return]


def test_a_killed_run_resumes_to_identical_weights(idx_folder: Path, tmp_path: Path) -> None:
    steps = ["--steps", "60", "--checkpoint-every", "10"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train.train(*train.parse(command(idx_folder, whole, *steps)[2:]), quiet=True)

    process = subprocess.Popen([sys.executable, *command(idx_folder, killed, *steps)], cwd=ROOT)
    deadline = time.monotonic() + 50
    while not list(killed.glob("checkpoint-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(killed.glob("checkpoint-*.pt")) and not (killed / "final.pt").exists(), "killed on its way"

    train.train(*train.parse(command(idx_folder, killed, *steps)[2:]), quiet=True)
    a, b = weights(whole), weights(killed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    logs = [
        [{k: v for k, v in e.items() if k != "images_per_second"} for e in train.read_log(o)] for o in (whole, killed)
    ]
    assert logs[0] == logs[1]


def test_two_processes_train_as_one(idx_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python", sys.executable]
    options = ["--steps", "12", "--checkpoint-every", "12", "--eval-every", "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *launch, *command(idx_folder, out, *options)],
        cwd=ROOT,
        check=True,
        env=environment,
        timeout=100,
    )
    ranks = [torch.load(p, weights_only=True) for p in sorted(out.glob("checkpoint-*.pt"))]
    assert [r["world"] for r in ranks] == [2, 2]
    first, second = (r["model"] for r in ranks)
    # Evaluation came at the last step, so the moving averages were reduced just before the checkpoint.
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert [e["step"] for e in train.read_log(out)] == [6, 12, 12]
    assert not torch.equal(ranks[0]["rng"], ranks[1]["rng"]), "dropout differs between ranks"


def test_another_run_is_not_overwritten(idx_folder: Path, tmp_path: Path) -> None:
    for lr, expected in (("0.01", None), ("0.02", "lr: 0.01 then, 0.02 now")):
        chosen, out = train.parse(command(idx_folder, tmp_path / "o", "--steps", "4", "--lr", lr)[2:])
        if expected is None:
            train.train(chosen, out, quiet=True)
        else:
            with pytest.raises(data.DataError, match=expected):
                train.train(chosen, out, quiet=True)


@pytest.mark.parametrize(
    "options", [["--amp", "bf16"], ["--no-channels-last"], ["--norm", "paper"], ["--model", "mlp"]]
)
def test_switches(options: list[str], idx_folder: Path, tmp_path: Path) -> None:
    chosen, out = train.parse(command(idx_folder, tmp_path / "o", "--steps", "6", *options)[2:])
    train.train(chosen, out, quiet=True)
    assert all(v.isfinite().all() for v in weights(out).values())


def test_evaluation_by_algorithm_2_leaves_training_alone(idx_folder: Path, tmp_path: Path) -> None:
    """The statistics are those of the last mini-batches; the weights are the same with and without."""
    weights = []
    for count in ("0", "4"):
        options = ["--steps", "10", "--eval-batches", count, "--population-batches", "0"]
        chosen, out = train.parse(command(idx_folder, tmp_path / count, *options)[2:])
        net = train.train(chosen, out, quiet=True)
        weights.append({k: v.clone() for k, v in net.state_dict().items() if "num_batches" not in k})
    loaded = data.load(chosen.data, augment=True)
    bn.population_statistics(net, (x for x, _ in data.batches(loaded.train, chosen, 6)))
    expected = net.state_dict()
    for name, moving in weights[0].items():
        if "running" in name:
            assert not torch.allclose(weights[1][name], moving)
            torch.testing.assert_close(weights[1][name], expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(weights[1][name], moving)


def test_it_learns_and_logs(idx_folder: Path, tmp_path: Path) -> None:
    chosen, out = train.parse(
        ["mnist-mlp", "--data", str(idx_folder), "--steps", "200", "--batch", "32", "--eval-every", "100",
         "--out", str(tmp_path / "o")]
    )  # fmt: skip
    net = train.train(chosen, out, quiet=True)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries] == [100, 200, 200]
    assert entries[-1]["final"] and entries[-1]["test_accuracy"] > 0.9
    restored_config, restored, loaded = train.restore(out)
    assert restored_config == chosen
    assert train.evaluate(restored, loaded.test) == train.evaluate(net, loaded.test)


def test_tensorboard(idx_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = ["--steps", "2", "--model", "mlp", "--tensorboard"]
    chosen, out = train.parse(command(idx_folder, tmp_path / "o", *options)[2:])
    train.train(chosen, out, quiet=True)
    assert list(out.glob("events.out.tfevents.*"))


def test_exponential_decay() -> None:
    chosen = config.Config(lr=0.5, decay=2.0, steps=100)
    rates = [train.rate(chosen, t) for t in (0, 50, 100)]
    assert rates[0] == 0.5
    assert rates[1] / rates[0] == pytest.approx(rates[2] / rates[1])
