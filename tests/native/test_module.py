"""The native module as Python sees it: imported again, elsewhere, for long; and its stub."""

from __future__ import annotations

import ast
import gc
import mmap
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmlog import _native
from shmlog.format.geometry import PARTICIPANT_COUNT, Geometry
from shmlog.format.layout import CB, PT, SEGMENT_HEADER_BYTES, STATE_RUNNING
from shmlog.records.arrow import RECORD_NODES

STUB = Path(_native.__file__).with_name("_native.pyi")
GEOMETRY = Geometry(64 << 10, 64 << 10)
ROUNDS = 10_000


def run(code: str) -> None:
    """In an interpreter of its own, for what goes wrong would take this one with it."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


AGAIN = """
import importlib.util, os, sys
from shmlog import _native as first
spec = importlib.util.spec_from_file_location("shmlog._native", first.__file__)
second = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second)
assert second is not first and second.Control is not first.Control
assert first.crc32c(b"123456789") == second.crc32c(b"123456789") == 0xE3069283
before = first.fork_generation()
pid = os.fork()
if pid == 0:
    os._exit(0 if first.fork_generation() == second.fork_generation() == before + 1 else 1)
assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.holds("K3")
def test_a_second_import_shares_the_process_and_the_next_fork_does_not_hang() -> None:
    run("import signal; signal.alarm(40)\n" + AGAIN)


GONE = """
import gc, importlib.util, weakref
from shmlog import _native as first
spec = importlib.util.spec_from_file_location("shmlog._native", first.__file__)
second = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second)
types = [value for value in vars(second).values() if isinstance(value, type)]
assert len(types) == 7, types
left = [weakref.ref(kind) for kind in types]
del second, spec, types
gc.collect()
assert not [one() for one in left if one() is not None]
"""


def test_the_types_of_a_module_that_nobody_has_any_more_are_collected() -> None:
    run(GONE)


CYCLE = """
import gc, mmap, os, tempfile
from shmlog import _native
from shmlog.format.geometry import PARTICIPANT_COUNT, Geometry
from shmlog.format.layout import CB, PT, STATE_RUNNING

class Writer(_native.Writer):
    def _slow(self, *what):
        raise AssertionError(what)

geometry = Geometry(64 << 10, 64 << 10)
with tempfile.TemporaryFile() as file:
    file.truncate(geometry.file_bytes)
    segments = [_native.Mapping(file.fileno(), geometry.file_bytes, True) for _ in range(2)]
block = mmap.mmap(-1, geometry.control_bytes)
control = _native.Control(block, geometry.window_bytes, PARTICIPANT_COUNT)
begin = geometry.segment_bytes - 64  # so that a PAD goes first, in a mapping of its own
end = geometry.segment_bytes + 160
for word, value in ((CB.STATE, STATE_RUNNING), (CB.PREPARED_LSN, 2 * geometry.segment_bytes)):
    control.store(word, value)
for word in (CB.RESERVED_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN):
    control.store(word, begin)
control.commit_step()
writer = Writer(7, geometry.segment_bytes, geometry.window_bytes)
writer._attach(control, 0)
for number, mapping in enumerate(segments):
    writer._map(number, mapping)
del segments, mapping
gc.disable()
writer.ring = [writer.reserve(100)]
writer.ring.append(writer.ring)  # so that the writer is taken apart before the reservation
assert control.load(CB.RESERVED_LSN) == end and control.commit_step()[0] == begin
del writer
gc.collect()
assert control.commit_step()[0] == end, "a hole that its own process would leave for ever"
assert control.load(CB.HEADER_BYTES + PT.CLAIMS) == 2**64 - 1
"""


def test_a_reservation_in_a_cycle_is_given_up_while_its_memory_is_there() -> None:
    run(CYCLE)


def test_a_subinterpreter_can_import_it() -> None:
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    code = "from shmlog import _native; assert _native.crc32c(b'123456789') == 0xE3069283"
    run(
        f"import {name} as interpreters\n"
        "for _ in range(3):\n"
        "    one = interpreters.create()\n"
        f"    failed = interpreters.run_string(one, {code!r})\n"
        "    assert not failed, failed\n"
        "    interpreters.destroy(one)\n"
    )


