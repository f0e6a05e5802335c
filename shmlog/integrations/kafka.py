"""Kafka: a log's records, or chunks of it, in a partition, and the position in the same transactions.

    TOPIC [partition]       --chunks    one message a chunk; what it holds of the log is in its headers too
                                        Shmlog-Log  Shmlog-Begin  Shmlog-End  Shmlog-Shipper
                            --records   one message a record: its payload and time, no key, and a header
                                        Shmlog: LSN u64, time in ns u64, tag u32, writer u16
    shmlog-positions [0]    empty; the group of this log, topic and partition has committed here
                            offset = end LSN, metadata = owner and last record (LSN:checksum)

Invariants, after those of ship
  I23  The position is sent in the transaction that has the records. Readers and tail() see committed
      transactions alone, so they see both or neither.
  I24  tail() ends every transaction that was begun before it, by taking the transactional id over. What it
      reads then holds until the next one takes over, who fences this producer.
  I25  Who takes over writes its name beside the position. A producer that has been fenced and still finds
      its own there was too slow for its transaction's time-out, and goes on with a new one; any other name
      is another shipper's, and it ends. It looks before it takes over again.

This module knows transactions and chunks.  It may not know how a log is read.
"""

from __future__ import annotations

import queue
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

import shmlog
from shmlog.integrations.kafka_places import MESSAGE_BYTES, POSITIONS, TIMEOUT_S, Place
from shmlog.integrations.sinks import ConflictError, Tail, nothing

REPLICAS: Final = 3
RECORD_HEADER: Final = "Shmlog"
RECORD: Final = struct.Struct("<QQIH")
_HEADS: Final = np.dtype({"names": ["lsn", "time", "tag", "writer"], "formats": ["<u8", "<u8", "<u4", "<u2"]})
TRANSACTION_S: Final = 30.0
"""A transaction whose shipper died holds readers up for so long, unless another shipper starts."""
RECOMMIT_S: Final = 86400.0
"""A broker forgets the positions of groups without members after a week without a commit."""
HEADER_BYTES: Final = 1024
"""Of a message's largest size are kept for headers."""
GROUP: Final = 8
"""Chunks in one transaction, where more is waiting: its end costs as much as a chunk."""
QUEUE: Final = 1_000_000
"""Messages; the smallest records of so many chunks are fewer."""
_FENCED: Final = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)


class _Position(NamedTuple):
    """What the group has committed."""

    end_lsn: int
    owner: str
    last: tuple[int, int] | None

    @property
    def metadata(self) -> str:
        return f"{self.owner} {self.last[0]}:{self.last[1]:08x}" if self.last else self.owner

    @classmethod
    def parse(cls, end_lsn: int, metadata: str) -> _Position:
        owner, _, last = metadata.partition(" ")
        lsn, _, checksum = last.partition(":")
        return cls(end_lsn, owner, (int(lsn), int(checksum, 16)) if checksum else None)


