"""Collector: requests to an OpenTelemetry collector over HTTP, and what it answers.

    Collector("https://host:4318/prefix", headers).post("/v1/traces", request)

Headers may be secrets: no message shows one, nor a URL.

This module knows HTTP.  It may not know what is posted, nor what an answer means.
"""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from shmlog.integrations.configuration import refuse_secrets
from shmlog.integrations.repeating import EngineError

TIMEOUT_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 64 << 10

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\xa0-\xff]*")
"""What http.client would show in its error, were it anything else."""


class Answer(NamedTuple):
    """What a collector says to a request."""

    status: int
    reason: str
    retry_after: str | None
    body: bytes


def check_url(url: str) -> SplitResult:
    """A collector's URL, taken apart; ValueError, which does not show it, if it is none."""
    refuse_secrets(url)
    parts = urlsplit(url)
    _ = parts.port  # ValueError
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("a collector's URL is http://HOST[:PORT][/PATH], or https://")
    return parts


class Collector:
    """Where to post to: the base URL of a collector, http://host:4318, and what to say beside."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        ca_file: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        parts = check_url(url)
        if not isinstance(timeout, (int, float)) or not 0 < timeout <= 3600:
            raise ValueError(f"timeout must be a number of seconds, not {timeout!r}")
        for name, value in (headers or {}).items():
            if not _NAME.fullmatch(name) or not isinstance(value, str) or not _VALUE.fullmatch(value):
                raise ValueError(f"the header {name!r}, or its value, is none that HTTP takes")
        self._base = parts.path.rstrip("/").removesuffix("/v1/traces")
        self._headers = {**(headers or {}), "Content-Type": "application/x-protobuf"}
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
            return
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ValueError(f"ca_file: {ca_file}: {error.strerror or error}") from error
        self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)

    def post(self, path: str, data: bytes) -> Answer:
        """The answer of what is at that path below the URL; EngineError if there is none.

        Over a connection that was idle it is tried twice: the other end may have closed it meanwhile."""
        idle = self._connection.sock is not None
        try:
            return self._post(path, data)
        except (http.client.HTTPException, OSError) as error:
            self.close()
            if not idle or isinstance(error, TimeoutError):
                raise self._trouble(error) from error
        try:
            return self._post(path, data)
        except (http.client.HTTPException, OSError) as error:
            self.close()
            raise self._trouble(error) from error

    def _post(self, path: str, data: bytes) -> Answer:
        self._connection.request("POST", self._base + path, data, self._headers)
        response = self._connection.getresponse()
        body = response.read(ANSWER_BYTES_MAX)
        if response.will_close or not response.isclosed():
            self.close()
        return Answer(response.status, response.reason, response.getheader("Retry-After"), body)

    def _trouble(self, error: Exception) -> EngineError:
        where = f"{self._connection.host}:{self._connection.port}"
        return EngineError(f"collector {where}: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Close the connection; the next post() opens another."""
        self._connection.close()


def headers_of(text: str) -> dict[str, str]:
    """Headers as OTEL_EXPORTER_OTLP_HEADERS has them: name=value,name=value, percent-encoded.

    ValueError, which shows nothing of it.
    """
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ValueError("headers are name=value,name=value, percent-encoded")
        found[name.strip()] = unquote(value.strip())
    return found
