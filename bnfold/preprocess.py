"""From pixels to what a model reads: the facts of one model's preprocessing, as the user or the model states them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx

from bnfold.errors import UsageError
from bnfold.kernels.base import Array, is_float_type
from bnfold.samples import InputSpec

METADATA = "preprocessing"
"""The key of `metadata_props` under which a model carries its facts, as a JSON object."""

_ORDERS, _LAYOUTS, _FILTERS = ("rgb", "bgr", "gray"), ("nchw", "nhwc"), ("bilinear", "bicubic", "nearest")
_SYNTAX = "size=224,resize=256,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,order=rgb"


@dataclass(frozen=True)
class Preprocess:
    """input = (pixel * scale - mean) / std, pixels 0 to 255; or 1 where pixel > threshold.

    `mean` and `std` have one number, or one for each channel in the order in which the model reads them. `resize` is
    the shorter side to resize an image to before its centre of `size` (height, width) is cut out; without it the image
    is stretched to `size`. What is None follows from the model's input.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    threshold: float | None = None
    order: str | None = None
    layout: str | None = None
    filter: str = "bilinear"

    @classmethod
    def of(cls, facts: str | Mapping[str, Any] | None, model: onnx.ModelProto) -> Preprocess:
        """The facts given, as `key=value,...` or by name, over those that the model carries, over the defaults.

        Raises `UsageError` for a key that there is not, and for a value that is none.
        """
        if isinstance(facts, str):
            facts = dict(_pair(part) for part in facts.split(",") if part)
        return replace(cls(), **{**_values(_carried(model)), **_values(facts or {})})

    def fitted(self, spec: InputSpec) -> Preprocess:
        """The facts with what follows from the input's shape. Raises `UsageError` where it takes no images."""
        dims = spec.dims or (None,) * 4
        if len(dims) != 4:
            raise UsageError(f"input '{spec.name}' is not an image of 4 axes; give an .npz")
        last = dims[1] not in (1, 3) and dims[3] in (1, 3)
        layout = self.layout or ("nhwc" if last else "nchw")
        height, width, channels = (dims[1], dims[2], dims[3]) if layout == "nhwc" else (dims[2], dims[3], dims[1])
        order = self.order or ("gray" if channels == 1 else "rgb")
        wanted = 1 if order == "gray" else 3
        if isinstance(channels, int) and channels != wanted:
            raise UsageError(f"input '{spec.name}' has {channels} channels, and images of order={order} have {wanted}")
        if any(len(values) not in (1, wanted) for values in (self.mean, self.std)):
            raise UsageError(f"--preprocess: mean and std want one number, or {wanted} with a colon between")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        if self.size is not None and size is not None and self.size != size:
            raise UsageError(f"--preprocess size={_sized(self.size)}: the model's images are {_sized(size)}")
        return replace(self, layout=layout, order=order, size=self.size or size)

    def __call__(self, pixels: Array, spec: InputSpec) -> Array:
        """What the input reads: from uint8 (N, H, W, C) in the right order, once `fitted`."""
        values = pixels
        if is_float_type(spec.dtype):
            if self.threshold is not None:
                values = (pixels > self.threshold).astype(np.float32)
            else:
                mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
                values = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        if self.layout == "nchw":
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values.astype(spec.dtype))


def _sized(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _pair(part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise UsageError(f"--preprocess: {part!r} is not of the form key=value; an example: {_SYNTAX}")
    return key.strip(), value.strip()


def _carried(model: onnx.ModelProto) -> dict[str, Any]:
    """The facts in the model's metadata: what else may stand there is not ours."""
    for entry in model.metadata_props:
        if entry.key == METADATA:
            try:
                found = json.loads(entry.value)
            except ValueError:
                return {}
            known = {field.name for field in fields(Preprocess)}
            return {key: found[key] for key in found if key in known} if isinstance(found, dict) else {}
    return {}


def is_carried(model: onnx.ModelProto) -> bool:
    """Whether the model says how its images are prepared."""
    return bool(_carried(model))


def _values(facts: Mapping[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(facts) - set(_READERS))
    if unknown:
        raise UsageError(f"--preprocess has no {unknown[0]!r}; it has {', '.join(_READERS)}")
    return {key: _read(key, value) for key, value in facts.items() if value is not None}


def _read(key: str, value: Any) -> Any:
    try:
        return _READERS[key](value)
    except (ValueError, TypeError, ZeroDivisionError):
        raise UsageError(f"--preprocess: {key}={value} is no such value; an example: {_SYNTAX}") from None


def _number(value: Any) -> float:
    return float(Fraction(value)) if isinstance(value, str) else float(value)


def _numbers(value: Any) -> tuple[float, ...]:
    parts = value.split(":") if isinstance(value, str) else np.atleast_1d(value)
    return tuple(map(_number, parts))


def _divisors(value: Any) -> tuple[float, ...]:
    found = _numbers(value)
    if 0 in found:
        raise ValueError(value)
    return found


def _length(value: Any) -> int:
    if int(value) <= 0:
        raise ValueError(value)
    return int(value)


def _size(value: Any) -> tuple[int, int]:
    parts = str(value).split("x") if isinstance(value, (str, int)) else list(value)
    height, width = parts if len(parts) == 2 else parts * 2
    return _length(height), _length(width)


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(value)
        return str(value)

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "size": _size,
    "resize": _length,
    "scale": _number,
    "mean": _numbers,
    "std": _divisors,
    "threshold": _number,
    "order": _one_of(_ORDERS),
    "layout": _one_of(_LAYOUTS),
    "filter": _one_of(_FILTERS),
}
