"""A scribbler: random words and bits of the control block and of the segments change while writers,
readers and a flusher use them.

Nothing is promised of the records.  But every process ends by itself, by no signal and not too late;
nobody sends a signal to a pid that was written into the block; and afterwards, with the block gone,
the log is opened or refused with an error that says why.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import random
import signal
import struct
import tempfile
import time
from pathlib import Path

from crash.kit import Budget, Recipe, Tally
from support.processes import Child, Wire, block_path, lose_shared_memory

import shmlog
from shmlog.format.layout import CB, PT, SEGMENT_HEADER_BYTES
from shmlog.session import sidecar

WRITERS = 2
SCRIBBLE_S = 0.6
ENDS_S = 20.0
"""The longest wait of a call is five seconds, and a handle's close has as much again."""
TYPED = (shmlog.ShmlogError, OSError, TimeoutError, ValueError, OverflowError)
VALUES = (0, 1, 2**63, 2**64 - 1, 2**62, 31, 4096, 65536, 1 << 20)


def _write(wire: Wire, path: str) -> int:
    errors = 0
    log = shmlog.open(path, flusher="external", timeout=1)
    wire.say("open")
    while not wire._connection.poll():
        for call in (
            lambda: log.append(b"x" * 500, timeout=0.2),
            lambda: log.append_many([b"y" * 30] * 20, timeout=0.2),
            lambda: log.append(b"z", durable=True, timeout=0.2),
            lambda: log.reserve(100, timeout=0.2).abort(),
            lambda: log.statistics().to_dict(),
        ):
            try:
                call()
            except TYPED:
                errors += 1
    with contextlib.suppress(*TYPED):
        log.close()
    return errors


def _read(wire: Wire, path: str) -> int:
    errors = 0
    wire.say("open")
    while not wire._connection.poll():
        try:
            with shmlog.open_readonly(path) as log:
                for batch in log.read_batches():
                    batch[0], batch.nbytes.sum()
                for record in log.read(verify=False):
                    bytes(record.data)
        except TYPED:
            errors += 1
    return errors


def _flush(wire: Wire, path: str) -> int:
    with open(f"{path}.flusher", "a") as log:
        os.dup2(log.fileno(), 2)
    faulthandler.register(signal.SIGUSR1)  # says where it is stuck, if it is
    with contextlib.suppress(*TYPED):
        return sidecar.run(path, 0.001, 0o600, False)
    return 1


def _stand(wire: Wire) -> str:
    return str(wire.hear(3600))


def _pid_words() -> list[int]:
    """Where the block says who somebody is."""
    return [CB.FLUSHER_PID, *(CB.HEADER_BYTES + n * PT.BYTES + PT.PID for n in range(8))]


def _scribble(path: Path, rng: random.Random, bystander: int, until_s: float) -> int:
    fd = os.open(block_path(path), os.O_RDWR)
    size, count = os.fstat(fd).st_size, 0
    head = CB.HEADER_BYTES + 8 * PT.BYTES
    try:
        while time.monotonic() < until_s:
            for _ in range(rng.randrange(1, 4)):
                kind = rng.random()
                if kind < 0.5:
                    word = rng.choice([rng.getrandbits(64), rng.choice(VALUES), rng.randrange(1 << 22)])
                    at = rng.randrange(head // 8) * 8
                    os.pwrite(fd, struct.pack("<Q", word), at)
                elif kind < 0.6:
                    os.pwrite(fd, struct.pack("<Q", bystander), rng.choice(_pid_words()))
                elif kind < 0.8:
                    os.pwrite(fd, rng.randbytes(1), rng.randrange(size))
                else:
                    _scribble_segment(path, rng)
                count += 1
            time.sleep(rng.random() * 0.01)
    finally:
        os.close(fd)
    return count


def _scribble_segment(path: Path, rng: random.Random) -> None:
    with contextlib.suppress(OSError, IndexError):
        segment = rng.choice(sorted((path / "segments").iterdir()))
        fd = os.open(segment, os.O_RDWR)
        try:
            at = rng.randrange(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + 65536) & ~7
            os.pwrite(fd, struct.pack("<Q", rng.choice([rng.getrandbits(64), *VALUES])), at)
        finally:
            os.close(fd)


def turn(budget: Budget, number: int, tally: Tally) -> None:
    rng = budget.random(number)
    where = f"seed {budget.seed} turn {number}"
    with tempfile.TemporaryDirectory(prefix="shmlog-scribbler-") as scratch, contextlib.ExitStack() as stack:
        path = Path(scratch, "log")
        sizes = {"segment_bytes": 64 << 10, "window_bytes": 128 << 10}
        shmlog.open(path, create=True, flusher="external", **sizes).close()
        stack.callback(lose_shared_memory, path)
        bystander = stack.enter_context(Child(_stand))
        flusher = stack.enter_context(Child(_flush, str(path)))
        users = [stack.enter_context(Child(_write, str(path))) for _ in range(WRITERS)]
        users.append(stack.enter_context(Child(_read, str(path))))
        for user in users:
            user.hear()
        words = _scribble(path, rng, bystander.pid, time.monotonic() + SCRIBBLE_S)
        tally.figures["words"] = int(tally.figures.get("words", 0)) + words
        try:
            for user in users:
                with contextlib.suppress(BrokenPipeError):
                    user.say("end")
            for user in users:
                tally.figures["errors"] = int(tally.figures.get("errors", 0)) + user.hear(ENDS_S)
                assert user.wait() == 0, f"a process ended with {user.status}"
            flusher.signal(signal.SIGTERM)
            with contextlib.suppress(EOFError, AssertionError):
                flusher.hear(ENDS_S)
            assert flusher.wait(ENDS_S) in (0, 1, 71), f"the flusher ended with {flusher.status}"
            bystander.say("still here")
            assert bystander.result() == "still here"
            lose_shared_memory(path)
            outcome = stack.enter_context(Child(_open_again, str(path))).result(ENDS_S)
        except (AssertionError, EOFError, *TYPED) as error:
            stuck = ""
            if flusher.status is None:
                flusher.signal(signal.SIGUSR1)
                time.sleep(1)  # for it to write
                stuck = "\n" + Path(f"{path}.flusher").read_text()[-3000:]
            tally.violate(f"{where}: {type(error).__name__}: {error}{stuck}")
            return
    tally.survive() if outcome == "opened" else tally.refuse()


def _open_again(wire: Wire, path: str) -> str:
    try:
        with shmlog.open(path, flusher="external", timeout=2) as log:
            sum(1 for _ in log.read())
    except TYPED as error:
        return str(error)
    return "opened"


def _run(budget: Budget) -> Tally:
    logging.getLogger("shmlog").setLevel(logging.CRITICAL)  # recoveries are what this is about
    tally, number = Tally(), 0
    while budget:
        turn(budget, number, tally)
        number += 1
    if number > 20 and not tally.figures.get("errors"):
        tally.violate("nobody saw an error: was nothing scribbled?")
    return tally


RECIPE = Recipe("scribbler", "block and segments scribbled over while they are used", _run, weight=0.5)
