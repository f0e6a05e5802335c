"""Page: a log's metrics over HTTP, and one page that shows the log as it moves.

    GET /             the page: one HTML file, which asks for nothing but
    GET /state.json   what it draws: now, and the last minutes
    GET /metrics      OpenMetrics text

What is served is a look: nothing of the log can be changed from here.  Nothing but these
three paths exists, no file is named by a request.  A request has SECONDS, a handful are
served at a time, and the Host that it names must be an address, localhost, or what was
listened on by name: a foreign web page cannot ask by a name of its own (DNS rebinding).

This module knows HTTP and looks.  It may not know how a log is used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from shmlog.errors import ShmlogError
from shmlog.handle.readonly import ReadonlyLog, open_readonly
from shmlog.tools.metrics import CONTENT_TYPE, render

SECONDS = 5.0
REQUESTS_MAX = 16
EVERY_S = 1.0
HISTORY = 300
"""Looks that are kept: five minutes of them."""
KEPT = (
    "time_ns",
    "reserved_lsn",
    "committed_lsn",
    "durable_lsn",
    "trimmed_lsn",
    "records",
    "payload_bytes",
    "syncs",
)

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self';"
        " img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Watched:
    """A log that is looked at every second."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._log: ReadonlyLog | None = open_readonly(path)
        self._history: deque[dict[str, int]] = deque(maxlen=HISTORY)
        self._ending = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="shmlog-page", daemon=True)
        self._sampler.start()

    def metrics(self) -> str:
        """OpenMetrics text; errors as open_readonly()."""
        with self._lock:
            return render(self._opened().statistics().metrics(), self._opened().path)

    def state(self) -> dict[str, Any]:
        """What the page draws; errors as open_readonly()."""
        with self._lock:
            log = self._opened()
            now = log.statistics()
            facts = now.to_dict()
            return facts | {
                "path": log.path,
                "live": log.live,
                "segment_bytes": log._directory.identity.geometry.segment_bytes,
                "window_bytes": log._directory.identity.geometry.window_bytes,
                "sync_p50_s": now.sync_quantile_s(0.5),
                "sync_p99_s": now.sync_quantile_s(0.99),
                "history": [list(look.values()) for look in self._history],
                "history_columns": KEPT,
            }

    def close(self) -> None:
        self._ending.set()
        self._sampler.join()
        if self._log is not None:
            self._log.close()

    def _opened(self) -> ReadonlyLog:
        if self._log is None:
            self._log = open_readonly(self.path)
        return self._log

    def _sample(self) -> None:
        while not self._ending.wait(EVERY_S):
            with self._lock:
                try:
                    now = self._opened().statistics()
                    self._history.append({name: getattr(now, name) for name in KEPT})
                except (ShmlogError, OSError):  # whoever asks is told; it may come back, or another log
                    if self._log is not None:
                        self._log.close()
                    self._log = None


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS
    server_version, sys_version = "shmlog", ""
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        if not self.server.may_ask(self.headers.get("Host", "")):
            self._answer(421, "text/plain", b"this is not served under that name\n")
            return
        watched = self.server.watched
        try:
            if self.path == "/":
                self._answer(
                    200, "text/html; charset=utf-8", Path(__file__).with_name("page.html").read_bytes()
                )
            elif self.path == "/state.json":
                self._answer(200, "application/json", json.dumps(watched.state()).encode())
            elif self.path == "/metrics":
                self._answer(200, CONTENT_TYPE, watched.metrics().encode())
            else:
                self._answer(404, "text/plain", b"there are /, /metrics and /state.json\n")
        except (ShmlogError, OSError) as error:
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise
            text = json.dumps({"error": type(error).__name__, "message": str(error)})
            self._answer(503, "application/json", text.encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: who asks, and how often, is of no interest."""


class Server(HTTPServer):
    """Serves one log until shutdown(); listens once it is made.  OSError where it cannot."""

    allow_reuse_address = True

    def __init__(self, path: str, host: str, port: int) -> None:
        self._names = {"localhost", socket.gethostname().lower(), host.lower()}
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._room = threading.BoundedSemaphore(REQUESTS_MAX)
        super().__init__((host, port), _Handler)
        try:
            self.watched = Watched(path)
        except BaseException:
            super().server_close()
            raise

    @property
    def address(self) -> str:
        """Where it listens, as a URL has it."""
        host, port = self.server_address[:2]
        shown = host.decode() if isinstance(host, bytes) else str(host)
        return f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"

    def may_ask(self, host: str) -> bool:
        """Whether a request's Host is an address, or a name by which this is known."""
        name = host.strip().lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        else:
            name = name.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    def server_bind(self) -> None:
        """As the base class, but for asking the name service what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; who comes when all are busy is sent away."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        request.settimeout(SECONDS)
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        cut = threading.Timer(2 * SECONDS, self._cut, (request,))  # who sends a byte now and then
        cut.daemon = True
        cut.start()
        try:
            self.finish_request(request, client_address)
        except (OSError, ValueError):  # it has gone, or was too slow
            pass
        finally:
            cut.cancel()
            self.shutdown_request(request)
            self._room.release()

    def _cut(self, request: socket.socket) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def server_close(self) -> None:
        super().server_close()
        self.watched.close()


def serve(server: Server, seconds: float | None = None) -> None:
    """Serve until Ctrl-C, or for so long."""
    end = None if seconds is None else time.monotonic() + seconds
    server.timeout = 0.5
    try:
        while end is None or time.monotonic() < end:
            server.handle_request()
    finally:
        server.server_close()
