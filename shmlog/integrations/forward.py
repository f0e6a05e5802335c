"""Forward: spans that were exported into a log, or messages, to a collector, over OTLP/HTTP, at least once.

    log        | batch | batch | other | batch ... durable_lsn
    request    | batch + batch |                     protobuf adds up: records are joined as they are
    cursor     | ............. |                     behind what the collector has accepted

    answer of the collector                    what is done
    2xx                                        the position moves; spans it rejected are reported
    429, 502, 503, 504, no connection          again after a pause that grows, or as long as Retry-After says
    400, 413, 422, 500 of several records      again, by halves: one bad record stops no others
    the same of a single record                RefusedError, or set aside durably in another log
    others: 401, 404, a redirect ...           CollectorError: it is about no record

Invariants
  I30  The cursor never passes a record that was neither accepted nor set aside durably.
  I31  Only what is below durable_lsn leaves the host, as of ship.

A request whose answer was lost is sent again, and so is what the cursor had not passed when the
forwarder died: a second's worth at most.  Collectors do not tell; what comes twice has the same ids.

This module knows a log's public names and a collector's answers.  It may not know HTTP, nor how spans
come into the log.
"""

from __future__ import annotations

import email.utils
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

import shmlog
from shmlog.integrations.collector import Answer, Collector
from shmlog.integrations.repeating import DURABLE_S, EngineError, Repeating

TRACES: Final = 0x4F54_0001
"""The tag of records that are an ExportTraceServiceRequest: nobody's by chance."""
REQUEST_BYTES: Final = 1 << 20
"""At most so much in a request, unless one record has more; collectors take 20 MiB by default."""
RETRY_AFTER_S_MAX: Final = 3600.0
COMMIT_S: Final = 1.0

AGAIN: Final = frozenset((429, 502, 503, 504))
OF_THE_RECORD: Final = frozenset((400, 413, 422, 500))

_logger = logging.getLogger("shmlog.forward")


class CollectorError(shmlog.ShmlogError):
    """The collector refuses to be spoken to in this way; no record is to blame."""


class RefusedError(shmlog.ShmlogError):
    """The collector refuses a record for good.  Attributes: lsn, reason."""

    def __init__(self, lsn: int, reason: str) -> None:
        super().__init__(lsn, reason)
        self.lsn, self.reason = lsn, reason

    def __str__(self) -> str:
        return f"the collector refuses the record at LSN {self.lsn}: {self.reason}"


def as_it_is(record: shmlog.Record) -> memoryview:
    """Of a record that is a request already."""
    return record.data


class Signal(NamedTuple):
    """What is forwarded: where it is posted, which records are it, and what request each is."""

    path: str
    tags: int | None
    encode: Callable[[shmlog.Record], bytes | memoryview]


SPANS: Final = Signal("/v1/traces", TRACES, as_it_is)


@dataclass(frozen=True, slots=True)
class ForwardStatistics:
    """What a forwarder has done since it was made."""

    position_lsn: int = 0
    """up to here the collector has it, or it was set aside"""
    requests: int = 0
    records: int = 0
    bytes: int = 0
    rejected: int = 0
    """spans, or messages, of accepted requests that the collector would not have"""
    aside: int = 0
    """records that were refused and set aside"""
    retries: int = 0
    last_error: str = ""


class _Part(NamedTuple):
    """Records of one request, and where the position is behind them."""

    records: list[shmlog.Record]
    end_lsn: int


