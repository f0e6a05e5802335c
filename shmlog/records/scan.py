"""Scan: a range of a log as an object: iterated again, pickled, split, exported to Arrow.

    scan             [start .................................. stop)
    scan.split(3)    [start ........|............|............ stop)   cut where frames begin

What is below committed_lsn does not change any more, so a scan needs the files alone: it
outlives the handle that it came from, and works in any process of the machine that may
read the log's directory.

This module knows a range and its files.  It may not know where the bounds came from.
"""

from __future__ import annotations

import operator
import os
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from shmlog import _native
from shmlog.disk import directory
from shmlog.disk.directory import Directory
from shmlog.errors import FormatError
from shmlog.format.marks import HEADER_OFFSETS, Header
from shmlog.records.arrow import Node, nodes_of
from shmlog.records.batch import RecordBatch
from shmlog.records.reader import BATCH_RECORDS, Reader, Tags, core_tags

if TYPE_CHECKING:
    import numpy.typing as npt

BATCH_BYTES: Final = 16 << 20
"""Of copied columns in a batch of an Arrow stream; more only for a single record."""

ALIKE_BYTES: Final = 32
"""The headers of a log's segments begin alike, up to where each names its first LSN."""


class Scan:
    """The committed records of a log that begin in [start, stop), as Log.scan() found them.

    Iterate over it, as often as wanted, for RecordBatches; the errors are those of
    read_batches(). Hand it to pyarrow.table, polars.DataFrame, duckdb and whoever else takes
    an object with __arrow_c_stream__. Pickled, it is its path, bounds and tags: it is read
    where it arrives, from the files, without joining the log. It does not keep what it has
    not reached: a trim makes it raise TrimmedError.
    """

    __slots__ = ("_directory", "_end", "_reader", "_tags", "start", "stop", "tags", "verify")

    def __init__(
        self,
        where: Directory,
        bounds: tuple[int, int, int],
        tags: Tags,
        verify: bool,
        holes: tuple[tuple[int, int], ...],
    ) -> None:
        """bounds: start, stop, and an end that every frame before stop has reached; of these
        start and end are frame boundaries."""
        self._directory = where
        self.start, self.stop, self._end = bounds
        alone = isinstance(tags, (range, str, bytes)) or not isinstance(tags, Iterable)
        self.tags: Tags = tags if alone else frozenset(tags)  # type: ignore[arg-type]
        self._tags = core_tags(self.tags)
        self.verify = bool(verify)
        low, high = self.start, self._end
        self._reader = Reader(where, tuple(hole for hole in holes if low < hole[1] and hole[0] < high))

    @property
    def path(self) -> str:
        """The log's directory."""
        return self._directory.path

    def __iter__(self) -> Iterator[RecordBatch]:
        return self._reader.batches(self.start, self.stop, self._end, self._tags, self.verify)

    def split(self, parts: int) -> list[Scan]:
        """At most so many scans of about as many bytes each, in order, which together are this
        one; none is empty unless this one is.

        Cuts are where records begin. Reads the headers of as much of one segment as lies
        before each cut. TrimmedError and FileNotFoundError as reading.
        """
        count = operator.index(parts)
        if count < 1:
            raise ValueError(f"parts must be positive: {count}")
        wanted = [self.start + (self.stop - self.start) * n // count for n in range(1, count)]
        cuts = [self.start]
        for lsn in wanted:
            cut = self._reader.boundary(cuts[-1], lsn, self._end) if lsn > cuts[-1] else cuts[-1]
            if cuts[-1] < cut < self.stop:
                cuts.append(cut)
        ends = [*cuts[1:], self.stop]
        return [
            Scan(
                self._directory,
                (begin, stop, max(stop, self._end) if stop == self.stop else stop),
                self.tags,
                self.verify,
                self._reader.holes,
            )
            for begin, stop in zip(cuts, ends, strict=True)
        ]

    def arrow(self, dtype: npt.DTypeLike | None = None, columns: Iterable[str] | None = None) -> ArrowScan:
        """The scan with other Arrow columns, for whoever takes an object with __arrow_c_stream__.

        dtype: what every payload is (ValueError of the consumer's kind at one of another
        size). The fields of a structured dtype become columns, any other dtype the column
        data. columns: the names and order of those wanted, of lsn, time_ns, tag, writer,
        nbytes, data and the fields; default all but nbytes, and but data if there are fields. A
        field goes before a record's own column of its name. Only what is wanted is copied.
        TypeError for a dtype that has no Arrow type, ValueError for a name that is not there.
        """
        return ArrowScan(self, dtype, None if columns is None else list(_names(columns)))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule of an ArrowArrayStream: lsn, time_ns, tag, writer, and data as binary_view
        over the mapped segments; each call begins anew. A requested schema is not followed, and a
        ValueError if it has another number of columns."""
        return self.arrow().__arrow_c_stream__(requested_schema)

    def _stream(self, nodes: tuple[Node, ...], payload_bytes: int, requested: object | None) -> object:
        identity = self._directory.identity
        geometry = identity.geometry
        header = Header(identity.log_id, 0, geometry.segment_bytes, 0, 0).encode()
        holes = self._reader.holes
        return _native.arrow_stream(
            nodes,
            payload_bytes,
            os.fsencode(self._directory.segments_path),
            header[:ALIKE_BYTES],
            HEADER_OFFSETS[-1],
            geometry.segment_bytes,
            self._directory.owner,
            self.start,
            self.stop,
            self._end,
            struct.pack(f"{2 * len(holes)}Q", *(lsn for hole in holes for lsn in hole)),
            identity.seed,
            self.verify,
            self._tags,
            BATCH_RECORDS,
            BATCH_BYTES,
            requested,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        bounds = (self.start, self.stop, self._end)
        identity = self._directory.identity
        return _arrive, (self.path, identity.log_id, bounds, self.tags, self.verify, self._reader.holes)

    def __repr__(self) -> str:
        tags = "" if self.tags is None else f", tags {self.tags!r}"
        return f"<shmlog.Scan {self.path!r}, LSN {self.start} to {self.stop}{tags}>"


def _names(columns: Iterable[str]) -> Iterable[str]:
    if isinstance(columns, str):
        raise TypeError(f"columns must be names, not the one string {columns!r}")
    return columns


def _arrive(
    path: str,
    log_id: bytes,
    bounds: tuple[int, int, int],
    tags: Tags,
    verify: bool,
    holes: tuple[tuple[int, int], ...],
) -> Scan:
    """A scan that was pickled; FormatError if another log is there now."""
    where = directory.load(path, to_look=True)
    if where.identity.log_id != log_id:
        raise FormatError(f"{path} has been replaced by another log")
    return Scan(where, bounds, tags, verify, holes)


class ArrowScan:
    """A scan with chosen Arrow columns.  Made by Scan.arrow(); can be pickled as that can."""

    __slots__ = ("_columns", "_dtype", "_nodes", "_payload_bytes", "_scan")

    def __init__(self, scan: Scan, dtype: npt.DTypeLike | None, columns: list[str] | None) -> None:
        self._scan, self._dtype, self._columns = scan, dtype, columns
        self._nodes, self._payload_bytes = nodes_of(dtype, columns)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """As Scan.__arrow_c_stream__(), of the chosen columns."""
        return self._scan._stream(self._nodes, self._payload_bytes, requested_schema)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowScan, (self._scan, self._dtype, self._columns)

    def __repr__(self) -> str:
        return f"<shmlog.ArrowScan of {self._scan!r}>"
