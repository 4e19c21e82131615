"""docs/reference.md, docs/api.md and the pictures are what the code says, and it says something of everything."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

import click
import pytest
from packaging.version import Version

import bnfold
from bnfold.cli import main
from tests import api_doc, pictures_doc, reference_doc


@pytest.mark.skipif(Version(version("click")) < Version("8.2"), reason="click says types in other words")
def test_the_reference_of_the_commands_is_what_click_says() -> None:
    assert reference_doc.PAGE.read_text(encoding="utf-8") == reference_doc.page(), "run `make reference`"


def test_the_reference_of_the_library_is_what_the_docstrings_say() -> None:
    assert api_doc.PAGE.read_text(encoding="utf-8") == api_doc.page(), "run `make reference`"


def test_the_pictures_are_of_folds_that_are_made() -> None:
    for name, text in pictures_doc.drawn().items():
        assert (pictures_doc.FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run `make pictures`"


def test_every_option_says_what_it_does() -> None:
    silent = [
        (name, option.name)
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not silent
    assert all(command.help for command in main.commands.values())


@pytest.mark.parametrize("function", api_doc.FUNCTIONS, ids=lambda function: function.__name__)
def test_every_argument_is_described(function: object) -> None:
    assert callable(function)
    text = inspect.getdoc(function) or ""
    described = set(re.findall(r"^    (\w+):", text.split("Args:")[1].split("Raises:")[0], re.MULTILINE))
    assert described == set(inspect.signature(function).parameters)


def test_every_public_name_is_on_the_page() -> None:
    page = api_doc.PAGE.read_text(encoding="utf-8")
    assert all(re.search(rf"^### {name}$|\| `{name}` \|", page, re.MULTILINE) for name in bnfold.__all__)
