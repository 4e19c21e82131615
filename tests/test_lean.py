"""Read lean, a model is what it is: large initializers are looked at where they lie, and written as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold import mapped, wire
from bnfold.certificate import certify, rounding
from bnfold.errors import ModelError
from bnfold.graph import Model
from bnfold.mapped import attach
from bnfold.source import Source, array_of, is_beside, is_mapped, read, read_lean
from bnfold.threads import in_two
from bnfold.witness import Witness
from tests.builder import Builder
from tests.features import FEATURES, with_feature

Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.source.LARGE", 0)
    monkeypatch.setattr("bnfold.write.LARGE", 0)


def conv_bn() -> onnx.ModelProto:
    b = Builder(type_=TensorProto.FLOAT)
    folded = b.node("Relu", b.bn(b.conv(b.input("n", 3, 8, 6), 5)))
    return b.model(b.conv(folded, 4))


def say_inside(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.DEFAULT


def typed_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).ravel().tolist()
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values)


def documented(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].doc_string = "behind the data"
    model.graph.doc_string = "behind the initializers"
    model.metadata_props.add(key="behind", value="the graph")


def unknown_fields(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].MergeFromString(b"\xfa\x3e\x03abc")
    model.graph.MergeFromString(b"\xfd\x3e\x01\x02\x03\x04\xf9\x3e\x01\x02\x03\x04\x05\x06\x07\x08")
    model.MergeFromString(b"\xf8\x3e\x96\x01")


def half_bytes(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="int4", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x21\x03")


def empty(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="empty", data_type=TensorProto.FLOAT, dims=[0], raw_data=b"")


CHANGES: list[Change] = [say_inside, typed_data, documented, unknown_fields, half_bytes, empty]


@pytest.fixture(params=CHANGES, ids=lambda change: change.__name__)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = conv_bn()
    request.param(model)
    found = tmp_path / "model.onnx"
    found.write_bytes(model.SerializeToString())
    return found


def test_attached_it_is_what_was_read(path: Path) -> None:
    whole, lean = read(path).proto, read_lean(path)
    for one, other in zip(whole.graph.initializer, lean.proto.graph.initializer, strict=True):
        if not is_mapped(other):
            continue
        assert not other.raw_data and not is_beside(other)
        np.testing.assert_array_equal(array_of(other, lean.base_dir), array_of(one, None))
    attach(lean.proto)
    assert lean.proto.SerializeToString() == whole.SerializeToString()


def test_data_stays_in_the_file(tmp_path: Path) -> None:
    model, path = conv_bn(), tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    lean = read_lean(path)
    assert all(map(is_mapped, lean.proto.graph.initializer))
    assert not any(tensor.raw_data for tensor in lean.proto.graph.initializer)


def test_a_lean_fold_writes_the_same_bytes(path: Path) -> None:
    in_memory = bnfold.optimize(path.read_bytes(), verify=False).proto
    result = bnfold.optimize(path, verify=False)
    assert in_memory is not None and result.output is not None and result.batchnorm.after == 0
    written = result.output.read_bytes()
    assert written == in_memory.SerializeToString()
    assert result.model.bytes.to_json() == {"before": path.stat().st_size, "after": len(written)}


def graph_twice(data: bytes) -> bytes:
    return data + b"\x3a\x02\x12\x00"


def truncated(data: bytes) -> bytes:
    return data[:-40]


def a_group(data: bytes) -> bytes:
    return data + b"\xfb\x3e\xfc\x3e"


def no_model(data: bytes) -> bytes:
    return b"no model at all"


def field(number: int, data: bytes) -> bytes:
    assert len(data) < 1 << 14
    return bytes([number << 3 | 2, len(data) & 0x7F | 0x80, len(data) >> 7]) + data


def data_twice(data: bytes) -> bytes:
    model = onnx.ModelProto.FromString(data)
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    written = [tensor.SerializeToString() + field(9, tensor.raw_data) for tensor in tensors]
    graph = model.graph.SerializeToString() + b"".join(field(5, tensor) for tensor in written)
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + field(7, graph)


def too_short(data: bytes) -> bytes:
    model = onnx.ModelProto.FromString(data)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("damage", [graph_twice, truncated, a_group, no_model, data_twice, too_short])
def test_what_is_unusual_is_read_as_ever(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(damage(conv_bn().SerializeToString()))

    def outcome(reader: Callable[[Path], Source]) -> str:
        try:
            source = reader(path)
        except ModelError as error:
            return str(error)
        attach(source.proto)
        return str(source.proto)

    assert outcome(read_lean) == outcome(read)


def test_no_file_can_name_the_map_of_another(tmp_path: Path) -> None:
    model, path = conv_bn(), tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    lean = read_lean(path)
    mark = lean.proto.graph.initializer[0].external_data[0]
    key = mark.value.split(" ")[0]
    other = read_lean(path).proto.graph.initializer[0].external_data[0]
    assert len(key) == 16 and key not in other.value
    mark.value = mark.value.replace(key, "0" * 16)
    with pytest.raises(ModelError, match="points outside"):
        array_of(lean.proto.graph.initializer[0], lean.base_dir)


def test_the_certificate_compares_what_lies_in_both_files(tmp_path: Path) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    data = conv_bn().SerializeToString()
    weight = conv_bn().graph.initializer[-1].raw_data
    path.write_bytes(data)
    other.write_bytes(data)
    assert certify(Model(read_lean(path)), Model(read_lean(other)), Witness()).ok
    at = data.index(weight) + 5
    other.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert not certify(Model(read_lean(path)), Model(read_lean(other)), Witness()).ok


def test_a_file_that_changes_is_mapped_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"abcdef")
    checked: list[Path] = []

    def check() -> Path:
        checked.append(file)
        return file

    def look() -> bytes:
        return mapped.look(str(file), 2, 3, check).tobytes()

    monkeypatch.setattr("bnfold.mapped.LOOKS", 2)
    assert [look() for _ in range(3)] == [b"cde"] * 3
    assert len(checked) == 2  # a map is given up after two looks
    file.write_bytes(b"ABCDEFG")
    assert look() == b"CDE"
    assert len(checked) == 3


def test_lengths_of_any_size() -> None:
    for length in (0, 1, 127, 128, 300, 1 << 20):
        tensor = TensorProto(name="w", raw_data=b"", doc_string="d")
        whole = onnx.ModelProto(producer_name="p", graph=onnx.GraphProto(initializer=[tensor]), model_version=7)
        pieces = list(wire.spliced(whole.SerializeToString(), {0: length}))
        made = b"".join(bytes(length) if isinstance(piece, int) else piece for piece in pieces)
        whole.graph.initializer[0].raw_data = bytes(length)
        assert made == whole.SerializeToString()


@pytest.mark.parametrize("name", FEATURES)
def test_the_direct_walk_finds_what_graphsurgeon_finds(name: str) -> None:
    source = read(with_feature(name, fold=True))
    for one, other in zip(Model(source).graphs, Model(source, direct=True).graphs, strict=True):
        made = [{name: node.index for name, node in graph.producers.items()} for graph in (one, other)]
        uses = [
            {name: [(node.index, slot) for node, slot in uses] for name, uses in graph.consumers.items()}
            for graph in (one, other)
        ]
        assert made[0] == made[1] and uses[0] == uses[1]


def test_large_constants_are_compared_in_two_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, output = tmp_path / "model.onnx", tmp_path / "folded.onnx"
    path.write_bytes(conv_bn().SerializeToString())
    original, threads = rounding._rounding_error, set[int]()

    def noted(*given: Any) -> float:
        threads.add(threading.get_ident())
        return original(*given)

    monkeypatch.setattr("bnfold.certificate.rounding._rounding_error", noted)
    monkeypatch.setattr("bnfold.certificate.rounding.CHUNK", 1)  # every row is a piece
    for many, count in ((1 << 40, 1), (0, 2)):
        threads.clear()
        monkeypatch.setattr("bnfold.certificate.rounding.MANY", many)
        result = bnfold.optimize(path, output, verify=False, force=True)
        assert result.certificate is not None and result.certificate.ok
        assert min(2, len(threads)) == count
    made = onnx.load(output)
    weights = max(made.graph.initializer, key=lambda tensor: len(tensor.raw_data) * ("folded" in tensor.name))
    weights.raw_data = weights.raw_data[:-4] + bytes(4)  # in the last row
    certificate = certify(Model(read(path)), Model(read(made)), result.witness)
    assert {failure.kind for failure in certificate.failures} == {"constant"}


def test_in_two_threads_all_comes_in_order_and_so_does_what_goes_wrong() -> None:
    assert list(in_two(int, range(100))) == list(range(100))
    for numbers in ((1, 0, 2, 3), (1, 2, 3, 0)):
        with pytest.raises(ZeroDivisionError):
            list(in_two(lambda n: 1 // n, numbers))
