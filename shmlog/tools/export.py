"""Export: a range of a log as a file of a format that other programs read.

    jsonl     a record a line: lsn, time_ns, tag, writer, bytes, and text or base64
    csv       the same as columns; with a dtype its fields instead of the payload
    parquet   columns, written by duckdb, or by polars if that is not there
    mcap      a message a record on a channel for each tag, written by mcap

What is written appears under its name at once and whole, or not at all.

This module knows formats.  It may not know how records are found.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import importlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from shmlog.errors import ShmlogError
from shmlog.handle.readonly import open_readonly
from shmlog.records.batch import Record, RecordBatch
from shmlog.records.reader import Tags
from shmlog.records.scan import ArrowScan, Scan
from shmlog.system import files

FORMATS = ("jsonl", "csv", "parquet", "mcap")
Progress = Callable[[int, int], None]
"""Called with (bytes of the log done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What export() wrote."""

    path: str
    target: str
    records: int
    start_lsn: int
    stop_lsn: int
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


class MissingPackageError(ImportError, ValueError):
    """A format needs a package that is not installed."""


def format_of(target: str) -> str:
    """The format that a file's name says; ValueError for another ending."""
    kind = os.path.splitext(target)[1].removeprefix(".").lower()
    if kind not in FORMATS:
        raise ValueError(f"{target}: the ending names the format, one of {', '.join(FORMATS)}")
    return kind


def parse_dtype(text: str) -> np.dtype[Any]:
    """A dtype as NumPy writes it ('<f8', '3i4', 'u4,f8'), or a JSON list of [name, dtype] or
    [name, dtype, shape]; ValueError for anything else."""
    try:
        fields = json.loads(text) if text.lstrip().startswith("[") else None
        if fields is None:
            kind = np.dtype(text)
        else:
            kind = np.dtype([(name, of, *map(_shape, shape)) for name, of, *shape in fields])
    except (TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{text!r} is no dtype: {error}") from None
    if kind.hasobject or kind.itemsize == 0:
        raise ValueError(f"{text!r} is no dtype of stored bytes")
    return kind


def _shape(shape: Any) -> Any:
    return tuple(shape) if isinstance(shape, list) else shape


def export(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    start: int | None = None,
    stop: int | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
    tags: Tags = None,
    dtype: npt.DTypeLike | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the records that begin in [start, stop), or that were appended in [since, until),
    to a new file whose ending says the format.

    dtype: what every payload is; the fields of a structured dtype become columns of csv and
    parquet. FileExistsError if the target is there, unless force. Reads without joining the
    log; errors as reading. MissingPackageError if a package is needed that is not there.
    """
    where, to = os.fsdecode(path), os.fsdecode(target)
    kind = format_of(to)
    if os.path.lexists(to) and not force:
        raise FileExistsError(f"{to} is there already")
    with open_readonly(where) as log:
        now = log.committed_lsn  # first: what comes while a time is looked for is of no time before
        begin = log.seek_time(since_ns) if since_ns is not None else None
        end = log.seek_time(until_ns) if until_ns is not None else None
        low = max((lsn for lsn in (start, begin) if lsn is not None), default=None)
        high = min(lsn for lsn in (stop, end, now) if lsn is not None)
        scan = log.scan(low, high, tags=tags)
        temporary = f"{to}.{os.urandom(8).hex()}.tmp"
        try:
            records = _WRITERS[kind](scan, temporary, dtype, progress or _silent)
            with files.descriptor(os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                os.fsync(fd)
                size = os.fstat(fd).st_size
            os.rename(temporary, to)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    files.sync_directory(os.path.dirname(os.path.abspath(to)))
    return ExportReport(where, to, records, scan.start, scan.stop, size)


def record_facts(record: Record) -> dict[str, Any]:
    """A record as plain values; the payload is text if it is UTF-8, else base64."""
    data = bytes(record.data)
    facts: dict[str, Any] = {
        "lsn": record.lsn,
        "time_ns": record.time_ns,
        "tag": record.tag,
        "writer": record.writer,
        "bytes": len(data),
    }
    try:
        facts["text"] = data.decode("utf-8")
    except UnicodeDecodeError:
        facts["base64"] = base64.b64encode(data).decode()
    return facts


def _silent(done: int, whole: int) -> None:
    pass


def _batches(scan: Scan, progress: Progress) -> Iterator[RecordBatch]:
    whole = scan.stop - scan.start
    for batch in scan:
        yield batch
        progress(min(batch.next_lsn - scan.start, whole), whole)


# ------------------------------------------------------------------ the formats


def _jsonl(scan: Scan, target: str, dtype: npt.DTypeLike | None, progress: Progress) -> int:
    count = 0
    with _new_file(target) as file:
        for batch in _batches(scan, progress):
            if dtype is None:
                facts = map(record_facts, batch)
            else:
                facts = map(_row_facts, batch, batch.array(dtype))
            file.write(b"".join(json.dumps(line, default=_text).encode() + b"\n" for line in facts))
            count += len(batch)
    return count


def _row_facts(record: Record, row: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "lsn": record.lsn,
        "time_ns": record.time_ns,
        "tag": record.tag,
        "writer": record.writer,
    }
    if row.dtype.names:
        return facts | {name: _plain(row[name]) for name in row.dtype.names}
    return facts | {"data": _plain(row)}


def _text(value: Any) -> str:
    """What JSON has no form for: a time, a complex number."""
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _csv(scan: Scan, target: str, dtype: npt.DTypeLike | None, progress: Progress) -> int:
    kind = None if dtype is None else np.dtype(dtype)
    if kind is not None and any(field[0].shape for field in (kind.fields or {}).values()):
        raise ValueError(f"a field of {kind} is an array: that is no column of csv")
    count = 0
    with _new_file(target) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        head = ["lsn", "time_ns", "tag", "writer"]
        if kind is None:
            table.writerow([*head, "bytes", "text", "base64"])
        else:
            table.writerow([*head, *(kind.names or ("data",))])
        for batch in _batches(scan, progress):
            count += len(batch)
            if kind is None:
                keys = [*head, "bytes", "text", "base64"]
                table.writerows([record_facts(record).get(key) for key in keys] for record in batch)
            else:
                rows = [_row_facts(record, row) for record, row in zip(batch, batch.array(kind), strict=True)]
                table.writerows(row.values() for row in rows)
        file.flush()
    return count


def _parquet(scan: Scan, target: str, dtype: npt.DTypeLike | None, progress: Progress) -> int:
    """One pass of the core's Arrow stream; duckdb does not hold it all in memory."""
    try:
        stream = scan.arrow(dtype)
    except TypeError as error:
        raise ValueError(str(error)) from None
    by = _by_duckdb
    try:
        importlib.import_module("duckdb")
    except ImportError:
        _package("polars", "parquet")
        by = _by_polars
    try:
        count = by(stream, target)
    except OSError:
        raise
    except Exception as error:
        raise _meant(error, scan, dtype) from None
    progress(1, 1)
    return count


def _by_duckdb(stream: ArrowScan, target: str) -> int:
    duckdb = importlib.import_module("duckdb")
    name = target.replace("'", "''")
    try:
        with duckdb.connect() as database:
            database.register("records", stream)
            copied = database.execute(f"COPY (SELECT * FROM records) TO '{name}' (FORMAT parquet)")
            (count,) = copied.fetchone()
    except duckdb.IOException as error:
        raise OSError(str(error)) from None
    except RuntimeError as error:
        if "interrupted" in str(error):  # by Ctrl-C, which it keeps to itself
            raise KeyboardInterrupt from None
        raise
    return int(count)


def _by_polars(stream: ArrowScan, target: str) -> int:
    frame = importlib.import_module("polars").DataFrame(stream)
    frame.write_parquet(target)
    return int(frame.height)


def _meant(error: Exception, scan: Scan, dtype: npt.DTypeLike | None) -> Exception:
    """What another package's error about a stream means: what reading the same says."""
    try:
        for batch in scan:
            if dtype is not None:
                batch.array(dtype)
    except (ShmlogError, OSError, ValueError) as ours:
        return ours
    return OSError(f"{type(error).__name__}: {error}")


def _mcap(scan: Scan, target: str, dtype: npt.DTypeLike | None, progress: Progress) -> int:
    writer_of = _package("mcap.writer", "mcap")
    count = 0
    with _new_file(target) as file:
        writer = writer_of.Writer(file)
        writer.start(profile="", library="shmlog")
        channels: dict[int, int] = {}
        for batch in _batches(scan, progress):
            for record in batch:
                if record.tag not in channels:
                    topic = f"tag/{record.tag}"
                    channels[record.tag] = writer.register_channel(topic, "application/octet-stream", 0)
                writer.add_message(
                    channels[record.tag],
                    log_time=record.time_ns,
                    data=bytes(record.data),
                    publish_time=record.time_ns,
                    sequence=count & 0xFFFFFFFF,
                )
                count += 1
        writer.finish()
    return count


_WRITERS: dict[str, Callable[[Scan, str, npt.DTypeLike | None, Progress], int]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "parquet": _parquet,
    "mcap": _mcap,
}


def _new_file(path: str) -> IO[bytes]:
    return open(path, "xb")


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingPackageError(
            f"to write {extra} needs a package: pip install 'shmlog[{extra}]'"
        ) from None
