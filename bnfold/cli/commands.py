"""The commands: each calls the library and renders what it gives; its `Run` does the rest."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bnfold.cli.deploy import deploy
from bnfold.cli.options import (
    PATH,
    documents,
    keep,
    keep_fp32,
    no_merge,
    only,
    precision,
    provider,
    provider_option,
    read_batches,
    sampling,
    shape,
    tf32,
    verbose,
)
from bnfold.cli.program import CANNOT, DIFFERENT, Program, complain
from bnfold.cli.run import Run, progress, tell_both_runtimes
from bnfold.documents import Pair
from bnfold.errors import UsageError
from bnfold.jobs import jobs_of
from bnfold.naming import default_output


@click.group(cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bnfold", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Fold BatchNormalization out of ONNX models, exactly, and prove it.

    Exit codes: 0 done, 1 cannot, 2 wrong usage, 3 not equivalent.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "-o",
    "--output",
    "out",
    metavar="OUT",
    help="File to write, or folder. [default: NAME.folded[.fp16].onnx beside it]",
)
@provider
@provider_option
@keep
@only
@precision
@keep_fp32
@click.option("--no-verify", is_flag=True, help="Run nothing: the certificate alone has to do.")
@no_merge
@click.option("--strict", is_flag=True, help="Exit 3 where a fold fails verification, and write nothing.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@click.option(
    "--no-manifest",
    "manifest",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Write no OUT.manifest.json beside the output.",
)
@click.option("--jobs", "workers", type=click.IntRange(min=1), metavar="N", help="Models at once, a process each.")
@click.option("--ray", metavar="ADDRESS", help="Fold on a Ray cluster: auto, local, HOST:PORT, ray://HOST:PORT.")
@sampling
@documents("json", "html", "junit")
@verbose
def optimize(
    run: Run,
    models: tuple[str, ...],
    *,
    out: str | None,
    no_verify: bool,
    workers: int | None,
    ray: str | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Fold MODEL, prove the result, write it.

    MODEL is a file, a folder (every .onnx below it), a glob, or @FILE, a list with one of these on each line (@-: of
    stdin); with several models OUT is a folder, one bad model does not stop the rest, and what is up to date is passed
    over. Nothing is written that was not proved. Prints what it wrote.
    """
    jobs, several = jobs_of(models, out)
    outputs = [job.output or default_output(job.model, options["precision"]) for job in jobs]
    run.check_documents((job.model for job in jobs), outputs)
    from bnfold import fleet, report
    from bnfold.fleet.table import table

    tell_both_runtimes()
    settings = options | {"verify": not no_verify}

    def here(task: fleet.Task) -> fleet.Done:
        with progress(verbose) as say:
            return fleet.work(replace(task, options={**task.options, "progress": say}))

    def told(done: int, every: int) -> None:
        if verbose and several:
            complain(f"{done} of {every} models done")

    resume, how = several and fleet.may_resume(settings), fleet.How(workers, ray)
    finished = []
    with run.errors(), closing(fleet.outcomes(jobs, settings, how=how, resume=resume, here=here, told=told)) as every:
        for done in every:
            finished.append(done)
            run.finished(done.result, len(jobs) <= report.LISTED or verbose, verbose)
    run.write_documents(several)
    if several and finished:
        run.report(table(finished))
        complain(fleet.total(finished))


@main.command()
@click.argument("model", type=PATH)
@keep
@only
@no_merge
@documents("json", "html")
@verbose
def explain(run: Run, model: Path, verbose: bool, **choice: Any) -> None:
    """Say what folds in MODEL, and why the rest stays.

    Writes nothing and runs nothing.
    """
    run.check_documents([model])
    import bnfold
    from bnfold import report

    with run.errors(model):
        with progress(verbose) as say:
            say("solving")
            result = bnfold.explain(model, **choice)
        run.results.append(result)
        run.report(report.explained(result, verbose), result=True)
    run.write_documents()


