"""Bad input: one clear line, the right exit code, no traceback, nothing left behind, the input untouched."""

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bnfold.runtime import CUDA, unavailable
from tests.program import bnfold, complaint, foldable, listing, saved

NO_GPU = unavailable(CUDA) is not None
Case = Callable[[Path], list[object]]


def not_onnx(folder: Path) -> list[object]:
    path = folder / "notes.onnx"
    path.write_text("these are my notes, not a model\n")
    return ["optimize", path]


def empty(folder: Path) -> list[object]:
    path = folder / "empty.onnx"
    path.touch()
    return ["optimize", path]


def truncated(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx")
    path.write_bytes(path.read_bytes()[:-200])
    return ["optimize", path]


def a_folder_where_a_model_belongs(folder: Path) -> list[object]:
    return ["explain", folder]


def a_folder_without_models(folder: Path) -> list[object]:
    return ["optimize", folder]


def a_glob_without_matches(folder: Path) -> list[object]:
    return ["optimize", folder / "*.onnx"]


def missing(folder: Path) -> list[object]:
    return ["optimize", folder / "model.onnx"]


def missing_external(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx", external=True)
    (folder / "model.bin").unlink()
    return ["optimize", path]


def truncated_external(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx", external=True)
    data = folder / "model.bin"
    data.write_bytes(data.read_bytes()[:-40])
    return ["optimize", path]


def external_outside(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx", external=True)
    (folder / "inner").mkdir()
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.bin"
    onnx.save(model, folder / "inner" / "model.onnx")
    return ["optimize", folder / "inner" / "model.onnx"]


def no_such_output_folder(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "-o", folder / "nowhere" / "out.onnx"]


def output_below_a_file(folder: Path) -> list[object]:
    (folder / "file").touch()
    return ["optimize", saved(foldable(), folder / "model.onnx"), "-o", folder / "file" / "out.onnx"]


def read_only_output_folder(folder: Path) -> list[object]:
    sealed = Path("/proc/sys") if os.geteuid() == 0 else folder / "sealed"
    if not sealed.exists():
        sealed.mkdir(mode=0o500)
    return ["optimize", saved(foldable(), folder / "model.onnx"), "-o", sealed / "out.onnx"]


def output_exists(folder: Path) -> list[object]:
    (folder / "model.folded.onnx").write_text("precious")
    return ["optimize", saved(foldable(), folder / "model.onnx")]


def output_is_the_input(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx")
    return ["optimize", path, "-o", path, "--force"]


def output_folder_is_the_inputs(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "-o", folder, "--force"]


def output_is_the_inputs_data(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "m.onnx", external=True), "-o", folder / "m.bin", "--force"]


def several_into_a_file(folder: Path) -> list[object]:
    (folder / "out").touch()
    return [
        "optimize",
        saved(foldable(), folder / "a.onnx"),
        saved(foldable(), folder / "b.onnx"),
        "-o",
        folder / "out",
    ]


def two_of_one_name(folder: Path) -> list[object]:
    for name in ("one", "two"):
        (folder / name).mkdir()
        saved(foldable(), folder / name / "model.onnx")
    return ["optimize", folder / "one" / "model.onnx", folder / "two" / "model.onnx", "-o", folder / "out"]


def unknown_provider(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--provider", "gpu"]


def no_gpu(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--provider", "cuda"]


def no_gpu_to_bench(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx")
    return ["bench", path, path, "--provider", "cuda"]


def shape_without_sizes(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--shape", "x"]


def shape_of_zero(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--shape", "x=0x3x10x14"]


def shape_of_no_input(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--shape", "image=1x3x10x14"]


def shape_that_does_not_fit(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--shape", "x=1x4x10x14"]


def inputs_that_are_not_there(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--inputs", folder / "x.npz"]


def inputs_that_are_no_arrays(folder: Path) -> list[object]:
    (folder / "x.npz").write_text("no")
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--inputs", folder / "x.npz"]


def a_batch_that_is_no_number(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx")
    return ["bench", path, path, "--batch", "1,many"]


def json_into_no_folder(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--json", folder / "nowhere" / "report.json"]


def json_into_a_folder(folder: Path) -> list[object]:
    return ["explain", saved(foldable(), folder / "model.onnx"), "--json", folder]


def json_over_the_model(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx")
    return ["optimize", path, "--json", path]


def json_over_the_output(folder: Path) -> list[object]:
    path = saved(foldable(), folder / "model.onnx")
    return ["optimize", path, "-o", folder / "out.onnx", "--json", folder / "out.onnx"]


def an_unknown_option(folder: Path) -> list[object]:
    return ["optimize", saved(foldable(), folder / "model.onnx"), "--fast"]


def no_model(folder: Path) -> list[object]:
    return ["optimize"]


def an_unknown_command(folder: Path) -> list[object]:
    return ["fold", saved(foldable(), folder / "model.onnx")]


CASES: list[tuple[Case, int, str]] = [
    (not_onnx, 1, "notes.onnx is not an ONNX model"),
    (empty, 1, "empty.onnx is not an ONNX model"),
    (truncated, 1, "truncated"),
    (a_folder_where_a_model_belongs, 1, "is a folder; give the .onnx file inside it"),
    (a_folder_without_models, 2, "no .onnx model in"),
    (a_glob_without_matches, 2, "no .onnx model in"),
    (missing, 1, "model.onnx does not exist; check the path"),
    (missing_external, 1, "'model.bin' is missing from"),
    (truncated_external, 1, "is too short"),
    (external_outside, 1, "points outside the model's folder"),
    (no_such_output_folder, 1, "nowhere does not exist; make it first"),
    (output_below_a_file, 1, "file does not exist; make it first"),
    (read_only_output_folder, 1, "cannot be written"),
    (output_exists, 1, "model.folded.onnx exists; use --force to overwrite it"),
    (output_is_the_input, 2, "would overwrite the input; choose another name with -o"),
    (output_folder_is_the_inputs, 2, "would overwrite the input; choose another name with -o"),
    (output_is_the_inputs_data, 2, "would overwrite the input; choose another name with -o"),
    (several_into_a_file, 2, "is a file; for several models give a folder with -o"),
    (two_of_one_name, 2, "would both become"),
    (unknown_provider, 2, "'gpu' is not one of 'cuda', 'tensorrt', 'cpu'"),
    (no_gpu, 1, "onnxruntime-gpu"),
    (no_gpu_to_bench, 1, "onnxruntime-gpu"),
    (shape_without_sizes, 2, "'x' is not of the form NAME=1x3x224x224"),
    (shape_of_zero, 2, "'x=0x3x10x14' is not of the form NAME=1x3x224x224"),
    (shape_of_no_input, 2, "'image', which is no input; the inputs are x"),
    (shape_that_does_not_fit, 2, "x=1x4x10x14 does not fit the model's ['N', 3, 10, 14]"),
    (inputs_that_are_not_there, 2, "x.npz does not exist; check the path"),
    (inputs_that_are_no_arrays, 2, "is not an .npz or .npy file"),
    (a_batch_that_is_no_number, 2, "'1,many' is not a list of batch sizes like 1,8"),
    (json_into_no_folder, 1, "nowhere of --json does not exist; make it first"),
    (json_into_a_folder, 1, "is a folder; give a file name to --json"),
    (json_over_the_model, 2, "would overwrite a model; choose another name"),
    (json_over_the_output, 2, "would overwrite the output; choose another name"),
    (an_unknown_option, 2, "No such option"),
    (no_model, 2, "Missing argument 'MODEL...'"),
    (an_unknown_command, 2, "No such command 'fold'"),
]


@pytest.mark.parametrize(("case", "code", "words"), CASES, ids=[case.__name__ for case, _, _ in CASES])
def test_one_clear_line_and_nothing_left_behind(case: Case, code: int, words: str, tmp_path: Path) -> None:
    if "cuda" in (arguments := case(tmp_path)) and not NO_GPU:
        pytest.skip("there is a GPU here")
    before, folders = listing(tmp_path), sorted(tmp_path.rglob("*"))
    done = bnfold(*arguments)
    assert words in complaint(done)
    assert done.code == code
    assert done.out == ""
    assert listing(tmp_path) == before
    assert sorted(tmp_path.rglob("*")) == folders


def test_names_in_a_model_cannot_steer_the_terminal(tmp_path: Path) -> None:
    model = foldable()
    for node in model.graph.node:
        node.name += "\x1b[2J\nand\r"
    done = bnfold("explain", saved(model, tmp_path / "model.onnx"), "-v")
    assert done.code == 0
    assert not set(done.out) & {"\x1b", "\r"}
    assert "bn?[2J?and?" in done.out
