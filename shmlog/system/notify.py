"""Notify: what a service manager is told, in datagrams to the socket that it names (sd_notify).

    READY=1       once all is well the first time
    WATCHDOG=1    every quarter of the time that the manager gives, while all is well
    STATUS=...    for people: what is served, or what is wrong
    STOPPING=1    it has been told to end

This module knows the manager's protocol.  It may not know what is served, nor when that is well.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable

LOOK_S = 0.02
"""Until it is ready."""
LOOKS_S = 1.0
"""The longest afterwards."""
SENDING_S = 1.0


class Manager:
    """The service manager that started this process, if one did that wants to be told.

    trouble(): what is wrong, "" if all is well, None before that can be said.
    """

    def __init__(self, serving: str, trouble: Callable[[], str | None]) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s()
        self._serving, self._trouble = serving, trouble
        self._told = ""

    def loop(self, stop: threading.Event) -> None:
        """Tell it how it goes, until stop is set."""
        ready = False
        pause_s = LOOKS_S if self._watchdog_s is None else min(LOOKS_S, self._watchdog_s / 4)
        while self._address and not stop.wait(pause_s if ready else LOOK_S):
            trouble = self._trouble()
            if trouble is None:
                continue
            if not trouble and not ready:
                ready = self.say("READY=1")
            self._tell(trouble or self._serving)
            if ready and not trouble and self._watchdog_s is not None:
                self.say("WATCHDOG=1")

    def _tell(self, status: str) -> None:
        if status != self._told and self.say("STATUS=" + status.replace("\n", " ")):
            self._told = status

    def stopping(self) -> None:
        """It has been told to end; from a signal handler, too."""
        self.say("STOPPING=1\nSTATUS=making durable what is committed")

    def say(self, text: str) -> bool:
        """Send it; whether the manager has it."""
        if not self._address.startswith(("/", "@")):
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.settimeout(SENDING_S)  # its queue may be full
            sending.sendto(text.encode(errors="replace"), address)
            return True
        return False


def _watchdog_s() -> float | None:
    """How often at least the manager wants to hear from this process."""
    pid, text = os.environ.get("WATCHDOG_PID"), os.environ.get("WATCHDOG_USEC", "")
    if (pid is not None and pid != str(os.getpid())) or not text.isdigit() or not int(text):
        return None
    return int(text) / 1e6
