"""The manifest: what stands in it, when it is there, and that every forgery is seen. See also tests/accidents.py."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold import manifest, witness_data
from bnfold.certificate import certify
from bnfold.errors import ModelError, OutputError
from bnfold.witness import Witness
from tests.accidents import ROOT
from tests.builder import Builder
from tests.features import FEATURES, with_feature
from tests.program import bnfold as program
from tests.program import complaint, foldable, names, plain, saved, stubborn

Content = dict[str, Any]

MOST = 1 << 24


def branches() -> onnx.ModelProto:
    """Two convolutions and the tensor itself, each normalised and summed: they merge."""
    b = Builder(type_=TensorProto.FLOAT)
    x = b.input("N", 4, 9, 8)
    large, small = b.bn(b.conv(x, 4, 3, pads=[1, 1, 1, 1])), b.bn(b.conv(x, 4, 1))
    return b.model(b.node("Relu", b.node("Add", b.node("Add", large, small), b.bn(x))))


def folded(folder: Path, model: onnx.ModelProto | None = None, external: bool = False, **options: Any) -> Path:
    """Fold a model in a folder; the manifest's path."""
    path = saved(model or foldable(), folder / "model.onnx", external)
    bnfold.optimize(path, **{"verify": False, "force": True, **options})
    return folder / "model.folded.onnx.manifest.json"


