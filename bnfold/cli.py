"""The command line: each command parses, calls the library, renders, and gives an exit code.

0 done, 1 cannot, 2 wrong usage, 3 not equivalent; 130 when interrupted. stdout carries results (what was written, the
verdict, `--json -`); the report, progress and errors go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.documents import Document, Failed, Pair, check
from bnfold.errors import BnfoldError, UsageError
from bnfold.jobs import jobs_of, made

# numpy, onnx, onnxruntime and rich are imported by the commands that use them: `bnfold --help` stays quick.
if TYPE_CHECKING:
    from bnfold.report import Line
    from bnfold.results import Explained

    Progress = Callable[[str], None]

DONE, CANNOT, USAGE, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130


class _Program(click.Group):
    """A click group whose errors are one or two lines that begin with the program's name."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {"standalone_mode": False, "prog_name": "bnfold"}
        try:
            code = super().main(*args, **kwargs)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "bnfold"
            _complain(f"{error.format_message()}\nTry '{command} --help'.")
            code = USAGE
        except click.ClickException as error:
            _complain(error.format_message())
            code = CANNOT
        except click.Abort:
            _complain("interrupted")
            code = INTERRUPTED
        sys.exit(code)


def _complain(message: str) -> None:
    click.echo(f"bnfold: {message}", err=True)


def _printable(text: str) -> str:
    """At most two lines, without control characters: names in a model may hold anything."""
    lines = ["".join(char if char.isprintable() else "?" for char in line) for line in text.splitlines()[:2]]
    return "\n".join(line[:600] for line in lines)


class _Run:
    """One invocation: its exit code (the worst one), its results, its two streams, its documents."""

    def __init__(self, command: str, json: str | None, html: str | None, junit: str | None = None) -> None:
        self.command = command
        self.code = DONE
        self.results: list[Explained | Pair | Failed] = []
        self.json, self.html, self.junit = (
            None if file is None else Document(option, file)
            for option, file in (("--json", json), ("--html", html), ("--junit", junit))
        )

    def check_documents(self, models: Iterable[Path | None]) -> None:
        """Raise where a document cannot be written, or would overwrite a model: before the work, not after it."""
        for document in (self.html, self.junit):
            if document is not None and document.is_stdout:
                raise UsageError(f"{document.option} needs the name of a file; only --json can go to stdout")
        check([document for document in (self.json, self.html, self.junit) if document is not None], models)

    @contextlib.contextmanager
    def errors(self, model: Path | None = None) -> Iterator[None]:
        """Turn what goes wrong into one or two lines on stderr, and an exit code."""
        try:
            yield
        except BnfoldError as error:
            self._failed(error.exit_code, str(error), model)
        except MemoryError:
            self._failed(CANNOT, "not enough memory; save the model with external data, or use a larger machine", model)
        except BrokenPipeError:
            raise  # whoever read our output has seen enough: click ends quietly
        except OSError as error:
            self._failed(CANNOT, f"{error.filename}: {error.strerror}" if error.filename else str(error), model)
        except Exception as error:  # a bug: the models that wait behind this one shall not suffer
            if os.environ.get("BNFOLD_TRACEBACK"):
                raise
            what = f"internal error, {type(error).__name__}: {error}".splitlines()[0]
            hint = "This is a bug: please report it with the traceback that BNFOLD_TRACEBACK=1 shows."
            self._failed(CANNOT, f"{what}\n{hint}", model)

    def _failed(self, code: int, message: str, model: Path | None) -> None:
        self.code = max(self.code, code)
        message = _printable(message)
        self.results.append(Failed(None if model is None else str(model), message, code))
        _complain(message)

    @property
    def to_stdout(self) -> bool:
        """Whether stdout is free for results, and not taken by JSON."""
        return self.json is None or not self.json.is_stdout

    def report(self, lines: Sequence[Line], result: bool = False) -> None:
        """Print a report: to stderr, or to stdout where the report is all that the command gives."""
        from bnfold import report

        report.show(lines, report.console(sys.stdout if result and self.to_stdout else sys.stderr))

    def result(self, text: str) -> None:
        """Print one line of result."""
        if self.to_stdout:
            click.echo(os.fsencode(text))

    def write_documents(self, several: bool = False) -> None:
        """Write what was asked for: of several models, one document of them all, with what failed."""
        done = [result.to_json() for result in self.results if several or not isinstance(result, Failed)]
        if self.json is not None and done:
            whole = {"schema": 1, "models": done} if several else done[0]
            self.json.write(json.dumps(whole, indent=1, allow_nan=False) + "\n")
        if self.html is not None:
            from bnfold import page

            self.html.write(page.render([page.section(result, self.command) for result in self.results]))
        if self.junit is not None:
            from bnfold import junit

            self.junit.write(junit.render(junit.suite(result, self.command) for result in self.results))


