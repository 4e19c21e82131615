"""The page docs/reference.md, made from the commands as click knows them; `python -m tests.reference_doc` writes it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from bnfold.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"

HEAD = """\
# Every command and option

What `bnfold COMMAND --help` says, made from the program itself. [cli.md](cli.md) explains it: what a report means, what
your own inputs may be, how `bench` measures.
"""


def page() -> str:
    """The whole page."""
    whole = click.Context(main, info_name="bnfold", **main.context_settings)
    parts = [HEAD, *_described(main, whole)]
    for name, command in main.commands.items():
        parts += [f"## {name}\n", *_described(command, click.Context(command, whole, name))]
    return "\n".join(parts)


def _described(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"```\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield "| option | meaning | default |\n|---|---|---|"
    for option in command.get_params(context):
        if isinstance(option, click.Option) and not option.hidden:
            yield _row(option, context)
    yield ""


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag or option.count else f" `{option.make_metavar(context)}`"
    text, _, told = (option.help or "").partition("[default: ")
    shown = option.get_default(context) if option.show_default else told.rstrip("]").strip()
    again = " Repeatable." if option.multiple and "again" not in text else ""
    return f"| {names}{takes} | {_cell(text.strip())}{again} | {_cell(str(shown))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
