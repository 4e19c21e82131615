"""The training reference's tests: they skip, and say why, where torch is not installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

REASON = "the training reference needs torch: make .venv-train"


@pytest.fixture(scope="session")
def torch() -> Any:
    """The module, on one thread: the machine may be shared."""
    module: Any = pytest.importorskip("torch", reason=REASON)
    module.set_num_threads(1)
    return module


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """A little learnable data set as IDX files: 10 classes, each a bright row in noise; 320 / 100 images of 28x28."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, count in (("train", 320), ("t10k", 100)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 90, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 4 + 2 * labels] = 220
        for kind, array in (("images", images), ("labels", labels)):
            dims = b"".join(n.to_bytes(4, "big") for n in array.shape)
            name = f"{part}-{kind}-idx{array.ndim}-ubyte"
            (folder / name).write_bytes(bytes([0, 0, 8, array.ndim]) + dims + array.tobytes())
    return folder
