"""The world of the chaos driver: one log, its processes, its model, and the faults.

    begin()   a round's processes, in a group of their own: writers, readers, trims, a flusher
    step()    one fault, drawn, and a while for the writers
    end()     calm, killed, lost or restart; then the log is compared with the model

This module knows what is done to processes.  It may not know how often, or who asks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash.actors import FORKS_MAX, act, flush, in_group, stand
from crash.kit import Tally
from crash.model import Model
from support.processes import (
    Child,
    Wire,
    assert_healthy,
    block_path,
    flusher_pids,
    is_alive,
    lose_shared_memory,
    nobody_lives,
    until,
)

import shmlog
from shmlog.disk import directory, recovery
from shmlog.format.layout import CB, SEGMENT_HEADER_BYTES

TESTS = Path(__file__).resolve().parents[1]
PROGRESS_S = 0.25
"""The longest that a step waits for the writers: all of them may stand still."""
ALIVE_S = 20.0
"""Nothing that may go on takes longer."""


class Actor:
    """One process, forked or in an interpreter of its own."""

    def __init__(self, role: str, life: int, process: Child | subprocess.Popen[bytes]) -> None:
        self.role, self.life, self.process = role, life, process
        self.pid = process.pid

    def ended(self) -> bool:
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll() is not None
        if self.process.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.process.status = os.waitstatus_to_exitcode(status)
        return self.process.status is not None


class World:
    """One log, its processes and its model."""

    def __init__(self, scratch: Path, rng: random.Random, tally: Tally, forked: bool) -> None:
        self.rng, self.tally = rng, tally
        self.forked = forked
        """whether every process is forked from this one, the flusher too"""
        self.path, self.sides = scratch / "log", scratch / "sides"
        (self.sides / "errors").mkdir(parents=True)
        self.model = Model(self.sides)
        self.actors: list[Actor] = []
        self.stopped: list[int] = []
        self.life = 0
        self.group = 0
        self.marks = (0, 0, 0, 0)
        self.options: dict[str, Any] = {}
        sizes = [64 << 10, 128 << 10, 256 << 10, 1 << 20]
        geometry = {"segment_bytes": rng.choice(sizes), "window_bytes": rng.choice(sizes)}
        shmlog.open(self.path, create=True, **geometry).close()

    def count(self, figure: str, count: int = 1) -> None:
        self.tally.figures[figure] = int(self.tally.figures.get(figure, 0)) + count

    # ------------------------------------------------------------- processes

    def start(self, role: str) -> None:
        self.life += FORKS_MAX + 1
        seed = f"{self.rng.random()}"
        options = self.options | {"timeout": self.rng.choice([0.3, 2.0, 30.0])}
        what = (role, str(self.path), str(self.sides), self.life, seed, options)
        if not self.forked and self.rng.random() < 0.08:
            process: Child | subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-c", "from crash.actors import main; main()", json.dumps(what)],
                cwd=TESTS,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=self.group,
            )
            self.count("interpreters")
        else:
            process = self.fork(act, *what)
        self.actors.append(Actor(role, self.life, process))

    def fork(self, function: Callable[..., Any], *arguments: Any) -> Child:
        """A child that is in the round's group before this returns.  It joins it itself, too, but on a
        busy machine that may be after the round has ended: a kill of the group would miss it."""
        child = Child(in_group, self.group, function, *arguments)
        with contextlib.suppress(ProcessLookupError):  # it has ended, and somebody waited for it
            os.setpgid(child.pid, self.group)
        return child

    def start_flusher(self) -> None:
        """A flusher of our own, where the handles start none."""
        interval = self.rng.choice([0.0, 0.01, 0.2, 1000.0])
        process = self.fork(flush, str(self.path), interval)
        self.actors.append(Actor("flush", 0, process))

    def begin(self) -> None:
        """The processes of a round."""
        rng = self.rng
        external = self.forked or rng.random() < 0.4
        self.options = {
            "flusher": "external" if external else "auto",
            "sync_interval": rng.choice([0.0, 0.001, 0.01, 0.1, 1000.0]),
        }
        anchor = Child(stand)
        self.actors.append(Actor("anchor", 0, anchor))
        self.group = anchor.hear()
        if external:
            self.start_flusher()
        roles = ["write"] * rng.randrange(2, 6) + ["read"] * rng.randrange(1, 3)
        roles += [role for role in ("view", "follow", "trim") if rng.random() < 0.6]
        for role in roles:
            self.start(role)

    def born(self) -> list[int]:
        """The forked children that the writers have noted, those that are still of this group."""
        self.model.learn()
        own = {actor.pid for actor in self.actors}
        pids = [pid for life in self.model.lives.values() for pid in life.pids if pid not in own]
        return [pid for pid in pids if is_alive(pid) and _group(pid) == self.group]

    def signal(self, pid: int, number: int) -> bool:
        """To a process of this round, and to no other that has its pid by now."""
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                if _group(pid) == self.group or pid in flusher_pids(self.path):
                    signal.pidfd_send_signal(fd, number)
                    return True
            finally:
                os.close(fd)
        return False

    def victims(self) -> list[int]:
        own = [actor.pid for actor in self.actors if actor.role != "anchor" and not actor.ended()]
        return own + self.born()

    def reap(self) -> None:
        """Replace who has ended."""
        for actor in [actor for actor in self.actors if actor.ended()]:
            self.actors.remove(actor)
            _forget(actor)
            if actor.role == "flush":
                self.start_flusher()
            else:
                self.start(actor.role)
        self.look_for_errors()

    def look_for_errors(self) -> None:
        for path in (self.sides / "errors").iterdir():
            raise AssertionError(f"{path.name}: {path.read_text()}")

    # ---------------------------------------------------------------- faults

    def step(self) -> None:
        """One fault, drawn; then a while for the writers."""
        faults: dict[Callable[[], None], float] = {
            self.kill: 4,
            self.stop: 4,
            self.resume: 4,
            self.kill_stopped: 1.5,
            self.kill_flushers: 1.5,
            self.stop_flushers: 1,
        }
        (fault,) = self.rng.choices(list(faults), list(faults.values()))
        fault()
        self.reap()
        self.progress(self.rng.choice([1, 20, 200, 1000]))
        self.look_at_marks()

    def progress(self, count: int) -> None:
        self.model.learn()
        goal, deadline = self.model.records + count, time.monotonic() + PROGRESS_S
        while self.model.records < goal and time.monotonic() < deadline:
            time.sleep(0.002)
            self.model.learn()

    def kill(self) -> None:
        pids = [pid for pid in self.victims() if pid not in self.stopped]
        if pids and self.signal(pid := self.rng.choice(pids), signal.SIGKILL):
            self.count("kills")
            until(lambda: not is_alive(pid), "the killed one is dead")

    def stop(self) -> None:
        pids = [pid for pid in self.victims() if pid not in self.stopped]
        for pid in self.rng.sample(pids, self.rng.randrange(len(pids) + 1)):
            if self.signal(pid, signal.SIGSTOP):
                self.stopped.append(pid)
                self.count("stops")

    def resume(self) -> None:
        """Some of those that stand still, in another order."""
        self.rng.shuffle(self.stopped)
        for _ in range(self.rng.randrange(len(self.stopped) + 1)):
            self.signal(self.stopped.pop(), signal.SIGCONT)

    def kill_stopped(self) -> None:
        if self.stopped and self.signal(pid := self.stopped.pop(), signal.SIGKILL):
            self.count("kills")
            self.count("killed while stopped")
            until(lambda: not is_alive(pid), "the killed one is dead")

    def flushers(self) -> list[int]:
        own = [actor.pid for actor in self.actors if actor.role == "flush" and not actor.ended()]
        return own + flusher_pids(self.path)

    def kill_flushers(self) -> None:
        for pid in self.flushers():
            if self.signal(pid, signal.SIGKILL):
                self.count("flushers killed")
                until(lambda: not is_alive(pid), "the flusher is dead")  # noqa: B023

    def stop_flushers(self) -> None:
        for pid in self.flushers():
            if pid not in self.stopped and self.signal(pid, signal.SIGSTOP):
                self.stopped.append(pid)
                self.count("flushers stopped")

    def look_at_marks(self) -> None:
        """The watermarks in the block are in order and never go back."""
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(block_path(self.path), os.O_RDONLY)
            try:
                words = (CB.TRIMMED_LSN, CB.DURABLE_LSN, CB.COMMITTED_LSN, CB.RESERVED_LSN)
                now = tuple(struct.unpack("<Q", os.pread(fd, 8, at).ljust(8, b"\0"))[0] for at in words)
            finally:
                os.close(fd)
            if not any(now):
                return  # it is just being made
            assert list(now) == sorted(now), f"watermarks out of order: {now}"
            assert all(a >= b for a, b in zip(now, self.marks, strict=True)), f"{self.marks} then {now}"
            self.marks = now
            self.model.see(now[2], now[1])

    # ------------------------------------------------------- how a round ends

    def end(self) -> None:
        how = self.rng.choice(["calm", "killed", "lost", "restart"])
        self.count(f"ended {how}")
        if how == "calm":
            self.calm()
        self.kill_all()
        self.look_for_errors()
        self.model.learn()
        if how in ("lost", "restart"):
            found = self.dead_marks()
            lose_shared_memory(self.path)
            if how == "restart" and found is not None:
                self.restart(found)
        self.marks = (0, 0, 0, 0)
        self.compare()

    def calm(self) -> None:
        """Everybody goes on: each writer appends, and all end when they are told to."""
        for pid in self.stopped:
            self.signal(pid, signal.SIGCONT)
        self.stopped.clear()
        self.reap()
        self.model.learn()
        lives = {actor.life for actor in self.actors if actor.role == "write"}
        before = {life: self.so_far(life) for life in lives}

        def all_go_on() -> bool:
            self.model.learn()
            self.look_for_errors()
            return all(self.so_far(life) > before[life] for life in lives)

        until(all_go_on, "every writer appends again once nobody stands still", ALIVE_S)
        for actor in self.actors:
            if actor.role not in ("anchor", "flush"):
                self.signal(actor.pid, signal.SIGTERM)

        def forked_have_ended() -> bool:
            pids = self.born()
            for pid in pids:  # again: one may have been forked when the others were told
                self.signal(pid, signal.SIGTERM)
            return not pids

        users = [actor for actor in self.actors if actor.role not in ("anchor", "flush")]
        until(lambda: all(actor.ended() for actor in users), "all end when told to", 2 * ALIVE_S)
        until(forked_have_ended, "the forked ones, too", 2 * ALIVE_S)

    def so_far(self, life: int) -> int:
        found = self.model.lives.get(life)
        return len(found.appended) if found else 0

    def kill_all(self) -> None:
        """At once, by the process group; then the flushers that the handles started."""
        self.count("kills", len(self.victims()))
        if self.group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.group, signal.SIGKILL)
        for actor in self.actors:
            until(actor.ended, f"{actor.role} is dead")
            _forget(actor)
        self.actors.clear()
        self.stopped.clear()
        while pids := [pid for pid in flusher_pids(self.path) if is_alive(pid)]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: not any(is_alive(pid) for pid in pids), "the flushers are dead")
        until(lambda: nobody_lives(self.path), "nobody is left")
        self.group = 0

    def dead_marks(self) -> tuple[int, int] | None:
        """Durable and reserved LSN of a block that nobody uses any more."""
        self.look_at_marks()
        return (self.marks[1], self.marks[3]) if block_path(self.path).exists() else None

    def restart(self, found: tuple[int, int]) -> None:
        """Lose some of the sectors that were not durable, and recover under another boot id."""
        durable, reserved = found
        if self.rng.random() < 0.7:
            self.lose_sectors(durable, reserved)
        where = directory.load(str(self.path))
        result = recovery.recover(where, self.rng.randbytes(16), restarted=True)
        self.count(f"case {result.case.value}")
        self.model.cut(result.end_lsn)

    def lose_sectors(self, durable: int, reserved: int) -> None:
        share = self.rng.choice([0.01, 0.1, 0.5, 1.0])
        size = directory.load(str(self.path)).identity.geometry.segment_bytes
        for at in range(durable, reserved, 512):
            begin = max(durable, at - at % 512)
            first = begin - begin % size
            path = self.path / "segments" / f"{first:020d}.seg"
            if self.rng.random() < share and path.exists():
                with path.open("r+b") as file:
                    file.seek(SEGMENT_HEADER_BYTES + begin - first)
                    file.write(bytes(min(begin - begin % 512 + 512, reserved) - begin))

    def compare(self) -> None:
        """Open the log and compare it with the model: here, and it is closed; or in a process
        that is killed afterwards."""
        self.count("rounds")
        if self.rng.random() < 0.5:
            with Child(_compare, self.path, self.model, self.forked, True) as child:
                child.hear()
                self.group = os.getpgid(child.pid)
                self.actors.append(Actor("compare", 0, child))
                self.kill_all()
        else:
            with Child(_compare, self.path, self.model, self.forked, False) as child:
                child.hear()
                child.result()

    def remove(self) -> None:
        self.kill_all()
        self.count("records", self.model.records)
        self.count("forks", sum(life % (FORKS_MAX + 1) > 0 for life in self.model.lives))
        lose_shared_memory(self.path)


def _compare(wire: Wire, path: Path, model: Model, forked: bool, stay: bool) -> None:
    os.setpgid(0, 0)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(shmlog.open(path, flusher="external" if forked else "auto"))
        if forked:
            flusher = stack.enter_context(Child(in_group, os.getpid(), flush, str(path), 0.01))
        log.wait_committed(timeout=ALIVE_S)
        model.check(log)
        if model.place:
            with log.cursor("follower") as cursor:
                assert cursor.lsn >= model.place, f"the cursor is at {cursor.lsn}, was at {model.place}"
        assert_healthy(log, 5)
        wire.say("as the model says")
        if stay:
            wire.hear()
        log.close()
        if forked:
            flusher.signal(signal.SIGTERM)
            flusher.wait()


def _group(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return -1


def _forget(actor: Actor) -> None:
    if isinstance(actor.process, Child):
        actor.process.__exit__(None, None, None)
