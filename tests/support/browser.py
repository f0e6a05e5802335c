"""A headless Chromium of the distribution, spoken to over its pipe: no driver, no package.

    with Browser(CHROMIUM) as browser:
        browser.go(url)
        browser.until("document.title !== ''")
        browser.evaluate("document.title")
        browser.asked           # the URL of every request that the page made
        browser.said            # errors and warnings on its console, and exceptions

    python -m support.browser URL PICTURE.png [--width 1100] [--height 900] [--dark] [--wait SECONDS]

Chromium reads commands of the DevTools protocol on descriptor 3 and answers on 4: JSON, a zero
byte after each.  Everything that it keeps is in a directory that goes with it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
"""The program, or None: the test says that `apt install chromium-headless-shell` brings it."""

DEADLINE_S = 60.0
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # as root and in containers there is none; the only page is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
)


class Browser:
    """One Chromium with one page."""

    def __init__(self, program: str, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self._numbers = itertools.count(1)
        self._rest = b""
        self._place = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        command = [program, *OPTIONS, f"--user-data-dir={self._place.name}", "about:blank"]
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        theirs = [
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (read, write)
        ]  # out of the way of 3, 4
        self._pid = os.posix_spawn(
            program,
            command,
            {**os.environ, "HOME": self._place.name},
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)),
                *((os.POSIX_SPAWN_DUP2, theirs[n], 3 + n) for n in (0, 1)),
            ],
            setsid=True,  # its helpers die with it, by their group
        )
        for fd in (read, write, *theirs):
            os.close(fd)
        try:
            self._open(width, height, dark)
        except BaseException:
            self.close()
            raise

    def _open(self, width: int, height: int, dark: bool) -> None:
        self._session = None
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.prefer(dark)

    def prefer(self, dark: bool) -> None:
        """Pages are to be dark, or light."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def go(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """What the expression is, as JSON has it."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, script: str, timeout: float = DEADLINE_S) -> Any:
        """Evaluate until it is true; what it was."""
        deadline = time.monotonic() + timeout
        while not (value := self.evaluate(script)):
            if time.monotonic() >= deadline:
                shown = self.evaluate("document.body.innerText")
                raise AssertionError(f"not within {timeout:g} s: {script}\n{shown}")
            time.sleep(0.05)
        return value

    def picture(self, whole: bool = False) -> bytes:
        """The page as PNG; whole: all of it, however long."""
        if whole:
            tall = self.evaluate("document.documentElement.scrollHeight")
            wide = self.evaluate("window.innerWidth")
            clip = {"x": 0, "y": 0, "width": wide, "height": tall, "scale": 1}
            answer = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        else:
            answer = self._call("Page.captureScreenshot")
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **arguments: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], DEADLINE_S)
            assert ready, f"Chromium said nothing for {DEADLINE_S:g} s"
            more = os.read(self._in, 1 << 16)
            assert more, "Chromium has ended"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)  # type: ignore[no-any-return]

    def _note(self, event: str | None, facts: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(facts["request"]["url"])
        elif event == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.said.append(f"{facts['entry']['text']} {facts['entry'].get('url', '')}")
        elif event == "Runtime.exceptionThrown":
            self.said.append(str(facts["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.said.append(str(facts["args"]))

    def close(self) -> None:
        os.close(self._out)  # it ends by itself then
        deadline = time.monotonic() + 10
        ended = False
        while not ended and time.monotonic() < deadline:
            ended = os.waitpid(self._pid, os.WNOHANG) != (0, 0)
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if not ended:
            os.waitpid(self._pid, 0)
        os.close(self._in)
        self._place.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m support.browser")
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--wait", type=float, default=3.0, help="seconds before the picture is taken")
    chosen = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit(f"none of {', '.join(NAMES)} is here")
    with Browser(CHROMIUM, chosen.width, chosen.height, chosen.dark) as browser:
        browser.go(chosen.url)
        time.sleep(chosen.wait)
        chosen.picture.write_bytes(browser.picture(whole=True))
        for line in browser.said:
            print(line)


if __name__ == "__main__":
    main()
