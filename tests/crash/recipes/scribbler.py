"""A process that scribbles over the control block and the segments while others use the log.

    scribbler        random words into its own maps of them, of one kind in each round
    writers, reader  every call with a time-out, and opening again when the log has failed
    flusher          as the writers start it
    decoy            its pid is what many words are overwritten with

What must hold, whatever is written: nobody dies of a signal; every call ends, by its
time-out and some patience; the decoy gets no signal; a record that is read is whole, unless
segments were scribbled over; and afterwards, and once more when the block has been removed,
the log opens and goes on, or refuses with an error of its own.  (Who may write to the block
may also make the flusher vouch for what is not there: that is refused, and counted so.)
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import mmap
import os
import random
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from crash.kit import Budget, Goal, Recipe, Tally
from support.processes import (
    SEGMENT_BYTES,
    Child,
    Wire,
    block_path,
    flusher_pids,
    is_alive,
    lose_shared_memory,
    payload,
    until,
    whose,
)

import shmlog
from shmlog.format.layout import CB, PT
from shmlog.memory.participants import slot_offset

TYPED = (shmlog.ShmlogError, OSError, ValueError)
CALL_S = 0.2
"""The time-out of a call."""
PATIENCE_S = 15.0
"""What a call may take beyond it: attaching looks for two seconds, and the machine is busy."""
ROUND_S = 1.5
WATERMARKS = tuple(getattr(CB, name) for name in vars(CB) if name.endswith("_LSN"))
WORDS = tuple(value for name, value in vars(CB).items() if name not in ("HEADER_BYTES", "MAGIC"))


# ------------------------------------------------------------------- scribbling


def _places(kind: str, rng: random.Random, size: int) -> int:
    """A word of the block to write over."""
    slot = slot_offset(rng.randrange(6), 0)
    if kind == "watermarks":
        return rng.choice(WATERMARKS)
    if kind == "words":
        return rng.choice(WORDS)
    if kind == "participants":
        return slot + 8 * rng.randrange(PT.BYTES // 8)
    if kind == "claims":
        return slot + PT.CLAIMS + 8 * rng.randrange((PT.BYTES - PT.CLAIMS) // 8)
    if kind == "bitmap":
        return slot_offset(1024, 0) + 8 * rng.randrange(SEGMENT_BYTES // 32 // 64)
    return 8 * rng.randrange(size // 8)


def _value(rng: random.Random, old: int, decoy: int) -> int:
    near = rng.choice((-1, 1)) * rng.choice((1, 32, 4096, SEGMENT_BYTES, 1 << 40))
    few = 0, 1, decoy, 2**64 - 1, 1 << 62, 1 << 63, rng.getrandbits(64), 32 * rng.randrange(8192)
    return rng.choice((*few, old + near, old + near, old ^ 1 << rng.randrange(64))) % 2**64


KINDS = ("watermarks", "words", "participants", "claims", "bitmap", "anything", "segments")


def _scribble(path: Path, kind: str, rng: random.Random, decoy: int, seconds: float) -> int:
    """Write for so long; how many words."""
    written, until_s = 0, time.monotonic() + seconds
    pause_s = rng.choice((0.0, 0.001, 0.02, 0.1))
    while time.monotonic() < until_s:
        segments = sorted((path / "segments").glob("*.seg"))
        target = rng.choice(segments) if kind == "segments" and segments else block_path(path)
        with contextlib.suppress(FileNotFoundError), open(target, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                with mmap.mmap(file.fileno(), size) as memory:
                    for _ in range(rng.choice((1, 1, 10))):
                        at = 8 * rng.randrange(size // 8) if kind == "segments" else _places(kind, rng, size)
                        (old,) = struct.unpack_from("<Q", memory, at)
                        struct.pack_into("<Q", memory, at, _value(rng, old, decoy))
                        written += 1
        time.sleep(pause_s)
    return written


# ------------------------------------------------------------------------ users


def _stack_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-stack-{number}")


def _stack(path: Path, number: int, child: Child) -> str:
    """Where a user is that does not answer."""
    with contextlib.suppress(ProcessLookupError):
        child.signal(signal.SIGUSR1)
    with contextlib.suppress(AssertionError):
        until(lambda: _stack_path(path, number).stat().st_size, "it says where it is", 5)
    return _stack_path(path, number).read_text()[-2000:]


def _use(wire: Wire, path: Path, number: int, whole: bool) -> dict[str, Any]:
    """Append or read until told to end; what was seen."""
    with open(_stack_path(path, number), "w") as file:
        faulthandler.register(signal.SIGUSR1, os.dup(file.fileno()))
    seen: dict[str, Any] = {"calls": 0, "longest_s": 0.0, "broken": [], "raised": []}
    sequence = 0
    wire.say("ready")

    def call(use: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return use()
        except TYPED:
            return None
        except Exception:
            seen["raised"].append(traceback.format_exc()[-1500:])
            return None
        finally:
            seen["calls"] += 1
            seen["longest_s"] = max(seen["longest_s"], time.monotonic() - began)

    def read(log: Any) -> None:
        for record in log.read():
            try:
                whose(record.data)
            except (AssertionError, struct.error) as error:
                if whole:
                    seen["broken"].append(str(error))

    while not wire._connection.poll():
        log = call(lambda: shmlog.open(path, timeout=0.5) if number else shmlog.open_readonly(path))
        if log is None:
            continue
        rng, failures = random.Random(sequence), 0
        while failures < 5 and not wire._connection.poll():
            data = payload(number, sequence, 16 + rng.randrange(2000))
            sequence += 1
            uses: tuple[Callable[[], Any], ...] = (lambda: (read(log), True)[1],)  # noqa: B023
            if number:
                uses += (
                    lambda: log.append(data, number, timeout=CALL_S),  # noqa: B023
                    lambda: log.append(data, number, timeout=CALL_S, durable=True),  # noqa: B023
                    lambda: log.append_many([data] * 5, number, atomic=True, timeout=CALL_S),  # noqa: B023
                    lambda: log.wait_durable(timeout=CALL_S) or True,  # noqa: B023
                    lambda: log.reserve(100).abort() or True,  # noqa: B023
                )
            failures += call(rng.choice(uses)) is None
        call(log.close)
    wire.hear()
    return seen


def _decoy(wire: Wire) -> list[int]:
    """Which signals came, all of them blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    wire.say("ready")
    wire.hear(600)
    return sorted(signal.sigpending())


