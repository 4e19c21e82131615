"""The options that several commands have, and how their values are read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bnfold.cli.run import Run

Decorated = Callable[..., Any]


def _read_shapes(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """`NAME=1x3x224x224`, as often as there are inputs."""
    shapes = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        numbers = sizes.split("x") if sizes else []
        if not name or not all(map(_is_size, numbers)):
            raise click.BadParameter(f"{value!r} is not of the form NAME=1x3x224x224", context, option)
        shapes[name] = tuple(map(int, numbers))
    return shapes


def read_batches(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """`1,8,32`, as a callback of an option."""
    if not all(map(_is_size, value.split(","))):
        raise click.BadParameter(f"{value!r} is not a list of batch sizes like 1,8", context, option)
    return tuple(map(int, value.split(",")))


def _read_provider_options(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, dict[str, str]]:
    """`cuda:device_id=1`, as often as there are options."""
    found: dict[str, dict[str, str]] = {}
    for value in values:
        left, equals, setting = value.partition("=")
        provider, _, key = left.partition(":")
        if not (provider and key and equals):
            raise click.BadParameter(f"{value!r} is not of the form cuda:device_id=1", context, option)
        found.setdefault(provider, {})[key] = setting
    return found


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


PATH = click.Path(path_type=Path)
no_merge = click.option(
    "--no-merge",
    "merge",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Do not make one node of several linear ones.",
)
provider = click.option(
    "--provider", "providers", multiple=True, type=click.Choice(["cuda", "tensorrt", "cpu"]),
    help="Execution provider of ONNX Runtime; may be given again, and each is used in turn. [default: the best here]",
)  # fmt: skip
provider_option = click.option(
    "--provider-option", "provider_options", multiple=True, callback=_read_provider_options,
    metavar="NAME:KEY=VALUE", help="An option of a provider, as ONNX Runtime names it; may be given again.",
)  # fmt: skip
tf32 = click.option("--tf32", is_flag=True, help="Let NVIDIA's TF32 round float32 products to 10 bits.")
shape = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_read_shapes,
    metavar="NAME=1x3x224x224",
    help="Sizes of an input whose shape is free.",
)
verbose = click.option("-v", "--verbose", is_flag=True, help="List every affine; tell every step.")
keep = click.option("--keep", multiple=True, metavar="NODE", help="A node (name or glob) that must stay.")
only = click.option("--only", multiple=True, metavar="NODE", help="Fold only these nodes (name or glob).")


inputs = click.option(
    "--inputs", type=PATH, metavar="PATH",
    help="Your own inputs: .npz by input name, one .npy, Polygraphy's .json, or a folder of images.",
)  # fmt: skip
preprocess = click.option(
    "--preprocess", metavar="KEY=VALUE,...",
    help="How images are prepared: size=224,mean=0.5:0.5:0.5. [default: what the model's metadata say]",
)  # fmt: skip
seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random inputs.")


def sampling(command: Decorated) -> Decorated:
    """The options that say what a verification feeds."""
    for option in reversed((
        inputs,
        preprocess,
        click.option(
            "--labels", type=PATH, metavar="PATH",
            help="Classes of your inputs, for the accuracy: .npy, .txt, .csv, or the folder of the images.",
        ),
        shape,
        click.option("--samples", type=click.IntRange(min=0), default=2, show_default=True, help="Random inputs."),
        seed,
        tf32,
    )):  # fmt: skip
        command = option(command)
    return command


_DOCUMENTS = {
    "json": "Write the report as JSON; - is stdout.",
    "html": "Write the report as one HTML page.",
    "junit": "Write what was checked as JUnit XML.",
}


def documents(*kinds: str) -> Callable[[Decorated], Decorated]:
    """The options of the documents that a command writes. It is handed its `Run`, whose exit code is the command's."""

    def decorate(command: Decorated) -> Decorated:
        @functools.wraps(command)
        def decorated(**options: Any) -> int:
            run = Run(command.__name__, {kind: options.pop(kind) for kind in kinds})
            with run.errors():
                command(run, **options)
            return run.code

        for kind in reversed(kinds):
            click.option(f"--{kind}", metavar="FILE", help=_DOCUMENTS[kind])(decorated)
        return decorated

    return decorate
