"""Collector: an OTLP/HTTP collector of our own, on loopback, that fails when it is told to.

with Collector() as collector:
    collector.answers.append(Answer(503, {"Retry-After": "1"}))     # the next request's; then 200
    collector.refuse = lambda names: "bad" in names                 # 400, whatever it is next to
    collector.die(), collector.start()                              # at the same port
    collector.spans                                                 # names, as they were accepted
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Answer(NamedTuple):
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""
    accept: bool = False
    """the spans count, whatever the status says"""
    cut: bool = False
    """the connection ends instead of an answer"""
    after: threading.Event | None = None
    """the answer waits for this"""


def partial(rejected: int, message: str) -> bytes:
    """The body of an answer that rejects spans."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


def names_in(data: bytes) -> list[str]:
    """The names of the spans of a request."""
    request = ExportTraceServiceRequest.FromString(data)
    return [
        span.name
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error."""


class Collector:
    """One collector; a context manager."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.read: Callable[[bytes], list[str]] = names_in
        self.refuse: Callable[[list[str]], bool] = lambda names: False
        self.spans: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        """path and headers of each"""
        self._port = 0
        self._open: set[socket.socket] = set()
        self._server: _Server | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                collector._open.add(self.connection)

            def finish(self) -> None:
                collector._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                collector._answer(self, data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        names = self.read(data)
        self.requests.append((handler.path, {k.lower(): v for k, v in handler.headers.items()}))
        if self.answers:
            answer = self.answers.popleft()
        else:
            answer = Answer(400, body=b"bad span") if self.refuse(names) else Answer(accept=True)
        if answer.after is not None:
            answer.after.wait(60)
        if answer.accept:
            self.spans += names
        if answer.cut:
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer.body)

    def die(self) -> None:
        """Refuse connections, and cut those that are open."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            socketserver.TCPServer.server_close(server)
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """In a forked child, which else would hold the port when the collector dies."""
        assert self._server is not None
        self._server.socket.close()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
