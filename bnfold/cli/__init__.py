"""The command line: each command parses, calls the library, renders, and gives an exit code.

0 done, 1 cannot, 2 wrong usage, 3 not equivalent; 130 when interrupted. stdout carries results (what was written, the
verdict, `--json -`); the report, progress and errors go to stderr.
"""

from bnfold.cli.commands import main

__all__ = ["main"]
