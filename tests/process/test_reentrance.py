"""Re-entrance: what a finalizer or a signal handler does with a handle while the thread that it
interrupts is inside the same handle, and forks that fall into such a moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import SEGMENT_BYTES, Child, Wire, append_some, assert_healthy

import shmlog
from shmlog.disk import segments
from shmlog.handle import appending
from shmlog.session import attachment

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def _interrupt(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, by: Callable[[], None]) -> list[int]:
    """Call `by` once, at the first call of module.name and after that has done its work."""
    real, calls = getattr(module, name), []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        calls.append(1)
        if len(calls) == 1:
            by()
        return result

    monkeypatch.setattr(module, name, interrupted)
    return calls


def _in_a_signal_handler(work: Callable[[], None]) -> Callable[[], None]:
    def interrupt() -> None:
        before = signal.signal(signal.SIGUSR1, lambda *_: work())
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    return interrupt


def _in_a_finalizer(work: Callable[[], None]) -> Callable[[], None]:
    class Finalized:
        def __del__(self) -> None:
            work()

    def interrupt() -> None:
        Finalized()  # and gone

    return interrupt


_INTERRUPTS = pytest.mark.parametrize("by", [_in_a_signal_handler, _in_a_finalizer])


@_INTERRUPTS
def test_an_append_that_interrupts_the_mapping_of_a_segment_goes_through(log_path: Path, by: Any) -> None:
    def use(wire: Wire) -> tuple[list[bytes], list[bytes]]:
        appended, nested = [b"%4d" % n * 5000 for n in range(20)], []
        with pytest.MonkeyPatch.context() as patch, shmlog.open(log_path) as log:
            calls = _interrupt(
                patch, appending, "map_segment", by(lambda: nested.append(log.append(b"nested" * 5000)))
            )
            for data in appended:
                log.append(data)
            log.wait_committed()
            read = [bytes(record.data) for record in log.read()]
            assert len(nested) == 1 and len(calls) > 2
            return [data for data in read if data[:1] != b"n"], [data for data in read if data[:1] == b"n"]

    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        with Child(use) as child:
            read, nested = child.result()
        assert read == [b"%4d" % n * 5000 for n in range(20)]
        assert nested == [b"nested" * 5000]
        assert_healthy(log)


@_INTERRUPTS
def test_a_read_that_interrupts_the_mapping_for_a_read_goes_through(log_path: Path, by: Any) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 0, 300)
        log.wait_committed()

        def use(wire: Wire) -> tuple[int, int]:
            nested: list[int] = []
            with pytest.MonkeyPatch.context() as patch, shmlog.open_readonly(log_path) as reader:
                _interrupt(
                    patch, segments, "map_segment", by(lambda: nested.append(sum(1 for _ in reader.read())))
                )
                return sum(1 for _ in reader.read()), nested[0]

        with Child(use) as child:
            assert child.result() == (300, 300)


@_INTERRUPTS
def test_an_append_that_interrupts_a_forked_childs_joining_is_refused(log_path: Path, by: Any) -> None:
    with shmlog.open(log_path, create=True) as log:
        log.append(b"parent's")

        def use(wire: Wire) -> tuple[str, int, list[bytes]]:
            refused: list[str] = []

            def nested() -> None:
                try:
                    log.append(b"nested")
                except shmlog.AttachError as error:
                    refused.append(str(error))

            with pytest.MonkeyPatch.context() as patch:
                _interrupt(patch, attachment, "take_setup", by(nested))
                log.append(b"child's")
            number = log.writer_number
            log.wait_committed()
            read = [bytes(record.data) for record in log.read()]
            log.close()
            return refused[0], number, read

        with Child(use) as child:
            refused, number, read = child.result()
        assert "interrupted" in refused
        assert number != log.writer_number
        assert read == [b"parent's", b"child's"]
        assert_healthy(log)


def test_a_close_and_an_append_that_interrupt_a_close_return_at_once(log_path: Path) -> None:
    def use(wire: Wire) -> list[str]:
        log = shmlog.open(log_path)
        log.append(b"x")
        said: list[str] = []

        def nested() -> None:
            log.close()
            try:
                log.append(b"nested")
            except shmlog.ClosedError:
                said.append("closed")

        with pytest.MonkeyPatch.context() as patch:
            _interrupt(patch, attachment.Attachment, "detach", _in_a_signal_handler(nested))
            log.close()
        return said

    shmlog.open(log_path, create=True).close()
    with Child(use) as child:
        assert child.result() == ["closed"]


def test_a_fork_while_another_thread_maps_a_segment_leaves_the_child_able_to_read(
    log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shmlog.open(log_path, create=True, segment_bytes=SEGMENT_BYTES) as log:
        append_some(log, 0, 300)
        log.wait_committed()
        with shmlog.open_readonly(log_path) as reader:
            inside, go_on = threading.Event(), threading.Event()

            def wait() -> None:
                inside.set()
                go_on.wait(30)

            _interrupt(monkeypatch, segments, "map_segment", wait)
            thread = threading.Thread(target=lambda: list(reader.read()))
            thread.start()
            try:
                assert inside.wait(30)
                with Child(lambda wire: sum(1 for _ in reader.read())) as child:
                    assert child.result(10) == 300
            finally:
                go_on.set()
                thread.join()
