"""Records: the verbs that put records into a log and print them.

This module knows standard input and shmlog's public names.  It may not know more of a log.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shmlog.cli.arguments import check_place
from shmlog.cli.output import colour, progress_shown, put, say

if TYPE_CHECKING:
    from shmlog.records.batch import Record

CHUNK_BYTES = 256 << 10
"""Read from standard input at once, if so much is there."""


class _Lines:
    """Standard input's lines, as batches of what can be read without waiting.

    The first Ctrl-C ends them; a second one interrupts whatever runs then.
    """

    interrupted = False
    unfinished_bytes = 0
    """of a line that the interrupt cut"""

    def batches(self) -> Iterator[list[bytes]]:
        fd = sys.stdin.fileno()
        rest: list[bytes] = []
        with self._ctrl_c() as rung:
            while not (ready := select.select([rung, fd], [], [])[0]) or rung not in ready:
                chunk = os.read(fd, CHUNK_BYTES)
                if not chunk:
                    break
                lines, end, beginning = chunk.rpartition(b"\n")
                if end:
                    yield b"".join([*rest, lines]).split(b"\n")
                    rest = []
                rest += [beginning] if beginning else []
            else:
                self.interrupted = True
        if self.interrupted:
            self.unfinished_bytes = sum(map(len, rest))
        elif rest:
            yield [b"".join(rest)]

    @contextlib.contextmanager
    def _ctrl_c(self) -> Iterator[int]:
        """A descriptor that can be read from once Ctrl-C was pressed: no line is lost
        between being read and being appended."""
        before = signal.getsignal(signal.SIGINT)
        reading, writing = os.pipe()

        def ring(*_: object) -> None:
            signal.signal(signal.SIGINT, before)
            os.write(writing, b"!")

        try:
            if before is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, ring)
            yield reading
        finally:
            signal.signal(signal.SIGINT, before)
            os.close(reading)
            os.close(writing)


def append(chosen: argparse.Namespace) -> int:
    import shmlog

    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    if not chosen.create:
        check_place(chosen.directory, "`--create` or `shmlog create` makes one")
    count = payload = 0
    first = last = None
    lines = _Lines()
    with shmlog.open(chosen.directory, create=chosen.create) as log:
        for batch in ([sys.stdin.buffer.read()],) if chosen.whole else lines.batches():
            lsns = log.append_many(batch, chosen.tag)
            first = int(lsns[0]) if first is None else first
            last = int(lsns[-1])
            count, payload = count + len(batch), payload + sum(map(len, batch))
        if not chosen.no_sync:
            log.wait_durable()
    facts = {
        "records": count,
        "bytes": payload,
        "first_lsn": first,
        "last_lsn": last,
        "durable": not chosen.no_sync,
    }
    if lines.unfinished_bytes:
        cut = f"shmlog: interrupted: {lines.unfinished_bytes} bytes of an unfinished line were not appended"
        print(cut, file=sys.stderr)
    say(chosen, facts, f"appended {count} records, {payload} bytes")
    return 130 if lines.interrupted else 0


def cat(chosen: argparse.Namespace) -> int:
    import shmlog

    if chosen.raw and chosen.json:
        chosen.refuse("argument --raw: not allowed with argument --json")
    if chosen.level is not None and chosen.tag is not None:
        chosen.refuse("argument --level: not allowed with argument --tag: a message's level is its tag")
    if chosen.follow and chosen.stop is not None:
        chosen.refuse("argument --follow: not allowed with argument --stop")
    from shmlog.tools.export import record_facts

    check_place(chosen.directory)
    left = chosen.count if chosen.count is not None else -1
    with shmlog.open_readonly(chosen.directory) as log:
        if chosen.start is not None and chosen.start > (end := log.committed_lsn):
            raise ValueError(f"--start {chosen.start} is beyond the end of the log: it ends at LSN {end}")
        start, tags = chosen.start, chosen.tag if chosen.level is None else range(chosen.level, 2**32)
        if chosen.since is not None:
            start = max(start or 0, log.seek_time(chosen.since))
        records: Iterator[Record] = log.read(start, chosen.stop, tags=tags)
        if chosen.follow:
            records = log.tail(log.trimmed_lsn if start is None else start, tags=tags)
        for record in records if left else ():
            left -= 1
            data: bytes | memoryview = record.data
            if chosen.json:
                data = json.dumps(record_facts(record)).encode()
            elif chosen.format == "logging":
                data = _message(record)
            put(data if chosen.raw else b"".join((data, b"\n")), chosen.follow)
            if left == 0:
                break
    return 0


_COLOURS = ((50, 35), (40, 31), (30, 33), (20, 32), (0, 2))
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""A message must not command the terminal."""


def _message(record: Record) -> bytes:
    """A message of logging's as text; what is no message as it is."""
    try:
        facts = json.loads(bytes(record.data))
        moment = datetime.datetime.fromtimestamp(float(facts["time"])).isoformat(timespec="milliseconds")
        name, text = str(facts["level"]), str(facts["message"])
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return bytes(record.data)
    known = ("time", "level", "logger", "message", "process", "thread", "where", "exception", "stack")
    extra = " ".join(f"{key}={value!r}" for key, value in facts.items() if key not in known)
    who = f"{facts.get('logger', '')}[{facts.get('process', '')}]"
    text = "\n".join(
        [f"{text}  {extra}".rstrip(), *(str(facts[key]) for key in ("exception", "stack") if key in facts)]
    )
    number = next(number for level, number in _COLOURS if record.tag >= level)
    shown = colour(f"{name.translate(_CONTROL):8}", number)
    return f"{moment} {shown} {who.translate(_CONTROL)} {text.translate(_CONTROL)}".encode(errors="replace")


def export(chosen: argparse.Namespace) -> int:
    from shmlog.tools import export as tool

    check_place(chosen.directory)
    try:
        tool.format_of(chosen.target)
    except ValueError as error:
        chosen.refuse(f"argument OUT: {error}")
    with progress_shown(chosen) as progress:
        report = tool.export(
            chosen.directory,
            chosen.target,
            start=chosen.start,
            stop=chosen.stop,
            since_ns=chosen.since,
            until_ns=chosen.until,
            tags=chosen.tag,
            dtype=chosen.dtype,
            force=chosen.force,
            progress=progress,
        )
    text = f"{report.target}: {report.records} records of [{report.start_lsn}, {report.stop_lsn})"
    say(chosen, report.to_dict(), f"{text}, {report.file_bytes} bytes")
    return 0


def cursors(chosen: argparse.Namespace) -> int:
    import shmlog

    check_place(chosen.directory)
    with shmlog.open_readonly(chosen.directory) as log:
        found = log.cursors()
    facts = [
        {
            "name": cursor.name,
            "lsn": cursor.lsn,
            "lag_bytes": cursor.lag.bytes,
            "lag_records": cursor.lag.records,
            "lag_seconds": cursor.lag.seconds,
            "pid": cursor.pid,
        }
        for cursor in found
    ]
    lines = [
        f"{cursor.name}  at {cursor.lsn}, {cursor.lag.records} records ({cursor.lag.bytes} bytes,"
        f" {cursor.lag.seconds:.1f} s) behind" + (f", open in pid {cursor.pid}" if cursor.pid else "")
        for cursor in found
    ]
    say(chosen, facts, "\n".join(lines) or "no cursors")
    return 0
