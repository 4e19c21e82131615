"""From training to an answer; what follows the training runs without torch, on the repository's trained model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import end_to_end
from tests.models.conftest import REASON

TRAINED = Path(__file__).parents[2] / "models" / "trained"


def few(path: Path, count: int = 40) -> Path:
    """The first test images, with all that says how to prepare them."""
    with np.load(TRAINED / "fashion_test_1000.npz") as file:
        cut = {name: file[name][:count] if name in ("images", "labels") else file[name] for name in file}
    np.savez(path, **cut)
    return path


def test_from_a_trained_model_to_answers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    end_to_end.go(TRAINED / "bn_inception_fashion.onnx", few(tmp_path / "few.npz"), tmp_path)
    said = capfd.readouterr().out
    assert said.rstrip().endswith("the same answers everywhere")
    assert (tmp_path / "repository" / "net" / "1" / "model.py").exists()


def test_other_answers_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.zeros((40, 10), np.float32)
    monkeypatch.setattr(end_to_end, "by_commands", lambda *_: wrong)
    monkeypatch.setattr(end_to_end, "by_library", lambda *_: wrong)
    with pytest.raises(SystemExit, match="the answers differ"):
        end_to_end.go(TRAINED / "bn_inception_fashion.onnx", few(tmp_path / "few.npz"), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_from_training_on(torch: Any, idx_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason=REASON)
    model, images = end_to_end.trained(tmp_path, 8, data=str(idx_folder))
    end_to_end.go(model, images, tmp_path)
