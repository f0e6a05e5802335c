"""NATS: chunks of a log in a JetStream stream, which keeps them on several servers.

    stream NAME      subjects NAME.>, on files, nothing can be deleted or purged
    NAME.<log id>    one message a chunk; what a chunk holds of the log is in its headers too

    Shmlog-Log  Shmlog-Begin  Shmlog-End  Shmlog-Shipper  Shmlog-Last (LSN:checksum of the last record)

Invariants, after those of ship
  I17  One conditional publish at a time. Each names the subject's last sequence, and the server refuses it
      if another came between; of two in flight the second could pass where the first did not.
  I18  The position is read from the stream's leader. A follower may not have the last message yet.
  I19  No Nats-Msg-Id: within its window the server drops a message whose id it has seen, and a chunk that
      is cut otherwise when it is sent again has another end.

A server acknowledges when a majority has the message, and by default not when it is on their disks:
`sync_interval: always` in the server's settings makes it so.

This module knows JetStream and chunks.  It may not know how a log is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import nats
import nats.errors
import nats.js.api
import nats.js.errors
from nats.aio.client import Client

import shmlog
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import ConflictError, Tail, last_of

REPLICAS: Final = 3
TIMEOUT_S: Final = 5.0
CONNECT_S: Final = 5.0
RECONNECT_S: Final = 1.0
HEADER_BYTES: Final = 1024
"""Of a message's largest size are kept for its headers."""
LOOK_S: Final = 0.01, 0.25
"""How often a reader that follows looks for more, at first and at last."""
_WRONG_LAST: Final = (10071, 10164)
_NO_PEERS: Final = (10005, 10074)
_Result = TypeVar("_Result")

_logger = logging.getLogger("shmlog.ship")


def _tls(files: Mapping[str, str]) -> ssl.SSLContext:
    """ca_file, and cert_file with key_file for a server that asks who we are."""
    context = ssl.create_default_context(cafile=files.get("ca_file"))
    if "cert_file" in files:
        context.load_cert_chain(files["cert_file"], files.get("key_file"))
    return context


class _Connection:
    """A connection of nats-py whose calls block.  The server's pings are answered in calls, and in idle():
    a thread for that would be two switches more for each chunk."""

    def __init__(self, servers: Sequence[str], stream: str, settings: Mapping[str, Any]) -> None:
        self._stream = stream
        self._settings = {"name": "shmlog", **settings}
        if isinstance(settings.get("tls"), Mapping):
            self._settings["tls"] = _tls(settings["tls"])
        self._servers = [server if "://" in server else f"nats://{server}" for server in servers]
        self._loop = asyncio.new_event_loop()
        self._nats: Client | None = None
        self._lost = asyncio.Event()

    def connected(self) -> Client:
        if self._nats is None:
            self._nats = self._call(self._connect(), CONNECT_S)
        if not self._nats.is_connected:
            self._loop.run_until_complete(self._reconnect(self._nats))
        return self._nats

    async def _reconnect(self, connection: Client) -> None:
        """Let the library do it: it can only while its loop runs."""
        deadline = self._loop.time() + RECONNECT_S
        while not connection.is_connected:
            if self._loop.time() > deadline:
                raise EngineError("nats: not connected")
            await asyncio.sleep(0.01)

    async def _connect(self) -> Client:
        async def silent(error: Exception) -> None:
            """What matters comes out of the calls."""

        async def lost() -> None:
            self._lost.set()

        async def found() -> None:
            self._lost.clear()

        connection: Client = await nats.connect(
            servers=self._servers,
            connect_timeout=int(TIMEOUT_S),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,
            error_cb=silent,
            disconnected_cb=lost,
            reconnected_cb=found,
            **self._settings,
        )
        return connection

    def _call(self, work: Coroutine[Any, Any, _Result], timeout_s: float = TIMEOUT_S + 1) -> _Result:
        """Run it on the thread; EngineError for what may be better the next time."""

        async def bounded() -> _Result:
            working = asyncio.ensure_future(work)
            lost = asyncio.ensure_future(self._lost.wait())  # else an answer is waited for that cannot come
            done, pending = await asyncio.wait(
                (working, lost), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in pending:
                task.cancel()
            if working in done:
                return await working
            raise EngineError(f"nats: {'the connection was lost' if done else 'no answer'}")

        try:
            return self._loop.run_until_complete(bounded())
        except nats.js.errors.APIError as error:
            if isinstance(error, nats.js.errors.NotFoundError) or error.err_code in _NO_PEERS:
                raise
            raise EngineError(f"nats: {error.description or error.code} ({error.err_code})") from error
        except EngineError:
            raise
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise EngineError(f"nats: {type(error).__name__}: {error}".rstrip(": ")) from error

    def last(self, subject: str) -> nats.js.api.RawStreamMsg | None:
        """I18: the stream's last message of the subject."""
        try:
            found: nats.js.api.RawStreamMsg = self._call(
                self.connected().jsm().get_msg(self._stream, subject=subject)
            )
        except nats.js.errors.NotFoundError as error:
            if error.err_code == 10037:  # no message found
                return None
            raise EngineError(f"nats: there is no stream {self._stream}") from error
        return found

    def next(self, subject: str, sequence: int) -> nats.js.api.RawStreamMsg | None:
        """The first message of the subject at or above a sequence."""
        try:
            manager = self.connected().jsm()
            found: nats.js.api.RawStreamMsg = self._call(
                manager.get_msg(self._stream, sequence, subject, next=True, direct=True)
            )
        except nats.js.errors.NotFoundError:
            return None
        return found

    def ensure_stream(self, replicas: int) -> None:
        """Make the stream, or see that it keeps what it is given; ValueError if it does not."""
        manager = self.connected().jsm()
        try:
            has = self._call(manager.stream_info(self._stream)).config
        except nats.js.errors.NotFoundError:
            config = nats.js.api.StreamConfig(
                name=self._stream,
                subjects=[f"{self._stream}.>"],
                storage=nats.js.api.StorageType.FILE,
                num_replicas=replicas,
                deny_delete=True,
                deny_purge=True,
                allow_direct=True,
                allow_atomic=True,
            )
            try:
                has = self._call(manager.add_stream(config)).config
            except nats.js.errors.APIError as error:
                raise ValueError(
                    f"the stream {self._stream} cannot have {replicas} replicas here"
                    f" ({error.description}); replicas=1 must be asked for"
                ) from error
        if has.storage != nats.js.api.StorageType.FILE or not (has.deny_delete and has.deny_purge):
            raise ValueError(f"the stream {self._stream} must be on files, with deny_delete and deny_purge")
        if (has.num_replicas or 1) < replicas:
            raise ValueError(
                f"the stream {self._stream} has {has.num_replicas} replicas, not {replicas};"
                " fewer must be asked for"
            )

    def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """I17: the sequence of the message.  ConflictError, EngineError."""
        request = self.connected().request(subject, data, timeout=TIMEOUT_S, headers=headers)
        answer = json.loads(self._call(request).data)
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        if error.get("err_code") in _WRONG_LAST:
            raise ConflictError(error.get("description"))
        raise EngineError(f"nats: {error.get('description')} ({error.get('err_code')})")

    def idle(self) -> None:
        """Read what came, and answer it."""
        self._loop.run_until_complete(asyncio.sleep(0.001))

    def max_payload(self) -> int:
        return int(self.connected().max_payload)

    def close(self) -> None:
        async def end() -> None:
            if self._nats is not None:
                with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._nats.close(), TIMEOUT_S)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        if not self._loop.is_closed():
            self._loop.run_until_complete(end())
            self._loop.close()


