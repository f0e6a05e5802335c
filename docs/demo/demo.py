"""Demo: a pool of workers logs every departure of 2013 from New York; one is killed.

    flights.csv   | share 0 | share 1 | share 2 | ...        336,776 rows
                       |         |         |
    pool           worker    worker    killed!  worker       BEGIN flights ... END
                        \\        |        /
    log            B f f B f f E f f f [hole] f f E B f ...  one log, opened before the pool
                        |                   |
    meanwhile       reader process      at the end: NumPy views == pandas on the source

Each share of the source file is a range of rows.  A worker parses it and appends a
BEGIN record, one record for each flight, tagged with the carrier, and an END record
that it waits for to be durable.  Flights with an arrival go by append_array, those
without (cancelled, diverted) one by one.

One worker is killed with SIGKILL in the middle of its share, while it holds an open
reservation.  A pool loses the task of a killed worker: its result never comes.  The
log itself tells which share that was: it has a BEGIN with the worker's pid, that
process is gone, and no result has come.  The share is handed out again.

Every record names its share and its attempt at it.  What the interrupted attempt
appended stays in the log, for an append that returned is not undone by its
process's death.  It has no END, so it does not count: of each share, the first
attempt with an END is what counts, and no flight is counted twice.

This module is a user of shmlog's public names.  It may not use anything else of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.pool import AsyncResult
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import numpy.typing as npt

import shmlog
from flights import (
    BEGIN,
    END,
    RECORD,
    STOP,
    Share,
    count_to_stop,
    cut,
    disk_bytes,
    expected_table,
    find_source,
    read_back,
    read_share,
    share_note,
    tag_of,
    unpack,
)

PIECE_ROWS = 500
SEGMENT_BYTES = 8 << 20
STALLED_S = 120.0
POLL_S = 0.02


# ------------------------------------------------------------------ the workers


class Worker:
    """What a worker process holds."""

    log: shmlog.Log
    path: str
    in_ambush: Event


def begin_worker(log: shmlog.Log, path: str, in_ambush: Event) -> None:
    """In each new worker, those that replace killed ones too.  The log was opened by the
    parent; at its first use here it becomes a participant of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Worker.log, Worker.path, Worker.in_ambush = log, path, in_ambush


def load_share(share: Share) -> float:
    """Append a share's flights; the seconds spent appending."""
    log = Worker.log
    note = share_note(share)
    log.append(note, BEGIN)
    records = read_share(Worker.path, share)
    appending_s = 0.0
    for begin in range(0, len(records), PIECE_ROWS):
        piece = records[begin : begin + PIECE_ROWS]
        if share.ambush and begin >= len(records) // 2:
            lie_in_wait(piece[0])
        started = time.perf_counter()
        append_piece(log, piece)
        appending_s += time.perf_counter() - started
    log.append(note, END, durable=True)
    return appending_s


def append_piece(log: shmlog.Log, piece: npt.NDArray[Any]) -> None:
    arrived = ~np.isnan(piece["arr_delay"])
    for carrier in np.unique(piece["carrier"]):
        flights = piece[arrived & (piece["carrier"] == carrier)]
        if len(flights):
            log.append_array(flights, tag_of(carrier.decode()))
    for flight in piece[~arrived]:
        log.append(flight.tobytes(), tag_of(flight["carrier"].decode()))


def lie_in_wait(flight: np.void) -> None:
    """Reserve a place for a record, write it, and never get as far as to publish it."""
    with Worker.log.reserve(RECORD.itemsize, tag_of(flight["carrier"].decode())) as place:
        place.array(RECORD)[0] = flight
        Worker.in_ambush.set()
        while True:
            signal.pause()  # until SIGKILL


# ------------------------------------------------------------------- the reader


