"""Archived: an archive read as the log that it is of, without the log.

    archive = open_archive("s3://bucket/logs")
    archive.read(), archive.read_batches(), archive.seek_time(), archive.restore("events")

This module knows objects and the readers' words.  It may not know how objects come to be there.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from crc32c import crc32c

import shmlog
from shmlog.integrations.objects import Sidecar, Store, logs_in, segment_path, sidecar_lsns, sidecar_path

SEGMENTS_KEPT: Final = 4
"""Fetched segments that a reader holds in memory."""


class ArchivedLog:
    """An archive, open for reading.  Made by open_archive(); a context manager.

    Fetches segments as they are read, and holds the latest few.
    """

    def __init__(self, store: Store, log_id: str) -> None:
        self._store, self.log_id = store, log_id
        self.sidecars: list[Sidecar] = []
        for lsn in sidecar_lsns(store, log_id):
            path = sidecar_path(log_id, lsn)
            sidecar = Sidecar.decode(store.get(path) or b"", path)
            if self.sidecars and sidecar.first_lsn != self.sidecars[-1].end_lsn:
                raise shmlog.CorruptionError(
                    path, self.sidecars[-1].end_lsn, f"a gap: the next segment begins at LSN {lsn}"
                )
            self.sidecars.append(sidecar)
        self._held: OrderedDict[int, bytes] = OrderedDict()

    @property
    def trimmed_lsn(self) -> int:
        """Where the archive begins."""
        return self.sidecars[0].first_lsn if self.sidecars else 0

    @property
    def committed_lsn(self) -> int:
        """Where it ended when it was opened."""
        return self.sidecars[-1].end_lsn if self.sidecars else 0

    durable_lsn = committed_lsn

    def segment(self, sidecar: Sidecar) -> bytes:
        """A segment's bytes; CorruptionError if they are not what the sidecar says."""
        data = self._held.get(sidecar.first_lsn)
        if data is None:
            path = segment_path(self.log_id, sidecar.first_lsn)
            data = self._store.get(path)
            if data is None:
                raise shmlog.CorruptionError(path, sidecar.first_lsn, "the segment is missing")
            if len(data) != sidecar.object_bytes or crc32c(data) != sidecar.crc32c:
                raise shmlog.CorruptionError(path, sidecar.first_lsn, "it is not what its sidecar says")
            self._held[sidecar.first_lsn] = data
            while len(self._held) > SEGMENTS_KEPT:
                self._held.popitem(last=False)
        return data

    def read_batches(
        self, start: int | None = None, stop: int | None = None, tag: int | Iterable[int] | None = None
    ) -> Iterator[shmlog.RecordBatch]:
        """Yield the records that begin in [start, stop), as Log.read_batches(); checksums are checked.

        TrimmedError below where the archive begins; EngineError.
        """
        begin = self.trimmed_lsn if start is None else start
        if begin < self.trimmed_lsn:
            raise shmlog.TrimmedError(begin, self.trimmed_lsn)
        end = self.committed_lsn if stop is None else stop
        wanted = tag if tag is None or isinstance(tag, (int, range)) else frozenset(tag)
        for sidecar in self.sidecars:
            if sidecar.end_lsn > begin and sidecar.first_lsn < end:
                yield from shmlog.decode_segment(self.segment(sidecar), begin, end, wanted)

    def read(
        self, start: int | None = None, stop: int | None = None, *, tags: int | Iterable[int] | None = None
    ) -> Iterator[shmlog.Record]:
        """Yield the same records one by one."""
        for batch in self.read_batches(start, stop, tags):
            yield from batch

    def seek_time(self, time_ns: int) -> int:
        """The LSN of the first record whose time_ns is at least this, or committed_lsn."""
        for sidecar in self.sidecars:
            if sidecar.records and sidecar.last_time_ns >= time_ns:
                for batch in shmlog.decode_segment(self.segment(sidecar)):
                    later = (batch.time_ns >= time_ns).nonzero()[0]
                    if len(later):
                        return int(batch.lsn[later[0]])
        return self.committed_lsn

    def restore(self, path: str | os.PathLike[str]) -> shmlog.Assembled:
        """Make a log's directory of the archive; errors as shmlog.assemble()."""
        identity = self._store.get(f"{self.log_id}/shmlog.json")
        if identity is None:
            raise shmlog.FormatError(f"{self._store.url} has no shmlog.json of the log {self.log_id}")
        return shmlog.assemble(path, identity, map(self.segment, self.sidecars))

    def close(self) -> None:
        """Let go of what was fetched.  Batches stay valid."""
        self._held.clear()

    def __enter__(self) -> ArchivedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_archive(
    url: str, log_id: str | None = None, settings: Mapping[str, Any] | None = None
) -> ArchivedLog:
    """Open the archive of a log for reading.

    url: of the store, as it was archived to. log_id: which log, if it has several. FormatError if there is
    none, or more than one and none was named; EngineError.
    """
    store = Store(url, settings)
    found = logs_in(store) if log_id is None else [log_id]
    if len(found) != 1:
        raise shmlog.FormatError(f"{url} holds {len(found)} logs: {', '.join(found) or 'none'}; name one")
    return ArchivedLog(store, found[0])
