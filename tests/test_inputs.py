"""The user's own inputs: files, folders of images, preprocessing, labels and the answers on them."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold import inputs, labels, samples, verify
from bnfold.errors import UsageError
from bnfold.inputs import Own
from bnfold.preprocess import Preprocess
from bnfold.samples import InputSpec
from tests.builder import Builder
from tests.program import bnfold, classifier, complaint, saved

Array = NDArray[Any]

FLOAT = np.dtype(np.float32)


def spec(*dims: int | str | None, dtype: Any = FLOAT) -> InputSpec:
    return InputSpec("x", np.dtype(dtype), dims)


IMAGES = spec("n", 3, 4, 5)


def model(**metadata: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    onnx.helper.set_model_props(made, metadata)
    return made


def load(given: Any, *specs: InputSpec, facts: Any = None, by_row: bool = False, **metadata: str) -> list[Any]:
    return list(inputs.load(given, specs or (spec("n", 3),), model(**metadata), facts, by_row=by_row))


# ------------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ("", Preprocess()),
        ("size=224", Preprocess(size=(224, 224))),
        ("size=4x5,resize=8", Preprocess(size=(4, 5), resize=8)),
        ("mean=0.5:1/4:0.1,std=2", Preprocess(mean=(0.5, 0.25, 0.1), std=(2.0,))),
        ("scale=1/128,order=bgr,layout=nhwc", Preprocess(scale=1 / 128, order="bgr", layout="nhwc")),
        ("threshold=127,filter=nearest", Preprocess(threshold=127, filter="nearest")),
        (
            {"size": (4, 5), "mean": [0.5, 0.1], "std": 2, "threshold": None},
            Preprocess((4, 5), mean=(0.5, 0.1), std=(2,)),
        ),
    ],
)
def test_facts_are_read(facts: Any, wanted: Preprocess) -> None:
    assert Preprocess.of(facts, model()) == wanted


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ("colour=rgb", "has no 'colour'; it has size"),
        ("size", "'size' is not of the form key=value"),
        ("size=0", "size=0 is no such value"),
        ("size=4x5x6", "size=4x5x6"),
        ("mean=a", "mean=a"),
        ("std=0", "std=0"),
        ("scale=1/0", "scale=1/0"),
        ("order=rbg", "order=rbg"),
    ],
)
def test_facts_that_are_none_are_said(facts: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Preprocess.of(facts, model())


def test_the_models_own_facts_are_the_default() -> None:
    carried = model(preprocessing=json.dumps({"formula": "x", "scale": 0.5, "mean": [3.0], "threshold": None}))
    assert Preprocess.of(None, carried) == Preprocess(scale=0.5, mean=(3.0,))
    assert Preprocess.of("mean=7", carried) == Preprocess(scale=0.5, mean=(7.0,))
    assert Preprocess.of(None, model(preprocessing="resize and crop")) == Preprocess()


@pytest.mark.parametrize(
    ("dims", "facts", "text"),
    [
        (("n", 3), "", "not an image of 4 axes"),
        (("n", 4, 8, 8), "", "has 4 channels"),
        (("n", 3, 8, 8), "order=gray", "has 3 channels, and images of order=gray have 1"),
        (("n", 3, 8, 8), "size=9", "the model's images are 8x8"),
        (("n", 3, 8, 8), "mean=1:2", "one number, or 3"),
    ],
)
def test_facts_that_do_not_fit_the_input_are_said(dims: tuple[Any, ...], facts: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Preprocess.of(facts, model()).fitted(spec(*dims))


PIXELS = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
SHIFTED = (PIXELS / 2 - [1, 2, 3]) / [4, 5, 6]


@pytest.mark.parametrize(
    ("given", "facts", "wanted"),
    [
        (spec("n", 3, 4, 5), "", (PIXELS / 255).transpose(0, 3, 1, 2)),
        (spec("n", 4, 5, 3), "scale=1", PIXELS * 1.0),
        (
            spec("n", 3, 4, 5),
            "scale=1/2,mean=1:2:3,std=4:5:6",
            ((PIXELS / 2 - [1, 2, 3]) / [4, 5, 6]).transpose(0, 3, 1, 2),
        ),
        (spec("n", 3, 4, 5), "threshold=50", (PIXELS > 50).transpose(0, 3, 1, 2) * 1.0),
        (spec("n", 4, 5, 3, dtype=np.uint8), "mean=9", PIXELS),
        (spec(None, None, None, None, dtype=np.float16), "layout=nhwc,scale=1", PIXELS * 1.0),
    ],
)
def test_pixels_become_what_the_model_reads(given: InputSpec, facts: str, wanted: Array) -> None:
    found = Preprocess.of(facts, model()).fitted(given)(PIXELS, given)
    assert found.dtype == given.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_an_array_of_pixels_is_prepared_like_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "pixels.npz", images=PIXELS.transpose(0, 3, 1, 2), labels=[1, 2])
    (found,) = load(tmp_path / "pixels.npz", IMAGES, preprocessing='{"scale": 1, "mean": [10.0]}')
    np.testing.assert_array_equal(found["x"], PIXELS.transpose(0, 3, 1, 2) - 10.0)


# -------------------------------------------------------------------------------------------------------------- images


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Array]:
    """Writes a picture of random pixels below `images/`, without loss, and gives the pixels."""
    pil = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(0)

    def made(name: str, height: int = 4, width: int = 5) -> Array:
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pil.fromarray(pixels).save(path)
        return pixels

    return made


def test_a_folder_of_images_is_read_in_the_order_of_the_names(draw: Callable[..., Array], tmp_path: Path) -> None:
    second, first = draw("b.png"), draw("a/z.bmp")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (found,) = load(tmp_path / "images", IMAGES, facts="scale=1")
    np.testing.assert_array_equal(found["x"], np.stack([first, second]).transpose(0, 3, 1, 2))
    (turned,) = load(tmp_path / "images", IMAGES, facts="scale=1,order=bgr")
    np.testing.assert_array_equal(turned["x"], found["x"][:, ::-1])
    (gray,) = load(tmp_path / "images", spec("n", 1, 4, 5), facts="scale=1")
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(gray["x"][0, 0], first @ weights, atol=1)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ("size=4x6", lambda pixels: pixels[::2, ::2]),  # stretched
        ("size=4x4,resize=8", lambda pixels: pixels[2:6, 4:8]),  # the centre
        ("size=2x4,resize=4", lambda pixels: pixels[::2, ::2][1:3, 1:5]),
        ("", lambda pixels: pixels),
    ],
)
def test_sizes(facts: str, wanted: Callable[[Array], Array], draw: Callable[..., Array], tmp_path: Path) -> None:
    small = np.repeat(np.repeat(draw("a.png", 4, 6), 2, 0), 2, 1)
    from PIL import Image

    Image.fromarray(small).save(tmp_path / "images" / "a.png")
    (found,) = load(tmp_path / "images", spec("n", 3, None, None), facts=f"scale=1,filter=nearest,{facts}")
    np.testing.assert_array_equal(found["x"][0].transpose(1, 2, 0), wanted(small))


def test_images_fill_the_models_batch(draw: Callable[..., Array], tmp_path: Path) -> None:
    drawn = [draw(f"{index}.png") for index in range(5)]
    found = load(tmp_path / "images", spec(2, 3, 4, 5), facts="scale=1")
    assert [sample["x"].shape[0] for sample in found] == [2, 2, 2]
    np.testing.assert_array_equal(found[2]["x"], np.stack([drawn[4]] * 2).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("dims", "facts", "text"),
    [
        (("n", 3, None, None), "", "4x5 and 6x7 pixels; say one size"),
        (("n", 3, 4, 5), "resize=4", ""),
        (("n", 3, 9, 9), "resize=4", "size=9x9 cannot be cut out of resize=4"),
    ],
)
def test_sizes_that_do_not_fit_are_said(
    dims: tuple[Any, ...], facts: str, text: str, draw: Callable[..., Array], tmp_path: Path
) -> None:
    draw("a.png")
    draw("b.png", 6, 7)
    if not text:
        assert load(tmp_path / "images", spec(*dims), facts=facts)[0]["x"].shape == (2, 3, 4, 5)
        return
    with pytest.raises(UsageError, match=text):
        load(tmp_path / "images", spec(*dims), facts=facts)


@pytest.mark.usefixtures("draw")
def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no")
    for name, text in (("empty", "holds no image"), ("bad", r"a\.png cannot be decoded")):
        with pytest.raises(UsageError, match=text):
            load(tmp_path / name, IMAGES)
    with pytest.raises(UsageError, match="is for one input, and the model has 2"):
        load(tmp_path / "bad", IMAGES, spec("n", 4))


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"needs Pillow; install it: pip install 'bnfold\[images\]'"):
        load(tmp_path, IMAGES)


# ----------------------------------------------------------------------------------------------------- arrays in files


def encoded(array: Array, how: str = "base64") -> dict[str, str]:
    """An array as Polygraphy 0.53 writes it, and as its first releases did."""
    data = io.BytesIO()
    np.save(data, array)
    if how == "latin-1":
        return {
            "array": data.getvalue().decode("latin-1"),
            "__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type",
        }
    return {"array": base64.b64encode(data.getvalue()).decode(), "polygraphy_class": "ndarray"}


@pytest.mark.parametrize("how", ["base64", "latin-1"])
def test_what_polygraphy_saved_is_read(how: str, tmp_path: Path) -> None:
    wanted = [np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), -7, np.float32)]
    entries = [{"x": encoded(array, how), "other": encoded(array)} for array in wanted]
    (tmp_path / "all.json").write_text(json.dumps(entries))
    (tmp_path / "each").mkdir()
    for index, entry in enumerate(entries):
        (tmp_path / "each" / f"{index:06}.json").write_text(json.dumps([entry] if index else entry))
    for path in (tmp_path / "all.json", tmp_path / "each"):
        found = load(path)
        assert [list(sample) for sample in found] == [["x"], ["x"]]
        np.testing.assert_array_equal([sample["x"] for sample in found], wanted)


PICKLED = base64.b64encode(b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("3", "not what 'polygraphy run --save-inputs' writes"),
        ("[]", "holds no sample"),
        ('[{"x": {"tensor": "", "polygraphy_class": "Tensor"}}]', "'x' is not a numpy array"),
        ('[{"x": {"array": "AAAA", "polygraphy_class": "ndarray"}}]', "'x' is not a numpy array"),
        (f'[{{"x": {{"array": "{PICKLED}"}}}}]', "'x' is not a numpy array"),
        ('[{"y": {"array": ""}}]', "'y' is not a numpy array"),
    ],
)
def test_what_polygraphy_did_not_save_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "in.json")


ROWS = np.arange(21, dtype=np.float32).reshape(7, 3)


@pytest.mark.parametrize(
    ("dims", "by_row", "sizes"),
    [
        (("n", 3), False, [7]),
        ((7, 3), False, [7]),
        ((2, 3), False, [2, 2, 2, 2]),
        ((1, 3), True, [1] * 7),
        (("n", 3), True, [7]),
        ((8, 3), False, [8]),
    ],
)
def test_arrays_are_cut_into_the_models_batches(dims: tuple[Any, ...], by_row: bool, sizes: list[int]) -> None:
    found = [sample["x"] for sample in load({"x": ROWS}, spec(*dims), by_row=by_row)]
    assert [len(array) for array in found] == sizes
    np.testing.assert_array_equal(np.concatenate(found)[:7], ROWS)
    assert all((row == ROWS[-1]).all() for row in np.concatenate(found)[7:])


def test_large_arrays_are_cut_where_rows_count() -> None:
    found = load({"x": np.zeros((70, 3), np.float32)}, by_row=True)
    assert [len(sample["x"]) for sample in found] == [inputs.BATCH] * 3


def test_inputs_without_a_batch_in_common_are_taken_as_they_are() -> None:
    two = spec("n", 3), InputSpec("y", FLOAT, (5, 2))
    (found,) = load({"x": ROWS, "y": np.zeros((5, 2))}, *two)
    assert found["x"].shape == (7, 3)
    with pytest.raises(UsageError, match=r"'y' has shape \[4, 2\], and the model wants \[5, 2\]"):
        load({"x": ROWS, "y": np.zeros((4, 2))}, *two)


def test_bfloat16_survives_a_file(tmp_path: Path) -> None:
    import ml_dtypes

    np.save(tmp_path / "in.npy", ROWS.astype(ml_dtypes.bfloat16))
    (found,) = load(tmp_path / "in.npy", spec("n", 3, dtype=ml_dtypes.bfloat16))
    np.testing.assert_array_equal(found["x"].astype(np.float32), ROWS)


# -------------------------------------------------------------------------------------------------------------- labels

CLASSES = {"classes": json.dumps(["a", "b", "c", "d", "cat", "e", "f", "g", "h", "dog"])}
NAMES = ("cat/1.png", "cat/2.png", "dog/1.png")


def own(rows: int = 3, folder: Path | None = None, names: tuple[str, ...] = NAMES) -> Own:
    return Own(1, lambda index: {}, rows, folder, names)


@pytest.mark.parametrize(
    ("name", "content", "metadata"),
    [
        ("labels.txt", "4\n4\n9\n", {}),
        ("labels.csv", "file,label\ncat/1.png,4\ncat/2.png, 4\ndog/1.png,9\n", {}),
        (
            "labels.csv",
            "dog/1.png,dog\ncat/1.png,cat\ncat/2.png,4\n",
            CLASSES,
        ),
    ],
)
def test_labels_in_text(name: str, content: str, metadata: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert labels.load(tmp_path / name, own(), model(**metadata)).tolist() == [4, 4, 9]


def test_labels_in_arrays(tmp_path: Path) -> None:
    numbers = np.array([4, 4, 9], np.uint8)
    np.save(tmp_path / "a.npy", numbers.reshape(3, 1))
    np.savez(tmp_path / "b.npz", numbers)
    np.savez(tmp_path / "c.npz", images=np.zeros(3), labels=numbers)
    for given in (tmp_path / "a.npy", tmp_path / "b.npz", tmp_path / "c.npz", [4, 4, 9], numbers):
        found = labels.load(given, own(), model())
        assert found.dtype == np.int64
        assert found.tolist() == [4, 4, 9]


@pytest.mark.parametrize(
    ("names", "metadata", "wanted"),
    [
        (NAMES, {}, [0, 0, 1]),
        (NAMES, {"classes": '["dog", "cow", "cat"]'}, [2, 2, 0]),
        (NAMES, {"classes": '["dog", "cow"]'}, [0, 0, 1]),
        (("7/a.png", "12/b.png", "7/c/d.png"), {}, [7, 12, 7]),
    ],
)
def test_subfolders_are_classes(
    names: tuple[str, ...], metadata: dict[str, str], wanted: list[int], tmp_path: Path
) -> None:
    assert labels.load(tmp_path, own(folder=tmp_path, names=names), model(**metadata)).tolist() == wanted


def test_labels_that_do_not_fit_are_said(tmp_path: Path) -> None:
    files = {
        "few.txt": ("1\n2\n", "2 labels for 3"),
        "word.txt": ("1\n2\ncat\n", "'cat' is no class number"),
        "some.csv": ("cat/1.png,4\n", r"no line for the image cat/2\.png"),
        "bad.npy": ("no", "not an .npz or .npy file"),
    }
    for name, (content, text) in files.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=text):
            labels.load(tmp_path / name, own(), model())
    np.savez(tmp_path / "two.npz", a=[1], b=[2])
    cases: list[tuple[Any, Own, str]] = [
        (tmp_path / "none.txt", own(), "does not exist"),
        (tmp_path / "some.csv", own(names=()), "needs a folder of images"),
        (tmp_path / "two.npz", own(), "has no array 'labels'; it has a, b"),
        (tmp_path, own(), "not that of --inputs"),
        (tmp_path, own(folder=tmp_path, names=("a.png", "b/c.png", "b/d.png")), "a.png is in no subfolder"),
        ([0.5, 1, 2], own(), "one integer for each image"),
    ]
    for given, kept, text in cases:
        with pytest.raises(UsageError, match=text):
            labels.load(given, kept, model())


# ------------------------------------------------------------------------------------------------------------- answers


def scores() -> tuple[Array, list[int]]:
    """70 rows of scores for 7 classes; the right class is first in all but the last 20, where it comes sixth."""
    rng = np.random.default_rng(0)
    rows = rng.permuted(np.tile(np.arange(7, dtype=np.float32), (70, 1)), axis=1)
    first, sixth = rows.argmax(1), (rows == 1).argmax(1)
    return rows, [*first[:50].tolist(), *sixth[50:].tolist()]


def test_accuracy_before_and_after() -> None:
    rows, right = scores()
    found = verify(classifier(), classifier(), inputs={"x": rows}, labels=right, samples=0)
    assert found.samples == 3
    answers = found.answers
    assert answers is not None
    assert (answers.samples, answers.classes, answers.changed, answers.difference) == (70, 7, 0, 0.0)
    assert (answers.largest, answers.output) == (6.0, "scores")
    for share in (answers.top1, answers.top5):
        assert share is not None
        assert share.before == share.after == pytest.approx(50 / 70)
    worse = verify(classifier(), classifier(1.5), inputs={"x": rows}, labels=right, samples=0)
    assert worse.status == "different"
    assert worse.answers is not None
    # On top of 5 the first class passes 6.
    moved = int((rows[:, 0] == 5).sum())
    assert worse.answers.changed == moved > 0
    assert worse.answers.top1 is not None
    assert worse.answers.top1.after == pytest.approx((50 - (rows[:50, 0] == 5).sum()) / 70)
    assert worse.answers.difference == 1.5


def test_the_first_of_many_samples_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [{"x": row.reshape(1, 7)} for row in scores()[0][:9]]
    found = verify(classifier(), classifier(), inputs=many, samples=0)
    assert (found.samples, found.notes) == (4, ("the first 4 of your 9 samples were judged",))
    assert found.answers is not None and found.answers.samples == 9
    assert verify(classifier(), classifier(), inputs=many[:4], samples=0).answers is None
    monkeypatch.setattr("bnfold.equivalence.choosing._AFFORDABLE", 100)  # two products of 7 by 7
    assert verify(classifier(), classifier(), inputs=many, samples=0).samples == 2


def test_all_inputs_are_run_without_labels_too() -> None:
    """The last one shows what the judged ones do not."""
    rows = scores()[0]
    many = [
        {"x": row.reshape(1, 7)} for row in [*rows[rows[:, 0] < 5][:8], np.array([5, 0, 1, 2, 3, 6, 4], np.float32)]
    ]
    found = verify(classifier(), classifier(1.5), inputs=many, samples=0).answers
    assert found is not None
    assert (found.top1, found.top5, found.changed, found.difference, found.samples) == (None, None, 1, 1.5, 9)
    told = found.to_json()
    assert (told["top1"], told["top5"], told["output"]) == (None, None, "scores")


def test_of_a_model_without_scores_all_outputs_are_compared() -> None:
    """Floats by their difference, integers by whether they differ; a row that fills up the batch does not count."""

    def made(shift: float) -> onnx.ModelProto:
        b = Builder(type_=TensorProto.FLOAT)
        shifted = b.node("Add", b.input(2, 3, 2), b.constant([float(shift)]))
        largest = b.node("ArgMax", b.node("Mul", shifted, shifted), axis=1, keepdims=0)
        return b.model(b.node("Sqrt", shifted), b.node("Cast", largest, to=TensorProto.INT64))

    values = np.ones((11, 3, 2), np.float32)
    values[10] = np.array([[1, 1], [0.5, 0.5], [0.25, 0.25]])
    found = verify(made(0), made(0), inputs={"x": values}, samples=0).answers
    assert found is not None and (found.output, found.classes, found.samples, found.changed) == ("", 0, 11, 0)
    other = verify(made(0), made(-1.125), inputs={"x": values}, samples=0)
    assert other.answers is not None and other.answers.changed == 1
    assert np.isnan(other.answers.difference)
    assert "on all inputs: an output has no number, or another shape, where the original's has one" in other.problems


def test_few_classes_have_no_top_5() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    three = b.model(b.node("Softmax", b.input("N", 3, 1, 1), axis=1))
    found = verify(three, three, inputs={"x": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)}, labels=[0, 1, 1])
    assert found.answers is not None
    assert found.answers.top5 is None
    assert found.answers.top1 is not None
    assert found.answers.top1.before == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        (classifier, {"labels": [0] * 7}, "--labels is for your own inputs"),
        (classifier, {"preprocess": "size=3"}, "--preprocess is for your own inputs"),
        (
            classifier,
            {"labels": [7] * 7, "inputs": {"x": np.eye(7, dtype=np.float32)}},
            "class 7, and output 'scores' has",
        ),
    ],
)
def test_labels_without_scores_are_said(
    given: Callable[[], onnx.ModelProto], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        verify(given(), given(), **options)


def test_a_model_without_scores_has_no_accuracy() -> None:
    b = Builder(type_=TensorProto.FLOAT)
    image = b.model(b.node("Relu", b.input("N", 3, 2, 2)))
    with pytest.raises(UsageError, match="no output has one row of class scores"):
        verify(image, image, inputs={"x": np.ones((2, 3, 2, 2), np.float32)}, labels=[0, 1])


def test_the_command_line_reads_images_and_classes(draw: Callable[..., Array], tmp_path: Path) -> None:
    b = Builder(type_=TensorProto.FLOAT)
    pooled = b.node("GlobalAveragePool", b.bn(b.conv(b.input("N", 3, 4, 5), 7, 3)))
    path = saved(b.model(b.node("Flatten", pooled)), tmp_path / "model.onnx")
    for index in range(40):
        draw(f"{index % 7}/{index}.png")
    folder = tmp_path / "images"
    own = ("--inputs", folder, "--labels", folder, "--preprocess", "mean=0.5,std=0.25")
    done = bnfold("optimize", path, *own, "--json", tmp_path / "report.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "report.json").read_text())["verify"]
    assert (found["answers"]["samples"], found["answers"]["changed"]) == (40, 0)
    assert found["inputs"][0]["shape"] == [32, 3, 4, 5]
    assert "accuracy" in done.err
    assert "assumed" not in done.err
    done = bnfold("verify", path, tmp_path / "model.folded.onnx", *own[:4])
    assert "0 answers changed" in done.err
    assert "pixel/255 was assumed" in done.err
    bad = bnfold("verify", path, path, "--inputs", folder, "--preprocess", "colour=rgb")
    assert (bad.code, complaint(bad)[:24]) == (2, "--preprocess has no 'col")


# ------------------------------------------------------------------------------------------------------- random inputs


def test_bytes_take_their_whole_range() -> None:
    for dtype in (np.uint8, np.int8):
        given = [spec(4, 300, dtype=dtype)]
        found = samples.make(given, {"x": (4, 300)}, 0, 0, (0, 9))["x"]
        assert (found.min(), found.max()) == (np.iinfo(dtype).min, np.iinfo(dtype).max)
        assert samples.integer_ranges(given) == samples.integer_ranges([])[:1]


def test_every_sample_is_tried_where_integers_may_be_out_of_range() -> None:
    """Indices up to 8 into a table of 8: about every second sample of one index runs."""
    b = Builder(type_=TensorProto.FLOAT)
    table = b.model(b.node("Gather", b.constant(b.normal(8, 4), "table"), b.input(1, type_=TensorProto.INT64)))
    for seed in range(12):
        assert verify(table, table, samples=3, seed=seed).status == "equivalent"
