"""A real browser, Debian's chromium, driven through a pipe: what it fetches, and how a page lies in a window.

The protocol is Chromium's own (`--remote-debugging-pipe`): JSON messages that end with a zero byte. It needs no driver,
no port and no download.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip


def found() -> str | None:
    """The browser's program, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of a running browser."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self.requests: list[str] = []
        """Address of everything that the tab asked for."""
        self.complaints: list[str] = []
        """What the page's own rules forbade, and errors on the console."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self._event(answer)

    def open(self, page: Path, width: int, height: int = 800, dark: bool = False) -> None:
        """Show a file in a window of this size, and wait until it lies there."""
        self.requests.clear()
        self.complaints.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + SECONDS
        while self.value("document.readyState") != "complete" or self.value("location.href") == "about:blank":
            assert time.monotonic() < deadline, f"{page} was not shown"
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._back], [], [], SECONDS)[0], "the browser does not answer"
            piece = os.read(self._back, 1 << 16)
            assert piece, "the browser has gone"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def _event(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))


@contextlib.contextmanager
def browser(program: str, home: Path, options: Sequence[str] = OPTIONS) -> Iterator[Browser]:
    """A browser with its own empty profile, closed at the end."""
    read_commands, to = os.pipe()
    back, write_answers = os.pipe()
    # The protocol wants descriptors 3 and 4.
    script = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
    command = ["bash", "-c", script, program, *options, f"--user-data-dir={home}"]
    with subprocess.Popen(
        command, pass_fds=(read_commands, write_answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(read_commands)
        os.close(write_answers)
        try:
            yield Browser(to, back)
        finally:
            os.close(to)  # the browser goes when nobody commands it any more
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
            os.close(back)
