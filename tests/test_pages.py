"""Every command and every program on every page runs, and prints what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.page_files import prepare
from tests.pages import NEEDS, PAGES, ROOT, Block, blocks, commands, inside, matches, python, run

COMMANDS = ("bnfold", "make", "pip", "python", "python3", "torchrun", "docker", "curl", "pre-commit", "polygraphy")

NOT_RUN = {
    ("CONTRIBUTING.md", "environment"): 1,
    ("CONTRIBUTING.md", "repository"): 1,
    ("README.md", "environment"): 2,
    ("cost.md", "hours"): 1,
    ("deploy.md", "gpu"): 2,
    ("deploy.md", "openvino"): 1,
    ("deploy.md", "server"): 1,
    ("end-to-end.md", "repository"): 1,
    ("end-to-end.md", "torch"): 2,
    ("fleet.md", "cluster"): 1,
    ("gpu.md", "gpu"): 5,
    ("guide.md", "environment"): 1,
    ("quantisation.md", "torch"): 1,
    ("recipes.md", "openvino"): 1,
    ("recipes.md", "repository"): 2,
    ("recipes.md", "torch"): 1,
    ("solver.md", "hours"): 2,
    ("training.md", "torch"): 3,
}
"""How many blocks of a page are not run, by the mark that says why."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_page_says_runs_in_its_order(page: Path, tmp_path: Path) -> None:
    todo = [block for block in blocks(page, "sh", "console", "python") if not block.marks]
    prepare(page.name, "\n".join(block.text for block in todo), tmp_path)
    with inside(tmp_path):
        for block in todo:
            follow(block)


def follow(block: Block) -> None:
    if block.language == "python":
        done = python(block.text)
        assert (done.code, done.err) == (0, ""), f"{block.place}: {done.err}"
        return
    for command in commands(block):
        done = run(command.text)
        assert done.code == command.code, f"{block.place}: {command.text}\n{done.out}{done.err}"
        if command.shown is not None:
            printed = done.err + done.out
            assert matches(command.shown, printed), f"{block.place}: {command.text} prints\n{printed}"


def test_what_is_not_run_is_counted_and_has_a_reason() -> None:
    found: dict[tuple[str, str], int] = {}
    for page in PAGES:
        for block in blocks(page):
            assert set(block.marks) <= NEEDS.keys(), f"{block.place}: say in NEEDS what {block.marks} means"
            for mark in block.marks:
                found[page.name, mark] = found.get((page.name, mark), 0) + 1
    assert found == NOT_RUN


def test_no_command_hides_in_a_block_that_is_not_run() -> None:
    """A block without a language may show output, or a synopsis with words in capitals; no command."""
    for page in PAGES:
        for block in blocks(page, "", "text", "bash", "shell"):
            for line in block.text.splitlines():
                word = line.removeprefix("$ ").split(" ")[0]
                synopsis = re.search(r"\b[A-Z]{3,}\b", line)
                assert word not in COMMANDS or synopsis, f"{block.place}: {line}: make it sh or console"


def test_the_targets_of_make_are_there() -> None:
    files = [ROOT / "Makefile", *ROOT.glob("models/*.mk"), *ROOT.glob("tests/*/*.mk")]
    targets = {name for file in files for name in re.findall(r"^([\w.-]+):(?!=)", file.read_text(), re.MULTILINE)}
    for page in PAGES:
        words = re.findall(r"`make ([\w-]+)", page.read_text(encoding="utf-8"))
        words += [
            match for block in blocks(page, "sh") for match in re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE)
        ]
        assert set(words) <= targets, f"{page.name}: {sorted(set(words) - targets)}"


# --------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    names: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        again = found.get(name, 0)
        found[name] = again + 1
        names.add(f"{name}-{again}" if again else name)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists() and there.is_relative_to(ROOT), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target} has no such heading"


def test_every_page_is_on_the_map() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    listed = re.findall(r"^- \[[^]]+\]\(([^)#]+\.md)\)", index, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert pages <= set(listed), f"not in docs/index.md: {sorted(pages - set(listed))}"
