"""Upkeep: the verbs that make, serve, look at and check a log.

This module knows shmlog's tools and the flusher process it can become.  It may not know
more of a log.
"""

from __future__ import annotations

import argparse
import sys
import time

from shmlog.cli.arguments import check_place
from shmlog.cli.output import say


def create(chosen: argparse.Namespace) -> int:
    from shmlog.tools.create import create

    facts = create(chosen.directory, chosen.segment_bytes, chosen.window_bytes, chosen.mode)
    say(chosen, facts, f"created {facts['path']}")
    return 0


def flush(chosen: argparse.Namespace) -> int:
    from shmlog.session import sidecar

    if chosen.detach:
        sidecar.close_inherited()
    check_place(chosen.directory)
    status = sidecar.run(chosen.directory, chosen.sync_interval, chosen.mode, chosen.detach)
    if chosen.json:
        info(chosen)
    return status


def info(chosen: argparse.Namespace) -> int:
    from shmlog.tools import info as about

    check_place(chosen.directory)
    facts = about.describe(chosen.directory)
    say(chosen, facts, about.text(facts))
    return 0


def verify(chosen: argparse.Namespace) -> int:
    import shmlog

    check_place(chosen.directory)
    started = time.monotonic()
    show = sys.stderr.isatty() and not chosen.json

    def progress(done: int, whole: int) -> None:
        if show:
            print(
                f"\r{done / max(1, whole):6.1%} of {whole / 2**20:.0f} MiB",
                end="",
                file=sys.stderr,
                flush=True,
            )

    report = shmlog.verify(chosen.directory, progress)
    if show:
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    seconds = time.monotonic() - started
    text = (
        f"{report.path}: {report.records} records in [{report.begin_lsn}, {report.end_lsn}), {report.state}"
    )
    if report.ok:
        text = f"{text}: every frame is valid ({seconds:.2f} s)"
    else:
        place = "" if report.problem_lsn is None else f" at LSN {report.problem_lsn}"
        text = f"{text}: BAD{place}: {report.problem}"
    say(chosen, {**report.to_dict(), "seconds": seconds}, text)
    return 0 if report.ok else 1