@contextlib.contextmanager
def _progress(verbose: bool, still: bool = False) -> Iterator[Progress]:
    """Where steps are told: a spinner on a terminal; elsewhere, or where nothing may move, lines if asked for."""
    if still or not sys.stderr.isatty():
        yield (lambda text: click.echo(f"bnfold: {text}", err=True)) if verbose else (lambda text: None)
        return
    from bnfold import report

    with report.console(sys.stderr).status("starting") as status:
        yield lambda text: status.update(report.clean(text))


# ------------------------------------------------------------------------------------------------------------- options


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


def _read_batches(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    """`1,8,32`."""
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


_PATH = click.Path(path_type=Path)
_provider = click.option(
    "--provider", "providers", multiple=True, type=click.Choice(["cuda", "tensorrt", "cpu"]),
    help="Execution provider of ONNX Runtime; may be given again, and each is used in turn. [default: the best here]",
)  # fmt: skip
_provider_option = click.option(
    "--provider-option", "provider_options", multiple=True, callback=_read_provider_options,
    metavar="NAME:KEY=VALUE", help="An option of a provider, as ONNX Runtime names it; may be given again.",
)  # fmt: skip
_tf32 = click.option("--tf32", is_flag=True, help="Let NVIDIA's TF32 round float32 products to 10 bits.")
_shape = click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=_read_shapes,
    metavar="NAME=1x3x224x224",
    help="Sizes of an input whose shape is free.",
)
_json = click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - is stdout.")
_html = click.option("--html", "html_file", metavar="FILE", help="Write the report as one HTML page.")
_junit = click.option("--junit", "junit_file", metavar="FILE", help="Write what was checked as JUnit XML.")
_verbose = click.option("-v", "--verbose", is_flag=True, help="List every affine; tell every step.")
_keep = click.option("--keep", multiple=True, metavar="NODE", help="A node (name or glob) that must stay.")
_only = click.option("--only", multiple=True, metavar="NODE", help="Fold only these nodes (name or glob).")