def test_a_writer_that_was_not_initialised_says_so() -> None:
    writer = _native.Writer.__new__(_native.Writer)
    block = _native.Control(mmap.mmap(-1, GEOMETRY.control_bytes), GEOMETRY.window_bytes, PARTICIPANT_COUNT)
    calls: list[Callable[[], object]] = [
        lambda: writer.append(b"x"),
        lambda: writer.append_many([b"x"]),
        lambda: writer._append_rows(np.zeros((1, 1), np.uint8)),
        lambda: writer.reserve(1),
        lambda: writer._attach(block, 0),
        lambda: writer._drop_below(1),
        writer._seal,
        writer._unmap,
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            call()


class Slow(_native.Writer):
    """A writer whose segment is mapped, and that never needs the slow path."""

    def _slow(self, reason: int, lsn: int, timeout: Any, deadline: Any, /) -> float | None:
        if reason == _native.SLOW_LARGE:
            raise ValueError("too large")
        raise AssertionError((reason, lsn))


def calls(tmp_path: Path) -> dict[str, Callable[[], object]]:
    """One round of each public call of the core that needs no other process."""
    memory = mmap.mmap(-1, GEOMETRY.control_bytes)
    control = _native.Control(memory, GEOMETRY.window_bytes, PARTICIPANT_COUNT)
    control.store(CB.STATE, STATE_RUNNING)
    control.store(CB.PREPARED_LSN, GEOMETRY.segment_bytes)
    for at in range(8):
        control.store(CB.HEADER_BYTES + PT.CLAIMS + 32 * at, 2**64 - 1)
    path = tmp_path / "segment"
    path.write_bytes(bytes(GEOMETRY.file_bytes))
    fd = os.open(path, os.O_RDWR)
    mapping = _native.Mapping(fd, GEOMETRY.file_bytes, True)
    writer = Slow(7, GEOMETRY.segment_bytes, GEOMETRY.window_bytes)
    writer._attach(control, 0)
    writer._map(0, mapping)
    rows = np.zeros((2, 8), np.uint8)
    columns = tuple(np.empty(8, kind) for kind in (np.uint64, np.int64, np.uint32, np.uint16, np.uint32))

    places, room = np.zeros(8, np.int64), bytearray(5)
    columns[4][:] = 5
    taking = (np.zeros(1, np.uint64), (mapping,), GEOMETRY.segment_bytes, 64, 7), np.zeros(1, np.uint64)
    where = b"/nowhere", bytes(32), 4096, GEOMETRY.segment_bytes, os.geteuid(), 0, 64, 64, bytes(16), 7
    stream = RECORD_NODES, -1, *where, True, np.arange(9, dtype=np.uint32).tobytes(), 9, 9, None

    def again() -> None:
        """Begin at LSN 0 anew."""
        words = (CB.RESERVED_LSN, CB.LIMIT_LSN, CB.COMMITTED_LSN, CB.CLEARED_LSN)
        for word in words:
            control.store(word, 0)
        control.commit_step()
        writer._attach(control, 0)  # to a tail that has gone back it would append no more
        writer._map(0, mapping)

    def appended(call: Callable[[], object]) -> Callable[[], object]:
        def one() -> object:
            found = call()
            control.commit_step()
            if control.load(CB.RESERVED_LSN) > GEOMETRY.segment_bytes // 2:
                again()
            return found

        return one

    def refused() -> None:
        for wrong in (
            lambda: writer.append("text"),
            lambda: writer.append(b"", tag=-1),
            lambda: writer.reserve(1 << 30),
        ):
            try:
                wrong()
            except (TypeError, ValueError):
                pass
            else:
                raise AssertionError("it was taken")

    def reserve() -> None:
        with writer.reserve(40, 3) as place:
            place.array("u1")[:] = 1
            assert place.buffer.nbytes == 40

    def abandon() -> None:
        writer.reserve(40).abort()

    again()
    writer.append(b"first")
    return {
        "append": appended(lambda: writer.append(b"x" * 40, 5)),
        "append_many": appended(lambda: writer.append_many([b"a", bytearray(b"b"), memoryview(b"c")])),
        "append_rows": appended(lambda: writer._append_rows(rows, 1)),
        "reserve": appended(reserve),
        "abandon": appended(abandon),
        "refused": refused,
        "crc32c": lambda: _native.crc32c(b"x" * 100),
        "walk": lambda: _native.walk(
            memoryview(mapping)[SEGMENT_HEADER_BYTES:], 0, 0, 64, 7, True, -1, False, columns
        ),
        "records": lambda: _native.records(mapping, 0, 0, 64, 64, 7, True, 8),
        "arrow_array": lambda: _native.arrow_array(RECORD_NODES, mapping, columns, places, None),
        "arrow_stream": lambda: _native.arrow_stream(*stream),
        "take": lambda: (_native.take_rows(*taking, 5, room), _native.take_records(*taking, columns, places)),
        "find_frame": lambda: _native.find_frame(memoryview(mapping)[SEGMENT_HEADER_BYTES:], 0, 0, 64, 7),
        "filler": lambda: _native.filler(3, 64, 64, 0, 0, 7),
        "control": lambda: (control.load(0), control.add(CB.COMMITS, 1), control.scan(0, 64, True)),
        "mapping": lambda: _native.Mapping(fd, 4096, False).load(0),
        "descriptor": lambda: _native.Fd(str(path), os.O_RDONLY).close(),
        "locks": lambda: (_native.lock_byte(fd, 1), _native.byte_locked(fd, 1), _native.unlock_byte(fd, 1)),
        "check_timeout": lambda: _native.check_timeout(1.5),
        "types": lambda: Slow(7, GEOMETRY.segment_bytes, GEOMETRY.window_bytes)._attach(control, 1),
    }


NAMES = [
    "append",
    "append_many",
    "append_rows",
    "reserve",
    "abandon",
    "refused",
    "crc32c",
    "walk",
    "records",
    "arrow_array",
    "arrow_stream",
    "take",
    "find_frame",
    "filler",
    "control",
    "mapping",
    "descriptor",
    "locks",
    "check_timeout",
    "types",
]


def in_use() -> int:
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.parametrize("name", NAMES)
def test_many_rounds_of_a_call_leave_no_memory_behind(tmp_path: Path, name: str) -> None:
    call = calls(tmp_path)[name]
    for _ in range(200):
        call()
    before = in_use()
    for _ in range(ROUNDS):
        call()
    left = in_use() - before
    assert left < ROUNDS // 100, f"{left} blocks of memory after {ROUNDS} rounds"


def test_every_call_is_made_for_many_rounds(tmp_path: Path) -> None:
    assert list(calls(tmp_path)) == NAMES


# ------------------------------------------------------------------- the stub


def declared() -> dict[str, set[str] | None]:
    """The stub's names; of a class, its members too."""
    found: dict[str, set[str] | None] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                part.name if isinstance(part, ast.FunctionDef) else part.target.id  # type: ignore[union-attr]
                for part in node.body
                if isinstance(part, (ast.FunctionDef, ast.AnnAssign))
            }
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = None
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return found


