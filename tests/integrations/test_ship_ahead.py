"""What a shipper makes ready while its engine takes what came before: in order, once, nothing left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.shipping import SMALL, assert_shipped, fill

import shmlog
from shmlog.integrations.repeating import EngineError
from shmlog.integrations.ship import Shipper
from shmlog.integrations.sinks import ConflictError, Tail, nothing

CHUNK = 8 << 10


class Waiting:
    """Chunks in memory, on the condition that each continues the last; lets the shipper work meanwhile."""

    chunk_bytes_max = 1 << 20
    chunks_max = 3

    def __init__(self, errors: Sequence[type[Exception] | None] = (), calls: int = 1) -> None:
        self.meanwhile: Callable[[], None] = nothing
        self.last: Tail | None = None
        self.chunks: list[bytes] = []
        self._errors, self._calls = list(errors), calls

    def tail(self) -> Tail | None:
        return self.last

    def put(self, chunk: bytes, tail: Tail) -> None:
        self.put_chunks([(chunk, tail)])

    def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
        error = self._errors.pop() if self._errors else None
        stored = error is None or len(self._errors) % 2
        for _ in range(self._calls):
            self.meanwhile()
        for chunk, tail in chunks if stored else ():
            info = shmlog.chunk_info(chunk)
            assert info.begin_lsn == (self.last.end_lsn if self.last else 0), "a chunk continues the last one"
            assert info.end_lsn == tail.end_lsn
            self.chunks.append(chunk)
            self.last = tail
        if error is not None:
            raise error("whether it was stored is not said")

    def idle(self) -> None:
        pass

    def close(self) -> None:
        pass


def _shipped(log: shmlog.Log, sink: Waiting) -> None:
    assert_shipped(log, map(shmlog.decode_chunk, sink.chunks))


@pytest.mark.holds("I27")
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_what_was_made_ready_meanwhile_is_shipped_once_and_in_order(log_path: Path, calls: int) -> None:
    sink = Waiting(calls=calls)
    with shmlog.open(log_path, create=True, **SMALL) as log, Shipper(log, sink, chunk_bytes=CHUNK) as shipper:
        for seed in range(4):
            fill(log, 80, seed)
            shipper.run(once=True)
        _shipped(log, sink)


@pytest.mark.holds("I26")
@pytest.mark.parametrize("seed", range(6))
def test_errors_of_the_engine_leave_nothing_out_of_what_was_made_ready(log_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    errors = [dice.choice([None, None, EngineError, ConflictError]) for _ in range(40)]
    sink = Waiting(errors)
    with shmlog.open(log_path, create=True, **SMALL) as log, Shipper(log, sink, chunk_bytes=CHUNK) as shipper:
        fill(log, 300, seed)
        while shipper.statistics.position_lsn < log.durable_lsn:
            try:
                shipper.step()
            except EngineError:
                continue
        met = [error for error in errors[len(sink._errors) :] if error is not None]
        assert shipper.statistics.resyncs == len(met) > 3
        _shipped(log, sink)


@pytest.mark.holds("I26", "I27")
@pytest.mark.parametrize("ready", [True, False])
def test_a_put_that_is_interrupted_is_done_again_and_not_what_follows_it(log_path: Path, ready: bool) -> None:
    class Interrupted(Waiting):
        def put_chunks(self, chunks: Sequence[tuple[bytes, Tail]]) -> None:
            if len(self.chunks) in (3, 9) and self._calls:
                if ready:
                    self.meanwhile()
                raise KeyboardInterrupt
            super().put_chunks(chunks)

    sink = Interrupted()
    sink.chunks_max = 1
    with shmlog.open(log_path, create=True, **SMALL) as log, Shipper(log, sink, chunk_bytes=CHUNK) as shipper:
        fill(log, 80)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                shipper.run(once=True)
            sink._calls = 0
            shipper.step()
            sink._calls = 1
        shipper.run(once=True)
        _shipped(log, sink)


@pytest.mark.holds("I26")
def test_a_record_that_is_too_large_is_never_passed_over_however_often_it_is_tried(log_path: Path) -> None:
    sink = Waiting()
    sink.chunk_bytes_max = 4096
    with shmlog.open(log_path, create=True, **SMALL) as log, Shipper(log, sink) as shipper:
        small = [log.append(bytes(1000)) for _ in range(20)]
        large = log.append(bytes(9000))
        log.append(bytes(1000), durable=True)
        for _ in range(3):
            with pytest.raises(shmlog.RecordTooLargeError, match=f"the record at LSN {large} "):
                shipper.run(once=True)
        assert [int(lsn) for chunk in sink.chunks for lsn in shmlog.decode_chunk(chunk).lsn] == small
        sink.chunk_bytes_max = 1 << 20
        shipper.run(once=True)
        _shipped(log, sink)
