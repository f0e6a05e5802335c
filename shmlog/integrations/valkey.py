"""Valkey: chunks of a log in a stream of Valkey or Redis.

    KEY:<log id>     entries   0-1  4096-1  8192-1        the id is the chunk's begin LSN, and 1: 0-0 is none
                               chunk, shipper, last (LSN:checksum of the last record)

The server refuses an id that is not above the stream's top. So of two chunks that continue the same
position one is refused, as is one that continues an older position: ids are the condition (I13). A chunk
that continues a later position than the server's passes, though: the position is asked for anew with
every connection, for a server that lost its end has ended them.

A server acknowledges what is in its memory. `appendonly yes` and `appendfsync always` put it on its disk
first; replicas follow later in any case, and a fail-over may lose what was acknowledged. Keep what is
shipped for a while.

This module knows streams of Valkey and chunks.  It may not know how a log is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import shmlog
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.sinks import ConflictError, Tail, last_of

TIMEOUT_S: Final = 5.0
CHUNK_BYTES_MAX: Final = 64 << 20
"""The server takes up to 512 MiB in a field; so much would stop it for everybody else."""


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    """EngineError for what may be better the next time."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise EngineError(f"valkey: {type(error).__name__}: {error}") from error


class _Stream:
    """One log's stream."""

    def __init__(self, server: str, key: str, log_id: str, settings: Mapping[str, Any]) -> None:
        host, _, port = server.partition(":")
        self.key = f"{key}:{log_id}"
        self._log_id = log_id
        self._client: Any = redis.Redis(
            **{
                "host": host,
                "port": int(port or 6379),
                "socket_timeout": TIMEOUT_S,
                "socket_connect_timeout": TIMEOUT_S,
                "retry": Retry(NoBackoff(), 0),  # else it connects anew and sends again, unseen
                "single_connection_client": True,
                **settings,
            }
        )

    def chunk(self, fields: Mapping[bytes, bytes]) -> tuple[bytes, shmlog.ChunkInfo]:
        """What an entry holds; SourceDivergedError if it is another log's."""
        data = fields.get(b"chunk", b"")
        info = shmlog.chunk_info(data)
        if info.log_id != self._log_id:
            raise shmlog.SourceDivergedError(info.end_lsn, f"{self.key} holds the log {info.log_id}")
        return data, info

    def close(self) -> None:
        self._client.close()


class ValkeySink(_Stream):
    """A log's stream in a server, for a Shipper.  settings: for redis.Redis(), by its names."""

    chunk_bytes_max = CHUNK_BYTES_MAX

    def __init__(
        self, server: str, key: str, log_id: str, *, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(server, key, log_id, settings or {})
        self._asked_on: object = None

    def tail(self) -> Tail | None:
        with _engine():
            found = self._client.xrevrange(self.key, count=1)
            self._asked_on = self._socket()
        if not found:
            return None
        fields = found[0][1]
        data, info = self.chunk(fields)
        records = shmlog.decode_chunk(data)
        lsn, _, checksum = fields.get(b"last", b"").decode().partition(":")
        last = last_of(records) if len(records) else (int(lsn), int(checksum, 16)) if checksum else None
        return Tail(info.end_lsn, fields.get(b"shipper", b"").decode(), last)

    def put(self, chunk: bytes, tail: Tail) -> None:
        if self._socket() is not self._asked_on:
            raise EngineError("valkey: the connection was lost")
        fields: dict[Any, Any] = {"chunk": chunk, "shipper": tail.shipper}
        if tail.last is not None:
            fields["last"] = f"{tail.last[0]}:{tail.last[1]:08x}"
        try:
            with _engine():
                self._client.xadd(self.key, fields, id=f"{shmlog.chunk_info(chunk).begin_lsn}-1")
        except EngineError as error:
            if isinstance(error.__cause__, redis.ResponseError) and "equal or smaller" in str(error):
                raise ConflictError(str(error)) from error
            self._asked_on = None
            raise

    def _socket(self) -> object:
        """What the position was asked for on; another one after the connection was made anew."""
        connection = self._client.connection
        return None if connection is None else getattr(connection, "_sock", None)

    def idle(self) -> None:
        """Nothing: the server does not ask who is there."""


class ValkeyReader(_Stream):
    """Reads a log back from a stream, in order; a context manager."""

    def __init__(self, server: str, key: str, log_id: str, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(server, key, log_id, settings or {})

    def batches(self) -> Iterator[shmlog.RecordBatch]:
        """Yield every chunk's records, from the first that the stream has, checksums checked.

        next_lsn of each is where the next begins: CorruptionError if it begins elsewhere. EngineError:
        begin again.
        """
        after, expected = "-", None
        while True:
            with _engine():
                found = self._client.xrange(self.key, min=after, count=1)
            if not found:
                return
            number, fields = found[0]
            data, info = self.chunk(fields)
            if expected is not None and info.begin_lsn != expected:
                raise shmlog.CorruptionError(
                    self.key, expected, f"the entry {number.decode()} begins at LSN {info.begin_lsn}"
                )
            after, expected = f"({number.decode()}", info.end_lsn
            yield shmlog.decode_chunk(data)

    def __enter__(self) -> ValkeyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