def members(value: object) -> set[str]:
    return {name for name in vars(value) if not (name.startswith("__") and name.endswith("__"))}


def test_the_stub_names_what_is_there_and_nothing_else() -> None:
    real = {name for name in dir(_native) if not name.startswith("__")}
    words = {"_ControlWords": "CB", "_ParticipantWords": "PT", "_ClaimWords": "CL"}
    stub = declared()
    assert set(stub) - set(words) == real
    for name, parts in stub.items():
        if parts is not None:
            plain = {part for part in parts if not (part.startswith("__") and part.endswith("__"))}
            assert plain == members(getattr(_native, words.get(name, name))), name


@pytest.mark.parametrize("enabled", ["before", "after"])
def test_faulthandler_lets_a_lost_page_pass_only_if_enabled_first(tmp_path: Path, enabled: str) -> None:
    """As the documentation says: what is installed after ours takes its place."""
    program = f"""
        import faulthandler, os, sys
        if {enabled == "before"}: faulthandler.enable()
        from shmlog import _native
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 8192)
        mapping = _native.Mapping(fd, 8192, True)
        if {enabled == "after"}: faulthandler.enable()
        os.ftruncate(fd, 0)
        memoryview(mapping)[0] = 1
        sys.exit(0 if mapping.faulted else 1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, timeout=60)
    if enabled == "before":
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == -signal.SIGBUS and b"Bus error" in done.stderr
