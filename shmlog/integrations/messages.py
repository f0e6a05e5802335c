"""Messages: a log's records one by one, as payloads with headers, and put together again.

    payload          the record's
    Shmlog-Lsn       where it begins              Shmlog-Time   ns since 1970
    Shmlog-Tag
    Shmlog-Check     checksum:writer:flags, the rest of its frame's header
    Shmlog-Begin     where the one before it ends, if that is not its LSN
    Shmlog-End       where the next one begins, if that is not where its frame ends
    Shmlog-Shipper   with the last one of a write

So a message has all of a record's frame, and what is put together is checked like a chunk.

This module knows frames and headers.  It may not know engines.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import shmlog
from shmlog.integrations.sinks import Tail

Message = tuple[bytes, dict[str, str]]
"""Payload and headers."""
_HEADER: Final = struct.Struct("<IIQqIHBB")
"""Of a frame: payload bytes, checksum, LSN, time, tag, writer, kind, flags."""
_DATA: Final = 1
_GRANULE: Final = 32


def of_records(records: shmlog.RecordBatch, begin_lsn: int, tail: Tail) -> list[Message]:
    """A message for each of at least one record; OSError if the log's file was lost under the copying."""
    frames = bytes(records.frames())
    records.check_memory()
    messages: list[Message] = []
    ends = [*map(int, records.lsn[1:]), tail.end_lsn]
    at, begin = 0, begin_lsn
    for end in ends:
        size, checksum, lsn, time_ns, tag, writer, _, flags = _HEADER.unpack_from(frames, at)
        headers = {
            "Shmlog-Lsn": str(lsn),
            "Shmlog-Time": str(time_ns),
            "Shmlog-Tag": str(tag),
            "Shmlog-Check": f"{checksum:08x}:{writer}:{flags}",
        }
        payload = at + _HEADER.size
        if lsn != begin:
            headers["Shmlog-Begin"] = str(begin)
        if end != lsn + _frame_bytes(size):
            headers["Shmlog-End"] = str(end)
        messages.append((frames[payload : payload + size], headers))
        begin, at = end, at + _frame_bytes(size)
    messages[-1][1]["Shmlog-Shipper"] = tail.shipper
    return messages


def _frame_bytes(size: int) -> int:
    return (_HEADER.size + size + _GRANULE - 1) // _GRANULE * _GRANULE


def is_record(headers: Mapping[str, str]) -> bool:
    """Whether a message is one of of_records()."""
    return "Shmlog-Check" in headers


def tail_of(payload: bytes, headers: Mapping[str, str]) -> Tail:
    """What the tail is when this record is the last."""
    checksum, lsn = int(headers["Shmlog-Check"].partition(":")[0], 16), int(headers["Shmlog-Lsn"])
    end = int(headers.get("Shmlog-End", lsn + _frame_bytes(len(payload))))
    return Tail(end, headers.get("Shmlog-Shipper", ""), (lsn, checksum))


def joined(messages: Sequence[tuple[bytes, Mapping[str, str]]], log_id: str) -> Iterator[bytes]:
    """Chunks of records that follow each other; a new one where one does not begin at the other's end."""
    frames, records, begin, end = bytearray(), 0, 0, 0
    for payload, headers in messages:
        lsn = int(headers["Shmlog-Lsn"])
        first = int(headers.get("Shmlog-Begin", lsn))
        if records and first != end:
            yield shmlog.join_frames(frames, records, log_id, begin, end)
            frames, records = bytearray(), 0
        if not records:
            begin = first
        checksum, writer, flags = headers["Shmlog-Check"].split(":")
        frames += _HEADER.pack(
            len(payload),
            int(checksum, 16),
            lsn,
            int(headers["Shmlog-Time"]),
            int(headers["Shmlog-Tag"]),
            int(writer),
            _DATA,
            int(flags),
        )
        frames += payload
        frames += bytes(-len(payload) % _GRANULE)
        records, end = records + 1, int(headers.get("Shmlog-End", lsn + _frame_bytes(len(payload))))
    if records:
        yield shmlog.join_frames(frames, records, log_id, begin, end)
