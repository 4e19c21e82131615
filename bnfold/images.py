"""A folder of images, decoded by Pillow, which only this module imports: `pip install 'bnfold[images]'`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import UsageError
from bnfold.kernels.base import Array
from bnfold.preprocess import Preprocess

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def listed(folder: Path) -> list[Path]:
    """Every image below the folder, in the order of the names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def check(folder: Path, paths: Sequence[Path]) -> None:
    """Raise `UsageError` where the folder has no image, or nothing here decodes one."""
    if not paths:
        raise UsageError(f"--inputs {folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    _pillow()


def decoded(paths: Sequence[Path], facts: Preprocess) -> Array:
    """uint8 (N, H, W, C), resized and in the order that the facts say.

    Raises `UsageError` for a file that is no image, and for images of several sizes where nothing says which to make.
    """
    pixels = [_decoded(path, facts) for path in paths]
    for path, each in zip(paths, pixels, strict=True):
        if each.shape != pixels[0].shape:
            sizes = " and ".join("x".join(map(str, array.shape[:2])) for array in (pixels[0], each))
            raise UsageError(f"{paths[0]} and {path} are {sizes} pixels; say one size with --preprocess size=224")
    return np.stack(pixels)


def _decoded(path: Path, facts: Preprocess) -> Array:
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            sized = _sized(image.convert("L" if facts.order == "gray" else "RGB"), facts)
            pixels = np.asarray(sized, np.uint8)
    except (OSError, ValueError, pillow.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be decoded as an image ({error})") from None
    if facts.order == "gray":
        return pixels[..., np.newaxis]
    return pixels[..., ::-1] if facts.order == "bgr" else pixels


def _sized(image: Any, facts: Preprocess) -> Any:
    """The image at the wanted size: its centre where its shorter side is resized first, else stretched."""
    resample = getattr(_pillow().Resampling, facts.filter.upper())
    if facts.resize is not None:
        factor = facts.resize / min(image.size)
        wide, high = (max(facts.resize, round(side * factor)) for side in image.size)
        image = image.resize((wide, high), resample)
    if facts.size is None or image.size == facts.size[::-1]:
        return image
    height, width = facts.size
    if facts.resize is None:
        return image.resize((width, height), resample)
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    if left < 0 or top < 0:
        raise UsageError(f"--preprocess: size={height}x{width} cannot be cut out of resize={facts.resize}")
    return image.crop((left, top, left + width, top + height))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError("a folder of images needs Pillow; install it: pip install 'bnfold[images]'") from None
    return Image
