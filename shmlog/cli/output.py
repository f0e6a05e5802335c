"""Output: what is printed, and what happens if it cannot be.

This module knows standard output and standard error.  It may not know logs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from typing import Any


def report(error: Exception, as_json: bool) -> None:
    message = str(error)
    if isinstance(error, OSError) and error.strerror:  # without its number
        message = error.strerror + (f": {error.filename}" if error.filename else "")
    try:
        facts = {"error": type(error).__name__, "message": message}
        put(json.dumps(facts).encode() + b"\n" if as_json else b"", flush=True)
    except OSError:
        drop_output()
    with contextlib.suppress(OSError):
        print(f"shmlog: {message}", file=sys.stderr, flush=True)


def put(data: bytes | memoryview, flush: bool = False) -> None:
    """Write to standard output.  An OSError but for BrokenPipeError says that it was that."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    try:
        sys.stdout.buffer.write(data)
        if flush:
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"standard output: {error.strerror}") from error


def drop_output() -> None:
    """What could not be written must not be tried again when the interpreter ends."""
    if sys.stdout is not None:
        fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, sys.stdout.fileno())
        os.close(fd)


def say(chosen: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    line = json.dumps(facts, default=str) if chosen.json else text
    put(line.encode(errors="surrogateescape") + b"\n", flush=True)
