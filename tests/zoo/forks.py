"""Jobs that may crash or hang, each in a fork of a process that has imported what they need once.

Only the standard library: it runs in the rivals' environment too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(job: Callable[[list[str]], Any]) -> None:
    """For every line on stdin, `[limit, argument, ...]`, print what the job gives: a JSON object a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the jobs print is no answer
    for line in sys.stdin:
        limit, *arguments = json.loads(line)
        answers.write(json.dumps(_run(job, arguments, limit)) + "\n")


def _run(job: Callable[[list[str]], Any], arguments: list[str], limit: float) -> dict[str, Any]:
    """`{"result": ...}` or `{"failure": what kind, "detail": its message}`, and the seconds."""
    start = time.perf_counter()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = {"result": job(arguments)}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the parent
            lines = str(error).strip().splitlines() or [""]
            answer = {"failure": "crash", "detail": f"{type(error).__name__}: {lines[0][:200]}"}
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    text = ""
    with os.fdopen(reader) as pipe:
        if select.select([pipe], [], [], limit)[0]:
            text = pipe.read()
        else:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - start
    if text:
        return json.loads(text) | {"seconds": seconds}
    if seconds >= limit:
        return {"failure": "timeout", "detail": f"stopped after {limit:.0f} s", "seconds": seconds}
    return {"failure": "crash", "detail": f"died with signal {os.WTERMSIG(status)}", "seconds": seconds}


class Worker:
    """The other end: a process that serves, started when it is first asked."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.command, self.options = command, options
        self._process: subprocess.Popen[str] | None = None

    def ask(self, limit: float, *arguments: str) -> dict[str, Any]:
        """Run one job; see `serve`."""
        if self._process is None:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                **self.options,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([limit, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.command)} ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
