"""One invocation of a command: where its progress, its reports, its errors and its documents go."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from bnfold.cli.program import DONE, complain
from bnfold.documents import Document, Failed, Pair, UpToDate, check, shows_traceback, to_stdout
from bnfold.errors import UsageError

# numpy, onnx, onnxruntime and rich are imported by the commands that use them: `bnfold --help` stays quick.
if TYPE_CHECKING:
    from bnfold.auditing import Audit
    from bnfold.deployment import Deployed
    from bnfold.report import Line
    from bnfold.results import Explained, Optimized

    Progress = Callable[[str], None]


class Run:
    """One invocation: its exit code (the worst one), its results, its two streams, its documents."""

    def __init__(self, command: str, files: Mapping[str, str | None]) -> None:
        self.command = command
        self.code = DONE
        self.results: list[Explained | Pair | Audit | UpToDate | Failed | Deployed] = []
        self.json, self.html, self.junit = (
            Document(f"--{kind}", file) if (file := files.get(kind)) is not None else None
            for kind in ("json", "html", "junit")
        )

    def check_documents(self, models: Iterable[Path | None], outputs: Iterable[Path] = ()) -> None:
        """Raise where a document cannot be written, or would overwrite a model: before the work, not after it."""
        for document in (self.html, self.junit):
            if document is not None and document.is_stdout:
                raise UsageError(f"{document.option} needs the name of a file; only --json can go to stdout")
        check([document for document in (self.json, self.html, self.junit) if document is not None], models, outputs)

    @contextlib.contextmanager
    def errors(self, model: Path | None = None) -> Iterator[None]:
        """Turn what goes wrong into one or two lines on stderr, and an exit code."""
        try:
            yield
        except BrokenPipeError:
            raise  # whoever read our output has seen enough: click ends quietly
        except Exception as error:
            if shows_traceback(error):
                raise
            self.failed(Failed.of(error, model))

    def failed(self, failed: Failed) -> None:
        """Say what went wrong, and remember it."""
        self.code = max(self.code, failed.exit_code)
        self.results.append(failed)
        complain(failed.message)

    def finished(self, result: Optimized | UpToDate | Failed, told: bool, verbose: bool) -> None:
        """Take what became of one of several models; tell its report if that is wanted, and always a failure."""
        if isinstance(result, Failed):
            self.failed(result)
            return
        self.results.append(result)
        if isinstance(result, UpToDate):
            return
        from bnfold import report

        if told:
            self.report(report.optimized(result, verbose))
        if result.output is not None:
            self.result(str(result.output))

    @property
    def to_stdout(self) -> bool:
        """Whether stdout is free for results, and not taken by JSON."""
        return self.json is None or not self.json.is_stdout

    def report(self, lines: Sequence[Line], result: bool = False) -> None:
        """Print a report: to stderr, or to stdout where the report is all that the command gives."""
        from bnfold import report

        if result and self.to_stdout:
            with to_stdout():
                report.show(lines, report.console(sys.stdout))
            return
        with contextlib.suppress(OSError):  # a log that is full or gone is no reason to stop the work
            report.show(lines, report.console(sys.stderr))

    def result(self, text: str) -> None:
        """Print one line of result."""
        if self.to_stdout:
            with to_stdout():
                click.echo(os.fsencode(text))

    def write_documents(self, several: bool = False) -> None:
        """Write what was asked for: of several models, one document of them all, with what failed."""
        done = [result.to_json() for result in self.results if several or not isinstance(result, Failed)]
        if self.json is not None and done:
            whole = {"schema": 1, "models": done} if several else done[0]
            self.json.write(json.dumps(whole, indent=1, allow_nan=False) + "\n")
        shown = cast("list[Explained | Pair | Failed]", self.results)  # deploy has neither page nor checks for CI
        if self.html is not None:
            from bnfold import page

            self.html.write(page.render([page.section(result, self.command) for result in shown]))
        if self.junit is not None:
            from bnfold import junit

            self.junit.write(junit.render(junit.suite(result, self.command) for result in shown))


def tell_both_runtimes() -> None:
    """Say where two builds of onnxruntime are in each other's way."""
    from bnfold.runtime import both_runtimes_installed

    if problem := both_runtimes_installed():
        complain(problem)


@contextlib.contextmanager
def progress(verbose: bool, still: bool = False) -> Iterator[Progress]:
    """Where steps are told: a spinner on a terminal; elsewhere, or where nothing may move, lines if asked for."""
    if still or not sys.stderr.isatty():
        yield complain if verbose else (lambda text: None)
        return
    from bnfold import report

    with report.console(sys.stderr).status("starting") as status:
        yield lambda text: status.update(report.clean(text))
