"""One sync cycle, watched from outside: which files are synced, in which order, what is called
durable meanwhile, and what comes after an error.

The C library's fdatasync is replaced, in a process of its own, by one that notes each call
and what durable_lsn was then, and that fails when it is told to.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHIM = r"""
#include <errno.h>
#include <stdint.h>
#include <stddef.h>

struct call { int64_t fd; uint64_t durable; } calls[64];
int64_t call_count, failing = -1;
volatile uint64_t *durable_word;

int fdatasync(int fd) {
    if (!durable_word)
        return 0;
    calls[call_count] = (struct call){fd, *durable_word};
    if (call_count++ != failing)
        return 0;
    errno = EIO;
    return -1;
}
"""
PROGRAM = """
import ctypes, json, mmap, os, sys
from shmlog import _native
from shmlog.format.layout import CB, NO_LSN, PT, STATE_RUNNING

shim, scratch, count, failing = ctypes.CDLL(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
block = mmap.mmap(-1, CB.HEADER_BYTES + PT.BYTES + 64)
control = _native.Control(block, 2048, 1)
for word, value in {CB.STATE: STATE_RUNNING, CB.DURABLE_LSN: 64, CB.INTENT_LSN: NO_LSN}.items():
    control.store(word, value)
word = ctypes.c_uint64.from_buffer(block, CB.DURABLE_LSN)
ctypes.c_void_p.in_dll(shim, "durable_word").value = ctypes.addressof(word)
ctypes.c_int64.in_dll(shim, "failing").value = failing
fds = tuple(os.open(f"{scratch}/{n}", os.O_RDWR | os.O_CREAT) for n in range(count))
error = control.sync(fds, b"mark", 512, 4096)
calls = (ctypes.c_int64 * 128).in_dll(shim, "calls")
number = ctypes.c_int64.in_dll(shim, "call_count").value
intent = control.load(CB.INTENT_LSN)
print(json.dumps({
    "error": error,
    "synced": [fds.index(calls[2 * n]) for n in range(number)],
    "durable then": [calls[2 * n + 1] for n in range(number)],
    "durable": control.load(CB.DURABLE_LSN),
    "intent": None if intent == NO_LSN else intent,
    "marks": [os.pread(fd, 4, 512) == b"mark" for fd in fds],
}))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("shim")
    (where / "shim.c").write_text(SHIM)
    library = where / "shim.so"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    subprocess.run([*compiler, "-shared", "-fPIC", str(where / "shim.c"), "-o", str(library)], check=True)
    return library


def _cycle(shim: Path, scratch: Path, count: int, failing: int = -1) -> dict[str, Any]:
    """A cycle from 64 to 4096 over so many files, whose n-th fdatasync fails."""
    command = [sys.executable, "-c", PROGRAM, str(shim), str(scratch), str(count), str(failing)]
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_segment_that_a_sync_covers_is_synced_before_anything_is_durable(
    shim: Path, tmp_path: Path
) -> None:
    found = _cycle(shim, tmp_path, 3)
    assert found == {
        "error": 0,
        "synced": [0, 1, 2],
        "durable then": [64, 64, 64],
        "durable": 4096,
        "intent": None,
        "marks": [True, True, True],
    }


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_sync_that_failed_is_never_tried_again_and_leaves_its_intent(
    shim: Path, tmp_path: Path, failing: int
) -> None:
    found = _cycle(shim, tmp_path, 3, failing)
    assert found["error"] == errno.EIO
    assert found["synced"] == list(range(failing + 1)), "nothing is synced after an error"
    assert (found["durable"], found["intent"]) == (64, 4096)