def follow(log: shmlog.Log, counted: Any, to_parent: Connection) -> None:
    """In a process of its own: see every record as it is committed, up to STOP."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    to_parent.send(count_to_stop(log.tail(0, timeout=STALLED_S), counted))
    to_parent.close()


# ------------------------------------------------------------------- the parent


@dataclass
class Pending:
    """A share whose result has not come."""

    share: Share
    result: AsyncResult[float]
    pid: int | None = None
    """who works on it, once its BEGIN was read"""


@dataclass
class Outcome:
    """What the loading came to."""

    seconds: float = 0.0
    appending_s: float = 0.0
    lost: list[tuple[int, int]] = field(default_factory=list)
    """(share, pid) of the attempts that were handed out again"""


class Loading:
    """The pool's work, share by share."""

    def __init__(self, log: shmlog.Log, pool: Any, shares: Sequence[Share], in_ambush: Event) -> None:
        self.log, self.pool, self.in_ambush = log, pool, in_ambush
        self.outcome = Outcome()
        self.read_to = 0
        self.killed: int | None = None
        self.pending = {share.number: Pending(share, self._submit(share)) for share in shares}

    def _submit(self, share: Share) -> AsyncResult[float]:
        result: AsyncResult[float] = self.pool.apply_async(load_share, (share,))
        return result

    def run(self, bar: Any, counted: Any) -> Outcome:
        started = moved_at = time.monotonic()
        while self.pending:
            self._read_begins()
            self._kill_who_lies_in_wait()
            moved = self._collect(bar) + self._hand_out_again()
            bar.set_postfix(committed=f"{counted.value:,}", lost=len(self.outcome.lost), refresh=False)
            now = time.monotonic()
            if moved:
                moved_at = now
            elif now - moved_at > STALLED_S:
                raise TimeoutError(f"no share was finished for {STALLED_S:g} s; open: {sorted(self.pending)}")
            time.sleep(POLL_S)
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _read_begins(self) -> None:
        """The log tells who works on which share."""
        stop = self.log.committed_lsn
        for batch in self.log.read_batches(self.read_to, stop, BEGIN):
            for record in batch:
                note = np.frombuffer(record.data, RECORD)[0]
                pending = self.pending.get(int(note["share"]))
                if pending is not None and pending.share.attempt == note["attempt"]:
                    pending.pid = int(note["pid"])
        self.read_to = stop

    def _kill_who_lies_in_wait(self) -> None:
        if self.killed is not None or not self.in_ambush.is_set():
            return
        for pending in self.pending.values():
            if pending.share.ambush and pending.pid is not None:
                os.kill(pending.pid, signal.SIGKILL)
                self.killed = pending.pid

    def _collect(self, bar: Any) -> int:
        ready = [number for number, pending in self.pending.items() if pending.result.ready()]
        for number in ready:
            done = self.pending.pop(number)
            self.outcome.appending_s += done.result.get()  # or raises what the worker raised
            bar.update(done.share.rows)
        return len(ready)

    def _hand_out_again(self) -> int:
        """A share that was begun by a process that is no more."""
        alive = {child.pid for child in multiprocessing.active_children()}
        lost = [pending for pending in self.pending.values() if pending.pid and pending.pid not in alive]
        for pending in lost:
            assert pending.pid is not None
            self.outcome.lost.append((pending.share.number, pending.pid))
            again = pending.share._replace(attempt=pending.share.attempt + 1, ambush=False)
            self.pending[again.number] = Pending(again, self._submit(again))
        return len(lost)


