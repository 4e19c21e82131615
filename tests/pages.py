"""The pages of the documentation: the commands and the Python in them, what they show, and the files that they name.

A fenced block of a page is one of

    sh        commands, run in the order of the page, all in one folder; `# exit code 3` behind one that fails
    console   `$ command`, and below it what it prints; a line `...` stands for any lines
    python    a program, run as one

and may carry marks behind its language (```` ```sh torch ````): it is not run here, for the reason in `NEEDS`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.program import Done, bnfold

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]

NEEDS = {
    "environment": "makes an environment or installs packages",
    "torch": "trains or exports with PyTorch; run in .venv-train",
    "gpu": "needs an NVIDIA GPU, or installs what needs one",
    "docker": "needs Docker",
    "openvino": "needs OpenVINO, which is in no environment of the project",
    "server": "needs a server that runs",
    "cluster": "needs a Ray cluster; run by `make ray`",
    "hours": "takes long, and writes what the pages show",
    "repository": "runs the project's own tests or tools in its repository",
}
"""Why a block is not run."""

SHELL = re.compile(r"[|&;<>$()*?`\[]")
"""What only a shell understands."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        """As an editor understands it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a page: what it should end with and, where the page shows it, print."""

    text: str
    code: int
    shown: tuple[str, ...] | None = None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages; all where none is named."""
    found: list[Block] = []
    start, fence, language, lines = 0, "", "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        opened = re.match(r"\s*(```+)(.*)", line)
        if not fence and opened:
            start, fence, language, lines = number, opened[1], opened[2].strip(), []
        elif fence and line.strip() == fence:
            name, *marks = language.split() or [""]
            found.append(Block(page, start, name, tuple(marks), "\n".join(lines)))
            fence = ""
        elif fence:
            lines.append(line)
    assert not fence, f"{page.name}:{start}: a block without end"
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a `sh` or `console` block, comments taken off."""
    if block.language == "sh":
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            command, _, comment = re.sub(r"(^|\s)#", "\0", line, count=1).partition("\0")
            if command.strip():
                code = re.search(r"exit code (\d+)$", comment)
                yield Command(command.strip(), int(code[1]) if code else 0)
        return
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        first, *shown = part.rstrip("\n").splitlines()
        command, _, comment = first.partition("  #")
        code = re.search(r"exit code (\d+)$", comment)
        yield Command(command.strip(), int(code[1]) if code else 0, tuple(shown))


def run(command: str) -> Done:
    """Run a command in the current folder: in this process where it is bnfold alone, else in bash."""
    command = re.sub(r"^(bnfold bench\b[^|;&]*)", r"\1 --seconds 0", command)  # as short as can be: not what is shown
    if command.startswith("bnfold ") and not SHELL.search(command):
        return bnfold(*shlex.split(command)[1:])
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": search, "PYTHONWARNINGS": ""}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, check=False, env=env
    )
    return Done(done.returncode, done.stdout, done.stderr)


def python(code: str) -> Done:
    """Run a program in the current folder."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    return Done(done.returncode, done.stdout, done.stderr)


def matches(shown: tuple[str, ...], printed: str) -> bool:
    """Whether the page shows what was printed: numbers with a point and times may differ, `...` is any lines."""
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(_comparable(line)) + "\n" for line in shown)
    text = "".join(_comparable(line) + "\n" for line in printed.splitlines())
    return re.fullmatch(pattern, text) is not None


def _comparable(line: str) -> str:
    if line.strip().startswith("time"):
        return "time"
    return re.sub(r"\d+\.\d+(e[+-]\d+)?|\d+e[+-]\d+", "#", line).rstrip()


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[Path]:
    """Work in this folder."""
    with contextlib.chdir(folder):
        yield folder
