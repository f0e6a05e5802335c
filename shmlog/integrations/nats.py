"""NATS: a log in a JetStream stream, which keeps it on several servers.

    stream NAME      subjects NAME.>, on files, nothing can be deleted or purged
    NAME.<log id>    one message a chunk, or one a record; which it is shows, and both may follow each other

    a chunk     Shmlog-Log  Shmlog-Begin  Shmlog-End  Shmlog-Shipper  Shmlog-Last (LSN:checksum)
    a record    see messages; the last one of each write has Shmlog-Shipper too

Invariants, after those of ship
  I17  One conditional write at a time: a message, or several that the server stores all or not at all. The
      first names the subject's last sequence, and the server refuses it if another came between; of two
      writes in flight the second could pass where the first did not.
  I18  The position is read from the stream's leader. A follower may not have the last message yet.
  I19  No Nats-Msg-Id: within its window the server drops a message whose id it has seen, and a chunk that
      is cut otherwise when it is sent again has another end.

A server acknowledges when a majority has the message, and by default not when it is on their disks:
`sync_interval: always` in the server's settings makes it so.

This module knows what is in a stream's messages.  It may not know how a log is read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import shmlog
from shmlog.integrations.jetstream import Connection, Stored
from shmlog.integrations.messages import Message, is_record, joined, of_records, tail_of
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.sinks import Tail, last_of, nothing

REPLICAS: Final = 3
HEADER_BYTES: Final = 1024
"""Of a message's largest size are kept for its headers."""
GROUP: Final = 8
"""Chunks in one write to a stream that is replicated: the servers agree once for all of them. A server
alone only writes them twice."""
ATOMIC_MAX: Final = 1000
"""Messages that a server takes as one."""
LOOK_S: Final = 0.01, 0.25
"""How often a reader that follows looks for more, at first and at last."""

_logger = logging.getLogger("shmlog.ship")