def _sampling(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a verification feeds."""
    for option in reversed((
        click.option(
            "--inputs", type=_PATH, metavar="PATH",
            help="Your own inputs: .npz by input name, one .npy, Polygraphy's .json, or a folder of images.",
        ),
        click.option(
            "--preprocess", metavar="KEY=VALUE,...",
            help="How images are prepared: size=224,mean=0.5:0.5:0.5. [default: what the model's metadata say]",
        ),
        click.option(
            "--labels", type=_PATH, metavar="PATH",
            help="Classes of your inputs, for the accuracy: .npy, .txt, .csv, or the folder of the images.",
        ),
        _shape,
        click.option("--samples", type=click.IntRange(min=0), default=2, show_default=True, help="Random inputs."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random inputs."),
        _tf32,
    )):  # fmt: skip
        command = option(command)
    return command


# ------------------------------------------------------------------------------------------------------------ commands


@click.group(cls=_Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
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
    "-o", "--output", "out", metavar="OUT", help="File to write, or folder. [default: NAME.folded.onnx beside it]"
)
@_provider
@_provider_option
@_keep
@_only
@click.option("--no-verify", is_flag=True, help="Run nothing: the certificate alone has to do.")
@click.option("--no-merge", is_flag=True, help="Do not merge linear nodes that folding brings together.")
@click.option("--strict", is_flag=True, help="Exit 3 where a fold fails verification, and write nothing.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@_sampling
@_json
@_html
@_junit
@_verbose
def optimize(
    models: tuple[str, ...],
    *,
    out: str | None,
    no_verify: bool,
    no_merge: bool,
    shapes: dict[str, tuple[int, ...]],
    json_file: str | None,
    html_file: str | None,
    junit_file: str | None,
    verbose: bool,
    **options: Any,
) -> int:
    """Fold MODEL, prove the result, write it.

    MODEL is a file, a folder (every .onnx below it) or a glob; with several models OUT is a folder, and one bad model
    does not stop the rest. Nothing is written that was not proved. Prints what it wrote.
    """
    run = _Run("optimize", json_file, html_file, junit_file)
    with run.errors():
        jobs, several = jobs_of(models, out)
        run.check_documents(path for job in jobs for path in (job.model, job.output))
        import bnfold
        from bnfold import report

        _tell_both_runtimes()
        settings = options | {"verify": not no_verify, "merge": not no_merge, "shapes": shapes}
        for job in jobs:
            with run.errors(job.model), made(job.folder):
                with _progress(verbose) as say:
                    result = bnfold.optimize(job.model, job.output, progress=say, **settings)
                run.results.append(result)
                run.report(report.optimized(result, verbose))
                if result.output is not None:
                    run.result(str(result.output))
        run.write_documents(several)
        if several:
            bad = sum(isinstance(result, Failed) for result in run.results)
            _complain(f"{len(jobs) - bad} of {len(jobs)} models done")
    return run.code


@main.command()
@click.argument("model", type=_PATH)
@_keep
@_only
@_json
@_html
@_verbose
def explain(
    model: Path,
    keep: tuple[str, ...],
    only: tuple[str, ...],
    json_file: str | None,
    html_file: str | None,
    verbose: bool,
) -> int:
    """Say what folds in MODEL, and why the rest stays.

    Writes nothing and runs nothing.
    """
    run = _Run("explain", json_file, html_file)
    with run.errors():
        run.check_documents([model])
        import bnfold
        from bnfold import report

        with run.errors(model):
            with _progress(verbose) as say:
                say("solving")
                result = bnfold.explain(model, keep=keep, only=only)
            run.results.append(result)
            run.report(report.explained(result, verbose), result=True)
        run.write_documents()
    return run.code


@main.command()
@click.argument("original", type=_PATH)
@click.argument("optimized", type=_PATH)
@_provider
@_provider_option
@_sampling
@click.option(
    "--self-test",
    is_flag=True,
    help="Also corrupt a constant of each kind: how small a mistake would be seen?",
)
@_json
@_html
@_junit
@_verbose
def verify(
    original: Path,
    optimized: Path,
    shapes: dict[str, tuple[int, ...]],
    json_file: str | None,
    html_file: str | None,
    junit_file: str | None,
    verbose: bool,
    **options: Any,
) -> int:
    """Is OPTIMIZED the same function as ORIGINAL?

    The error against float64 must not exceed the original's own rounding noise, on every provider, with ONNX Runtime's
    optimisations off and on. Exits 3 when the two differ.
    """
    run = _Run("verify", json_file, html_file, junit_file)
    with run.errors():
        run.check_documents([original, optimized])
        import bnfold
        from bnfold import report

        _tell_both_runtimes()
        with run.errors(optimized):
            with _progress(verbose) as say:
                result = bnfold.verify(original, optimized, shapes=shapes, progress=say, **options)
            run.results.append(Pair(str(original), str(optimized), result))
            run.report(report.verification(result, str(original), str(optimized)))
            run.result(result.status)
            if not result.passed:
                run.code = DIFFERENT
            elif not (result.noise.outputs or result.noise.stored):
                run.code = CANNOT
        run.write_documents()
    return run.code


@main.command()
@click.argument("original", type=_PATH)
@click.argument("optimized", type=_PATH)
@_provider
@_provider_option
@click.option(
    "--batch",
    "batches",
    callback=_read_batches,
    default="1",
    show_default=True,
    metavar="N,N",
    help="Sizes of the first axis, where it is free.",
)
@_shape
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=6.0, show_default=True, help="How long to measure each row."
)
@_tf32
@_json
@_html
@_verbose
def bench(
    original: Path,
    optimized: Path,
    shapes: dict[str, tuple[int, ...]],
    json_file: str | None,
    html_file: str | None,
    verbose: bool,
    **options: Any,
) -> int:
    """Is OPTIMIZED faster than ORIGINAL?

    Both run in turns, ONNX Runtime's optimisations on. Says "no difference" where that is what was measured.
    """
    run = _Run("bench", json_file, html_file)
    with run.errors():
        run.check_documents([original, optimized])
        import bnfold
        from bnfold import report

        _tell_both_runtimes()
        with run.errors(optimized):
            with _progress(verbose or sys.stderr.isatty(), still=True) as say:  # a spinner would take part in the race
                result = bnfold.bench(original, optimized, shapes=shapes, progress=say, **options)
            run.results.append(Pair(str(original), str(optimized), result))
            run.report(report.benchmark(result, str(original), str(optimized)))
            for row in result.rows:
                run.result(f"{row.provider}, batch {row.batch}: {row.verdict}")
        run.write_documents()
    return run.code


def _tell_both_runtimes() -> None:
    from bnfold.runtime import both_runtimes_installed

    problem = both_runtimes_installed()
    if problem:
        _complain(problem)
