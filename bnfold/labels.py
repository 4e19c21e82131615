"""What the user's samples are: one class number for each image or row."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from bnfold.errors import UsageError
from bnfold.inputs import Own, loaded
from bnfold.kernels.base import Array

LabelsLike = str | Path | Sequence[int] | Array

METADATA = "classes"
"""The key of `metadata_props` under which a model carries the names of its classes, as a JSON list."""


def load(labels: LabelsLike, own: Own, model: onnx.ModelProto) -> Array:
    """int64 (rows,), from numbers; an .npy; an .npz (`labels`, or its one array); a .csv of image and label.

    Any other file has one integer a line. The folder of the images itself means that its subfolders are the classes.

    Raises `UsageError` for what cannot be read, for images without a label, and where the numbers do not match.
    """
    if not isinstance(labels, (str, Path)):
        found = _integers(np.asarray(labels), "labels")
    else:
        path = Path(labels)
        if path.is_dir():
            found = _subfolders(path, own, class_names(model))
        elif path.suffix in (".npy", ".npz"):
            found = _integers(_one_array(path), f"--labels {path}")
        elif path.suffix == ".csv":
            found = _by_name(path, own, class_names(model))
        else:
            found = np.array([_class(word, (), f"--labels {path}") for word in _text(path).split()], np.int64)
    if len(found) != own.rows:
        raise UsageError(f"there are {len(found)} labels for {own.rows} images or rows; they must be as many")
    return found


def _one_array(path: Path) -> Array:
    found = loaded(path, f"--labels {path}")
    if not isinstance(found, Mapping):
        return found
    if "labels" not in found and len(found) != 1:
        raise UsageError(f"--labels {path} has no array 'labels'; it has {', '.join(found)}")
    return found.get("labels", next(iter(found.values())))


def _integers(found: Array, what: str) -> Array:
    if found.dtype.kind not in "iu" or found.size != max(found.shape, default=0):
        raise UsageError(f"{what}: one integer for each image is wanted, not {found.dtype} {list(found.shape)}")
    return found.reshape(-1).astype(np.int64)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise UsageError(f"--labels {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--labels {path} cannot be read as text ({error})") from None


def class_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of its classes that a model carries; () where it carries none."""
    for entry in model.metadata_props:
        if entry.key == METADATA:
            try:
                names = json.loads(entry.value)
            except ValueError:
                return ()
            return tuple(map(str, names)) if isinstance(names, list) else ()
    return ()


def _class(word: str, classes: Sequence[str], what: str) -> int:
    if word in classes:
        return classes.index(word)
    try:
        return int(word)
    except ValueError:
        known = f"neither a class number nor one of the model's classes ({', '.join(classes[:4])}, ...)"
        raise UsageError(f"{what}: {word!r} is {known if classes else 'no class number'}") from None


def _by_name(path: Path, own: Own, classes: Sequence[str]) -> Array:
    if not own.names:
        raise UsageError(f"--labels {path} goes by file names: it needs a folder of images as --inputs")
    rows = [row for row in csv.reader(_text(path).splitlines()) if len(row) >= 2]
    given = {row[0].strip(): row[1].strip() for row in rows}
    found = []
    for name in own.names:
        word = next((given[key] for key in (name, Path(name).name, Path(name).stem) if key in given), None)
        if word is None:
            raise UsageError(f"--labels {path} has no line for the image {name}")
        found.append(_class(word, classes, f"--labels {path}"))
    return np.array(found, np.int64)


def _subfolders(path: Path, own: Own, classes: Sequence[str]) -> Array:
    """By the model's own names of its classes; by number where all are numbers; else in the order of the names."""
    if own.folder is None or path.resolve() != own.folder.resolve():
        raise UsageError(f"--labels {path} is a folder, and not that of --inputs; its subfolders would be the classes")
    words = [Path(name).parts[0] if "/" in name else "" for name in own.names]
    if "" in words:
        raise UsageError(f"--labels {path}: {own.names[words.index('')]} is in no subfolder, so its class is not known")
    names = sorted(set(words))
    if all(name in classes for name in names) or all(name.isdecimal() for name in names):
        return np.array([_class(word, classes, f"--labels {path}") for word in words], np.int64)
    return np.array([names.index(word) for word in words], np.int64)
