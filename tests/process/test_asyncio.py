"""Event loops: waits, appends and tails as tasks, and a descriptor for other loops.

Each asyncio test runs on the standard loop, and on uvloop's where that is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, flusher_pid, kill_flusher, until

import shmlog
from shmlog import _native
from shmlog.format.layout import CB
from shmlog.handle.loops import SERVED_MAX

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "asyncio":
        return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 60))
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    import uvloop

    return lambda coroutine: uvloop.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture(autouse=True)
def _made(log_path: Path) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES, window_bytes=SEGMENT_BYTES) as log:
        log.append(b"before", durable=True)


def test_thousand_tasks_share_syncs(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        log.append(b"the flusher is there", durable=True)
        before = log.statistics().syncs

        async def one() -> int:
            lsn = await log.aappend(b"x" * 20, durable=True)
            assert log.durable_lsn > lsn
            return lsn

        async def main() -> list[int]:
            return await asyncio.gather(*(one() for _ in range(1000)))

        lsns = run(main())
        assert sorted(lsns) == lsns
        assert len(set(lsns)) == 1000
        assert log.statistics().syncs - before < 200


def test_only_the_reached_tasks_go_on(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        one = log.append(b"one")
        reservation = log.reserve(10)
        two = log.append(b"two")

        async def main() -> None:
            late = asyncio.create_task(log.adurable(two, timeout=30))
            await log.adurable(one, timeout=30)
            assert not late.done()
            reservation.publish()
            await late
            assert log.durable_lsn > two

        run(main())


def test_wait_that_runs_out_or_is_cancelled_leaves_the_others_waiting(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        reservation = log.reserve(10)
        lsn = log.append(b"behind")

        async def main() -> None:
            patient = asyncio.create_task(log.adurable(lsn, timeout=30))
            cancelled = asyncio.create_task(log.adurable(lsn, timeout=30))
            with pytest.raises(TimeoutError, match="not durable after"):
                await log.adurable(lsn, timeout=0.05)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            reservation.publish()
            await patient

        run(main())
        with pytest.raises(ValueError, match="nothing has been appended"):
            run(log.adurable(lsn + 10_000))


@pytest.mark.holds("Q2")
def test_one_run_of_the_loop_wakes_no_crowd_whatever_asks_for_it(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        reservation = log.reserve(10)
        lsn = log.append(b"behind")
        woken, most, before = 0, 0, 0

        async def wait() -> None:
            nonlocal woken
            await log.adurable(lsn, timeout=30)
            woken += 1

        async def main() -> None:
            nonlocal most, before
            tasks = [asyncio.create_task(wait()) for _ in range(1000)]
            await asyncio.sleep(0)
            waits = log._waits_here()
            reservation.publish()
            log.wait_durable(timeout=30)
            waits._watermark("durable")
            for _ in range(5):  # as if the timer and the watch came while the crowd is being served
                waits._ready()
                waits._on_timer()
            while woken < len(tasks):
                await asyncio.sleep(0)
                most, before = max(most, woken - before), woken
            await asyncio.gather(*tasks)

        run(main())
        assert 0 < most <= 2 * SERVED_MAX


def test_waits_that_were_given_up_do_not_pile_up_behind_an_earlier_one(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        reservation = log.reserve(10)
        lsn = log.append(b"behind")
        later = log.append(b"and later")

        async def main() -> None:
            patient = asyncio.create_task(log.adurable(lsn, timeout=30))
            for _ in range(500):
                with pytest.raises(TimeoutError):
                    await log.adurable(later, timeout=0)
                impatient = asyncio.create_task(log.adurable(later))
                await asyncio.sleep(0)
                impatient.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await impatient
            assert len(log._waits_here()._heaps["durable"]) < 200
            reservation.publish()
            await patient

        run(main())


def _eventfds() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "eventfd" in os.readlink(f"/proc/self/fd/{name}")
    return found


def test_loops_that_came_and_went_keep_no_descriptor(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        before = _eventfds()
        for _ in range(20):
            run(log.aappend(b"from a loop of its own", durable=True))
        assert _eventfds() < before + 10


@pytest.mark.holds("Q1")
def test_append_without_room_does_not_block_the_loop(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        reservation = log.reserve(10)
        with pytest.raises(shmlog.LogFullError):
            while True:
                log.append(bytes(5000), timeout=0)

        async def main() -> None:
            append = asyncio.create_task(log.aappend(bytes(5000), timeout=30))
            ticks = 0
            while ticks < 20:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                ticks += 1
                assert time.monotonic() - before < 5
            assert not append.done()
            reservation.publish()
            assert await append > 0
            held = log.reserve(10)
            with pytest.raises((shmlog.LogFullError, TimeoutError)) as refused:
                while True:
                    await log.aappend(bytes(5000), durable=True, timeout=0.2)
            held.abort()
            assert refused.value

        run(main())


def test_append_says_that_it_appended_when_its_wait_runs_out(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log, log.reserve(10):
        with pytest.raises(TimeoutError) as error:
            run(log.aappend(b"behind", durable=True, timeout=0.05))
        assert getattr(error.value, "appended", 0) == 1


def test_closing_ends_what_tasks_wait_for(log_path: Path, run: Run) -> None:
    log = shmlog.open(log_path)

    async def main() -> None:
        async def follow() -> None:
            async for _ in log.atail_batches():
                pass

        tasks = [asyncio.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0.01)
        await asyncio.get_running_loop().run_in_executor(None, log.close)
        for task in tasks:
            with pytest.raises(shmlog.ClosedError):
                await task

    run(main())


def test_failure_of_the_log_reaches_every_task(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        reservation = log.reserve(10)
        lsn = log.append(b"never durable")

        async def main() -> None:
            tasks = [asyncio.create_task(log.adurable(lsn, timeout=30)) for _ in range(3)]
            await asyncio.sleep(0.01)
            log._joined.control.fail(5, 0)
            for task in tasks:
                with pytest.raises(shmlog.LogFailedError):
                    await task

        run(main())
        del reservation


def test_dead_flusher_is_replaced_for_a_task_that_waits(log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log:
        log.append(b"x", durable=True)

        async def main() -> None:
            dead = kill_flusher(log)
            await log.aappend(b"y", durable=True, timeout=30)
            assert flusher_pid(log) != dead

        run(main())


def _write(wire: Wire, path: Path, count: int) -> None:
    with shmlog.open(path) as log:
        wire.hear()
        for n in range(count):
            log.append(n.to_bytes(4, "little") * 100, n % 2)
        log.wait_committed()
        wire.hear()


@pytest.mark.parametrize("opener", [shmlog.open, shmlog.open_readonly])
def test_async_tail_yields_what_another_process_commits(opener: Any, log_path: Path, run: Run) -> None:
    with Child(_write, log_path, 2000) as child, opener(log_path) as log:

        async def records() -> list[int]:
            found = []
            async for record in log.atail(timeout=20):
                found.append(int.from_bytes(record.data[:4], "little"))
                if len(found) == 2000:
                    break
            return found

        async def batches() -> list[int]:
            found: list[int] = []
            async for batch in log.atail_batches(tags=1, timeout=20, max_delay=0.01):
                found += [int.from_bytes(record.data[:4], "little") for record in batch]
                if len(found) == 1000:
                    break
            return found

        async def main() -> list[list[int]]:
            tasks = [asyncio.create_task(records()), asyncio.create_task(batches())]
            await asyncio.sleep(0.01)
            child.say("go")
            return [await task for task in tasks]

        found = run(main())
        child.say("end")
    assert found == [list(range(2000)), list(range(1, 2000, 2))]


@pytest.mark.parametrize("opener", [shmlog.open, shmlog.open_readonly])
def test_async_tail_of_a_quiet_log_times_out(opener: Any, log_path: Path, run: Run) -> None:
    with opener(log_path) as log:

        async def main() -> None:
            async for _ in log.atail_batches(timeout=0.05):
                pass

        with pytest.raises(TimeoutError, match="no record was committed"):
            run(main())


@pytest.mark.parametrize("opener", [shmlog.open, shmlog.open_readonly])
def test_async_tail_begins_where_it_was_called(opener: Any, log_path: Path, run: Run) -> None:
    with shmlog.open(log_path) as log, opener(log_path) as reader:

        async def main() -> None:
            records, batches = reader.atail(timeout=20), reader.atail_batches(timeout=20)
            await log.aappend(b"after the call", durable=True)
            assert bytes((await anext(records)).data) == b"after the call"
            assert bytes((await anext(batches))[0].data) == b"after the call"
            await records.aclose()
            await batches.aclose()

        run(main())
        with pytest.raises(ValueError, match="tag must be in"):
            reader.atail(tags=-1)
        reader.close()
        with pytest.raises(shmlog.ClosedError):
            reader.atail_batches()


def test_readonly_tail_goes_on_with_a_later_session(log_path: Path, run: Run) -> None:
    with shmlog.open_readonly(log_path) as reader:

        async def main() -> list[bytes]:
            found: list[bytes] = []

            async def follow() -> None:
                async for record in reader.atail(timeout=30):
                    found.append(bytes(record.data))

            task = asyncio.create_task(follow())
            for text in (b"one session", b"another"):
                await asyncio.get_running_loop().run_in_executor(None, _append, log_path, text)
                while text not in found:
                    await asyncio.sleep(0.005)
            task.cancel()
            return found

        assert run(main()) == [b"one session", b"another"]


def _append(path: Path, data: bytes) -> None:
    with shmlog.open(path) as log:
        log.append(data)


# ------------------------------------------------------------------ the descriptor


def _readable(watch: shmlog.Watch, seconds: float) -> bool:
    return bool(select.select([watch], [], [], seconds)[0])


@pytest.mark.holds("U2")
def test_watch_is_readable_once_its_lsn_is_reached_and_not_before(log_path: Path) -> None:
    with shmlog.open(log_path) as log, log.watch() as watch:
        reservation = log.reserve(10)
        lsn = log.append(b"x")
        assert not watch.arm("durable", lsn + 1)
        assert not _readable(watch, 0.2)
        reservation.publish()
        assert _readable(watch, 20)
        watch.clear()
        assert not _readable(watch, 0)
        assert watch.arm("durable", lsn + 1), "reached: nothing is armed"
        assert not _readable(watch, 0.1)
        for _ in range(300):  # every time
            lsn = log.append(b"x")
            if not watch.arm("committed", lsn + 1):
                assert _readable(watch, 20)
                watch.clear()


@pytest.mark.holds("U1")
def test_watch_that_goes_while_it_is_armed_harms_nobody(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        stop = threading.Event()

        def churn() -> None:
            while not stop.is_set():
                watch = log.watch()
                watch.arm("committed", log.committed_lsn + (1 << 30))
                watch.close()

        threads = [threading.Thread(target=churn) for _ in range(2)]
        for thread in threads:
            thread.start()
        with log.watch() as watch:
            for _ in range(500):
                lsn = log.append(b"x")
                if not watch.arm("committed", lsn + 1):
                    assert _readable(watch, 20)
                    watch.clear()
        stop.set()
        for thread in threads:
            thread.join()


def test_more_watches_than_the_kernel_takes_words_are_served(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        reservation = log.reserve(10)
        lsn = log.append(b"x")
        watches = [log.watch() for _ in range(300)]
        for watch in watches:
            assert not watch.arm("committed", lsn + 1)
        reservation.publish()
        for watch in watches:
            assert _readable(watch, 20)
            watch.close()


def _child_of_a_watcher(log: shmlog.Log, watch: shmlog.Watch) -> None:
    with pytest.raises(shmlog.ClosedError, match="parent"):
        watch.arm("committed", log.committed_lsn + 1000)

    async def main() -> None:
        await log.aappend(b"from the child", durable=True, timeout=30)

    asyncio.run(main())
    with log.watch() as own:
        lsn = log.append(b"and watched")
        assert own.arm("durable", lsn + 1) or _readable(own, 20)
    log.close()


@pytest.mark.holds("U3")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_has_watches_and_waits_of_its_own(log_path: Path) -> None:
    with shmlog.open(log_path) as log, log.watch() as watch:
        asyncio.run(log.aappend(b"the parent's loop", durable=True))
        watch.arm("committed", log.committed_lsn + 1)
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                try:
                    _child_of_a_watcher(log, watch)
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
        assert _readable(watch, 20)
        asyncio.run(log.aappend(b"the parent's next loop", durable=True))


def test_readonly_watch_is_readable_now_and_then_and_when_something_comes(log_path: Path) -> None:
    with shmlog.open_readonly(log_path) as reader, reader.watch() as watch:
        begin = reader.committed_lsn
        assert not watch.arm("committed", begin + 1)
        assert _readable(watch, 20), "a dead log is looked at again"
        with shmlog.open(log_path) as log:
            log.append(b"x", durable=True)

            def seen() -> bool:
                watch.clear()
                return watch.arm("committed", begin + 1) or not _readable(watch, 1)

            until(seen)
        assert reader.committed_lsn > begin


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_block_that_is_cut_under_a_watch_is_no_death(tmp_path: Path) -> None:
    block = tmp_path / "block"
    block.write_bytes(bytes(_native.LAYOUT["CB_HEADER_BYTES"]))
    with block.open("r+b") as file:
        file.seek(CB.STATE)
        file.write(struct.pack("<Q", _native.LAYOUT["STATE_RUNNING"]))
    pid = os.fork()
    if pid == 0:
        try:
            with block.open("rb") as file:
                mapping = _native.Mapping(file.fileno(), block.stat().st_size, False)
            watch = _native.Watch(mapping)
            assert watch.arm(_native.WATCH_DURABLE, 1, 0) == _native.WATCH_ARMED
            assert not select.select([watch], [], [], 0.02)[0]
            os.truncate(block, 0)
            assert select.select([watch], [], [], 20)[0]
            assert mapping.faulted
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_wrong_use_of_a_watch_is_named(log_path: Path) -> None:
    with shmlog.open(log_path) as log:
        watch = log.watch()
        with pytest.raises(ValueError, match="'committed' or 'durable'"):
            watch.arm("removed", 0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no LSN"):
            watch.arm("durable", -1)
        watch.close()
        watch.close()
        for call in (watch.fileno, watch.clear, lambda: watch.arm("durable", 1)):
            with pytest.raises(shmlog.ClosedError):
                call()
