"""Write the models of the zoo into a folder: corner cases, networks of ours and of libraries, trained models.

    python -m tests.zoo.build FOLDER [--wheels FOLDER] [--only REGEX] [--negative SHARE]

It runs in the environment of the `zoo` extra; `make zoo` makes that, and the wheels. Files that exist are kept.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx

from tests.zoo import export, hand, library, networks, trained
from tests.zoo.count import batchnorms


def recipes(wheels: Path, negative: float) -> dict[str, Callable[[Path], None]]:
    """Every model by name, with what writes it."""
    found = hand.recipes() | trained.recipes(wheels)
    torch = networks.NETWORKS | library.NETWORKS
    for name in [*torch, *(f"{name}__dynamo" for name in library.DYNAMO)]:
        network = torch[name.removesuffix("__dynamo")]
        found[name] = functools.partial(export.write, name, network, negative=negative)
    for name in library.REPARAMETERISED:
        found[f"reparam/{name}"] = functools.partial(
            export.write, name, torch[name], negative=negative, change=library.reparameterised
        )
    return found


def main() -> int:
    """Write what is missing; the exit code is 1 where a model could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheels", type=Path, default=Path("build/zoo/wheels"), help="trained models are taken from")
    parser.add_argument("--only", default="", help="regular expression on the model's name")
    parser.add_argument("--negative", type=float, default=export.NEGATIVE, help="the share of negative gammas")
    options = parser.parse_args()
    failed = 0
    for name, write in recipes(options.wheels, options.negative).items():
        path, partial = options.folder / f"{name}.onnx", options.folder / f"{name}.partial"
        if path.exists() or not re.search(options.only, name):
            continue
        start = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            found = batchnorms(onnx.load(partial, load_external_data=False))
        except Exception as error:  # noqa: BLE001 - one that cannot be made must not stop the others
            failed += 1
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
            continue
        partial.rename(path)
        size = path.stat().st_size / 1e6
        print(f"{name}: {found} BatchNormalization, {size:.1f} MB, {time.perf_counter() - start:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
