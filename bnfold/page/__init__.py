"""The report as one HTML page: self-contained, without a script, readable on a phone, on paper and in the dark.

Names in a model may hold anything: every text goes through the template's escaping, and what does not print becomes a
question mark. The page forbids its own browser to fetch anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bnfold.page.view import Section, channels, section
from bnfold.reasons import CODES
from bnfold.report import clean

__all__ = ["Section", "render", "section"]


def render(sections: Sequence[Section]) -> str:
    """The page of one or several results."""
    environment = Environment(
        loader=PackageLoader("bnfold.page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"channels": channels, "meaning": CODES.__getitem__}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("page.html").render(sections=sections, version=version("bnfold"), now=now) + "\n"


def _printable(value: Any) -> Any:
    return value if isinstance(value, Markup) else clean(str(value))