# ------------------------------------------------------------------------ a round


def _end_flushers(path: Path) -> None:
    for pid in flusher_pids(path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not flusher_pids(path), "no flusher is left")


@contextlib.contextmanager
def _cleaned(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        _end_flushers(path)
        with contextlib.suppress(OSError, ValueError, KeyError):
            lose_shared_memory(path)


def _round(path: Path, kind: str, rng: random.Random) -> tuple[list[str], bool, dict[str, int]]:
    """(what was wrong, whether the log went on as it was, counts)."""
    wrong: list[str] = []
    counts = {"calls": 0, "words": 0}
    shmlog.open(path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES).close()
    with _cleaned(path), contextlib.ExitStack() as stack:
        decoy = stack.enter_context(Child(_decoy))
        users = [stack.enter_context(Child(_use, path, n, kind != "segments")) for n in (0, 1, 2)]
        for child in (decoy, *users):
            child.hear()
        counts["words"] = _scribble(path, kind, rng, decoy.pid, ROUND_S)
        for number, user in enumerate(users):
            with contextlib.suppress(OSError):
                user.say("end")
            try:
                seen = user.hear(PATIENCE_S + 5)
            except EOFError:
                wrong.append(f"user {number} died: {user.wait()}")
                continue
            except AssertionError as error:
                wrong.append(f"user {number}: {error}\n{_stack(path, number, user)}")
                continue
            counts["calls"] += seen["calls"]
            if seen["longest_s"] > PATIENCE_S:
                wrong.append(f"a call of user {number} took {seen['longest_s']:.1f} s")
            wrong += [f"user {number} read a record that is not whole: {text}" for text in seen["broken"][:3]]
            wrong += [f"user {number} got no error of ours: {text}" for text in seen["raised"][:3]]
            if user.wait() != 0:
                wrong.append(f"user {number} ended with {user.status}")
        decoy.say("end")
        signals = decoy.result()
        if signals:
            wrong.append(f"the decoy, whose pid was in the block, got the signals {signals}")
        for pid in flusher_pids(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        try:
            until(
                lambda: not any(map(is_alive, flusher_pids(path))), "the flusher ends when told", PATIENCE_S
            )
        except AssertionError as error:
            for pid in flusher_pids(path):  # and says where it is, for it has a fault handler
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGABRT)
            until(lambda: not flusher_pids(path), "no flusher is left")
            wrong.append(f"{error}: " + (path / "flusher.log").read_text(errors="replace")[-3000:])
            return wrong, False, counts
        told = path / "flusher.log"
        if told.exists() and "Fatal Python error" in told.read_text(errors="replace"):
            wrong.append("a flusher died: " + told.read_text(errors="replace")[-2000:])
        _end_flushers(path)
        went_on = _opens(path)
        if went_on is None:
            lose_shared_memory(path)
            _opens(path)
    return wrong, bool(went_on), counts


def _opens(path: Path) -> bool | None:
    """Whether the log opens, is read and goes on; None: it refuses, with an error of its own."""
    try:
        with shmlog.open(path, timeout=5) as log:
            for _ in log.read():
                pass
            log.append(b"and on", durable=True, timeout=5)
        return True
    except TYPED:
        return None
    finally:
        _end_flushers(path)


def _run(budget: Budget) -> Tally:
    tally, turn = Tally(), 0
    logging.getLogger("shmlog").addHandler(logging.NullHandler())  # what recovery says is expected here
    total = {"calls": 0, "words": 0}
    with tempfile.TemporaryDirectory() as scratch:
        while budget.goes_on(tally) and len(tally.violations) < 10:
            rng = budget.random(turn)
            kind = KINDS[turn % len(KINDS)]
            path = Path(scratch, str(turn))
            wrong, went_on, counts = _round(path, kind, rng)
            for name, count in counts.items():
                total[name] += count
            if wrong:
                for what in wrong:
                    tally.violate(f"seed {budget.seed}, turn {turn}, {kind}: {what}")
            elif went_on:
                tally.survive()
            else:
                tally.refuse()
            shutil.rmtree(path, ignore_errors=True)
            turn += 1
    tally.figures = {name: f"{count:,}" for name, count in total.items()}
    return tally


RECIPE = Recipe("scribbler", "a log whose memory is scribbled over", _run, (Goal("tried", 60),), 150.0)