class _Subject:
    """A log's subject in a stream, as it is written to."""

    def __init__(
        self,
        servers: Sequence[str],
        stream: str,
        log_id: str,
        *,
        replicas: int = REPLICAS,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.subject = f"{stream}.{log_id}"
        self._log_id, self._stream, self._replicas = log_id, stream, replicas
        self._connection = Connection(servers, stream, settings or {})
        self._sequence = 0
        self._ensured = self._atomic = False
        self.meanwhile: Callable[[], None] = nothing
        self.chunk_bytes_max = 1 << 20

    def tail(self) -> Tail | None:
        if not self._ensured:
            self._atomic = self._connection.ensure_stream(self._replicas)
            self._ensured = True
        self.chunk_bytes_max = self._connection.max_payload() - HEADER_BYTES
        message = self._connection.last(self.subject)
        self._sequence = 0 if message is None else message.sequence
        return None if message is None else self._tail(message)

    def _tail(self, message: Stored) -> Tail:
        headers = message.headers
        if is_record(headers):
            return tail_of(message.data, headers)
        info = shmlog.chunk_info(message.data)
        if info.log_id != self._log_id:
            raise shmlog.SourceDivergedError(info.end_lsn, f"{self.subject} holds the log {info.log_id}")
        records = shmlog.decode_chunk(message.data)
        lsn, _, checksum = headers.get("Shmlog-Last", "").partition(":")
        last = last_of(records) if len(records) else (int(lsn), int(checksum, 16)) if checksum else None
        return Tail(info.end_lsn, headers.get("Shmlog-Shipper", ""), last)

    def _write(self, messages: list[Message]) -> None:
        """I17."""
        messages[0][1].update(self._condition())
        self._sequence = self._connection.publish(self.subject, messages, self.meanwhile)

    def _condition(self) -> dict[str, str]:
        return {
            "Nats-Expected-Stream": self._stream,
            "Nats-Expected-Last-Subject-Sequence": str(self._sequence),
        }

    def _chunk(self, chunk: bytes, tail: Tail) -> Message:
        headers = {
            "Shmlog-Log": self._log_id,
            "Shmlog-Begin": str(shmlog.chunk_info(chunk).begin_lsn),
            "Shmlog-End": str(tail.end_lsn),
            "Shmlog-Shipper": tail.shipper,
        }
        if tail.last is not None:
            headers["Shmlog-Last"] = f"{tail.last[0]}:{tail.last[1]:08x}"
        return chunk, headers

    def idle(self) -> None:
        self._connection.idle()

    def close(self) -> None:
        self._connection.close()


class NatsSink(_Subject):
    """A log's subject in a stream, for a Shipper: chunks.

    servers: "host" or "host:port"; the stream is made if absent, with so many replicas, and refused if
    it has fewer, or lets messages be deleted. settings: for nats.connect(), by its names. group: the most
    chunks in one write, if more is waiting; None: eight, if the stream is replicated.
    """

    def __init__(
        self,
        servers: Sequence[str],
        stream: str,
        log_id: str,
        *,
        replicas: int = REPLICAS,
        settings: Mapping[str, Any] | None = None,
        group: int | None = None,
    ) -> None:
        super().__init__(servers, stream, log_id, replicas=replicas, settings=settings)
        self._group = group or (GROUP if replicas > 1 else 1)

    @property
    def chunks_max(self) -> int:
        return self._group if self._atomic else 1

    def put(self, chunk: bytes, tail: Tail) -> None:
        self._write([self._chunk(chunk, tail)])

    def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
        self._write([self._chunk(chunk, tail) for chunk, tail in chunks])


class NatsRecordSink(_Subject):
    """The same, with a message a record; the stream must take several messages as one."""

    records_max = ATOMIC_MAX

    def tail(self) -> Tail | None:
        found = super().tail()
        if not self._atomic:
            raise ValueError(f"the stream {self._stream} must have allow_atomic, for a message a record")
        return found

    def put_records(self, records: shmlog.RecordBatch, begin_lsn: int, tail: Tail) -> None:
        if len(records):
            self._write(of_records(records, begin_lsn, tail))
        else:  # nothing to send a message for, and yet the position moves
            empty = shmlog.join_frames(b"", 0, self._log_id, begin_lsn, tail.end_lsn)
            self._write([self._chunk(empty, tail)])


class NatsReader:
    """Reads a log back from a stream, in order; a context manager."""

    def __init__(
        self, servers: Sequence[str], stream: str, log_id: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.subject = f"{stream}.{log_id}"
        self._log_id = log_id
        self._connection = Connection(servers, stream, settings or {})

    def batches(self, follow: bool = False, timeout: float | None = None) -> Iterator[shmlog.RecordBatch]:
        """Yield every chunk's records, from the first that the stream has, checksums checked.

        next_lsn of each is where the next begins: CorruptionError if it begins elsewhere. follow: go on
        as more comes, and after errors of the engine; TimeoutError after so many seconds without any.
        EngineError, but for the latter: begin again.
        """
        sequence, expected = 1, None
        pause_s, quiet_since = LOOK_S[0], time.monotonic()
        while True:
            try:
                messages = self._connection.next(self.subject, sequence)
            except EngineError as error:
                if not follow:
                    raise
                _logger.warning("%s; trying again", error)
                messages = []
            if not messages:
                if not follow:
                    return
                if timeout is not None and time.monotonic() - quiet_since > timeout:
                    raise TimeoutError(f"nothing came on {self.subject} for {timeout:g} s")
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LOOK_S[1])
                continue
            pause_s, quiet_since = LOOK_S[0], time.monotonic()
            sequence = messages[-1].sequence + 1
            for chunk in self._chunks(messages):
                info = shmlog.chunk_info(chunk)
                if info.log_id != self._log_id or (expected is not None and info.begin_lsn != expected):
                    raise shmlog.CorruptionError(
                        self.subject,
                        info.begin_lsn if expected is None else expected,
                        f"a message holds the log {info.log_id} from LSN {info.begin_lsn} on",
                    )
                expected = info.end_lsn
                yield shmlog.decode_chunk(chunk)

    def _chunks(self, messages: list[Stored]) -> Iterator[bytes]:
        """Records that follow each other as one chunk."""
        at = 0
        while at < len(messages):
            stop = at
            while stop < len(messages) and is_record(messages[stop].headers):
                stop += 1
            if stop > at:
                yield from joined([(m.data, m.headers) for m in messages[at:stop]], self._log_id)
            else:
                yield messages[at].data
            at = max(stop, at + 1)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> NatsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
