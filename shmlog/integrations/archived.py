"""Archived: an archive read as the log that it is of, without the log.

    archive = open_archive("s3://bucket/logs")
    archive.read(), archive.read_batches(), archive.scan(), archive.seek_time(), archive.restore("events")

    scan             | seg | seg | seg | seg |      of an archive; a scan of Log.scan(), but for the files
    scan.split(2)    | seg   seg | seg   seg |      cut between segments: each is fetched once

This module knows objects and the readers' words.  It may not know how objects come to be there.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from crc32c import crc32c

import shmlog
from shmlog.integrations.objects import Sidecar, Store, logs_in, segment_path, sidecar_lsns, sidecar_path

if TYPE_CHECKING:
    import numpy.typing as npt

SEGMENTS_KEPT: Final = 4
"""Fetched segments that a reader holds in memory."""


class ArchivedLog:
    """An archive, open for reading.  Made by open_archive(); a context manager.

    Fetches segments as they are read, and holds the latest few.
    """

    def __init__(self, store: Store, log_id: str, sidecars: list[Sidecar] | None = None) -> None:
        """sidecars: those that matter, where they are known; else they are fetched."""
        self._store, self.log_id = store, log_id
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self.sidecars: list[Sidecar] = sidecars or []
        if sidecars is not None:
            return
        for lsn in sidecar_lsns(store, log_id):
            path = sidecar_path(log_id, lsn)
            sidecar = Sidecar.decode(store.get(path) or b"", path)
            if self.sidecars and sidecar.first_lsn != self.sidecars[-1].end_lsn:
                raise shmlog.CorruptionError(
                    path, self.sidecars[-1].end_lsn, f"a gap: the next segment begins at LSN {lsn}"
                )
            self.sidecars.append(sidecar)

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

    def scan(
        self, start: int | None = None, stop: int | None = None, *, tags: int | Iterable[int] | None = None
    ) -> ArchiveScan:
        """What read() would read, as an object: to iterate over again in batches, to pickle, to split,
        and to hand to pyarrow, polars and duckdb.  Arguments and errors as read()."""
        begin = self.trimmed_lsn if start is None else start
        if begin < self.trimmed_lsn:
            raise shmlog.TrimmedError(begin, self.trimmed_lsn)
        end = self.committed_lsn if stop is None else min(stop, self.committed_lsn)
        wanted = tags if tags is None or isinstance(tags, (int, range)) else frozenset(tags)
        return ArchiveScan(self._store, self.log_id, self.sidecars, begin, max(begin, end), wanted)

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


class ArchiveScan:
    """The records of an archive that begin in [start, stop), as ArchivedLog.scan() found them.

    Iterate over it, as often as wanted, for RecordBatches. Pickled, it is the archive's URL and settings,
    the bounds, and what the archive says of the segments between them: it is read where it arrives, from
    the store. What the settings hold that is secret goes with it.
    """

    def __init__(
        self,
        store: Store,
        log_id: str,
        sidecars: list[Sidecar],
        start: int,
        stop: int,
        tags: int | range | frozenset[int] | None,
    ) -> None:
        self._store, self.log_id = store, log_id
        self.start, self.stop, self.tags = start, stop, tags
        self._sidecars = [one for one in sidecars if one.end_lsn > start and one.first_lsn < stop]

    def __iter__(self) -> Iterator[shmlog.RecordBatch]:
        archive = ArchivedLog(self._store, self.log_id, self._sidecars)
        if self._sidecars:
            yield from archive.read_batches(self.start, self.stop, self.tags)

    def split(self, parts: int) -> list[ArchiveScan]:
        """At most so many scans of about as many segments each, in order, which together are this one."""
        if parts < 1:
            raise ValueError(f"parts must be positive: {parts}")
        count, of = min(parts, len(self._sidecars)), len(self._sidecars)
        cuts = [self._sidecars[of * n // count].first_lsn for n in range(1, count)]
        edges = [self.start, *cuts, self.stop]
        return [
            ArchiveScan(self._store, self.log_id, self._sidecars, begin, end, self.tags)
            for begin, end in pairwise(edges)
        ]

    def arrow(self, dtype: npt.DTypeLike | None = None) -> ArchiveArrow:
        """The scan as a stream of Arrow, for whoever takes an object with __arrow_c_stream__; needs
        pyarrow.

        dtype: a structured one, of every payload, whose fields become columns behind lsn, time_ns, tag and
        writer; without it the payload is the column data.
        """
        return ArchiveArrow(self, None if dtype is None else np.dtype(dtype))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.arrow().__arrow_c_stream__(requested_schema)

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.log_id, self._sidecars, self.start, self.stop, self.tags
        return _arrive, (self._store.url, self._store.settings, *state)

    def __repr__(self) -> str:
        tags = "" if self.tags is None else f", tags {self.tags!r}"
        return f"<shmlog.ArchiveScan {self._store.url!r}, LSN {self.start} to {self.stop}{tags}>"


def _arrive(url: str, settings: Mapping[str, Any], *state: Any) -> ArchiveScan:
    """A scan that was pickled."""
    return ArchiveScan(Store(url, settings), *state)


class ArchiveArrow:
    """A scan of an archive with its columns chosen.  Made by ArchiveScan.arrow(); can be pickled."""

    def __init__(self, scan: ArchiveScan, dtype: np.dtype[Any] | None) -> None:
        if dtype is not None and dtype.names is None:
            raise TypeError(f"a structured dtype has fields to make columns of; {dtype} has none")
        self._scan, self._dtype = scan, dtype

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        import pyarrow

        made = map(self._batch, self._scan)
        none = self._batch(shmlog.decode_chunk(shmlog.join_frames(b"", 0, self._scan.log_id, 0, 0)))
        return pyarrow.RecordBatchReader.from_batches(none.schema, made).__arrow_c_stream__(requested_schema)

    def _batch(self, batch: shmlog.RecordBatch) -> Any:
        import pyarrow

        if self._dtype is None:
            return batch.to_arrow()
        rows = batch.array(self._dtype)
        names = self._dtype.names or ()
        columns = {name: getattr(batch, name) for name in ("lsn", "time_ns", "tag", "writer")}
        columns |= {name: np.ascontiguousarray(rows[name]) for name in names}
        return pyarrow.record_batch({name: pyarrow.array(column) for name, column in columns.items()})


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


def splits(
    url: str,
    parts: int,
    *,
    start: int | None = None,
    stop: int | None = None,
    tags: int | Iterable[int] | None = None,
    log_id: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[ArchiveScan]:
    """An archive's records in at most so many parts, for as many processes, of whatever machines.

    Each can be pickled and iterated over; it fetches its own segments. Arguments and errors as
    open_archive() and ArchivedLog.scan().
    """
    with open_archive(url, log_id, settings) as archive:
        return archive.scan(start, stop, tags=tags).split(parts)
