"""CLI: the shmlog command.

Every verb prints for people, or one JSON document (cat: one a line) with --json.
Exit status: 0 done; 1 an error, reported on stderr, or a reader of the output that has
gone, which is not; 2 wrong usage; 130 interrupted.

This module knows arguments and printing.  It may not know more of a log than
shmlog's public names, and the flusher process it can become.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shmlog.errors import FormatError, ShmlogError

if TYPE_CHECKING:
    from shmlog.records.reader import Record

CHUNK_BYTES = 256 << 10
"""Read from standard input at once, if so much is there."""


def _size(text: str) -> int:
    """A size in bytes: 67108864, 64M, 64MiB."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    stem = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = stem[-1:] if stem[-1:] in units else ""
    try:
        return int(stem.removesuffix(unit)) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 67108864 or 64MiB") from None


def _mode(text: str) -> int:
    """The modes that shmlog.open() can make a log with."""
    try:
        mode = int(text, 8)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no octal mode") from None
    if mode & ~0o664 or mode & 0o600 != 0o600:
        raise argparse.ArgumentTypeError(f"must be one of 600, 604, 620, 624, 640, 644, 660, 664, not {text}")
    return mode


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"must not be negative: {text}")
    return min(seconds, 1e9)


def _number(low: int, high: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not low <= number <= high:
        raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {number}")
    return number


_tag = partial(_number, 0, 2**32 - 1)
_count = partial(_number, 0, 2**63 - 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shmlog", description="A durable append-only log that many processes write."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, refuse=sub.error)
        sub.add_argument("directory", metavar="DIR", help="the log's directory")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    create = verb("create", _create, "Create a log; an error if there is one already.")
    create.add_argument("--segment-bytes", type=_size, metavar="SIZE", help="a power of two (default 64MiB)")
    create.add_argument("--window-bytes", type=_size, metavar="SIZE", help="a power of two (default 64MiB)")
    create.add_argument("--mode", type=_mode, default=0o600, help="mode of the files, octal (default 600)")

    flush = verb("flush", _flush, "Be the log's flusher until SIGTERM or Ctrl-C.")
    flush.add_argument(
        "--sync-interval", type=_seconds, default=0.01, metavar="S", help="seconds (default 0.01)"
    )
    flush.add_argument("--mode", type=_mode, default=0o600, help="mode of new files, octal (default 600)")
    flush.add_argument("--detach", action="store_true", help="go to the background; leave with the last user")

    append = verb("append", _append, "Append standard input: a record a line, or all of it as one record.")
    append.add_argument("--whole", action="store_true", help="all of standard input is one record")
    append.add_argument("--tag", type=_tag, default=0, help="the records' tag (default 0)")
    append.add_argument("--create", action="store_true", help="create the log if absent")
    append.add_argument("--no-sync", action="store_true", help="do not wait until all is durable")

    cat = verb("cat", _cat, "Print records, a line each (--json: with their columns).")
    cat.add_argument("--start", type=int, metavar="LSN", help="from this record on")
    cat.add_argument("--stop", type=int, metavar="LSN", help="up to the records that begin before this")
    cat.add_argument("--tag", type=_tag, help="only records of this tag")
    cat.add_argument("--count", type=_count, metavar="N", help="at most so many records")
    cat.add_argument("--raw", action="store_true", help="the payloads alone, without line ends")
    cat.add_argument("--follow", action="store_true", help="go on as records are committed")

    verb("info", _info, "Show what the log is and who uses it.")
    verb("verify", _verify, "Check every frame; exit status 1 if one is bad.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.verb is None and not chosen.version:
        parser.print_usage(sys.stderr)
        return 2
    try:
        if chosen.version:
            import shmlog

            _put(f"shmlog {shmlog.__version__}\n".encode())
            status = 0
        else:
            status = int(chosen.run(chosen))
        _put(b"", flush=True)
        return status
    except BrokenPipeError:
        _drop_output()
        return 1
    except KeyboardInterrupt:
        return 130
    except (ShmlogError, OSError, ValueError) as error:
        _report(error, chosen.verb is not None and chosen.json)
        return 1


def _report(error: Exception, as_json: bool) -> None:
    message = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    try:
        facts = {"error": type(error).__name__, "message": message}
        _put(json.dumps(facts).encode() + b"\n" if as_json else b"", flush=True)
    except OSError:
        _drop_output()
    with contextlib.suppress(OSError):
        print(f"shmlog: {message}", file=sys.stderr, flush=True)


def _put(data: bytes | memoryview, flush: bool = False) -> None:
    """Write to standard output.  An OSError but for BrokenPipeError says that it was that."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    try:
        sys.stdout.buffer.write(data)
        if flush:
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"standard output: {error.strerror}") from error


def _drop_output() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    if sys.stdout is not None:
        fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, sys.stdout.fileno())
        os.close(fd)


def _say(chosen: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    line = json.dumps(facts, default=str) if chosen.json else text
    _put(line.encode(errors="surrogateescape") + b"\n", flush=True)


def _check_place(path: str, remedy: str = "`shmlog create` makes one") -> None:
    """FileNotFoundError or FormatError when there is no log, in a shell user's words."""
    if not os.path.lexists(path):
        raise FileNotFoundError(f"there is no log here: {os.path.abspath(path)}; {remedy}")
    if os.path.isdir(path):
        try:
            os.lstat(os.path.join(path, "shmlog.json"))
        except FileNotFoundError:
            raise FormatError(f"{os.path.abspath(path)} is not a log: it has no shmlog.json") from None


def _create(chosen: argparse.Namespace) -> int:
    from shmlog.disk import directory
    from shmlog.format.geometry import SEGMENT_BYTES_DEFAULT, WINDOW_BYTES_DEFAULT, Geometry

    if directory.exists(chosen.directory):
        raise FileExistsError(17, "there is a log already", chosen.directory)
    geometry = Geometry(
        SEGMENT_BYTES_DEFAULT if chosen.segment_bytes is None else chosen.segment_bytes,
        WINDOW_BYTES_DEFAULT if chosen.window_bytes is None else chosen.window_bytes,
    )
    made = directory.create(chosen.directory, geometry, chosen.mode)
    facts = {
        "path": made.path,
        "log_id": made.identity.log_id.hex(),
        "segment_bytes": geometry.segment_bytes,
        "window_bytes": geometry.window_bytes,
    }
    _say(chosen, facts, f"created {made.path}")
    return 0


def _flush(chosen: argparse.Namespace) -> int:
    from shmlog.session import sidecar

    _check_place(chosen.directory)
    status = sidecar.run(chosen.directory, chosen.sync_interval, chosen.mode, chosen.detach)
    if chosen.json:
        _info(chosen)
    return status


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


def _append(chosen: argparse.Namespace) -> int:
    import shmlog

    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    if not chosen.create:
        _check_place(chosen.directory, "`--create` or `shmlog create` makes one")
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
    _say(chosen, facts, f"appended {count} records, {payload} bytes")
    return 130 if lines.interrupted else 0


def _cat(chosen: argparse.Namespace) -> int:
    import shmlog

    if chosen.raw and chosen.json:
        chosen.refuse("argument --raw: not allowed with argument --json")
    if chosen.follow and chosen.stop is not None:
        chosen.refuse("argument --follow: not allowed with argument --stop")
    _check_place(chosen.directory)
    left = chosen.count if chosen.count is not None else -1
    with shmlog.open_readonly(chosen.directory) as log:
        records: Iterator[Record] = log.read(chosen.start, chosen.stop)
        if chosen.follow:
            records = log.tail(log.trimmed_lsn if chosen.start is None else chosen.start)
        for record in records if left else ():
            if chosen.tag is not None and record.tag != chosen.tag:
                continue
            left -= 1
            data = json.dumps(_record_facts(record)).encode() if chosen.json else record.data
            _put(data if chosen.raw else b"".join((data, b"\n")), chosen.follow)
            if left == 0:
                break
    return 0


def _record_facts(record: Record) -> dict[str, Any]:
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


def _info(chosen: argparse.Namespace) -> int:
    from shmlog.tools import info

    _check_place(chosen.directory)
    facts = info.describe(chosen.directory)
    _say(chosen, facts, info.text(facts))
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    import shmlog

    _check_place(chosen.directory)
    started = time.monotonic()
    show = sys.stderr.isatty() and not chosen.json

    def progress(done: int, whole: int) -> None:
        if show:
            print(
                f"\r{done / max(1, whole):6.1%} of {whole / 2**20:.0f} MiB",
                end="",
                file=sys.stderr,
                flush=True,
            )

    report = shmlog.verify(chosen.directory, progress)
    if show:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    seconds = time.monotonic() - started
    text = (
        f"{report.path}: {report.records} records in [{report.begin_lsn}, {report.end_lsn}), {report.state}"
    )
    if report.ok:
        text = f"{text}: every frame is valid ({seconds:.2f} s)"
    else:
        place = "" if report.problem_lsn is None else f" at LSN {report.problem_lsn}"
        text = f"{text}: BAD{place}: {report.problem}"
    _say(chosen, {**report.to_dict(), "seconds": seconds}, text)
    return 0 if report.ok else 1
