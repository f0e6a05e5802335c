"""Serving: the process of a server that a test starts, kills and starts again, on a port of the loopback.

Served is the base of the engines' servers, each of which says how it is started and when it answers.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from support.processes import DEADLINE_S, until


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Served(ABC):
    """A server with its files below a directory, which it keeps when it is killed."""

    START_S = DEADLINE_S

    def __init__(self, path: Path, port: int) -> None:
        self.path, self.port = path, port
        path.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it."""

    @abstractmethod
    def answers(self, wire: socket.socket) -> bool:
        """Whether it answers; wire: a connection that it has taken."""

    def start(self, wait: bool = True) -> None:
        with (self.path / "output").open("ab") as output:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.path
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        process = self.process
        assert process is not None

        def answers() -> bool:
            assert process.poll() is None, (self.path / "output").read_text()[-2000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as wire:
                return self.answers(wire)
            return False

        until(answers, "the server answers", self.START_S)

    def kill(self) -> None:
        """kill -9, and reap."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


Kind = TypeVar("Kind", bound=Served)


@contextlib.contextmanager
def running(one: Kind) -> Iterator[Kind]:
    """The server, killed at the end."""
    try:
        one.start()
        yield one
    finally:
        one.kill()
