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
from collections.abc import Callable, Iterator
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


def colour(text: str, number: int) -> str:
    """In that colour of ECMA-48, if standard output is a terminal and NO_COLOR is not set."""
    shown = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[{number}m{text}\x1b[0m" if shown and os.environ.get("TERM") != "dumb" else text


@contextlib.contextmanager
def progress_shown(chosen: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """What a tool may call with (bytes done, bytes in all): a terminal on stderr is shown
    it on one line, which is wiped at the end."""
    show = sys.stderr is not None and sys.stderr.isatty() and not chosen.json

    def progress(done: int, whole: int) -> None:
        if show:
            text = f"\r{done / max(1, whole):6.1%} of {whole / 2**20:.0f} MiB"
            print(text, end="", file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        if show:
            print("\r" + " " * 40 + "\r", end="", file=sys.stderr)


def say(chosen: argparse.Namespace, facts: dict[str, Any] | list[dict[str, Any]], text: str) -> None:
    line = json.dumps(facts, default=str) if chosen.json else text
    put(line.encode(errors="surrogateescape") + b"\n", flush=True)
