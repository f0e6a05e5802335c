"""JetStream: a connection to servers of NATS whose calls block, and what shipping needs of a stream.

    publish(subject, messages)    all or none, on the condition that is in the first one's headers
    last(subject), next(subject, sequence), ensure_stream()

A server refuses what is not conditional on the last message, and says so with numbers; here they become
ConflictError and EngineError.

This module knows streams and messages.  It may not know what is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import nats
import nats.errors
import nats.js.api
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from shmlog.integrations.repeating import EngineError
from shmlog.integrations.sinks import ConflictError, nothing

TIMEOUT_S: Final = 5.0
CONNECT_S: Final = 5.0
RECONNECT_S: Final = 1.0
NEXT_COUNT: Final = 1000
NEXT_BYTES: Final = 4 << 20
NEXT_S: Final = 30.0
"""The most that next() asks for, and waits."""
AGAIN_S: Final = 0.1
TURNS: Final = 3
"""Of the loop, after which what was published is on its way."""
LOST: Final = "the connection was lost"
_WRONG_LAST: Final = (10071, 10164)
_NO_PEERS: Final = (10005, 10074)
_Result = TypeVar("_Result")


class Stored(NamedTuple):
    """A message of a stream."""

    sequence: int
    data: bytes
    headers: Mapping[str, str]


def _tls(files: Mapping[str, str]) -> ssl.SSLContext:
    """ca_file, and cert_file with key_file for a server that asks who we are."""
    context = ssl.create_default_context(cafile=files.get("ca_file"))
    if "cert_file" in files:
        context.load_cert_chain(files["cert_file"], files.get("key_file"))
    return context


class Connection:
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
        self._is_lost = False
        self._on_lost: Callable[[str], None] | None = None

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
            self._is_lost = True
            if self._on_lost is not None:
                self._on_lost(LOST)

        async def found() -> None:
            self._is_lost = False

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
        """Run it; EngineError for what may be better the next time."""
        why, running = "", self._loop.create_task(work)

        def end(reason: str) -> None:
            nonlocal why
            why = reason
            running.cancel()
            if not running.done():  # the library may swallow it
                self._loop.call_later(AGAIN_S, end, reason)

        limit = self._loop.call_later(timeout_s, end, "no answer")
        self._on_lost = end  # an answer would be waited for that cannot come
        if self._is_lost:
            self._loop.call_soon(end, LOST)
        try:
            return self._loop.run_until_complete(running)
        except asyncio.CancelledError as error:
            raise EngineError(f"nats: {why}") from error
        except nats.js.errors.APIError as error:
            if isinstance(error, nats.js.errors.NotFoundError) or error.err_code in _NO_PEERS:
                raise
            raise EngineError(f"nats: {error.description or error.code} ({error.err_code})") from error
        except EngineError:
            raise
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise EngineError(f"nats: {type(error).__name__}: {error}".rstrip(": ")) from error
        finally:
            limit.cancel()
            running.cancel()  # interrupted
            self._on_lost = None

    def last(self, subject: str) -> Stored | None:
        """The stream's last message of the subject, as its leader has it (I18)."""
        try:
            found: nats.js.api.RawStreamMsg = self._call(
                self.connected().jsm().get_msg(self._stream, subject=subject)
            )
        except nats.js.errors.NotFoundError as error:
            if error.err_code == 10037:  # no message found
                return None
            raise EngineError(f"nats: there is no stream {self._stream}") from error
        return Stored(int(found.seq or 0), found.data or b"", found.headers or {})

    def next(self, subject: str, sequence: int) -> list[Stored]:
        """The next messages of the subject at or above a sequence, some of them; empty: there is none."""
        return self._call(self._next(self.connected(), subject, sequence), NEXT_S + 1)

    async def _next(self, connection: Client, subject: str, sequence: int) -> list[Stored]:
        wanted = {"seq": sequence, "next_by_subj": subject, "batch": NEXT_COUNT, "max_bytes": NEXT_BYTES}
        found: list[Stored] = []
        status: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def got(message: Msg) -> None:
            headers = message.headers or {}
            if "Status" not in headers:
                found.append(Stored(int(headers["Nats-Sequence"]), message.data, headers))
            elif not status.done():
                status.set_result(headers["Status"])

        answers = await connection.subscribe(connection.new_inbox(), cb=got)
        try:
            await connection.publish(
                f"$JS.API.DIRECT.GET.{self._stream}", json.dumps(wanted).encode(), reply=answers.subject
            )
            ended = await asyncio.wait_for(status, NEXT_S)
        finally:
            await answers.unsubscribe()
        if ended not in ("204", "404"):
            raise EngineError(f"nats: no stream {self._stream} answers ({ended})")
        return found

    def ensure_stream(self, replicas: int) -> bool:
        """Make the stream, or see that it keeps what it is given; ValueError if it does not.

        Whether it takes several messages as one.
        """
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
        return bool(has.allow_atomic)

    def publish(
        self,
        subject: str,
        messages: Sequence[tuple[bytes, dict[str, str]]],
        meanwhile: Callable[[], None] = nothing,
    ) -> int:
        """Store all of these messages, or none; the sequence of the last one (I17).  meanwhile: called
        once, before the answer is waited for.

        ConflictError, EngineError. Several need a stream that takes several messages as one.
        """
        answer = json.loads(self._call(self._publish(self.connected(), subject, messages, meanwhile)).data)
        error = answer.get("error")
        if error is None:
            return int(answer["seq"])
        if error.get("err_code") in _WRONG_LAST:
            raise ConflictError(error.get("description"))
        raise EngineError(f"nats: {error.get('description')} ({error.get('err_code')})")

    @staticmethod
    async def _publish(
        connection: Client,
        subject: str,
        messages: Sequence[tuple[bytes, dict[str, str]]],
        meanwhile: Callable[[], None],
    ) -> Msg:
        """Only the last is answered, and the server keeps the others back until it has that one."""
        if len(messages) > 1:
            name = secrets.token_hex(8)
            for number, (data, headers) in enumerate(messages, 1):
                headers["Nats-Batch-Id"], headers["Nats-Batch-Sequence"] = name, str(number)
                if number < len(messages):
                    await connection.publish(subject, data, headers=headers)
            headers["Nats-Batch-Commit"] = "1"
        data, headers = messages[-1]
        answer = asyncio.ensure_future(connection.request(subject, data, timeout=TIMEOUT_S, headers=headers))
        try:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            meanwhile()
            return await answer
        finally:
            answer.cancel()

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