def edited(path: Path, edit: Callable[[Content], object]) -> None:
    """Change the manifest."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def keys(value: Any) -> Iterator[str]:
    """Every key, however deep."""
    for key, each in value.items() if isinstance(value, dict) else ():
        yield key
        yield from keys(each)
    for each in value if isinstance(value, list) else ():
        yield from keys(each)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------------------- what stands in it


def test_what_a_manifest_says(tmp_path: Path) -> None:
    path = folded(tmp_path, stubborn(), external=True, verify=True, keep=["last"], seed=7)
    content = json.loads(path.read_text())
    assert path.read_text().startswith(manifest.HEAD) and content["schema"] == 1
    for model, own, data in (
        ("original", "model.onnx", "model.bin"), ("optimized", "model.folded.onnx", "model.folded.onnx.data"),
    ):  # fmt: skip
        told = content[model]
        assert (told["file"], told["bytes"], told["sha256"]) == (
            own, (tmp_path / own).stat().st_size, sha256(tmp_path / own),
        )  # fmt: skip
        assert told["data"] == [
            {"file": data, "bytes": (tmp_path / data).stat().st_size, "sha256": sha256(tmp_path / data)}
        ]
    assert content["options"]["keep"] == ["last"] and content["options"]["verify"]["seed"] == 7
    assert content["counts"]["batchnorm"] == {"before": 3, "after": 2}
    assert content["certificate"]["ok"] and content["certificate"]["checked"] >= 2
    assert content["verification"]["status"] == "equivalent" and content["verification"]["allowed"] == 8
    assert content["verification"]["providers"] == ["cpu"] and content["versions"]["onnxruntime"]
    assert str(tmp_path) not in path.read_text()


def test_without_a_run_no_runtime_is_named(tmp_path: Path) -> None:
    content = json.loads(folded(tmp_path).read_text())
    assert content["versions"]["onnxruntime"] is None and content["verification"] is None
    assert content["options"]["verify"] is None


def test_the_same_fold_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for name, given in (("a", "model.onnx"), ("b", "../b/model.onnx")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        saved(stubborn(), tmp_path / name / "model.onnx", external=True)
        monkeypatch.chdir(tmp_path / name)
        bnfold.optimize(given)
        texts.append((tmp_path / name / "model.folded.onnx.manifest.json").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("external", [False, True])
def test_nothing_to_fold_has_one_too(external: bool, tmp_path: Path) -> None:
    content = json.loads(folded(tmp_path, plain(), external).read_text())
    assert content["original"]["sha256"] == content["optimized"]["sha256"]
    assert content["original"]["data"] == content["optimized"]["data"] and len(content["original"]["data"]) == external
    assert content["certificate"] is None and content["witness"]["graphs"][0]["storage"] == {}


@pytest.mark.parametrize(
    "model", [foldable(), stubborn(), branches(), *(with_feature(name, fold=True) for name in sorted(FEATURES)[::3])]
)
def test_a_witness_comes_back_bit_by_bit(model: onnx.ModelProto) -> None:
    before = bnfold.optimize(model, verify=False).witness
    after = witness_data.from_data(json.loads(json.dumps(witness_data.to_data(before))), MOST)
    assert spelled(after) == spelled(before)


def spelled(witness: Witness) -> object:
    """A witness with its arrays as bytes."""
    parts = [
        (
            {
                name: [(part.shape, part.tobytes()) for part in (stored.den, stored.num, stored.off)]
                for name, stored in graph.storage.items()
            },
            (graph.path, graph.removed, graph.names, graph.merged),
        )
        for graph in witness.graphs
    ]
    return parts, dict(witness.calls)


# ----------------------------------------------------------------------------------------------------- when it is there


def test_the_folder_of_a_fold(tmp_path: Path) -> None:
    folded(tmp_path)
    assert names(tmp_path) == ["model.folded.onnx", "model.folded.onnx.manifest.json", "model.onnx"]


def test_none_where_nobody_wants_one_and_an_old_one_goes(tmp_path: Path) -> None:
    assert folded(tmp_path).exists()
    assert not folded(tmp_path, foldable(2), manifest=False).exists()
    assert names(tmp_path) == ["model.folded.onnx", "model.onnx"]


def test_none_of_a_dry_run(tmp_path: Path) -> None:
    assert not folded(tmp_path, dry_run=True).exists()


def test_a_model_in_memory_has_one_where_it_is_written(tmp_path: Path) -> None:
    model, path = foldable(), tmp_path / "out.onnx.manifest.json"
    bnfold.optimize(model, tmp_path / "out.onnx", verify=False)
    with pytest.raises(ModelError, match="given in memory; give the path of the original"):
        bnfold.audit(path)
    assert bnfold.audit(path, saved(model, tmp_path / "given.onnx")).passed


def test_one_without_a_model_is_replaced(tmp_path: Path) -> None:
    before = folded(tmp_path).read_bytes()
    (tmp_path / "model.folded.onnx").unlink()
    path = folded(tmp_path, stubborn(), force=False)
    assert path.read_bytes() != before and bnfold.audit(path).passed


def test_a_file_of_others_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.folded.onnx.manifest.json").write_text("{}")
    with pytest.raises(OutputError, match=r"manifest.json exists, and is no manifest; use --force"):
        folded(tmp_path, force=False)
    folded(tmp_path, manifest=False)
    assert (tmp_path / "model.folded.onnx.manifest.json").read_text() == "{}"
    assert bnfold.audit(folded(tmp_path, force=True)).passed


def test_a_folder_at_its_name(tmp_path: Path) -> None:
    (tmp_path / "model.folded.onnx.manifest.json").mkdir()
    with pytest.raises(OutputError, match=r"manifest.json is a folder"):
        folded(tmp_path)


# ------------------------------------------------------------------------------------------------------- proved again


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    "model", [foldable(), stubborn(), plain(), branches()], ids=["folds", "stays", "plain", "merge"]
)
def test_what_was_written_is_proved_again(model: onnx.ModelProto, external: bool, tmp_path: Path) -> None:
    found = bnfold.audit(folded(tmp_path, model, external))
    assert (found.status, found.problems) == ("equivalent", ())
    assert found.certificate is not None and found.certificate.ok


@pytest.mark.parametrize("name", sorted(FEATURES)[1::2])
def test_so_is_every_feature_of_the_format(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(with_feature(name, fold=True).SerializeToString())
    (tmp_path / "out").mkdir()
    bnfold.optimize(path, tmp_path / "out" / "model.onnx", verify=False)
    assert bnfold.audit(tmp_path / "out" / "model.onnx.manifest.json").problems == ()


def test_no_runtime_is_loaded(tmp_path: Path) -> None:
    code = f"import sys, bnfold; print(bnfold.audit({str(folded(tmp_path))!r}).status, 'onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["equivalent", "False"]


def test_a_release_may_move(tmp_path: Path) -> None:
    path = folded(tmp_path, external=True)
    (tmp_path / "away").mkdir()
    for name in ("model.onnx", "model.bin"):
        (tmp_path / name).rename(tmp_path / "away" / name)
    with pytest.raises(ModelError, match=r"the original does not exist: .*; say where it is: verify --manifest FILE"):
        bnfold.audit(path)
    assert bnfold.audit(path, tmp_path / "away" / "model.onnx").passed
    release = tmp_path / "away" / "release.onnx"
    (tmp_path / "model.folded.onnx").rename(release)
    (tmp_path / "model.folded.onnx.data").rename(tmp_path / "away" / "model.folded.onnx.data")
    assert bnfold.audit(path, tmp_path / "away" / "model.onnx", release).passed


def test_links_to_folders(tmp_path: Path) -> None:
    """The path to the original is told from where the manifest really lies."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "deep")
    path = saved(foldable(), tmp_path / "model.onnx")
    bnfold.optimize(path, tmp_path / "out" / "model.onnx", verify=False)
    assert bnfold.audit(tmp_path / "out" / "model.onnx.manifest.json").passed
    assert bnfold.audit(tmp_path / "disk" / "deep" / "model.onnx.manifest.json").passed


