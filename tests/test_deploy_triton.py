"""What Triton is told of a model: names, types, sizes, batches, accelerators, warm-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import bnfold
from bnfold.deployment import Deployed
from bnfold.deployment.pbtxt import Name, render
from bnfold.errors import ModelError, UsageError
from tests.program import classifier, foldable, saved
from tests.triton.schema import model_config, parsed

needs_schema = pytest.mark.skipif(model_config() is None, reason="needs tritonclient, which make test installs")


def model(text: str) -> onnx.ModelProto:
    """`(float[N,3] x) => (float[N,3] y) { y = Relu(x) }` as a model."""
    return parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')


def deployed(proto: onnx.ModelProto | str, place: Path, **options: Any) -> tuple[Deployed, str]:
    """The result, and the text of the configuration in one line."""
    proto = model(proto) if isinstance(proto, str) else proto
    place.mkdir(exist_ok=True)
    result = bnfold.deploy(proto, triton=place / "models", name="m", **options)
    text = (place / "models" / "m" / "config.pbtxt").read_text()
    if model_config() is not None:
        parsed(text)
    return result, " ".join(text.split())


# ------------------------------------------------------------------------------------------------- inputs and outputs

RELU = "(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"

SHAPES = {
    "free batch": (RELU, 8, 'name: "x" data_type: TYPE_FP32 dims: 3 }'),
    "fixed batch": ("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }", 0, "TYPE_FP32 dims: 2 dims: 3 }"),
    "free axes behind the batch": (
        "(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }", 8, "TYPE_FP32 dims: 3 dims: -1 dims: -1 }",
    ),
    "free axes, fixed batch": (
        "(float[1,3,H,W] x) => (float[1,3,H,W] y) { y = Relu(x) }", 0, "dims: 1 dims: 3 dims: -1 dims: -1 }",
    ),
    "nothing behind the batch": (
        "(float[N] x) => (float[N] y) { y = Relu(x) }", 8, "TYPE_FP32 dims: 1 reshape { } }",
    ),
    "a scalar": ("(float x, float[2] z) => (float[2] y) { y = Add(x, z) }", 0, '"x" data_type: TYPE_FP32 dims: 1 }'),
    "two batches": ("(float[N,3] x, float[M,3] z) => (float[N,3] y, float[M,3] w) { y = Relu(x) w = Relu(z) }", 0,
                    "dims: -1 dims: 3 }"),
    "one of them fixed": (
        "(float[N,3] x, float[1,3] z) => (float[N,3] y) { y = Add(x, z) }", 0, "dims: 1 dims: 3 }",
    ),
    "no inputs": ('() => (float[2] y) { y = Constant<value = float[2] {1, 2}>() }', 0, 'output { name: "y"'),
    "an output that is no batch": ("(float[N,3] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }", 0,
                                   'name: "y" data_type: TYPE_FP32 dims: 1 }'),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case: str, tmp_path: Path) -> None:
    text, batch, told = SHAPES[case]
    result, config = deployed(text, tmp_path)
    assert result.batching is not None
    assert (result.batching.max_batch, result.check.status) == (batch, "equivalent")
    assert f"max_batch_size: {batch} " in config
    assert told in config


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }", "the first axis of input 'x' is fixed (2)"),
        ("(float[N,3] x, float[M,3] z) => (float[N,3] y, float[M,3] w) { y = Relu(x) w = Relu(z) }",
         "the first axes of 'x' and 'z' are two different ones (N, M)"),
        ("(float[N,3] x) => (float[N,3] y) { y = Softmax<axis = 0>(x) }",
         "output 'y' of one row depends on the others in the batch"),
        ("(float[N,3] x) => (float[K,3] y) { y = Concat<axis = 0>(x, x) }", "are two different ones (N, K)"),
        ("(float[?,3] x) => (float[?,3] y) { y = Concat<axis = 0>(x, x) }", "'y' has 6 rows for 3 of its inputs"),
        ("(float[N,3] x) => (float[M] y) { c = Shape(x) y = Cast<to = 1>(c) }", "are two different ones"),
        ("(float[?,2] x) => (float[?] y) { c = Shape(x) y = Cast<to = 1>(c) }", "output 'y' has 2 rows for 3 of its"),
    ],
)  # fmt: skip
def test_why_a_model_takes_no_batches(text: str, why: str, tmp_path: Path) -> None:
    result, config = deployed(text, tmp_path)
    assert result.batching is not None and "dynamic_batching" not in config
    assert why in result.batching.reason
    with pytest.raises(UsageError, match="--max-batch 4: this model takes no batches"):
        deployed(text, tmp_path / "again", max_batch=4)


def test_batches_as_asked(tmp_path: Path) -> None:
    assert "dynamic_batching {}" in deployed(RELU, tmp_path / "a", max_batch=32)[1]
    _, config = deployed(RELU, tmp_path / "b", max_batch=4, dynamic_batching=False)
    assert "max_batch_size: 4" in config and "dynamic_batching" not in config
    _, config = deployed(RELU, tmp_path / "c", queue_delay=250)
    assert "dynamic_batching { max_queue_delay_microseconds: 250 }" in config
    result, config = deployed(RELU, tmp_path / "d", max_batch=0)
    assert "max_batch_size: 0" in config and "dims: -1 dims: 3" in config
    assert result.batching is not None and result.batching.reason == "not asked for"


TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64",
    "bfloat16": "BF16", "string": "STRING",
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_types(kind: str, tmp_path: Path) -> None:
    result, config = deployed(f"({kind}[N,3] x) => ({kind}[N,3] y) {{ y = Identity(x) }}", tmp_path)
    assert config.count(f"data_type: TYPE_{TYPES[kind]} dims: 3") == (2 if kind == "string" else 4)  # warm-up too
    assert result.check.status == (
        "equivalent" if kind != "string" else "not run: input 'x' is of type object: give values with --inputs FILE.npz"
    )


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("(float8e4m3fn[N] x) => (float8e4m3fn[N] y) { y = Identity(x) }", {"verify": False}, "FLOAT8E4M3FN, which"),
        ("(seq(float[N]) x) => (seq(float[N]) y) { y = Identity(x) }", {}, "'x' is a sequence, which no server takes"),
        ("(float[N,0] x) => (float[N,0] y) { y = Relu(x) }", {"verify": False}, "an axis of size 0"),
        ("(bfloat16[N] x) => (bfloat16[N] y) { y = Identity(x) }", {"backend": "python"}, "use --backend onnxruntime"),
        ("(float[] x) => (float[] y) { y = Relu(x) }", {}, None),
    ],
)
def test_what_triton_cannot_have(text: str, options: dict[str, Any], problem: str | None, tmp_path: Path) -> None:
    if problem is None:
        proto = model("(float[3] x) => (float[3] y) { y = Relu(x) }")
        proto.graph.input[0].type.tensor_type.ClearField("shape")
        with pytest.raises(ModelError, match="does not say how many axes it has"):
            deployed(proto, tmp_path, verify=False)
    else:
        with pytest.raises(ModelError, match=problem):
            deployed(text, tmp_path, **options)
    assert not (tmp_path / "models").exists()


def test_an_output_that_the_model_says_nothing_of_is_asked_of_the_runtime(tmp_path: Path) -> None:
    proto = model(RELU)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert 'output { name: "y" data_type: TYPE_FP32 dims: 3 }' in deployed(proto, tmp_path)[1]


def test_initializers_are_no_inputs(tmp_path: Path) -> None:
    proto = model("(float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }")
    assert deployed(proto, tmp_path)[1].count("input {") == 1


def test_odd_names_are_quoted(tmp_path: Path) -> None:
    proto = model(RELU)
    odd = 'a"b\\c\nd\té{'
    proto.graph.input[0].name = proto.graph.node[0].input[0] = odd
    _, config = deployed(proto, tmp_path)
    assert 'name: "a\\"b\\\\c\\nd\\té{"' in config
    if model_config() is not None:
        assert parsed((tmp_path / "models" / "m" / "config.pbtxt").read_text()).input[0].name == odd


def test_the_text_format() -> None:
    text = render({"a": 1, "b": True, "c": Name("KIND"), "d": [1, 2], "e": {}, "f": [{"g": "\x01"}, {"h": {"i": -1}}]})
    assert text.splitlines() == [
        "a: 1", "b: true", "c: KIND", "d: 1", "d: 2", "e {}", "f {", '  g: "\\001"', "}", "f {", "  h {", "    i: -1",
        "  }", "}",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- targets


def test_onnx_runtime_is_told_the_level_and_the_threads(tmp_path: Path) -> None:
    for level, number in {"all": 0, "extended": 1, "basic": -1, "off": 2}.items():
        _, config = deployed(RELU, tmp_path / level, level=level, threads=3, instances=2, versions=4)
        assert f"optimization {{ graph {{ level: {number} }} }}" in config
        assert 'parameters { key: "intra_op_thread_count" value { string_value: "3" } }' in config
        assert "instance_group { count: 2 kind: KIND_CPU }" in config
        assert "version_policy { latest { num_versions: 4 } }" in config


def test_cuda(tmp_path: Path) -> None:
    result, config = deployed("(float[1,3] x) => (float[1,3] y) { y = Relu(x) }", tmp_path, target="cuda")
    assert "kind: KIND_GPU" in config
    assert 'gpu_execution_accelerator { name: "cuda" parameters { key: "prefer_nhwc" value: "1" }' in config
    # The backend overwrites what an accelerator says of these by the model's parameters, or by its own defaults.
    assert 'parameters { key: "cudnn_conv_algo_search" value { string_value: "0" } }' in config
    assert config.count("cudnn_conv_algo_search") == 1
    # It fills another buffer for each batch, which a captured graph would not see.
    assert dict(result.settings.providers)["CUDAExecutionProvider"]["enable_cuda_graph"] == "1"
    assert "graph_enable" not in config and "enable_cuda_graph" not in config


def test_tensorrt_builds_one_engine_for_every_batch(tmp_path: Path) -> None:
    _, config = deployed(foldable(), tmp_path, target="tensorrt", max_batch=16)
    first, second = config.split("gpu_execution_accelerator {")[1:]
    assert 'name: "tensorrt"' in first and 'name: "cuda"' in second
    assert 'key: "precision_mode" value: "FP32"' in first
    assert 'key: "trt_engine_cache_path" value: "/tmp/tensorrt-m"' in first
    for key, batch in (("min", 1), ("opt", 16), ("max", 16)):
        assert f'key: "trt_profile_{key}_shapes" value: "x:{batch}x3x10x14"' in first


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("tensorrt", {"tensorrt": {"trt_fp16_enable": "1"}}, '"precision_mode" value: "FP16"'),
        ("tensorrt", {"cuda": {"cudnn_conv_algo_search": "HEURISTIC"}}, '_algo_search" value { string_value: "1"'),
        ("cuda", {"cuda": {"gpu_mem_limit": "1024"}}, '"gpu_mem_limit" value { string_value: "1024"'),
        ("cuda", {"cuda": {"arena_extend_strategy": "kSameAsRequested"}}, '_strategy" value { string_value: "1"'),
        ("cuda", {"cuda": {"prefer_nhwc": "0"}}, '"prefer_nhwc" value: "0"'),
    ],
)  # fmt: skip
def test_the_user_has_the_last_word(target: str, options: Any, told: str, tmp_path: Path) -> None:
    assert told in deployed(RELU, tmp_path, target=target, provider_options=options)[1]


def test_openvino_runs_on_the_cpu_and_optimises_for_itself(tmp_path: Path) -> None:
    _, config = deployed(RELU, tmp_path, target="openvino")
    assert 'graph { level: 2 } execution_accelerators { cpu_execution_accelerator { name: "openvino" } }' in config
    assert "kind: KIND_CPU" in config


def test_tf32_only_where_asked(tmp_path: Path) -> None:
    assert '"use_tf32" value: "0"' in deployed(RELU, tmp_path / "a", target="cuda")[1]
    assert '"use_tf32" value: "1"' in deployed(RELU, tmp_path / "b", target="cuda", tf32=True)[1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "ort"}, "Triton takes no models in ONNX Runtime's own format"),
        ({"target": "tpu"}, "unknown target 'tpu'; choose from cpu, cuda, tensorrt, openvino, ort"),
        ({"backend": "java"}, "unknown backend 'java'"),
        ({"level": "99"}, "unknown level '99'"),
        ({"provider_options": {"cuda": {"a": "b"}}}, "the target cpu uses none that has options"),
        ({"target": "cuda", "provider_options": {"tensorrt": {"a": "b"}}}, "the target cuda uses cuda"),
        ({"target": "cuda", "provider_options": {"cuda": {"use_tf32": "1"}}}, "--tf32"),
        ({"preprocess": "size=4"}, "--preprocess is for your own inputs"),
        ({"output": "there"}, "say where"),
    ],
)
def test_wrong_usage(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        deployed(RELU, tmp_path, **options)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "", "a b", "-a", "ä", "x" * 201])
def test_names_that_are_no_folder_or_no_address(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be a model's name"):
        bnfold.deploy(model(RELU), triton=tmp_path, name=name)


@pytest.mark.parametrize(
    ("file", "name"), [("net.onnx", "net"), ("net.folded.onnx", "net"), ("a.b-c_1.onnx", "a.b-c_1")]
)
def test_the_name_is_the_files(file: str, name: str, tmp_path: Path) -> None:
    result = bnfold.deploy(saved(model(RELU), tmp_path / file), triton=tmp_path / "models")
    assert result.output == tmp_path / "models" / name / "1"


def test_a_model_without_a_path_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a name"):
        bnfold.deploy(model(RELU), triton=tmp_path)


# ------------------------------------------------------------------------------------------------- warm-up and labels


def test_the_warm_up_is_what_a_verification_feeds(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    result, config = deployed(RELU, tmp_path, inputs={"x": rows}, max_batch=4)
    (file,) = (tmp_path / "models" / "m" / "warmup").iterdir()
    assert file.read_bytes() == rows[0].tobytes()
    assert result.warm_up == 2
    given = f'inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: 3 input_data_file: "{file.name}" }} }} }}'
    assert f'model_warmup {{ name: "batch-1" batch_size: 1 {given}' in config
    assert f'model_warmup {{ name: "batch-4" batch_size: 4 {given}' in config


def test_without_batches_the_warm_up_is_a_whole_sample(tmp_path: Path) -> None:
    result, config = deployed("(float[2,3] x, float z) => (float[2,3] y) { y = Mul(x, z) }", tmp_path)
    assert result.warm_up == 1
    assert 'batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 dims: 3 input_data_file:' in config
    assert 'inputs { key: "z" value { data_type: TYPE_FP32 dims: 1 input_data_file:' in config
    sizes = sorted(file.stat().st_size for file in (tmp_path / "models" / "m" / "warmup").iterdir())
    assert sizes == [4, 24]


def test_no_warm_up(tmp_path: Path) -> None:
    result, config = deployed(RELU, tmp_path, warm_up=False)
    assert result.warm_up == 0 and "model_warmup" not in config
    assert not (tmp_path / "models" / "m" / "warmup").exists()


def test_the_classes_of_the_metadata_become_labels(tmp_path: Path) -> None:
    proto = classifier()
    helper.set_model_props(proto, {"classes": json.dumps([f"class\n{number}" for number in range(7)])})
    _, config = deployed(proto, tmp_path)
    (file,) = (tmp_path / "models" / "m").glob("labels-*.txt")
    assert file.read_text().splitlines() == [f"class {number}" for number in range(7)]
    assert f'label_filename: "{file.name}"' in config


def test_no_labels_where_no_output_has_as_many(tmp_path: Path) -> None:
    proto = classifier()
    helper.set_model_props(proto, {"classes": json.dumps(["a", "b"])})
    assert "label_filename" not in deployed(proto, tmp_path)[1]


# -------------------------------------------------------------------------------------------------------------- schema


@needs_schema
@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt", "openvino"])
@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_a_configuration_is_one_by_tritons_schema(target: str, backend: str, tmp_path: Path) -> None:
    proto = classifier()
    helper.set_model_props(proto, {"classes": json.dumps(list("abcdefg"))})
    deployed(proto, tmp_path, target=target, backend=backend, threads=2, queue_delay=100)
    config = parsed((tmp_path / "models" / "m" / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("m", backend, 8)
    assert (config.input[0].name, list(config.input[0].dims)) == ("x", [7])
    assert config.input[0].data_type == config.model_warmup[1].inputs["x"].data_type != TensorProto.UNDEFINED
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    assert config.output[0].label_filename.startswith("labels-")
    if backend == "onnxruntime":
        assert config.parameters["intra_op_thread_count"].string_value == "2"