@contextlib.contextmanager
def no_interrupt() -> Iterator[None]:
    """Processes made in here leave Ctrl-C to the parent: they keep the signal mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def load(
    log: shmlog.Log, path: str, shares: Sequence[Share], workers: int, start_method: str, bar: Any
) -> tuple[Outcome, dict[str, Any]]:
    """Run the pool and, beside it, the reader; what each of them says."""
    context: Any = multiprocessing.get_context(start_method)
    in_ambush = context.Event()
    counted = context.Value("Q", 0, lock=False)
    ours, theirs = context.Pipe(duplex=False)
    reader = context.Process(target=follow, args=(log, counted, theirs), daemon=True)
    with no_interrupt():
        reader.start()
        pool = context.Pool(workers, begin_worker, (log, path, in_ambush))
    theirs.close()
    try:
        outcome = Loading(log, pool, shares, in_ambush).run(bar, counted)
        log.append(np.zeros((), RECORD), STOP, durable=True)
        if not ours.poll(STALLED_S):
            raise TimeoutError("the reader has not come to the end of the log")
        seen = ours.recv()
    finally:
        pool.terminate()  # close() and join() would wait for the lost task for ever
        pool.join()
        reader.kill()
        reader.join()
        ours.close()
    return outcome, seen


# --------------------------------------------------------------------- the whole


def run(
    path: str, scratch: str, rows_max: int | None, workers: int, start_method: str, quiet: bool
) -> dict[str, Any]:
    """Load, read back, compare; the report."""
    from tqdm import tqdm

    source = find_source()
    plain = unpack(source, scratch)
    shares = cut(plain, rows_max, workers)
    rows = sum(share.rows for share in shares)
    tqdm.monitor_interval = 0  # no thread of its own: there will be forks
    interval_s = 0.2 if sys.stderr.isatty() else 2.0
    with shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        if log.committed_lsn:
            raise FileExistsError(17, "there are records already", path)
        with tqdm(total=rows, unit=" flights", desc="logging", disable=quiet, mininterval=interval_s) as bar:
            outcome, seen = load(log, plain, shares, workers, start_method, bar)
        found = read_back(log, rows)
        statistics = log.statistics()
    verified = shmlog.verify(path)
    expected = expected_table(source, rows)
    victim = next(share.number for share in shares if share.ambush)
    same = {c: found.table.get(c) for c in expected} == expected and len(found.table) == len(expected)
    checks = {
        "one worker was killed in the middle of its share": [share for share, _ in outcome.lost] == [victim]
        and found.interrupted > 0,
        "its open reservation became a hole, and was filled": statistics.holes_filled >= 1,
        "every row of the source is in the log, and counts once": found.flights == rows
        and found.each_row_once,
        "the reader beside the workers counted the same": (
            seen["flights"],
            seen["interrupted"],
            seen["in_order"],
        )
        == (found.flights, found.interrupted, True),
        "no payload was copied to read the log": found.zero_copy,
        "all is durable": statistics.durable_lsn == statistics.committed_lsn == statistics.reserved_lsn,
        "every frame is valid after the log was closed": verified.ok
        and (verified.state, verified.records) == ("clean", found.records),
        "the delay table is pandas', number for number": same,
    }
    return {
        "ok": all(checks.values()),
        "checks": checks,
        "rows": rows,
        "workers": workers,
        "shares": len(shares),
        "records": found.records,
        "interrupted_records": found.interrupted,
        "lost": [{"share": share, "pid": pid} for share, pid in outcome.lost],
        "seconds": round(outcome.seconds, 3),
        "records_per_second": round(found.records / outcome.seconds),
        "appending_seconds": round(outcome.appending_s, 3),
        "holes_filled": statistics.holes_filled,
        "hole_bytes": statistics.hole_bytes,
        "syncs": statistics.syncs,
        "sync_seconds": round(statistics.sync_seconds, 3),
        "log_bytes": statistics.reserved_lsn,
        "disk_bytes": disk_bytes(path),
        "table": {carrier: list(line) for carrier, line in found.table.items()},
    }


def show(report: dict[str, Any], kept: str | None) -> None:
    """The report, for people."""
    lost = ", ".join(f"share {one['share']} (pid {one['pid']})" for one in report["lost"])
    print("carrier   flights   mean departure delay   mean arrival delay")
    for carrier, (flights, departure, arrival) in report["table"].items():
        print(f"{carrier:7} {flights:9,} {departure:18.2f} min {arrival:16.2f} min")
    print()
    of_worker_s = report["appending_seconds"] / report["workers"]
    size = f"{report['disk_bytes'] / 2**20:.1f} MiB for {report['log_bytes'] / 2**20:.1f} MiB of log"
    lines = {
        "flights": f"{report['rows']:,} in {report['shares']} shares, by {report['workers']} workers",
        "records": f"{report['records']:,}, of them {report['interrupted_records']:,} of the lost attempt",
        "rate": f"{report['records_per_second']:,} records/s for {report['seconds']:.1f} s, parsing included",
        "appending": f"{of_worker_s:.2f} s of each worker's time",
        "killed": lost or "nobody",
        "holes filled": f"{report['holes_filled']} ({report['hole_bytes']} bytes)",
        "syncs": f"{report['syncs']}, {report['sync_seconds']:.2f} s in all",
        "on disk": f"{size}, kept in {kept}" if kept else f"{size}, removed",
    }
    for name, text in lines.items():
        print(f"{name:12}  {text}")
    print()
    for name, passed in report["checks"].items():
        print(f"{'ok  ' if passed else 'FAIL'}  {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything agrees; 1: something differs, or an error; 2: wrong usage; 130: interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, metavar="N", help="only the first N flights (default: all)")
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="processes in the pool (default 4)"
    )
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        default="fork",
        help="how the processes are started (default fork)",
    )
    parser.add_argument("--keep", metavar="DIR", help="make the log in DIR and leave it there")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, and no progress")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1 or (chosen.rows is not None and chosen.rows < 1):
        parser.error("--workers and --rows must be positive")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="shmlog-demo-") as scratch:
            path = chosen.keep or os.path.join(scratch, "log")
            report = run(path, scratch, chosen.rows, chosen.workers, chosen.start_method, chosen.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ImportError, OSError, ValueError, shmlog.ShmlogError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(report))
    else:
        show(report, chosen.keep)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
