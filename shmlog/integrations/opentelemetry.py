"""OpenTelemetry: spans into a log, which keeps them until `shmlog forward` has handed them on.

    processes          BatchSpanProcessor -> ShmlogSpanExporter --.
                       BatchSpanProcessor -> ShmlogSpanExporter --+-> log -> shmlog forward -> collector
    a record a batch   an ExportTraceServiceRequest of OTLP, as protobuf; its tag is TRACES

Protobuf adds up: the bytes of two such requests, one behind the other, are one request with
the spans of both.  So whoever forwards them joins records and need not understand them.

This module knows OpenTelemetry's spans and an appender.  It may not know collectors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

import shmlog
from shmlog.integrations.appender import Appender
from shmlog.integrations.forward import TRACES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

TIMEOUT_S: Final = 10.0
"""OpenTelemetry's own for an export."""

_logger = logging.getLogger("shmlog.opentelemetry")


class ShmlogSpanExporter(SpanExporter):
    """A span exporter that appends each batch to a log, made if absent.

    Give it to a BatchSpanProcessor, in as many processes as you like; forked ones go on with
    their parent's. A batch that was exported survives the death of its process, and with
    durable=True a power cut. timeout: seconds that an export may block at most, the opening of the
    log included; a batch that could not be appended by then is reported, and lost. Further keywords
    are those of shmlog.open().
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = False,
        timeout: float = TIMEOUT_S,
        **options: Any,
    ) -> None:
        self._appender = Appender(path, timeout, options)
        self._durable = durable

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append them, as one record if they fit; FAILURE, and a log message that says why, if not."""
        try:
            self._append(spans)
        except (shmlog.ShmlogError, OSError, ValueError) as error:
            _logger.warning("%s: %d spans are lost: %s", self._appender.path, len(spans), error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _append(self, spans: Sequence[ReadableSpan]) -> None:
        if not spans:
            return
        data = encode_spans(spans).SerializeToString()
        try:
            self._appender.append(data, TRACES, self._durable)
        except shmlog.RecordTooLargeError:
            if len(spans) == 1:
                raise
            half = len(spans) // 2
            self._append(spans[:half])
            self._append(spans[half:])

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until what was exported is durable; whether it is."""
        try:
            self._appender.wait_durable(timeout_millis / 1000)
        except (shmlog.ShmlogError, OSError) as error:
            _logger.warning("%s: not durable: %s", self._appender.path, error)
            return False
        return True

    def shutdown(self) -> None:
        """Close the log; what is exported afterwards fails.  Idempotent."""
        try:
            self._appender.close()
        except (shmlog.ShmlogError, OSError) as error:
            _logger.warning("%s: %s", self._appender.path, error)
