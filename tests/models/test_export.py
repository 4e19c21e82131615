"""Export keeps every BatchNormalization, the accuracy and a dynamic batch, with both exporters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.models.conftest import REASON

torch: Any = pytest.importorskip("torch", reason=REASON)
export: Any = pytest.importorskip("models.export")
train: Any = pytest.importorskip("models.train")
config: Any = pytest.importorskip("models.config")

NETS = {"mlp": ["mnist-mlp"], "inception": ["bn-x5", "--width", "0.04", "--batch", "16"]}


def trained(net: str, idx_folder: Path, tmp_path: Path) -> Path:
    options = ["--steps", "8", "--data", str(idx_folder), "--population-batches", "4", "--out", str(tmp_path / "run")]
    chosen, out = train.parse([*NETS[net], *options])
    train.train(chosen, out, quiet=True)
    return out  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
# Dynamo takes half a minute for an Inception; a block of it is exported below.
@pytest.mark.parametrize(("net", "exporter"), [("mlp", "torchscript"), ("mlp", "dynamo"), ("inception", "torchscript")])
def test_a_run_becomes_onnx(net: str, exporter: str, idx_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    run = trained(net, idx_folder, tmp_path)
    path = tmp_path / "net.onnx"
    card = export.export_run(run, path, exporter=exporter)
    proto = onnx.load(path)
    _, model, data = train.restore(run)

    assert export.batchnorm_nodes(proto) == card["batchnorm_nodes"] == len(export.batchnorms(model)) > 0
    assert proto.ir_version <= 10
    assert [o.version for o in proto.opset_import if o.domain == ""] == [18]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert card["test_accuracy"]["pytorch"] == card["test_accuracy"]["onnxruntime"]
    assert json.loads(path.with_suffix(".json").read_text()) == card
    facts = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(facts["preprocessing"]) == data.preprocessing.as_dict()
    assert facts["training"].startswith("python -m models.train ")

    session = export.ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x, _ = data.test.fetch(np.arange(batch), 0)
        with torch.no_grad():
            np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_block_keeps_its_batchnorms_and_nothing_strange(exporter: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    inception: Any = pytest.importorskip("models.inception")
    row = inception.Row("3a", 2, 2, 3, 2, 3, "avg", 2)
    block = inception.Module(4, row, inception.ConvUnit)
    for m in export.batchnorms(block):  # equal initializers would be shared, through Identity nodes
        for tensor in (m.weight.data, m.bias.data, m.running_mean, m.running_var):
            tensor.uniform_(0.5, 1.5)
    path = tmp_path / "block.onnx"
    export.export(block, torch.zeros(2, 4, 6, 6), path, exporter=exporter, source="a test")
    proto = onnx.load(path)
    assert {n.op_type for n in proto.graph.node} == {"Conv", "BatchNormalization", "Relu", "AveragePool", "Concat"}
    assert export.batchnorm_nodes(proto) == 7
    assert [(p.key, p.value) for p in proto.metadata_props] == [("source", "a test")]


def test_a_lost_batchnorm_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    monkeypatch.setattr(export, "batchnorm_nodes", lambda proto: 0)
    with pytest.raises(ValueError, match="0 BatchNormalization nodes for 1 BN modules"):
        export.export(net, torch.zeros(2, 3), tmp_path / "a.onnx")


def test_the_card_holds_a_command_that_parses_to_the_same_configuration() -> None:
    chosen, _ = train.parse(["bn-x5", "--augment", "--steps", "77", "--no-channels-last", "--lr", "0.03"])
    again, _ = train.parse(config.command(chosen).split())
    assert again == chosen