@main.command()
@click.argument("original", type=PATH, required=False)
@click.argument("optimized", type=PATH, required=False)
@click.option(
    "--manifest", type=PATH, metavar="FILE", help="Prove anew what OPTIMIZED's manifest says, without any runtime."
)
@provider
@provider_option
@sampling
@click.option(
    "--self-test",
    is_flag=True,
    help="Also corrupt a constant of each kind: how small a mistake would be seen?",
)
@click.option("--ray", metavar="ADDRESS", help="Run all inputs on a Ray cluster: auto, local, HOST:PORT, ray://...")
@documents("json", "html", "junit")
@verbose
def verify(
    run: Run,
    original: Path | None,
    optimized: Path | None,
    *,
    manifest: Path | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Is OPTIMIZED the same function as ORIGINAL?

    The error against float64 must not exceed the original's own rounding noise, on every provider, with ONNX Runtime's
    optimisations off and on. Exits 3 when the two differ.

    With --manifest nothing is run: the hashes of all files and the certificate must hold. The paths are those of the
    manifest where none are given.
    """
    if manifest is not None:
        _audit(run, manifest, original, optimized)
        return
    if original is None or optimized is None:
        raise UsageError("verify needs ORIGINAL and OPTIMIZED, or --manifest FILE")
    run.check_documents([original, optimized])
    import bnfold
    from bnfold import report

    tell_both_runtimes()
    with run.errors(optimized):
        with progress(verbose) as say:
            result = bnfold.verify(original, optimized, progress=say, **options)
        run.results.append(Pair(str(original), str(optimized), result))
        run.report(report.verification(result, str(original), str(optimized)))
        run.result(result.status)
        if not result.passed:
            run.code = DIFFERENT
        elif not result.compared:
            run.code = CANNOT
    run.write_documents()


def _audit(run: Run, manifest: Path, original: Path | None, optimized: Path | None) -> None:
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if given and option.name not in ("manifest", "original", "optimized", "verbose", "json", "html", "junit"):
            raise UsageError(f"{option.opts[0]} does not go with --manifest, which runs nothing")
    run.check_documents([manifest, original, optimized])
    import bnfold
    from bnfold import report

    with run.errors(manifest):
        result = bnfold.audit(manifest, original, optimized)
        run.results.append(result)
        run.report(report.audited(result))
        run.result(result.status)
        if not result.passed:
            run.code = DIFFERENT
    run.write_documents()


@main.command()
@click.argument("original", type=PATH)
@click.argument("optimized", type=PATH)
@provider
@provider_option
@click.option(
    "--batch",
    "batches",
    callback=read_batches,
    default="1",
    show_default=True,
    metavar="N,N",
    help="Sizes of the first axis, where it is free.",
)
@shape
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=6.0, show_default=True, help="How long to measure each row."
)
@click.option("--no-optimisations", is_flag=True, help="Switch ONNX Runtime's own optimisations off.")
@tf32
@documents("json", "html")
@verbose
def bench(run: Run, original: Path, optimized: Path, *, no_optimisations: bool, verbose: bool, **options: Any) -> None:
    """Is OPTIMIZED faster than ORIGINAL?

    Both run in turns. Says "no difference" where that is what was measured.
    """
    run.check_documents([original, optimized])
    import bnfold
    from bnfold import report

    tell_both_runtimes()
    with run.errors(optimized):
        with progress(verbose or sys.stderr.isatty(), still=True) as say:  # a spinner would take part in the race
            result = bnfold.bench(original, optimized, progress=say, optimisations=not no_optimisations, **options)
        run.results.append(Pair(str(original), str(optimized), result))
        run.report(report.benchmark(result, str(original), str(optimized)))
        for row in result.rows:
            run.result(f"{row.provider}, batch {row.batch}: {row.verdict}")
    run.write_documents()


main.add_command(deploy)
