"""The command that writes a model as it is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnfold.cli.options import PATH, documents, inputs, preprocess, provider_option, seed, shape, tf32, verbose
from bnfold.cli.run import Run, progress, tell_both_runtimes


@click.command()
@click.argument("model", type=PATH)
@click.option("--triton", type=PATH, metavar="DIR", help="Model repository of Triton, in which a version is added.")
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Folder to make, with model, settings and a program.")
@click.option(
    "--target",
    type=click.Choice(["cpu", "cuda", "tensorrt", "openvino", "ort"]),
    default="cpu",
    show_default=True,
    help="What it will run on; ort is ONNX Runtime's own format.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "python"]),
    default="onnxruntime",
    show_default=True,
    help="Of Triton.",
)
@click.option("--name", metavar="NAME", help="Of the model in the repository. [default: its file's]")
@click.option(
    "--max-batch",
    type=click.IntRange(min=0),
    metavar="N",
    help="Rows that may share a run; 0 for none. [default: 8 where the batch is free]",
)
@click.option("--dynamic-batching/--no-dynamic-batching", default=True, help="Whether Triton puts requests together.")
@click.option(
    "--queue-delay",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="US",
    help="Microseconds that a request may wait for others.",
)
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, help="How many run at a time.")
@click.option("--versions", type=click.IntRange(min=1), default=1, show_default=True, help="Newest ones to serve.")
@click.option(
    "--level",
    type=click.Choice(["all", "extended", "basic", "off"]),
    help="Of ONNX Runtime's optimisations. [default: all, off for openvino]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of ONNX Runtime within an operator; 0 is its own choice.",
)
@provider_option
@tf32
@inputs
@preprocess
@shape
@seed
@click.option("--no-warm-up", is_flag=True, help="Do not have instances run requests before they are ready.")
@click.option("--no-verify", is_flag=True, help="Do not run the model here.")
@click.option("--force-config", is_flag=True, help="Replace a configuration in the repository that differs.")
@documents("json")
@verbose
def deploy(
    run: Run, model: Path, *, no_warm_up: bool, no_verify: bool, verbose: bool, output: Path | None, **options: Any
) -> None:
    """Write MODEL as it is served: for Triton, or as a folder with a program.

    Folds nothing and copies the model byte for byte. What was written is run from where it lies before it has its name.
    Prints the folder that it made.
    """
    run.check_documents([model])
    import bnfold
    from bnfold import report

    tell_both_runtimes()
    with run.errors(model):
        with progress(verbose) as say:
            result = bnfold.deploy(model, output, warm_up=not no_warm_up, verify=not no_verify, progress=say, **options)
        run.results.append(result)
        run.report(report.deployed(result))
        run.result(str(result.output))
    run.write_documents()