class NatsSink:
    """A log's subject in a stream, for a Shipper.

    servers: "host" or "host:port"; the stream is made if absent, with so many replicas, and refused if
    it has fewer, or lets messages be deleted. settings: for nats.connect(), by its names.
    """

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
        self._connection = _Connection(servers, stream, settings or {})
        self._sequence = 0
        self._ensured = False
        self.chunk_bytes_max = 1 << 20

    def tail(self) -> Tail | None:
        if not self._ensured:
            self._connection.ensure_stream(self._replicas)
            self._ensured = True
        self.chunk_bytes_max = self._connection.max_payload() - HEADER_BYTES
        message = self._connection.last(self.subject)
        if message is None:
            self._sequence = 0
            return None
        self._sequence = int(message.seq or 0)
        info = shmlog.chunk_info(message.data or b"")
        if info.log_id != self._log_id:
            raise shmlog.SourceDivergedError(info.end_lsn, f"{self.subject} holds the log {info.log_id}")
        headers = message.headers or {}
        records = shmlog.decode_chunk(message.data or b"")
        lsn, _, checksum = headers.get("Shmlog-Last", "").partition(":")
        last = last_of(records) if len(records) else (int(lsn), int(checksum, 16)) if checksum else None
        return Tail(info.end_lsn, headers.get("Shmlog-Shipper", ""), last)

    def put(self, chunk: bytes, tail: Tail) -> None:
        headers = self._headers(chunk, tail)
        self._sequence = self._connection.publish(self.subject, chunk, headers)

    def idle(self) -> None:
        self._connection.idle()

    def _headers(self, chunk: bytes, tail: Tail) -> dict[str, str]:
        headers = {
            "Nats-Expected-Stream": self._stream,
            "Nats-Expected-Last-Subject-Sequence": str(self._sequence),
            "Shmlog-Log": self._log_id,
            "Shmlog-Begin": str(shmlog.chunk_info(chunk).begin_lsn),
            "Shmlog-End": str(tail.end_lsn),
            "Shmlog-Shipper": tail.shipper,
        }
        if tail.last is not None:
            headers["Shmlog-Last"] = f"{tail.last[0]}:{tail.last[1]:08x}"
        return headers

    def close(self) -> None:
        self._connection.close()


class NatsReader:
    """Reads a log back from a stream, in order; a context manager."""

    def __init__(
        self, servers: Sequence[str], stream: str, log_id: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.subject = f"{stream}.{log_id}"
        self._log_id = log_id
        self._connection = _Connection(servers, stream, settings or {})

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
                message = self._connection.next(self.subject, sequence)
            except EngineError as error:
                if not follow:
                    raise
                _logger.warning("%s; trying again", error)
                message = None
            if message is None:
                if not follow:
                    return
                if timeout is not None and time.monotonic() - quiet_since > timeout:
                    raise TimeoutError(f"nothing came on {self.subject} for {timeout:g} s")
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LOOK_S[1])
                continue
            pause_s, quiet_since = LOOK_S[0], time.monotonic()
            info = shmlog.chunk_info(message.data or b"")
            if info.log_id != self._log_id or (expected is not None and info.begin_lsn != expected):
                raise shmlog.CorruptionError(
                    self.subject,
                    info.begin_lsn if expected is None else expected,
                    f"message {message.seq} holds the log {info.log_id} from LSN {info.begin_lsn} on",
                )
            expected, sequence = info.end_lsn, int(message.seq or 0) + 1
            yield shmlog.decode_chunk(message.data or b"")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> NatsReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