class Forwarder(Repeating):
    """Forwards one log to one collector, from one process.  A context manager.

    signal: SPANS, or Signal("/v1/logs", None, otlplogs.Encoder()) for messages of logging's. name: of
    the cursor that keeps what is not forwarded. aside: a log that takes what the collector refuses for
    good, durably; None: RefusedError.
    """

    def __init__(
        self,
        log: shmlog.Log,
        collector: Collector,
        signal: Signal = SPANS,
        *,
        name: str = "forward",
        aside: shmlog.Log | None = None,
        request_bytes: int = REQUEST_BYTES,
    ) -> None:
        self._cursor = log.cursor(name)  # first: it may be open elsewhere
        super().__init__(log)
        self._collector, self._signal, self._aside = collector, signal, aside
        self._request_bytes = request_bytes
        self._position = self._seen = self._cursor.lsn
        self._parts: Iterator[_Part] = iter(())
        self._next: deque[_Part] = deque()
        self._committed_at = 0.0
        self.statistics = ForwardStatistics(self._position)

    def step(self) -> bool:
        """Forward one request's worth; False if nothing more is durable.

        Blocks as long as the collector takes. EngineError: nothing is lost, call again, best after a
        pause. RefusedError, CollectorError, TrimmedError, CorruptionError: it cannot go on; the cursor
        is behind what was accepted.
        """
        part = self._part()
        if part is None:
            self._commit(DURABLE_S)
            return False
        if part.records:
            try:
                self._send(part)
            except EngineError as error:
                was = self.statistics
                self.statistics = replace(was, retries=was.retries + 1, last_error=str(error))
                raise
            except shmlog.ShmlogError:
                self._commit(0.0)
                raise
        else:
            self._moved(part.end_lsn)
        self._commit(COMMIT_S)
        return True

    def _part(self) -> _Part | None:
        """The next one, which stays the next until _moved()."""
        if not self._next:
            found = next(self._parts, None)
            if found is None:
                self._seen = self._log.durable_lsn
                if self._seen <= self._position:
                    return None
                self._parts = self._cut(self._position, self._seen)
                found = next(self._parts)
            self._next.append(found)
        return self._next[0]

    def _cut(self, begin: int, end: int) -> Iterator[_Part]:
        """The log from begin to end in parts, at least one; the position is never within a record."""
        held: list[shmlog.Record] = []
        size = 0
        for batch in self._log.read_batches(begin, end, self._signal.tags):
            for record in batch:
                if held and size + len(record.data) > self._request_bytes:
                    yield _Part(held, record.lsn)
                    held, size = [], 0
                held.append(record)
                size += len(record.data)
        yield _Part(held, end)

    def _send(self, part: _Part) -> None:
        records = part.records
        data = b"".join(map(self._signal.encode, records))
        answer = self._collector.post(self._signal.path, data)
        if 200 <= answer.status < 300:
            self._count(
                requests=1, records=len(records), bytes=len(data), rejected=_rejected(answer, records)
            )
            self._moved(part.end_lsn)
        elif answer.status in AGAIN:
            error = EngineError(f"collector: {_text(answer)}")
            error.pause_s = _pause_s(answer.retry_after)
            raise error
        elif answer.status not in OF_THE_RECORD:
            raise CollectorError(f"the collector takes nothing from here: {_text(answer)}")
        elif len(records) > 1:
            half = len(records) // 2
            self._next[0] = _Part(records[half:], part.end_lsn)
            self._next.appendleft(_Part(records[:half], records[half].lsn))
        else:
            self._refused(records[0], _text(answer))
            self._moved(part.end_lsn)

    def _refused(self, record: shmlog.Record, why: str) -> None:
        """I30."""
        if self._aside is None:
            raise RefusedError(record.lsn, why)
        lsn = self._aside.append(record.data, record.tag, durable=True)
        _logger.warning(
            "the collector refuses the record at LSN %d: %s; set aside at LSN %d of %s",
            *(record.lsn, why, lsn, self._aside.path),
        )
        self._count(aside=1)

    def _moved(self, position: int) -> None:
        self._next.popleft()
        self._position = position
        self.statistics = replace(self.statistics, position_lsn=position)

    def _count(self, **more: int) -> None:
        was = self.statistics
        self.statistics = replace(was, **{name: getattr(was, name) + count for name, count in more.items()})

    def _commit(self, seconds: float) -> None:
        """The cursor follows, not more often than that."""
        now = time.monotonic()
        if self._cursor.lsn != self._position and now - self._committed_at >= seconds:
            self._cursor.commit(self._position)
            self._committed_at = now

    def _wanted_lsn(self) -> int:
        return self._seen + 1

    def _settle(self) -> None:
        self._commit(0.0)

    @property
    def lag(self) -> shmlog.Lag:
        """How far the collector is behind committed_lsn.  Reads the headers between."""
        self._cursor.seek(max(self._position, self._log.trimmed_lsn))
        return self._cursor.lag

    def close(self) -> None:
        """Let go of cursor and connection; the logs stay open.  Idempotent."""
        if self._close_bell():
            self._cursor.close()
            self._collector.close()

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pause_s(retry_after: str | None) -> float:
    """Seconds that Retry-After asks for, which is a number of them or a date; 0.0 if it says nothing."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), RETRY_AFTER_S_MAX)


def _text(answer: Answer) -> str:
    """What is told of an answer, with the beginning of its body: a text, or a protobuf that has one."""
    text = answer.body[:200].decode(errors="replace")
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return f"{answer.status} {answer.reason}" + (f": {shown}" if shown else "")


def _rejected(answer: Answer, records: list[shmlog.Record]) -> int:
    """How many spans of an accepted request were rejected; reported here.  The answers for other
    signals have the same two fields."""
    try:
        partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    except DecodeError:  # a proxy's page, JSON: it is accepted all the same
        return 0
    if partial.rejected_spans or partial.error_message:
        _logger.warning(
            "the collector rejected %d items of the records from LSN %d to %d: %s",
            *(partial.rejected_spans, records[0].lsn, records[-1].lsn, partial.error_message),
        )
    return int(partial.rejected_spans)
