"""Embedded databases used as a log: SQLite, LMDB, RocksDB, persist-queue."""

from __future__ import annotations

import sqlite3
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from bench.kit.drivers import StorePeer
from bench.kit.peer import Job, Writer
from bench.kit.workers import time_limit_s

MAP_SPARE_BYTES = 1 << 30
_KEY = struct.Struct(">QI")


class Sqlite(StorePeer):
    """A table of blobs in WAL mode; one transaction for each append or batch."""

    name = "sqlite"
    durability = "page cache (WAL, synchronous=NORMAL)"
    durable_by = "WAL, synchronous=FULL"

    def version(self) -> str:
        return sqlite3.sqlite_version

    def create(self, job: Job) -> None:
        connection = _connect(job, "NORMAL")
        connection.execute("CREATE TABLE log (lsn INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        connection.close()

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _SqliteWriter(_connect(job, "FULL" if durable else "NORMAL"))

    def open_callers(self, job: Job) -> list[Writer]:
        return [self.open_writer(job, durable=True) for _ in range(job.threads)]

    def records(self, job: Job) -> Iterator[bytes]:
        connection = _connect(job, "NORMAL")
        for (data,) in connection.execute("SELECT data FROM log ORDER BY lsn"):
            yield data
        connection.close()


def _connect(job: Job, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        job.directory / "log.sqlite",
        timeout=time_limit_s.get(),
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


class _SqliteWriter(Writer):
    def append(self, data: bytes) -> None:
        self.store.execute("INSERT INTO log (data) VALUES (?)", (data,))

    append_durable = append

    def prepare_batch(self, records: Sequence[bytes]) -> list[tuple[bytes]]:
        return [(data,) for data in records]

    def append_batch(self, records: list[tuple[bytes]]) -> None:
        self.store.execute("BEGIN IMMEDIATE")
        self.store.executemany("INSERT INTO log (data) VALUES (?)", records)
        self.store.execute("COMMIT")


class Lmdb(StorePeer):
    """Keys in the order of the write transactions; one transaction for each append or batch."""

    name = "lmdb"
    package = "lmdb"
    durability = "page cache (sync=False)"
    durable_by = "sync=True"

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _LmdbWriter(self._open(job, sync=durable))

    def records(self, job: Job) -> Iterator[bytes | memoryview]:
        with self._open(job, sync=False) as environment, environment.begin(buffers=True) as transaction:
            for _key, data in transaction.cursor():
                yield data

    @staticmethod
    def _open(job: Job, sync: bool) -> Any:
        import lmdb

        room = MAP_SPARE_BYTES + 4 * job.records_max * (job.record_bytes + 64)
        return lmdb.open(str(job.directory), map_size=room, sync=sync, metasync=sync, max_readers=512)


class _LmdbWriter(Writer):
    def append(self, data: bytes) -> None:
        self.append_batch((data,))

    append_durable = append

    def append_batch(self, records: Sequence[bytes]) -> None:
        with self.store.begin(write=True) as transaction:
            number = transaction.id()
            for index, data in enumerate(records):
                transaction.put(_KEY.pack(number, index), data, append=True)


class RocksDict(StorePeer):
    """RocksDB through rocksdict: consecutive keys, each put in RocksDB's own write-ahead log."""

    name = "rocksdict"
    package = "rocksdict"
    durability = "page cache (RocksDB WAL)"
    durable_by = "WriteOptions sync, RocksDB's group commit over threads"
    single_process = "RocksDB locks the directory"

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _RocksWriter(self._open(job), durable)

    def records(self, job: Job) -> Iterator[bytes]:
        database = self._open(job)
        yield from database.values()
        database.close()

    @staticmethod
    def _open(job: Job) -> Any:
        from rocksdict import Options, Rdict

        return Rdict(str(job.directory / "rocks"), Options(raw_mode=True))


class _RocksWriter(Writer):
    def __init__(self, database: Any, durable: bool) -> None:
        from rocksdict import WriteBatch, WriteOptions

        super().__init__(database)
        self.new_batch = WriteBatch
        self.number = 0
        self.numbering = threading.Lock()
        options = WriteOptions()
        options.sync = durable
        database.set_write_options(options)

    def _next_key(self) -> bytes:
        with self.numbering:
            self.number += 1
            return _KEY.pack(self.number, 0)

    def append(self, data: bytes) -> None:
        self.store.put(self._next_key(), data)

    append_durable = append

    def append_batch(self, records: Sequence[bytes]) -> None:
        batch = self.new_batch(raw_mode=True)
        for data in records:
            batch.put(self._next_key(), data)
        self.store.write(batch)


class PersistQueue(StorePeer):
    """persist-queue's SQLite queue, committing each put, read without taking anything out."""

    name = "persist-queue"
    package = "persist-queue"
    durability = "page cache (SQLite WAL, synchronous as built in)"
    single_process = "its cursors live in one process"

    def open_writer(self, job: Job, durable: bool = False) -> Writer:
        return _PersistQueueWriter(self._open(job))

    def records(self, job: Job) -> Iterator[bytes]:
        queue = self._open(job)
        yield from (row["data"] for row in queue.queue())
        queue.close()

    @staticmethod
    def _open(job: Job) -> Any:
        from persistqueue import SQLiteQueue

        return SQLiteQueue(str(job.directory), multithreading=True, auto_commit=True)


class _PersistQueueWriter(Writer):
    def append(self, data: bytes) -> None:
        self.store.put(data)
