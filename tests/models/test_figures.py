"""What the figures measure: steps to a target, ratios over seeds, crops, tables in the docs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.conftest import REASON

torch: Any = pytest.importorskip("torch", reason=REASON)
sweep: Any = pytest.importorskip("models.sweep")
figure1: Any = pytest.importorskip("models.figure1")
figure3: Any = pytest.importorskip("models.figure3")
figure4: Any = pytest.importorskip("models.figure4")
config: Any = pytest.importorskip("models.config")
data: Any = pytest.importorskip("models.data")


def finished(folder: Path, net: str, seed: int, accuracies: list[float]) -> Any:
    """A run whose log says these accuracies at steps 100, 200, ..."""
    out = folder / f"{net}-{seed}"
    out.mkdir()
    entries = [{"step": 100 * (i + 1), "test_accuracy": a} for i, a in enumerate(accuracies)]
    final = {"step": entries[-1]["step"], "final": True, "test_accuracy": 0.99}
    (out / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [*entries, final]))
    return sweep.Job(net, config.RECIPES[net].with_(seed=seed), out)


def test_steps_and_ratio_are_per_seed(tmp_path: Path) -> None:
    todo = [
        finished(tmp_path, "inception", 0, [0.1, 0.5, 0.7, 0.8]),  # best 0.8 at 400
        finished(tmp_path, "bn-x5", 0, [0.8, 0.9, 0.9, 0.9]),  # 100: ratio 4
        finished(tmp_path, "inception", 1, [0.1, 0.6, 0.6, 0.5]),  # best 0.6 at 200
        finished(tmp_path, "bn-x5", 1, [0.7, 0.9, 0.9, 0.9]),  # 100: ratio 2
    ]
    assert figure3.compare(todo, "bn-x5", "inception") == ("100 ± 0", "3.0 ± 1.4")
    assert figure3.compare(todo, "inception", "inception") == ("300 ± 141", "1.0 ± 0.0")


def test_a_net_that_does_not_get_there_says_so(tmp_path: Path) -> None:
    todo = [
        finished(tmp_path, "inception", 0, [0.1, 0.8]),
        finished(tmp_path, "bn-x30", 0, [0.7, 0.7]),
        finished(tmp_path, "inception", 1, [0.1, 0.6]),
        finished(tmp_path, "bn-x30", 1, [0.7, 0.7]),
    ]
    assert figure3.compare(todo, "bn-x30", "inception") == ("100 (1 of 2 seeds)", "2.0")
    assert figure3.compare(todo[:2], "bn-x30", "inception") == ("never", "-")


def test_a_sweep_trains_what_is_missing_and_only_that(tmp_path: Path, idx_folder: Path) -> None:
    chosen = config.RECIPES["mnist-mlp"].with_(data=str(idx_folder), steps=4, batch=8, eval_every=2)
    todo = [sweep.Job("a", chosen.with_(seed=s), tmp_path / f"a-{s}") for s in (0, 1)]
    sweep.run(todo, parallel=2)
    assert all(j.done for j in todo)
    assert [e["step"] for e in todo[1].curve()] == [2, 4]
    assert len(todo[1].curve()[0]["percentiles"]) == 3
    before = (tmp_path / "a-0" / "final.pt").stat().st_mtime_ns
    sweep.run(todo)
    assert (tmp_path / "a-0" / "final.pt").stat().st_mtime_ns == before


def test_a_failed_run_is_named(tmp_path: Path) -> None:
    chosen = config.RECIPES["mnist-mlp"].with_(data=str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"training failed, see .*stderr\.txt"):
        sweep.run([sweep.Job("a", chosen, tmp_path / "a")])


def test_tables_go_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- t -->\nold\n<!-- /t -->\nafter\n")
    sweep.publish("t", "new", page=page)
    assert page.read_text() == "before\n<!-- t -->\nnew\n<!-- /t -->\nafter\n"
    with pytest.raises(ValueError, match="has no"):
        sweep.publish("u", "new", page=page)


def test_the_command_line_reports_a_scale_or_publishes_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- tuning-a -->\n<!-- /tuning-a -->\n")
    monkeypatch.setattr(sweep, "PAGE", page)
    job = finished(tmp_path, "inception", 0, [0.5])
    (job.out / "final.pt").touch()  # trained already
    seen = []

    def command(*argv: str) -> None:
        monkeypatch.setattr("sys.argv", ["figure", *argv])
        reports = lambda todo, scale: seen.append((scale, todo))  # noqa: E731
        sweep.command_line("", ("quick", "full"), lambda scale: [job], reports, {"a": [job]}, lambda grid: grid[0].row)

    command("--scale", "full")
    assert seen == [("full", [job])]
    command("--tune", "a", "--jobs", "2")
    assert page.read_text() == "<!-- tuning-a -->\ninception\n<!-- /tuning-a -->\n"
    assert len(seen) == 1


def test_a_plot_and_its_table_are_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "training.md"
    page.write_text("<!-- f -->\n<!-- /f -->\n")
    for name, value in (("PAGE", page), ("DOCS", tmp_path), ("RUNS", tmp_path / "runs")):
        monkeypatch.setattr(sweep, name, value)
    for scale, image in (("quick", "runs/f-quick/f.png"), ("full", "images/f.png")):
        assert ("a table" in page.read_text()) is False, "only at full scale"
        figure, (axis,) = sweep.plot()
        axis.plot([1, 2], [3, 4])
        sweep.finish("f", scale, "a table.", figure)
        assert (tmp_path / image).stat().st_size > 1000
    assert "a table. " + sweep.machine() in page.read_text()


@pytest.mark.parametrize(
    ("tuned", "grid"), [(figure1.tuned, figure1.tuning()), *((figure3.tuned, figure3.tuning(n)) for n in figure3.GRIDS)]
)
def test_a_grid_has_a_line_for_each_of_its_runs(tuned: Any, grid: list[Any], tmp_path: Path) -> None:
    assert len({j.out for j in grid}) == len(grid)
    ran = [sweep.Job(j.row, j.config, finished(tmp_path, "bn-x5", i, [0.5, 0.95]).out) for i, j in enumerate(grid)]
    assert tuned(ran).count("95.0") == len(grid)


@pytest.mark.parametrize("module", [figure1, figure3, figure4])
@pytest.mark.parametrize("scale", ["quick", "full"])
def test_every_run_is_a_command_that_parses_back(module: Any, scale: str) -> None:
    train: Any = pytest.importorskip("models.train")
    todo = module.jobs(scale)
    assert len({j.out for j in todo}) == len(todo)
    for job in todo:
        assert train.parse(config.command(job.config).split())[0] == job.config


def test_crops_are_the_image_first_then_its_shifts_and_mirrors() -> None:
    pixels = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    views = figure4.crops(pixels)
    assert len(views) == 18
    assert torch.equal(views[0], pixels) and torch.equal(views[1], pixels.flip(3))
    assert len({tuple(v.flatten().tolist()) for v in views}) == 18


def test_error_counts_labels_outside_the_top_k() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    labels = torch.tensor([1, 2])
    assert figure4.error(scores, labels, 1) == 50.0
    assert figure4.error(scores, labels, 2) == 0.0


def test_batch_statistics_leave_the_network_as_it_was() -> None:
    population: Any = pytest.importorskip("models.population")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(8, 3) * 10
    out = population.with_batch_statistics(net, x, 4)
    torch.testing.assert_close(out[:4].mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not net.training


def test_plainly_assembled_network_is_the_same_size() -> None:
    throughput: Any = pytest.importorskip("models.throughput")
    inception: Any = pytest.importorskip("models.inception")
    ours = inception.Inception(10, 1, width=1 / 16, stem="dense", stem_stride=4)
    theirs = throughput.plain(1 / 16, 4, 1)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
