"""The page docs/api.md, made from signatures and docstrings; `python -m tests.api_doc` writes it."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import bnfold
from bnfold import errors, results

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

FIRST = ("optimize", "explain", "verify", "bench")
"""The usual order of use; what else there is comes behind."""

FUNCTIONS: list[Callable[..., Any]] = [
    getattr(bnfold, name) for name in dict.fromkeys([*FIRST, *sorted(bnfold.__all__)]) if name.islower()
]

INNER = ("bnfold.witness", "bnfold.regions", "bnfold.affine")
"""What results hold for bnfold's own use."""

ALIASES = {
    "ModelLike": "a path (`str` or `os.PathLike`), the bytes of a model, or an `onnx.ModelProto`",
    "InputsLike": "a mapping of arrays by input name, a sequence of such, or a path as `--inputs` takes it",
    "LabelsLike": "a sequence of integers, an array, or a path as `--labels` takes it",
    "Progress": "a function that is called with one line of text for each step",
}
"""Types of arguments, in words."""

HEAD = """\
# The library

`import bnfold` gives {names}; everything else may change without notice.
The package is typed (`py.typed`), never modifies a model that it is given, and prints nothing. Importing it loads
neither numpy nor onnx; the first use does.

```python
import bnfold

result = bnfold.optimize("model.onnx", "model.folded.onnx")
print(result.status, result.batchnorm.before, "->", result.batchnorm.after)
for affine in result.affines:
    if affine.status == "kept":
        print(affine.node, affine.reasons[0].code, affine.reasons[0].text)

assert bnfold.verify("model.onnx", "model.folded.onnx").passed
```

In the signatures:

{aliases}
"""


def page() -> str:
    """The whole page."""
    names = ", ".join(f"`{name}`" for name in sorted(bnfold.__all__))
    parts = [HEAD.format(names=names, aliases="\n".join(f"- `{name}`: {text}" for name, text in ALIASES.items()))]
    parts += ["## Functions\n", *(line for function in FUNCTIONS for line in _function(function))]
    parts += ["## Results\n", "Frozen dataclasses. `to_json()` gives what `--json` writes ([json.md](json.md)).\n"]
    parts += [line for kind in _results() for line in _class(kind)]
    parts += ["## Errors\n", *_errors()]
    return "\n".join(parts)


def _function(function: Callable[..., Any]) -> Iterator[str]:
    yield f"### {function.__name__}\n"
    signature = inspect.signature(function)
    lines = [f"    {parameter}," for parameter in _parameters(signature)]
    code = "\n".join([f"bnfold.{function.__name__}(", *lines, f") -> {signature.return_annotation}"])
    yield "```text\n" + code.replace("'", "").replace("source.ModelLike", "ModelLike") + "\n```\n"
    yield _prose(inspect.getdoc(function) or "") + "\n"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    starred = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        yield str(parameter)


def _prose(text: str) -> str:
    """A docstring of Google's style as Markdown: its sections become lists."""
    text = re.sub(r":func:`(\w+)`", r"[`\1`](#\1)", text)
    out: list[str] = []
    section = False
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Raises|Returns):", line):
            section = True
            out += [f"**{line[:-1]}**", ""]
        elif section and (item := re.match(r"    (\w+): (.*)", line)):
            out.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("        "):
            out[-1] += " " + line.strip()
        else:
            section = section and not line
            out.append(line)
    return "\n".join(out)


def _results() -> list[type]:
    """The classes of what the functions give, and of what lies in it."""
    found: list[type] = []
    todo: list[Any] = [typing.get_type_hints(function, localns=vars(results))["return"] for function in FUNCTIONS]
    while todo:
        kind = todo.pop(0)
        todo += typing.get_args(kind)
        if is_dataclass(kind) and isinstance(kind, type) and kind not in found and kind.__module__ not in INNER:
            found.append(kind)
            todo += [typing.get_type_hints(kind)[field.name] for field in fields(kind)]
    return found


def _class(kind: type) -> Iterator[str]:
    (parent,) = kind.__bases__
    yield f"### {kind.__name__}\n"
    yield _prose(inspect.getdoc(kind) or "") + "\n"
    (body,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    yield "```text"
    yield f"{kind.__name__}{'' if parent is object else f'({parent.__name__})'}"
    for statement, behind in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            yield f"    {ast.unparse(statement.target)}: {ast.unparse(statement.annotation)}{_comment(behind)}"
        elif isinstance(statement, ast.FunctionDef) and not statement.name.startswith("_"):
            call = "" if any(ast.unparse(each) == "property" for each in statement.decorator_list) else "()"
            returns = f" -> {ast.unparse(statement.returns)}" if statement.returns else ""
            yield f"    {statement.name}{call}{returns}{_comment(statement.body[0])}"
    yield "```\n"


def _comment(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return "  # " + " ".join(str(statement.value.value).split())
    return ""


def _errors() -> Iterator[str]:
    yield "All in `bnfold.errors`; `str(error)` is one or two lines that say what to do.\n"
    yield "| error | is a | exit code | when |\n|---|---|---:|---|"
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.BnfoldError):
            first = (inspect.getdoc(kind) or "").splitlines()[0]
            yield f"| `{kind.__name__}` | `{kind.__bases__[0].__name__}` | {kind.exit_code} | {first} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