# ------------------------------------------------------------------------------------------------------------ forgeries


def one_byte(name: str) -> Callable[[Path], None]:
    """Another last byte in a file."""

    def forge(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return forge


def one_more(name: str) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes() + b"\0")

    return forge


def told(edit: Callable[[Content], object]) -> Callable[[Path], None]:
    """Another manifest."""
    return lambda folder: edited(folder / "model.folded.onnx.manifest.json", edit)


def witness(edit: Callable[[Content], object]) -> Callable[[Path], None]:
    """Another witness for the main graph."""
    return told(lambda content: edit(content["witness"]["graphs"][0]))


def signed(forge: Callable[[onnx.ModelProto], object], name: str = "model.folded.onnx") -> Callable[[Path], None]:
    """Another model, and its hash put right."""

    def both(folder: Path) -> None:
        model = onnx.load(folder / name)
        forge(model)
        (folder / name).write_bytes(model.SerializeToString())
        which = "optimized" if "folded" in name else "original"
        right = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name), "data": []}
        told(lambda content: content[which].update(right))(folder)

    return both


def one_ulp(which: int) -> Callable[[onnx.ModelProto], None]:
    def forge(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[which]
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] = np.nextafter(values.flat[0], np.float32(np.inf))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return forge


def array(place: int, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Other numbers in the witness."""

    def edit(content: Content) -> None:
        entry = content["witness"]["arrays"][place]
        values = np.frombuffer(base64.b64decode(entry["data"]), "<f8").copy()
        change(values)
        entry["data"] = base64.b64encode(values.tobytes()).decode()

    return told(edit)


def another_model(folder: Path) -> None:
    """The manifest of another fold, which has the same names."""
    (folder / "other").mkdir()
    other = folded(folder / "other", foldable(3), external=True)
    (folder / "model.folded.onnx.manifest.json").write_bytes(other.read_bytes())


def nothing_is_anything(folder: Path) -> None:
    """Weights that are no numbers, and a witness that says so."""

    def forge(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    signed(forge)(folder)
    for place in (1, 2, 3, 4):
        array(place, lambda values: values.fill(np.nan))(folder)


FORGERIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of the original": (one_byte("model.onnx"), "the original is another file: SHA-256"),
    "a byte of the output": (one_byte("model.folded.onnx"), "the optimized model is another file: SHA-256"),
    "a byte of the original's data": (one_byte("model.bin"), "external data model.bin of the original is another"),
    "a byte of the output's data": (one_byte("model.folded.onnx.data"), "of the optimized model is another file"),
    "a byte more": (one_more("model.folded.onnx.data"), "bytes, not"),
    "the hash of the original": (told(lambda c: c["original"].update(sha256="0" * 64)), "SHA-256 "),
    "the hash of the output": (told(lambda c: c["optimized"].update(sha256="0" * 64)), "not 0000000000000000"),
    "the size of the output": (told(lambda c: c["optimized"].update(bytes=3)), "bytes, not 3"),
    "the hash of data": (told(lambda c: c["optimized"]["data"][0].update(sha256="a" * 64)), "not aaaaaaaaaaaaaaaa"),
    "no hash of data": (told(lambda c: c["optimized"].update(data=[])), "hashes of other external data"),
    "one unit in a weight, signed": (signed(one_ulp(0)), "units in the last place"),
    "one unit in a bias, signed": (signed(one_ulp(1)), "units in the last place"),
    "a node less, signed": (signed(lambda m: m.graph.node.pop()), "certificate does not hold"),
    "an operator, signed": (signed(lambda m: setattr(m.graph.node[1], "op_type", "Abs")), "certificate does not hold"),
    "another original, signed": (signed(one_ulp(0), "model.onnx"), "certificate does not hold"),
    "another model's manifest": (another_model, "the original is another file"),
    "the counts": (told(lambda c: c["counts"]["batchnorm"].update(after=1)), "lies about batchnorm"),
    "the last bit of a scale": (array(2, lambda v: v.__setitem__(0, v[0] * (1 + 1e-7))), "certificate does not hold"),
    "the sign of a shift": (array(1, lambda v: np.negative(v, out=v)), "certificate does not hold"),
    "a tensor stored as it was": (witness(lambda g: g["storage"].pop("conv")), "certificate does not hold"),
    "a node that did not leave": (witness(lambda g: g["removed"].pop()), "certificate does not hold"),
    "another node that left": (witness(lambda g: g["removed"][0].__setitem__(0, 0)), "certificate does not hold"),
    "a node that is none": (witness(lambda g: g["removed"][0].__setitem__(0, 99)), "certificate does not hold"),
    "a name": (witness(lambda g: g["names"].update(conv="relu2")), "certificate does not hold"),
    "nodes that became one": (witness(lambda g: g["merged"].append([2, 0, [0, 2]])), "certificate does not hold"),
    "a graph": (witness(lambda g: g.update(path="if/then_branch/")), "certificate does not hold"),
    "a call": (
        told(lambda c: c["witness"]["calls"].append({"where": [[0]], "label": "x", "names": {}})),
        "certificate does not hold",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_seen(name: str, tmp_path: Path) -> None:
    forge, words = FORGERIES[name]
    path = folded(tmp_path, external=True)
    assert bnfold.audit(path).passed
    forge(tmp_path)
    found = bnfold.audit(path)
    assert found.status == "different" and words in " / ".join(found.problems), found.problems


def test_numbers_that_are_none_prove_nothing(tmp_path: Path) -> None:
    path = folded(tmp_path)
    nothing_is_anything(tmp_path)
    with pytest.raises(ModelError, match="stored by numbers that say nothing"):
        bnfold.audit(path)


# -------------------------------------------------------------------------------------------------- made to do harm


def written(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def put(*way: str | int, value: object) -> Callable[[Path], object]:
    """Something else at one place of the manifest."""

    def edit(content: Any) -> None:
        for step in way[:-1]:
            content = content[step]
        content[way[-1]] = value

    return lambda path: edited(path, edit)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ARRAYS, STORAGE = ("witness", "arrays"), ("witness", "graphs", 0, "storage")

HARMFUL: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (written(""), "is not JSON, or it is cut off"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is not JSON, or it is cut off"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\xff"), "is not JSON"),
    "a tower": (written("[" * 1_000_000), "is not JSON"),
    "a large number": (written('{"kind": ' + "9" * 100_000 + "}"), "is not JSON"),
    "no number": (put("options", "merge", value=float("nan")), "is not JSON"),
    "values without end": (lambda path: path.write_bytes(b"[" + b"0," * 9_000_000 + b"0]"), "too many values"),
    "a report": (written('{"schema": 1, "models": []}'), "is no manifest of bnfold"),
    "a list": (written("[]"), "is no manifest of bnfold"),
    "the future": (put("schema", value=2), "has schema 2; this bnfold reads 1: update it"),
    "no original": (put("original", value=None), "an object is missing"),
    "an absolute path": (put("original", "file", value="/etc/passwd"), "is no relative path"),
    "a path with a null": (put("original", "file", value="a\0b"), "is no relative path"),
    "an output elsewhere": (put("optimized", "file", value="../x.onnx"), "stands elsewhere"),
    "data elsewhere": (put("original", "data", value=[{"file": "../x", "bytes": 1, "sha256": "0" * 64}]), "elsewhere"),
    "a size that is none": (put("original", "bytes", value=True), "is none"),
    "a device": (put("original", "file", value="../" * 40 + "dev/zero"), "is no regular file"),
    "a folder": (put("original", "file", value="."), "is no regular file"),
    "no witness": (put("witness", value=None), "stands where an object belongs"),
    "an array of another shape": (put(*ARRAYS, 1, "shape", value=[1 << 30, 1 << 30]), "is not of its shape"),
    "an array that is none": (put(*ARRAYS, 1, "data", value="####"), "is not base64"),
    "an array of many axes": (put(*ARRAYS, 0, "shape", value=[1] * 33), "is not of its shape"),
    "a storage of no array": (put(*STORAGE, "conv", value=[0, 1, 99]), "belongs"),
    "a storage of true": (put(*STORAGE, "conv", value=[True, 1, 2]), "belongs"),
    "a storage that says nothing": (put(*STORAGE, "conv", value=[1, 0, 0]), ""),
    "shapes that do not meet": (put(*STORAGE, "conv", value=[0, 1, 3]), "is no manifest"),
    "a call that is no place": (
        put("witness", "calls", value=[{"where": [[-2]], "label": "", "names": {}}]), "where a number belongs",
    ),
    "a field more": (put("witness", "extra", value=1), "belong"),
    "a pipe": (pipe, "is not a file"),
    "a folder at its name": (folder, "is a folder; give the manifest inside it"),
    "gone": (lambda path: path.unlink(), "does not exist; check the path"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_what_is_no_manifest_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    harm, words = HARMFUL[name]
    path = folded(tmp_path)
    harm(path)
    done = program("verify", "--manifest", path)
    assert done.code == (1 if words else 3), done.err
    if words:
        assert words in complaint(done) and done.out == ""


def test_arrays_that_would_be_large_together(tmp_path: Path) -> None:
    path = folded(tmp_path)

    def edit(content: Content) -> None:
        data = base64.b64encode(np.ones(1 << 12).tobytes()).decode()
        arrays = [{"shape": [1 << 12, 1], "data": data}, {"shape": [1, 1 << 12], "data": data}]
        content["witness"]["arrays"] += arrays
        last = len(content["witness"]["arrays"])
        content["witness"]["graphs"][0]["storage"]["conv"] = [last - 1, last - 2, last - 2]

    edited(path, edit)
    with pytest.raises(ModelError, match="larger than any for such a model"):
        bnfold.audit(path)


def test_data_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = folded(tmp_path / "in", external=True)
    (tmp_path / "in" / "model.bin").rename(tmp_path / "model.bin")
    (tmp_path / "in" / "model.bin").symlink_to(tmp_path / "model.bin")
    with pytest.raises(ModelError, match="outside of the model's folder; refusing to read it"):
        bnfold.audit(path)


def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folded(tmp_path)

    def meanwhile(*models: Any) -> Any:
        os.utime(tmp_path / "model.folded.onnx", (1, 1))
        return certify(*models)

    monkeypatch.setattr("bnfold.auditing.certify", meanwhile)
    with pytest.raises(ModelError, match="changed while it was read"):
        bnfold.audit(path)


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path: Path) -> None:
    path, report = folded(tmp_path), tmp_path / "report"
    done = program("verify", "--manifest", path, "--json", f"{report}.json", "--junit", f"{report}.xml")
    assert (done.code, done.out) == (0, "equivalent\n")
    assert "every hash and the certificate hold" in done.err
    assert json.loads(Path(f"{report}.json").read_text())["certificate"]["ok"]
    assert 'tests="2" failures="0"' in Path(f"{report}.xml").read_text()
    one_byte("model.folded.onnx")(tmp_path)
    done = program("verify", "--manifest", path, "--junit", f"{report}.xml", "--html", f"{report}.html")
    assert (done.code, done.out) == (3, "different\n")
    assert 'tests="1" failures="1"' in Path(f"{report}.xml").read_text()
    assert "the optimized model is another file" in Path(f"{report}.html").read_text()


@pytest.mark.parametrize("option", [("--samples", "2"), ("--provider", "cpu"), ("--self-test",), ("--tf32",)])
def test_options_that_run_something_do_not_go_with_it(option: tuple[str, ...], tmp_path: Path) -> None:
    done = program("verify", "--manifest", folded(tmp_path), *option)
    assert (done.code, complaint(done)) == (2, f"{option[0]} does not go with --manifest, which runs nothing")


def test_without_it_two_models_are_needed(tmp_path: Path) -> None:
    for given in ([], [saved(foldable(), tmp_path / "model.onnx")]):
        done = program("verify", *given)
        assert (done.code, complaint(done)) == (2, "verify needs ORIGINAL and OPTIMIZED, or --manifest FILE")


def test_no_manifest_on_the_command_line(tmp_path: Path) -> None:
    model = saved(foldable(), tmp_path / "model.onnx")
    assert program("optimize", model, "--no-verify", "--no-manifest").code == 0
    assert names(tmp_path) == ["model.folded.onnx", "model.onnx"]


def test_every_field_stands_in_the_document(tmp_path: Path) -> None:
    text = re.sub(r"(?s)```.*?```", "", (ROOT / "docs" / "manifest.md").read_text())
    written = {word for token in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[\w-]+", token)}
    content = json.loads(folded(tmp_path, stubborn(), external=True, verify=True).read_text())
    content["witness"]["graphs"][0].update(storage=None, names=None)
    assert set(keys(content)) <= written