class KafkaSink(Place):
    """A log's partition, for a Shipper.

    servers: "host" or "host:port". The topic is made if absent, with so many replicas, and refused if it
    has fewer. records: a message is a record, else a chunk; a transaction is what the shipper calls a
    chunk in any case. settings: for librdkafka, by its names.
    """

    chunks_max = GROUP

    def __init__(
        self,
        servers: Sequence[str],
        topic: str,
        log_id: str,
        *,
        partition: int = 0,
        replicas: int = REPLICAS,
        records: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(servers, topic, log_id, partition, settings or {})
        self.chunk_bytes_max = MESSAGE_BYTES - HEADER_BYTES
        self._replicas = replicas
        self._send = self._send_records if records else self._send_chunk
        self._owner, self._owns = secrets.token_hex(8), False
        self._shipper = ""
        self.meanwhile: Callable[[], None] = nothing
        with self._engine():
            self._group: Consumer | None = self._consumer(self.name)
        self._producer: Producer | None = None
        self._ensured = False
        self._position: _Position | None = None
        self._committed_at = 0.0

    # ------------------------------------------------------------------ position

    def tail(self) -> Tail | None:
        with self._engine():
            if not self._ensured:
                assert self._group is not None
                self.chunk_bytes_max = self._ensure(self._group, self._replicas) - HEADER_BYTES
                self._ensured = True
            if self._producer is None:
                if self._owns:
                    self._check_owner(self._committed())  # I25
                self._take_over()
            position = self._position = self._committed()
        if position is None:
            return None
        self._check_owner(position)
        if position.owner != self._owner:
            self._transact(position._replace(owner=self._owner), lambda _: None)
        self._owns = True
        return Tail(position.end_lsn, self._shipper if self._shipper else position.owner, position.last)

    def _check_owner(self, position: _Position | None) -> None:
        if self._owns and position is not None and position.owner != self._owner:
            self._drop()
            raise shmlog.FencedError(position.end_lsn, position.owner or "of another kind")

    def _committed(self) -> _Position | None:
        """What is committed; waits for a transaction that is under way."""
        assert self._group is not None
        (found,) = self._group.committed([TopicPartition(POSITIONS, 0)], TIMEOUT_S)
        if found.error is not None:
            raise KafkaException(found.error)
        return None if found.offset < 0 else _Position.parse(found.offset, found.metadata or "")

    def _take_over(self) -> None:
        """I24."""
        seconds = {"transaction.timeout.ms": int(TRANSACTION_S * 1000)}
        patience = {"linger.ms": 2, "retry.backoff.ms": 1, "retry.backoff.max.ms": 500}
        mine = {"transactional.id": self.name, "acks": "all", "enable.idempotence": True}
        sizes = {
            "message.max.bytes": self.chunk_bytes_max + HEADER_BYTES,
            "queue.buffering.max.messages": QUEUE,
        }
        producer = Producer({**seconds, **patience, **sizes, **self._settings, **mine})
        try:
            producer.init_transactions(TIMEOUT_S)
        except KafkaException:
            self._listen(producer)
            raise
        self._producer = producer

    # ------------------------------------------------------------------ writing

    def put(self, chunk: bytes, tail: Tail) -> None:
        self.put_chunks([(chunk, tail)])

    def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
        """Several in one transaction, as put()."""

        def send(producer: Producer) -> None:
            for chunk, tail in chunks:
                self._send(producer, chunk, tail)

        end = chunks[-1][1]
        self._shipper = end.shipper
        self._transact(_Position(end.end_lsn, self._owner, end.last), send)
        self._owns = True

    def idle(self) -> None:
        if self._producer is None or self._position is None:
            return
        self._listen(self._producer)
        if time.monotonic() - self._committed_at > RECOMMIT_S:
            self._transact(self._position, lambda _: None)

    def _transact(self, position: _Position, send: Callable[[Producer], None]) -> None:
        """I23."""
        producer = self._producer
        assert producer is not None and self._group is not None
        offset = TopicPartition(POSITIONS, 0, position.end_lsn, position.metadata)
        try:
            producer.begin_transaction()
            send(producer)
            self._send_position(producer, [offset], self._group.consumer_group_metadata())
            producer.commit_transaction(TIMEOUT_S)
        except KafkaException as error:
            self._give_up(error.args[0])
            if error.args[0].code() in _FENCED:
                raise ConflictError(error.args[0].str()) from error
            raise self._error(error.args[0]) from error
        except BufferError as error:
            self._drop()
            raise self._error(
                None, "the transaction does not fit into queue.buffering.max.messages"
            ) from error
        self._position, self._committed_at = position, time.monotonic()

    def _send_position(self, producer: Producer, offsets: list[TopicPartition], group: object) -> None:
        """In a thread of its own: librdkafka overlooks the time-out while the group's coordinator is away
        (confluentinc/librdkafka#5456), and signals would wait as long as it does."""
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def send() -> None:
            try:
                producer.send_offsets_to_transaction(offsets, group, TIMEOUT_S)
                done.put(None)
            except BaseException as error:
                done.put(error)

        threading.Thread(target=send, name="shmlog-kafka", daemon=True).start()
        self.meanwhile()
        try:
            error = done.get(timeout=TIMEOUT_S)
        except queue.Empty:
            self._listen(producer)
            self._drop()  # it stays in that call, and what it began is ended by the next one
            raise self._error(None, f"the position was not taken within {TIMEOUT_S:g} s") from None
        if error is not None:
            raise error

    def _give_up(self, error: KafkaError) -> None:
        """Abort, if that is all it takes; else the next producer ends what this one began."""
        assert self._producer is not None
        self._listen(self._producer)
        if error.txn_requires_abort():
            try:
                self._producer.purge()
                self._producer.abort_transaction(TIMEOUT_S)
                return
            except KafkaException:
                pass
        self._drop()

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()

    def _send_chunk(self, producer: Producer, chunk: bytes, tail: Tail) -> None:
        headers = {
            "Shmlog-Log": self._log_id,
            "Shmlog-Begin": str(shmlog.chunk_info(chunk).begin_lsn),
            "Shmlog-End": str(tail.end_lsn),
            "Shmlog-Shipper": tail.shipper,
        }
        producer.produce(self.topic, chunk, partition=self.partition, headers=list(headers.items()))

    def _send_records(self, producer: Producer, chunk: bytes, tail: Tail) -> None:
        batch = shmlog.decode_chunk(chunk)
        heads = np.empty(len(batch), _HEADS)
        heads["lsn"], heads["time"] = batch.lsn, batch.time_ns
        heads["tag"], heads["writer"] = batch.tag, batch.writer
        columns = (
            batch.payloads(),
            (batch.time_ns // 1_000_000).tolist(),
            struct.iter_unpack(f"{RECORD.size}s", heads.tobytes()),
        )
        produce, topic, partition = producer.produce, self.topic, self.partition
        for payload, time_ms, (head,) in zip(*columns, strict=True):
            produce(topic, payload, partition=partition, timestamp=time_ms, headers=[(RECORD_HEADER, head)])

    def close(self) -> None:
        self._drop()
        group, self._group = self._group, None
        if group is not None:
            group.close()


class KafkaReader(Place):
    """Reads a log back from a partition, in order; a context manager."""

    def __init__(
        self,
        servers: Sequence[str],
        topic: str,
        log_id: str,
        *,
        partition: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(servers, topic, log_id, partition, settings or {})
        self._where = f"{topic}[{partition}]"

    def batches(self, follow: bool = False, timeout: float | None = None) -> Iterator[shmlog.RecordBatch]:
        """Yield every chunk's records, from the first that the partition has, checksums checked.

        next_lsn of each is where the next begins: CorruptionError if it begins elsewhere. Other logs'
        chunks are passed over. follow: go on as more comes; TimeoutError after so many seconds without
        any. EngineError: begin again.
        """
        expected = None
        for message in self._messages(follow, timeout):
            headers = dict(message.headers() or [])
            if headers.get("Shmlog-Log") != self._log_id.encode():
                continue
            info = shmlog.chunk_info(message.value() or b"")
            if info.log_id != self._log_id or (expected is not None and info.begin_lsn != expected):
                raise shmlog.CorruptionError(
                    self._where,
                    info.begin_lsn if expected is None else expected,
                    f"offset {message.offset()} holds the log {info.log_id} from LSN {info.begin_lsn} on",
                )
            expected = info.end_lsn
            yield shmlog.decode_chunk(message.value())

    def records(self, follow: bool = False, timeout: float | None = None) -> Iterator[shmlog.Record]:
        """Yield every record that was shipped as a message, from the first that the partition has.

        CorruptionError if one begins before the one before it ended. A record that is missing cannot be
        told from what lies between records: chunks can. The rest as batches().
        """
        end = 0
        for message in self._messages(follow, timeout):
            header = dict(message.headers() or []).get(RECORD_HEADER)
            if header is None or len(header) != RECORD.size:
                continue
            lsn, time_ns, tag, writer = RECORD.unpack(header)
            record = shmlog.Record(lsn, time_ns, tag, writer, message.value() or b"")
            if record.lsn < end:
                raise shmlog.CorruptionError(
                    self._where,
                    record.lsn,
                    f"offset {message.offset()} comes after the record up to LSN {end}",
                )
            end = record.next_lsn
            yield record

    def _messages(self, follow: bool, timeout: float | None) -> Iterator[Any]:
        with self._engine():
            more = {"enable.partition.eof": True, "auto.offset.reset": "error", "fetch.wait.max.ms": 100}
            consumer = self._consumer(f"{self.name}-reader", **more)
        quiet_since = time.monotonic()
        try:
            with self._engine():
                low, _ = consumer.get_watermark_offsets(TopicPartition(self.topic, self.partition), TIMEOUT_S)
                consumer.assign([TopicPartition(self.topic, self.partition, low)])
            while True:
                with self._engine():
                    first = consumer.poll(0.25)
                    found = [] if first is None else [first, *consumer.consume(500, 0.0)]
                for message in found:
                    error = message.error()
                    if error is None:
                        yield message
                    elif error.code() != KafkaError._PARTITION_EOF:
                        raise self._error(error)
                    elif not follow:
                        return
                if found:
                    quiet_since = time.monotonic()
                quiet_s = time.monotonic() - quiet_since
                if follow and timeout is not None and quiet_s > timeout:
                    raise TimeoutError(f"nothing came on {self._where} for {timeout:g} s")
                if not follow and quiet_s > TIMEOUT_S:
                    raise self._error(None, "no answer")
        finally:
            consumer.close()

    def close(self) -> None:
        """Nothing: each call has a connection of its own."""

    def __enter__(self) -> KafkaReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
