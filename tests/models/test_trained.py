"""The committed models are what their cards say. No torch here: this is what bnfold sees."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

TRAINED = Path(__file__).parents[2] / "models" / "trained"
MODELS = {"bn_inception_fashion": ("fashion_test_1000", 69), "mnist_mlp": ("mnist_test_1000", 3)}


def inputs(pixels: NDArray[np.uint8], how: dict[str, Any]) -> NDArray[np.float32]:
    """The preprocessing as the card states it."""
    if how["threshold"] is not None:
        return (pixels > int(how["threshold"])).astype(np.float32)
    mean, std = (np.array(how[k], np.float32).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    return ((pixels.astype(np.float32) * np.float32(how["scale"]) - mean) / std).astype(np.float32)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_committed_model_is_what_its_card_says(name: str) -> None:
    images, batchnorms = MODELS[name]
    card = json.loads((TRAINED / f"{name}.json").read_text())
    proto = onnx.load(TRAINED / f"{name}.onnx")
    onnx.checker.check_model(proto, full_check=True)
    facts = {p.key: p.value for p in proto.metadata_props}
    with np.load(TRAINED / f"{images}.npz") as samples:
        x, labels = inputs(samples["images"], card["preprocessing"]), samples["labels"]
        assert json.loads(str(samples["preprocessing"])) == card["preprocessing"]
        assert list(samples["classes"]) == card["classes"]

    assert sum(n.op_type == "BatchNormalization" for n in proto.graph.node) == card["batchnorm_nodes"] == batchnorms
    assert proto.ir_version <= 10
    assert all(o.version <= 22 for o in proto.opset_import)
    assert json.loads(facts["preprocessing"]) == card["preprocessing"]
    assert facts["training"] == card["command"]
    assert len(labels) == 1000

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"input": x[i : i + 250]})[0] for i in range(0, 1000, 250)])
    accuracy = float((logits.argmax(1) == labels).mean())
    # 1,000 of the test images: three standard errors around the accuracy on all of them.
    whole = card["test_accuracy"]["onnxruntime"]
    assert accuracy == pytest.approx(whole, abs=3 * (whole * (1 - whole) / 1000) ** 0.5)
    assert card["test_accuracy"]["pytorch"] == whole


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_docs_say_what_the_card_says(name: str) -> None:
    card = json.loads((TRAINED / f"{name}.json").read_text())
    page = (TRAINED.parents[1] / "docs" / "training.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith(f"| `{name}.onnx` |"))
    assert f"`{card['command']}`" in line
    assert f"| {card['seed']} | {card['batchnorm_nodes']} | {card['test_accuracy']['onnxruntime']:.2%} |" in line
