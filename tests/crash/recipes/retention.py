"""A log under continuous load, kept within its budget.

Two processes append as fast as they may, 20 budgets' worth if there is time.  Meanwhile a slow
cursor comes, reads every record in order, and goes again; a view is held over what is given up;
and now and then the flusher is killed.  What the files take is looked at all the time.

    tried     cursors that came and went, and flushers that were killed
    figures   GB that went through, the most that the files took, cursors that held the budget back

`make crash ARGS='--only retention --replay whole'` goes on until all 20 GB of the large budget's
rounds are through, however long that takes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from crash.kit import Budget, Goal, Recipe, Tally
from support.processes import Child, Wire

import shmlog

LARGE = 1 << 30, 64 << 20
SMALL = 64 << 20, 1 << 20
"""(budget, segment) in bytes, the small ones if there is less than LONG_S."""
LONG_S = 120.0
WHOLE_S = 3600.0
ROUNDS = 20
ROWS, COLUMNS = 64, 512
ROW = np.dtype((np.uint64, COLUMNS))
HELD_S = {LARGE: 3.0, SMALL: 0.5}
"""How long a slow cursor keeps what it has not read: long enough for writers to use the budget up."""


def _write(wire: Wire, path: Path, number: int) -> int:
    """Append rows of (number, sequence, ...) until told to end; how many."""
    with shmlog.open(path, timeout=60) as log:
        rows, sequence = np.zeros((ROWS, COLUMNS), np.uint64), 0
        rows[:, 0] = number
        while not wire.heard():
            rows[:, 1] = np.arange(sequence, sequence + ROWS)
            log.append_array(rows, number)
            sequence += ROWS
        return sequence


class _Files(threading.Thread):
    """Looks at what the segment files take, on the disk and by their sizes."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path, self._ended, self.most = path / "segments", threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(0.002):
            size = 0
            for entry in os.scandir(self._path):
                try:
                    size += entry.stat().st_size
                except FileNotFoundError:
                    continue
            self.most = max(self.most, size)

    def end(self) -> None:
        self._ended.set()
        self.join()


def _cursor_comes_and_goes(log: shmlog.Log, held_s: float) -> tuple[str | None, bool]:
    """Read in order, slowly, from a cursor of its own; what was wrong, if anything was, and whether
    writers had to wait for it."""
    until_s, held_back = time.monotonic() + held_s, False
    expected: dict[int, int] = {}
    with log.cursor("slow") as cursor:
        begin = cursor.lsn
        held = next(iter(log.read_batches(begin)), None)
        view = None if held is None else held.array(ROW)
        before = None if view is None else view.copy()
        while time.monotonic() < until_s:
            time.sleep(held_s / 5)
            held_back = held_back or log.statistics().budget_held
            for batch in cursor.batches():
                for number in (1, 2):
                    own = batch.array(ROW)[batch.tag == number][:, 1]
                    if not len(own):
                        continue
                    first = expected.get(number, int(own[0]))
                    if not np.array_equal(own, np.arange(first, first + len(own), dtype=np.uint64)):
                        wrong = f"the cursor from LSN {begin} missed records of writer {number} near {first}"
                        return wrong, held_back
                    expected[number] = first + len(own)
            cursor.commit()
    log.remove_cursor("slow")
    time.sleep(held_s / 4)
    if view is not None and not np.array_equal(view, before):
        return f"a live view from LSN {begin} on has changed", held_back
    return None, held_back


def _run(budget: Budget, whole: bool = False) -> Tally:
    tally = Tally()
    sizes = budget_bytes, segment_bytes = LARGE if budget.left_s() >= LONG_S else SMALL
    directory = tempfile.mkdtemp(prefix="shmlog-retention-")
    path = Path(directory) / "log"
    kept = shmlog.Retention(bytes=budget_bytes)
    try:
        with shmlog.open(
            path, create=True, segment_bytes=segment_bytes, window_bytes=segment_bytes, retention=kept
        ) as log:
            files, turn, times_held = _Files(path), 0, 0
            files.start()
            with Child(_write, path, 1) as one, Child(_write, path, 2) as two:
                while budget.left_s() > 3 and log.reserved_lsn < ROUNDS * budget_bytes:
                    tally.figures["budgets through"] = round(log.reserved_lsn / budget_bytes, 1)
                    if not budget.goes_on(tally):
                        break
                    dice = budget.random(turn)
                    wrong, held_back = _cursor_comes_and_goes(log, HELD_S[sizes] * (1 + dice.random()))
                    times_held += held_back
                    if wrong:
                        tally.violate(wrong)
                        break
                    tally.survive()
                    flusher = log.statistics().flusher_pid
                    if turn % 4 == 3 and flusher is not None:
                        os.kill(flusher, signal.SIGKILL)
                        tally.survive()
                    turn += 1
                for child in (one, two):
                    child.say("end")
                    child.result(60)
            log.wait_durable(timeout=60)
            files.end()
            tally.figures["GB through"] = round(log.reserved_lsn / 1e9, 2)
            tally.figures["budget MB"] = round(budget_bytes / 1e6)
            tally.figures["most MB"] = round(files.most / 1e6)
            tally.figures["times held back"] = times_held
            if whole and log.reserved_lsn < ROUNDS * budget_bytes:
                tally.violate(f"only {log.reserved_lsn} bytes went through in {budget.spent_s():.0f} s")
            if files.most > budget_bytes:
                tally.violate(f"the files took {files.most} bytes of a budget of {budget_bytes}")
            if log.reserved_lsn > 2 * budget_bytes and not log.trimmed_lsn:
                tally.violate("nothing was trimmed")
        report = shmlog.verify(path)
        if not report.ok:
            tally.violate(f"the log is damaged at LSN {report.problem_lsn}: {report.problem}")
    except (shmlog.ShmlogError, OSError, AssertionError) as error:
        tally.violate(f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return tally


def _missing() -> str | None:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return None if free > 2 * LARGE[0] else f"only {free >> 20} MiB are free where temporary files go"


def _replay(name: str) -> Tally:
    if name != "whole":
        raise SystemExit("retention: the only replay is 'whole'")
    return _run(Budget(WHOLE_S, 0), whole=True)


RECIPE = Recipe(
    "retention",
    "a budget that writers, a slow cursor and killed flushers press on",
    _run,
    (Goal("tried", 5), Goal("budgets through", 5)),
    60.0,
    missing=_missing,
    replay=_replay,
)
